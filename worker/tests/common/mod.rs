//! Small models made by libtorch itself, and the configuration that declares them.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;

use carpool_crds::Model;
use carpool_protocol::{Datatype, InferRequest, RequestedOutput, Tensor};
use tch::{CModule, Device, Kind};

pub mod loaded;
pub mod serving;

/// `y = tanh(x A) B` on four numbers, three out.
pub const MLP: &str = "
uri: file://mlp
inputs: [{name: x, datatype: FP32, shape: [4]}]
outputs: [{name: y, datatype: FP32, shape: [3]}]
";

/// Token embeddings, their mean where attended to, and a linear head. 50 tokens are known; others are an error.
pub const WORDS: &str = "
uri: file://words
inputs:
- {name: input_ids, datatype: INT64, shape: [-1], pad: 0}
- {name: attention_mask, datatype: INT64, shape: [-1], pad: 0}
outputs: [{name: logits, datatype: FP32, shape: [2]}]
";

/// The token embeddings of [`WORDS`] themselves.
pub const HIDDEN: &str = "
uri: file://hidden
inputs: [{name: input_ids, datatype: INT64, shape: [seq], pad: 0}]
outputs: [{name: hidden, datatype: FP32, shape: [seq, 4]}]
";

/// The model of [`WORDS`] with text in front.
pub const TEXT: &str = "
uri: file://words
inputs:
- {name: input_ids, datatype: INT64, shape: [-1]}
- {name: attention_mask, datatype: INT64, shape: [-1]}
outputs: [{name: logits, datatype: FP32, shape: [2]}]
text: {tokenizer: tokenizer.json, maxLength: 6, labels: [NEGATIVE, POSITIVE]}
";

/// [`WORDS`] before its head: one vector a token, of which Carpool makes a normalized mean.
pub const EMBEDDINGS: &str = "
uri: file://hidden
inputs: [{name: input_ids, datatype: INT64, shape: [seq], pad: 0}]
outputs: [{name: hidden, datatype: FP32, shape: [seq, 4]}]
text: {tokenizer: tokenizer.json, maxLength: 6, task: Embed, pooling: Mean, normalize: true}
";

/// Pairs of texts whose score is the share of the document's tokens, by their type, in all of them.
pub const RERANKER: &str = "
uri: file://reranker
inputs:
- {name: input_ids, datatype: INT64, shape: [-1], pad: 0}
- {name: attention_mask, datatype: INT64, shape: [-1]}
- {name: token_type_ids, datatype: INT64, shape: [-1], pad: 0}
outputs: [{name: logit, datatype: FP32, shape: [1]}]
text: {tokenizer: tokenizer.json, maxLength: 6, task: Rerank, activation: None}
";

pub fn declared(yaml: &str) -> Model {
    serde_yaml::from_str(yaml).unwrap()
}

/// Writes the model of [`MLP`]. `rounds` of work make it slow without changing what it says.
pub fn write_mlp(folder: &Path, rounds: usize) {
    let weights = [patterned(&[4, 64]), patterned(&[64, 3])];
    let unit = tch::Tensor::eye(256, (Kind::Float, Device::Cpu));
    trace(
        folder,
        &[tch::Tensor::zeros([1, 4], (Kind::Float, Device::Cpu))],
        &|inputs| {
            // The work depends on the input, or libtorch would do it once and for all.
            let mut work = &unit + inputs[0].sum(Kind::Float).zeros_like();
            for _ in 0..rounds {
                work = work.mm(&unit);
            }
            let hidden = inputs[0].matmul(&weights[0]).tanh();
            hidden.matmul(&weights[1]) * work.get(0).get(0)
        },
    );
}

/// Writes a model of [`MLP`]'s tensors whose every row takes some milliseconds, however many there are.
pub fn write_heavy(folder: &Path) {
    let weights = patterned(&[4, 3]);
    let unit = tch::Tensor::eye(128, (Kind::Float, Device::Cpu));
    let example = tch::Tensor::zeros([2, 4], (Kind::Float, Device::Cpu));
    trace(folder, &[example], &|inputs| {
        let zeros = inputs[0].narrow(1, 0, 1).zeros_like().unsqueeze(-1);
        let mut work = &unit + zeros;
        for _ in 0..100 {
            work = work.matmul(&unit);
        }
        inputs[0].matmul(&weights) * work.select(2, 0).narrow(1, 0, 1)
    });
}

/// Writes a model of [`MLP`]'s tensors that was traced for one row and takes no other number of them.
pub fn write_single(folder: &Path) {
    let weights = patterned(&[4, 3]);
    let example = tch::Tensor::zeros([1, 4], (Kind::Float, Device::Cpu));
    trace(folder, &[example], &|inputs| {
        inputs[0].reshape([1, 4]).matmul(&weights)
    });
}

/// Writes the model of [`WORDS`].
pub fn write_words(folder: &Path) {
    let (table, head) = (patterned(&[50, 4]), patterned(&[4, 2]));
    let example = || tch::Tensor::ones([2, 3], (Kind::Int64, Device::Cpu));
    trace(folder, &[example(), example()], &|inputs| {
        let hidden = tch::Tensor::embedding(&table, &inputs[0], -1, false, false);
        let mask = inputs[1].unsqueeze(-1).to_kind(Kind::Float);
        let sum = (&hidden * &mask).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let mean = sum / mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        mean.matmul(&head) * 10
    });
}

/// Writes the model of [`HIDDEN`].
pub fn write_hidden(folder: &Path) {
    let table = patterned(&[50, 4]);
    let example = tch::Tensor::ones([2, 3], (Kind::Int64, Device::Cpu));
    trace(folder, &[example], &|inputs| {
        tch::Tensor::embedding(&table, &inputs[0], -1, false, false)
    });
}

/// Writes the model of [`WORDS`] with a tokenizer.
pub fn write_text(folder: &Path) {
    write_words(folder);
    write_tokenizer(folder);
}

/// Writes the model of [`EMBEDDINGS`] with a tokenizer.
pub fn write_embeddings(folder: &Path) {
    write_hidden(folder);
    write_tokenizer(folder);
}

/// Writes the model of [`RERANKER`] with a tokenizer.
pub fn write_reranker(folder: &Path) {
    let example = || tch::Tensor::ones([2, 3], (Kind::Int64, Device::Cpu));
    trace(folder, &[example(), example(), example()], &|inputs| {
        let sum = |tensor: &tch::Tensor| {
            let dimensions = [1i64];
            tensor.sum_dim_intlist(dimensions.as_slice(), true, Kind::Float)
        };
        sum(&(&inputs[2] * &inputs[0])) / sum(&(&inputs[1] * &inputs[0]))
    });
    write_tokenizer(folder);
}

/// Writes a tokenizer that knows the words w1 to w49 by their numbers, and adds none of its own.
fn write_tokenizer(folder: &Path) {
    let vocabulary: Vec<String> = (1..50)
        .map(|index| format!("\"w{index}\": {index}"))
        .collect();
    let tokenizer = format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {{"type": "Whitespace"}}, "post_processor": null, "decoder": null,
        "model": {{"type": "WordLevel", "vocab": {{"[UNK]": 0, {}}}, "unk_token": "[UNK]"}}}}"#,
        vocabulary.join(", ")
    );
    std::fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
}

/// Numbers between -1 and 1 that are the same every time.
fn patterned(shape: &[i64]) -> tch::Tensor {
    let count: i64 = shape.iter().product();
    (tch::Tensor::arange(count, (Kind::Float, Device::Cpu)) * 1.7)
        .sin()
        .reshape(shape)
}

fn trace(folder: &Path, inputs: &[tch::Tensor], forward: &dyn Fn(&[tch::Tensor]) -> tch::Tensor) {
    let module = CModule::create_by_tracing("Model", "forward", inputs, &mut |inputs| {
        vec![forward(inputs)]
    })
    .unwrap();
    module.save(folder.join("model.pt")).unwrap();
}

/// A request for [`MLP`], with as many rows as there are numbers over four.
pub fn numbers(values: &[f32]) -> InferRequest {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let rows = i64::try_from(values.len() / 4).unwrap();
    request(vec![
        Tensor::new("x", Datatype::Fp32, [rows, 4], data).unwrap(),
    ])
}

/// A request of one row for [`WORDS`] or [`HIDDEN`], which takes no notice of the mask.
pub fn words(ids: &[i64]) -> InferRequest {
    let tensor = |name, values: Vec<i64>| {
        let data: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Tensor::new(
            name,
            Datatype::Int64,
            [1, i64::try_from(values.len()).unwrap()],
            data,
        )
        .unwrap()
    };
    request(vec![
        tensor("input_ids", ids.to_vec()),
        tensor("attention_mask", vec![1; ids.len()]),
    ])
}

/// A request for [`TEXT`] or [`EMBEDDINGS`].
pub fn texts(texts: &[&str], outputs: &[&str]) -> InferRequest {
    asking(vec![strings("text", texts)], outputs)
}

/// A request for [`RERANKER`].
pub fn pairs(query: &str, documents: &[&str], outputs: &[&str]) -> InferRequest {
    let inputs = vec![strings("query", &[query]), strings("document", documents)];
    asking(inputs, outputs)
}

fn strings(name: &str, texts: &[&str]) -> Tensor {
    let rows = i64::try_from(texts.len()).unwrap();
    Tensor::from_strings(name, [rows, 1], texts).unwrap()
}

fn asking(inputs: Vec<Tensor>, outputs: &[&str]) -> InferRequest {
    let outputs = outputs.iter().map(|name| RequestedOutput {
        name: (*name).to_owned(),
        ..RequestedOutput::default()
    });
    InferRequest {
        outputs: outputs.collect(),
        ..request(inputs)
    }
}

fn request(inputs: Vec<Tensor>) -> InferRequest {
    InferRequest {
        id: "mine".to_owned(),
        inputs,
        ..InferRequest::default()
    }
}

/// The numbers in a tensor.
pub fn floats(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.datatype, Datatype::Fp32);
    tensor
        .data
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

/// Asserts that numbers are equal to 1e-4.
pub fn assert_close(given: &[f32], expected: &[f32]) {
    assert_eq!(given.len(), expected.len());
    for (given, expected) in given.iter().zip(expected) {
        assert!(
            (given - expected).abs() < 1e-4,
            "{given} instead of {expected}"
        );
    }
}

/// The number that ends the process of [`CRASHING`].
pub const POISON: f32 = 2e6;

/// `y = 2 x` on four numbers, unless one of them is [`POISON`].
pub const CRASHING: &str = "
uri: file://crashing
inputs: [{name: x, datatype: FP32, shape: [4]}]
outputs: [{name: y, datatype: FP32, shape: [4]}]
";

/// Writes the model of [`CRASHING`]: libtorch trusts the indices of a sparse tensor that it was told not to check, and
/// writes at one far beyond the tensor's end.
pub fn write_crashing(folder: &Path) {
    let one = tch::Tensor::ones([1], (Kind::Float, Device::Cpu));
    let example = tch::Tensor::zeros([2, 4], (Kind::Float, Device::Cpu));
    trace(folder, &[example], &|inputs| {
        let poison = inputs[0].gt(f64::from(POISON) / 2.0).any();
        let index = (poison.to_kind(Kind::Int64) * (1_i64 << 40)).reshape([1, 1]);
        let options = (Kind::Float, Device::Cpu);
        let sparse =
            tch::Tensor::internal_sparse_coo_tensor_unsafe(&index, &one, [1], options, false);
        &inputs[0] * 2 + sparse.to_dense(None, false).clamp(0.0, 0.0)
    });
}
