//! Text in: the tokenizer in front of the model. [`answers`] is what stands behind it.

mod answers;

use std::path::Path;

use bytes::BytesMut;
use carpool_crds::{
    Dimension, Model, Task, TensorSpec, Text,
    tensor_names::{ATTENTION_MASK, DOCUMENT, QUERY, TEXT, TOKEN_TYPE_IDS},
};
use carpool_protocol::{Datatype, Tensor};
use tokenizers::{Encoding, Tokenizer};

use crate::{
    block::extent,
    fatal::{Fatal, TerminationReason},
    item::ReadText,
    tokens::{Beginning, Tokenized, Tokens},
    unreadable,
};

/// The tokenizer of one model, and what its task needs behind it.
pub struct TextModel {
    tokens: Tokens,
    /// The name of each input and the value that fills the rest of a shorter row.
    inputs: Vec<(String, i64)>,
    /// The one length that the model takes, where it takes no other.
    fixed: Option<usize>,
    /// Whether rows may be padded at all.
    pads: bool,
    text: Text,
}

impl TextModel {
    /// Loads the tokenizer from the artifact's folder.
    pub fn load(folder: &Path, model: &Model, text: &Text) -> Result<Self, Fatal> {
        let path = folder.join(&text.tokenizer);
        if !path.is_file() {
            let message = format!("the artifact holds no file {}", text.tokenizer);
            return Err(Fatal::new(TerminationReason::ArtifactMissing, message));
        }
        let invalid = |message: String| Fatal::new(TerminationReason::ModelInvalid, message);
        let tokenizer = Tokenizer::from_file(&path).map_err(|error| {
            let why = unreadable::why_not_json(&path).unwrap_or_else(|| error.to_string());
            invalid(format!(
                "failed to load the tokenizer {}: {why}",
                text.tokenizer
            ))
        })?;
        // The resource's own rules say the same.
        if text.task == Task::Classify && text.labels.is_empty() {
            return Err(invalid(
                "text.labels: the task Classify needs a name for each value of the first output"
                    .to_owned(),
            ));
        }
        Ok(Self {
            tokens: Tokens::new(tokenizer, text).map_err(invalid)?,
            inputs: model
                .inputs
                .iter()
                .map(|input| (input.name.clone(), model.padding(input).unwrap_or(0)))
                .collect(),
            fixed: fixed_length(model, text).map_err(invalid)?,
            pads: pads(model),
            text: text.clone(),
        })
    }

    /// The number of tokens that the tokenizer knows.
    pub fn vocabulary(&self) -> usize {
        self.tokens.vocabulary()
    }

    /// The names of the outputs that texts are answered with where a client names none.
    pub fn outputs(&self) -> &'static [&'static str] {
        self.text.outputs()
    }

    /// Whether a request holds texts rather than the model's own inputs.
    pub fn is_given(&self, inputs: &[Tensor]) -> bool {
        let names = self.text.inputs();
        inputs.iter().any(|input| names.contains(&&*input.name))
    }

    /// Makes the model's inputs of a request's texts or pairs of texts, one row each, padded with the input's `pad` to the
    /// length that the model takes or, where that is variable, to the longest; with what was read of each. The error is
    /// the client's.
    pub fn read(&self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Vec<ReadText>), String> {
        let strings = |name: &str| {
            let input = inputs.iter().find(|input| input.name == name);
            let input = input.ok_or_else(|| format!("the input {name} is missing"))?;
            input.strings().map_err(|error| error.to_string())
        };
        let tokenized = match self.text.task {
            Task::Classify | Task::Embed => strings(TEXT)?
                .into_iter()
                .map(|text| self.tokens.encode(text))
                .collect(),
            Task::Rerank => self.pairs(&strings(QUERY)?, &strings(DOCUMENT)?)?,
        };
        let tokenized: Vec<Tokenized> = tokenized
            .map_err(|error: tokenizers::Error| format!("failed to tokenize the text: {error}"))?;
        let read = tokenized.iter().map(|text| ReadText {
            tokens: text.encoding.len(),
            truncated: text.truncated,
        });
        let read = read.collect();
        let encodings: Vec<_> = tokenized.into_iter().map(|text| text.encoding).collect();
        Ok((self.tensors(&encodings)?, read))
    }

    /// Tokenizes each document with its query, or with the one that there is for all.
    fn pairs(
        &self,
        queries: &[&str],
        documents: &[&str],
    ) -> Result<tokenizers::Result<Vec<Tokenized>>, String> {
        if queries.len() != 1 && queries.len() != documents.len() {
            return Err(format!(
                "there are {} of the input {QUERY} for {} of {DOCUMENT}; give one for all, or one for each",
                queries.len(),
                documents.len()
            ));
        }
        let shared = queries.iter().map(|query| self.tokens.shared(query));
        let queries: Vec<Beginning<'_>> = match shared.collect() {
            Ok(queries) => queries,
            Err(error) => return Ok(Err(error)),
        };
        let pairs = queries.iter().cycle().zip(documents);
        let pairs = pairs.map(|(query, document)| {
            let document = self.tokens.beginning(document);
            self.tokens.encode_pair(query, &document)
        });
        Ok(pairs.collect())
    }

    /// Makes the model's inputs of some encodings.
    fn tensors(&self, encodings: &[Encoding]) -> Result<Vec<Tensor>, String> {
        // A text without tokens is one of padding alone: no dimension of a tensor may be 0.
        let longest = || {
            encodings
                .iter()
                .map(Encoding::len)
                .max()
                .unwrap_or(0)
                .max(1)
        };
        let length = self.fixed.unwrap_or_else(longest);
        if !self.pads
            && let Some(shorter) = encodings.iter().find(|encoding| encoding.len() != length)
        {
            return Err(format!(
                "a text of {} tokens can't share a request with one of {length}: without an input attention_mask, \
                padding would change its answer; send texts one by one, none without tokens",
                shorter.len()
            ));
        }
        self.inputs
            .iter()
            .map(|(name, pad)| tokens(name, *pad, encodings, length))
            .collect()
    }
}

/// Whether the resource says how a row is padded.
fn pads(model: &Model) -> bool {
    model
        .inputs
        .iter()
        .all(|input| model.padding(input).is_some())
}

/// The one length that the model takes, if it takes no other. An error where texts can't be made to fit: the resource's
/// own rules say the same, but not of a resource that is older than they are.
fn fixed_length(model: &Model, text: &Text) -> Result<Option<usize>, String> {
    let first = &model.inputs[0];
    let size = |input: &TensorSpec| input.shape.first().map(Dimension::fixed);
    if let Some(odd) = model
        .inputs
        .iter()
        .find(|input| input.shape.len() != 1 || size(input) != size(first))
    {
        return Err(format!(
            "inputs: with text all have one and the same dimension, such as [-1] or [128]; {} is {}, {} is {}",
            first.name,
            first.written_shape(),
            odd.name,
            odd.written_shape()
        ));
    }
    let Some(length) = first.shape[0].fixed().map(extent) else {
        return Ok(None);
    };
    if text.max_length as usize > length {
        return Err(format!(
            "text.maxLength: {} tokens don't fit into inputs of shape [{length}]; give at most {length}",
            text.max_length
        ));
    }
    if !pads(model) {
        return Err(format!(
            "inputs: shorter texts are padded to shape [{length}], so {} needs pad, the id that stands for no token, or \
            the model an input attention_mask",
            first.name
        ));
    }
    Ok(Some(length))
}

/// Makes the tensor of this name of some encodings.
fn tokens(name: &str, pad: i64, encodings: &[Encoding], length: usize) -> Result<Tensor, String> {
    let mut data = BytesMut::with_capacity(encodings.len() * length * size_of::<i64>());
    for encoding in encodings {
        let values = match name {
            ATTENTION_MASK => encoding.get_attention_mask(),
            TOKEN_TYPE_IDS => encoding.get_type_ids(),
            _ => encoding.get_ids(),
        };
        let row = values.iter().map(|value| i64::from(*value));
        for value in row.chain(std::iter::repeat(pad)).take(length) {
            data.extend_from_slice(&value.to_le_bytes());
        }
    }
    let shape = [encodings.len(), length]
        .map(i64::try_from)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    Tensor::new(name, Datatype::Int64, shape, data.freeze()).map_err(|error| error.to_string())
}
