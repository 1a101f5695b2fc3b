//! Golden revisions. A revision is the hash of `spec.model`: a new field with a default that is written out would give every
//! model there is another one, and roll all its workers. `make manifests` writes the file anew.

use std::{collections::BTreeMap, fs};

use crate::{BatchedModelSpec, Model};

const MODELS: [&str; 4] = [
    "{uri: pvc://models/sentiment, inputs: [{name: x, datatype: FP32, shape: [4]}], outputs: [{name: y, datatype: FP32, shape: [2]}]}",
    "{uri: pvc://models/sentiment, inputs: [{name: ids, datatype: INT64, shape: [seq], pad: 0}], outputs: [{name: hidden, datatype: BF16, shape: [seq, -1, 128]}]}",
    "{uri: pvc://models/sentiment, sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, format: TorchScript,
      inputs: [{name: input_ids, datatype: INT64, shape: [-1]}, {name: attention_mask, datatype: INT64, shape: [-1]}],
      outputs: [{name: logits, datatype: FP32, shape: [2]}], text: {tokenizer: tokenizer.json, labels: [NEGATIVE, POSITIVE]}}",
    "{uri: pvc://models/sentiment, inputs: [{name: ids, datatype: INT64, shape: [-1], minimum: 0, maximum: 30521}],
      outputs: [{name: y, datatype: FP32, shape: []}], example: {file: example.json}}",
];

/// The first model with its queue in the Redis of the Secret `mine`.
const EXTERNAL: &str = "0f9c334df3";

#[test]
fn a_models_revision_is_what_it_was() {
    let revisions: BTreeMap<&str, String> = MODELS
        .into_iter()
        .map(|model| {
            let parsed: Model = serde_yaml::from_str(model).unwrap();
            (model, parsed.revision())
        })
        .collect();
    let rendered = serde_yaml::to_string(&revisions).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/golden.yaml");
    if std::env::var_os("CARPOOL_WRITE_GOLDEN").is_some() {
        fs::write(path, &rendered).unwrap();
    }
    assert!(
        fs::read_to_string(path).unwrap_or_default() == rendered,
        "{path} is not what models hash to: this change rolls all workers; `make manifests` writes it anew"
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
