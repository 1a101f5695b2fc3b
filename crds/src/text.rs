//! `spec.model.text`: the tokenizer in front of a model, and what stands behind it.

use std::fmt;

#[cfg(feature = "kube")]
use kube::KubeSchema;
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    defaults,
    tensor_names::{DOCUMENT, EMBEDDING, LABEL, QUERY, SCORE, TEXT},
};

/// The tokenizer in front of a model that takes text, and what its task needs behind it.
// A field that came after the first release is left out of the JSON where it has its default: revisions are its hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(
    validation = (
        "has(self.labels) || (has(self.task) && self.task != 'Classify')",
        "labels: the task Classify needs a name for each value of the first output"
    ),
    validation = (
        "!has(self.labels) || !has(self.task) || self.task == 'Classify'",
        "labels: are for the task Classify alone"
    ),
    validation = (
        "!has(self.pooling) || self.pooling == 'None' || (has(self.task) && self.task == 'Embed')",
        "pooling: is for the task Embed alone"
    ),
    validation = (
        "!has(self.normalize) || !self.normalize || (has(self.task) && self.task == 'Embed')",
        "normalize: is for the task Embed alone"
    ),
    validation = (
        "!has(self.activation) || self.activation == 'Sigmoid' || (has(self.task) && self.task == 'Rerank')",
        "activation: is for the task Rerank alone"
    )
))]
pub struct Text {
    /// The Hugging Face `tokenizer.json`, a path within the artifact's folder.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 256)))]
    pub tokenizer: String,

    /// The number of tokens that texts are cut to, those that the tokenizer adds among them; with the task Rerank a query
    /// and a document together, of which the longer is cut first. For each token at most 256 bytes of a text are read, in
    /// all at least 16Ki. Where the inputs' shape is fixed, it must not be above that. Default 128.
    #[serde(default = "defaults::text_max_length")]
    #[cfg_attr(feature = "kube", schemars(range(min = 2, max = 8192)))]
    pub max_length: u32,

    /// A name for each value of the first output, in its order. The task Classify needs them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(min = 2, max = 1024), inner(length(min = 1, max = 128)))
    )]
    pub labels: Vec<String>,

    /// The work of the model. `Classify`: the most probable label of each text, the default. `Embed`: a vector for each
    /// text, also at `/v1/embeddings`. `Rerank`: a score for each document, read together with a query, also at
    /// `/rerank`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub task: Task,

    /// The way from one vector a token to the embedding of a text. `None`: the model gives the embedding itself, the
    /// default. `Mean`: the mean over its tokens. `Cls`: the vector of its first token.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pooling: Pooling,

    /// Whether embeddings are brought to length 1, so that their dot product is their cosine. Default false: they are as
    /// the model or the pooling makes them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub normalize: bool,

    /// The way from the model's output to a document's score. `Sigmoid`: a number between 0 and 1, the default. `None`:
    /// the output as it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub activation: Activation,
}

impl Text {
    /// The names of the inputs, all `BYTES` of one element a row, that clients may give in place of the model's own.
    #[must_use]
    pub fn inputs(&self) -> &'static [&'static str] {
        match self.task {
            Task::Classify | Task::Embed => &[TEXT],
            Task::Rerank => &[QUERY, DOCUMENT],
        }
    }

    /// The names of the outputs that texts are answered with where a client names none.
    #[must_use]
    pub fn outputs(&self) -> &'static [&'static str] {
        match self.task {
            Task::Classify => &[LABEL, SCORE],
            Task::Embed => &[EMBEDDING],
            Task::Rerank => &[SCORE],
        }
    }
}

/// The work of a model that takes text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum Task {
    /// The most probable label of each text.
    #[default]
    Classify,
    /// A vector for each text.
    Embed,
    /// A score for each document and query.
    Rerank,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classify => "Classify",
            Self::Embed => "Embed",
            Self::Rerank => "Rerank",
        })
    }
}

/// The way from one vector a token to the embedding of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum Pooling {
    /// The model gives the embedding itself.
    #[default]
    None,
    /// The mean over the tokens of a text.
    Mean,
    /// The vector of the first token.
    Cls,
}

/// The way from the model's output to a document's score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum Activation {
    /// The logistic function, which gives a number between 0 and 1.
    #[default]
    Sigmoid,
    /// The output as it is.
    None,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
