//! Golden revisions. A revision is the hash of `spec.model`: a new field with a default that is written out would give every
//! model there is another one, and roll all its workers. `make manifests` adds models that are new here, and changes none.

use std::{collections::BTreeMap, fs};

use crate::{BatchedModelSpec, Model};

/// Models that together have every field, each of them left out in others.
const MODELS: [&str; 10] = [
    "{uri: pvc://models/sentiment, inputs: [{name: x, datatype: FP32, shape: [4]}], outputs: [{name: y, datatype: FP32, shape: [2]}]}",
    "{uri: pvc://models/sentiment, inputs: [{name: ids, datatype: INT64, shape: [seq], pad: 0}], outputs: [{name: hidden, datatype: BF16, shape: [seq, -1, 128]}]}",
    "{uri: pvc://models/sentiment, sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, format: TorchScript,
      inputs: [{name: input_ids, datatype: INT64, shape: [-1]}, {name: attention_mask, datatype: INT64, shape: [-1]}],
      outputs: [{name: logits, datatype: FP32, shape: [2]}], text: {tokenizer: tokenizer.json, labels: [NEGATIVE, POSITIVE]}}",
    "{uri: pvc://models/sentiment, inputs: [{name: ids, datatype: INT64, shape: [-1], minimum: 0, maximum: 30521}],
      outputs: [{name: y, datatype: FP32, shape: []}], example: {file: example.json}}",
    "{uri: pvc://models, inputs: [{name: x, datatype: FP64, shape: [], minimum: -0.5, maximum: 1.5}],
      outputs: [{name: y, datatype: BOOL, shape: [1]}], example: {request: {inputs: [{name: x, data: [0.25, 1]}]}}}",
    "{uri: file://artifact, inputs: [{name: input_ids, datatype: INT64, shape: [64]}],
      outputs: [{name: logits, datatype: FP32, shape: [2]}], text: {tokenizer: t.json, maxLength: 64, labels: [A, B]}}",
    "{uri: pvc://models/all, inputs: [{name: a, datatype: UINT8, shape: [1]}, {name: b, datatype: INT8, shape: [1]},
      {name: c, datatype: INT16, shape: [1]}, {name: d, datatype: INT32, shape: [1], pad: -1}], outputs: [{name: y, datatype: FP16, shape: [1]}]}",
    "{uri: pvc://models/minilm, inputs: [{name: input_ids, datatype: INT64, shape: [seq]}], outputs: [{name: hidden, datatype: FP32,
      shape: [seq, 384]}], text: {tokenizer: tokenizer.json, task: Embed, pooling: Mean, normalize: true}}",
    "{uri: pvc://models/minilm, inputs: [{name: input_ids, datatype: INT64, shape: [-1]}], outputs: [{name: vector, datatype: FP32,
      shape: [384]}], text: {tokenizer: tokenizer.json, task: Embed}}",
    "{uri: pvc://models/reranker, inputs: [{name: input_ids, datatype: INT64, shape: [-1]}], outputs: [{name: logit, datatype: FP32,
      shape: [1]}], text: {tokenizer: tokenizer.json, task: Rerank, activation: None}}",
];

/// The first model with its queue in the Redis of the Secret `mine`.
const EXTERNAL: &str = "0f9c334df3";

#[test]
fn a_models_revision_is_what_it_was() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/golden.yaml");
    let read = || -> BTreeMap<String, String> {
        serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let mut golden = read();
    let mut found = golden.clone();
    for model in MODELS {
        let parsed: Model = serde_yaml::from_str(model).unwrap();
        found.insert(model.to_owned(), parsed.revision());
    }
    if std::env::var_os("CARPOOL_WRITE_GOLDEN").is_some() {
        for (model, revision) in &found {
            golden
                .entry(model.clone())
                .or_insert_with(|| revision.clone());
        }
        fs::write(path, serde_yaml::to_string(&golden).unwrap()).unwrap();
    }
    let golden = read();
    for (model, revision) in found {
        assert_eq!(
            golden.get(&model),
            Some(&revision),
            "{model} hashes to another revision than in {path}: this would roll the workers of every such model. Leave a \
             new field out of the JSON where it has its default; `make manifests` adds only models that are new"
        );
    }
}

#[test]
fn a_default_that_is_written_out_is_the_same_model() {
    let revision = |text: &str| {
        let model: Model = serde_yaml::from_str(&MODELS[2].replace("text: {", text)).unwrap();
        model.revision()
    };
    assert_eq!(
        revision("text: {task: Classify, pooling: None, normalize: false, activation: Sigmoid, "),
        revision("text: {")
    );
}

#[test]
fn a_queue_that_moves_is_a_revision_and_a_managed_one_is_the_models() {
    let revision = |redis: &str| {
        let spec = format!("{{model: {}, queue: {{redis: {redis}}}}}", MODELS[0]);
        serde_yaml::from_str::<BatchedModelSpec>(&spec)
            .unwrap()
            .revision()
    };
    for managed in [
        "{}",
        "{managed: {}}",
        "{managed: {resources: {limits: {memory: 2Gi}}}}",
    ] {
        assert_eq!(revision(managed), "e7d02d29f3", "{managed}");
    }
    let external = |secret: &str| revision(&format!("{{external: {{urlSecretName: {secret}}}}}"));
    assert_eq!(external("mine"), EXTERNAL);
    assert_ne!(external("mine"), external("yours"));
}
