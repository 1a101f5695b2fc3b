//! `spec.model`: the artifact, and the tensors it takes and gives.

use std::{collections::BTreeMap, fmt};

#[cfg(feature = "kube")]
use kube::KubeSchema;
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Dimension, Text, shape::allows, tensor_names::ATTENTION_MASK};

/// The model: its artifact, and the tensors it takes and gives. A change makes a new revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(
    validation = ("self.inputs.all(t, self.inputs.exists_one(o, o.name == t.name))", "inputs: every name must be given once"),
    validation = ("self.outputs.all(t, self.outputs.exists_one(o, o.name == t.name))", "outputs: every name must be given once"),
    validation = (
        "self.outputs.all(t, !has(t.minimum) && !has(t.maximum))",
        "outputs: minimum and maximum are for inputs"
    ),
    validation = (
        "self.inputs.all(t, t.datatype != 'BOOL' || (!has(t.minimum) && !has(t.maximum)))",
        "inputs: a BOOL has no minimum or maximum"
    ),
    validation = (
        "!has(self.text) || self.inputs.all(t, t.name in ['input_ids', 'attention_mask', 'token_type_ids'] && t.datatype == 'INT64')",
        "inputs: with text they are what the tokenizer makes: input_ids, attention_mask and token_type_ids, all of datatype INT64"
    ),
    validation = (
        "!has(self.text) || self.inputs.exists(t, t.name == 'input_ids')",
        "inputs: with text there must be one named input_ids"
    ),
    validation = (
        "!has(self.text) || self.inputs.all(t, t.shape.size() == 1 && t.shape == self.inputs[0].shape)",
        "inputs: with text all have one and the same dimension: [-1], or the one length that the model takes, such as [128]"
    ),
    validation = (
        "!has(self.text) || self.inputs.all(t, t.name != 'attention_mask' || !has(t.pad) || t.pad == 0)",
        "inputs: with text the attention_mask is padded with 0, so its pad may only be 0"
    ),
    validation = (
        "!has(self.text) || !has(self.text.labels) || (self.outputs[0].datatype == 'FP32' && self.outputs[0].shape == [self.text.labels.size()])",
        "outputs: with text the first must hold one FP32 for each of text.labels"
    ),
    validation = (
        "!has(self.text) || !has(self.text.task) || self.text.task != 'Rerank' || (self.outputs[0].datatype == 'FP32' && self.outputs[0].shape == [1])",
        "outputs: with the task Rerank the first must hold the score, FP32 of shape [1]"
    ),
    validation = (
        "!has(self.text) || !has(self.text.task) || self.text.task != 'Embed' || (has(self.text.pooling) && self.text.pooling != 'None') || (self.outputs[0].datatype == 'FP32' && self.outputs[0].shape.size() == 1 && string(self.outputs[0].shape[0]).matches('^[0-9]+$'))",
        "outputs: with the task Embed the first must hold the embedding, FP32 of shape [384] or another size; pooling makes it of one vector a token"
    ),
    validation = (
        "!has(self.text) || !has(self.text.pooling) || self.text.pooling == 'None' || (self.outputs[0].datatype == 'FP32' && self.outputs[0].shape.size() == 2 && self.outputs[0].shape[0] != -1 && self.outputs[0].shape[0] == self.inputs[0].shape[0] && string(self.outputs[0].shape[1]).matches('^[0-9]+$'))",
        "outputs: with pooling the first must hold one vector a token, FP32 of shape [seq, 384] or another size, its first dimension that of the inputs by name, such as seq, or by size"
    ),
    validation = (
        "!has(self.text) || self.outputs.all(t, !(t.name in ['tokens', 'truncated']))",
        "outputs: with text the names tokens and truncated are taken: they tell how texts were read"
    )
))]
pub struct Model {
    /// The artifact's address: `pvc://CLAIM/PATH`, a folder or a file on a PersistentVolumeClaim of this namespace.
    /// `carpool local` takes `file://PATH`, absolute or relative to the manifest.
    #[cfg_attr(feature = "kube", schemars(length(max = 1024)))]
    #[cfg_attr(feature = "kube", x_kube(validation = (
        "self.matches('^(pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?|file://.+)$')",
        "uri: allowed are pvc://CLAIM/PATH and, for carpool local, file://PATH; other schemes are not built yet"
    )))]
    pub uri: String,

    /// Pins the artifact: the SHA-256 of the file or, for a folder, of its `sha256sum` lines sorted by
    /// path in the C locale, in lower-case hex: `find -L . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum |
    /// sha256sum`. A top-level `lost+found` does not count. Without it the artifact that a revision's first worker loads is
    /// the revision's, and a worker that finds another one there is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 64), regex(pattern = "^[0-9a-f]{64}$"))
    )]
    pub sha256: Option<String>,

    /// The artifact's format. `TorchScript`: `model.pt` in the folder, or the file itself.
    #[serde(default)]
    pub format: Format,

    /// The tensors the model takes, in the order of its arguments.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 16)))]
    pub inputs: Vec<TensorSpec>,

    /// The tensors the model gives, in the order of its results.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 16)))]
    pub outputs: Vec<TensorSpec>,

    /// Text in; labels, embeddings or scores out: a tokenizer in front of the model, and behind it what its task needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Text>,

    /// A request that the model takes, with which it is warmed up and proved: that it gives what is declared, and that its
    /// answers don't depend on who else is in a batch. Best of two rows or more that differ. Without one, made-up numbers are
    /// used, which not every model takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<Example>,
}

impl Model {
    /// The value that fills the rest of a shorter item of an input; `None` where the manifest gives none. A text's
    /// inputs are padded together, and padding is not attended to.
    #[must_use]
    pub fn padding(&self, input: &TensorSpec) -> Option<i64> {
        if self.text.is_none() {
            return input.pad;
        }
        let is_mask = |input: &TensorSpec| input.name == ATTENTION_MASK;
        let mut inputs = self.inputs.iter();
        let padded = inputs.any(|input| is_mask(input) || input.pad.is_some());
        let value = if is_mask(input) { None } else { input.pad };
        padded.then(|| value.unwrap_or(0))
    }

    /// The revision of this model with a queue of its own: ten hex digits of its hash. Each revision has its own jobs
    /// stream and workers.
    #[must_use]
    pub fn revision(&self) -> String {
        self.hash(&[])
    }

    /// The revision of this model with its queue in the Redis of this Secret.
    #[must_use]
    pub fn revision_at(&self, secret: &str) -> String {
        self.hash(&[b" at ", secret.as_bytes()])
    }

    fn hash(&self, place: &[&[u8]]) -> String {
        // Field order is the declaration's, so the same model always gives the same JSON.
        let mut hashed = serde_json::to_vec(self).unwrap_or_default();
        hashed.extend(place.concat());
        hex::encode(&Sha256::digest(&hashed)[..5])
    }
}

/// A request that the model takes, in the artifact or in the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "has(self.file) != has(self.request)",
    "example: either file or request"
)))]
pub struct Example {
    /// A file in the artifact's folder that holds the request as the body of an Open Inference Protocol `infer` call:
    /// `{"inputs": [{"name": …, "datatype": …, "shape": …, "data": …}]}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 256)))]
    pub file: Option<String>,

    /// The request itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(schema_with = "crate::spec::preserve_unknown")
    )]
    pub request: Option<BTreeMap<String, Value>>,
}

/// The format of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum Format {
    /// `torch.jit.save`.
    #[default]
    TorchScript,
}

/// A tensor that the model takes or gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.minimum) || !has(self.maximum) || self.minimum <= self.maximum",
    "minimum must not be above maximum"
)))]
pub struct TensorSpec {
    /// The tensor's name in requests and answers.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 128)))]
    pub name: String,

    /// The type of the tensor's elements, as the Open Inference Protocol names it.
    pub datatype: Datatype,

    /// The tensor's shape for one item, without the batch dimension. A dimension is a size; -1, which is variable; or a
    /// name such as `seq`, which is variable, too, and of one size wherever it stands in a request. An output's
    /// dimension that has an input dimension's name is as long as that, and is cut to it where the input was padded;
    /// one with a name that no input has is of a length that the inputs' shapes alone decide. An output's -1 may depend
    /// on anything, so it makes every row run alone.
    #[cfg_attr(feature = "kube", schemars(length(max = 8)))]
    #[cfg_attr(feature = "kube", x_kube(validation = (
        "self.all(d, d != 0)",
        "shape: a dimension is -1 (variable), a name such as seq, or a size of at least 1"
    )))]
    pub shape: Vec<Dimension>,

    /// The value that fills an input's variable dimensions where shorter and longer items share a batch. Without it
    /// only items of equal shape do; a model that takes text and has an `attention_mask` is padded with 0 in any case.
    // The schema has no default for it: GitOps tools see drift where list items are filled in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<i64>,

    /// The smallest value that an input's element may have; a request with a smaller one is answered 422. With
    /// `maximum` it keeps indices that a model does not have, such as ids beyond its vocabulary, from the device, which
    /// on a GPU they would break for everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,

    /// The largest value that an input's element may have; a request with a larger one is answered 422.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
}

impl TensorSpec {
    /// Whether a client may send an item of this shape: each variable dimension is at least 1.
    #[must_use]
    pub fn allows(&self, item: &[i64]) -> bool {
        allows(&self.shape, item)
    }

    /// Whether a model may give an item of this shape. Unlike in what a client sends, a variable dimension may be empty.
    #[must_use]
    pub fn allows_output(&self, item: &[i64]) -> bool {
        let is_allowed = |(dimension, size): (&Dimension, &i64)| {
            dimension.fixed().is_none_or(|fixed| fixed == *size)
        };
        self.shape.len() == item.len() && self.shape.iter().zip(item).all(is_allowed)
    }

    /// The shape of one item as the manifest writes it, such as `[seq, 2]`.
    #[must_use]
    pub fn written_shape(&self) -> String {
        let dimensions: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        format!("[{}]", dimensions.join(", "))
    }

    /// The shape of a batch as the Open Inference Protocol writes it: -1 for the rows, then the item's.
    #[must_use]
    pub fn protocol_shape(&self) -> Vec<i64> {
        std::iter::once(-1)
            .chain(self.shape.iter().map(Dimension::as_protocol))
            .collect()
    }
}

/// Element types that libtorch and the Open Inference Protocol share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
#[expect(missing_docs, reason = "the protocol's own names")]
pub enum Datatype {
    Bool,
    Uint8,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
        })
    }
}

#[cfg(feature = "protocol")]
impl From<Datatype> for carpool_protocol::Datatype {
    fn from(declared: Datatype) -> Self {
        match declared {
            Datatype::Bool => Self::Bool,
            Datatype::Uint8 => Self::Uint8,
            Datatype::Int8 => Self::Int8,
            Datatype::Int16 => Self::Int16,
            Datatype::Int32 => Self::Int32,
            Datatype::Int64 => Self::Int64,
            Datatype::Fp16 => Self::Fp16,
            Datatype::Bf16 => Self::Bf16,
            Datatype::Fp32 => Self::Fp32,
            Datatype::Fp64 => Self::Fp64,
        }
    }
}
