//! Text in, labels out: the tokenizer in front of the model, softmax and labels behind it.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use carpool_crds::{
    Dimension, Model, TensorSpec, Text,
    tensor_names::{ATTENTION_MASK, LABEL, SCORE, TOKEN_TYPE_IDS},
};
use carpool_protocol::{Datatype, Tensor};
use tokenizers::{Encoding, Tokenizer};

use crate::{
    block::extent,
    fatal::{Fatal, TerminationReason},
    tokens::Tokens,
    unreadable,
};

/// A tokenizer and the labels of one model.
pub struct TextModel {
    tokens: Tokens,
    /// The name of each input and the value that fills the rest of a shorter row.
    inputs: Vec<(String, i64)>,
    /// The one length that the model takes, where it takes no other.
    fixed: Option<usize>,
    /// Whether rows may be padded at all.
    pads: bool,
    labels: Vec<String>,
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
        Ok(Self {
            tokens: Tokens::new(tokenizer, text).map_err(invalid)?,
            inputs: model
                .inputs
                .iter()
                .map(|input| (input.name.clone(), model.padding(input).unwrap_or(0)))
                .collect(),
            fixed: fixed_length(model, text).map_err(invalid)?,
            pads: pads(model),
            labels: text.labels.clone(),
        })
    }

    /// The number of tokens that the tokenizer knows.
    pub fn vocabulary(&self) -> usize {
        self.tokens.vocabulary()
    }

    /// Makes the model's inputs of some texts, one row each, padded with the input's `pad` to the length that the model
    /// takes or, where that is variable, to the longest. The error is the client's.
    pub fn tokenize(&self, texts: &[&str]) -> Result<Vec<Tensor>, String> {
        let encodings = texts
            .iter()
            .map(|text| self.tokens.encode(text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("failed to tokenize the text: {error}"))?;
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
            .map(|(name, pad)| tokens(name, *pad, &encodings, length))
            .collect()
    }

    /// Makes labels and scores of some rows of logits: softmax over each row, and the name of its largest value. An
    /// error where a row has none, as a text without tokens may do to a model.
    pub fn classify(&self, logits: &Tensor) -> Result<[Tensor; 2], String> {
        let values: Vec<f32> = logits
            .data
            .chunks_exact(size_of::<f32>())
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        let best: Vec<(usize, f32)> = values
            .chunks_exact(self.labels.len())
            .map(most_probable)
            .collect();
        if best.iter().any(|(_, score)| !score.is_finite()) {
            return Err("the model gave no finite score".to_owned());
        }
        let rows = i64::try_from(best.len()).map_err(|error| error.to_string())?;
        let labels = best.iter().map(|(index, _)| self.labels[*index].as_str());
        let labels = Tensor::from_strings(LABEL, vec![rows, 1], labels)
            .map_err(|error| error.to_string())?;
        let scores: Bytes = best
            .iter()
            .flat_map(|(_, score)| score.to_le_bytes())
            .collect();
        let scores = Tensor::new(SCORE, Datatype::Fp32, vec![rows, 1], scores)
            .map_err(|error| error.to_string())?;
        Ok([labels, scores])
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

/// The index of the largest of some logits, and its probability.
fn most_probable(logits: &[f32]) -> (usize, f32) {
    let (index, largest) =
        logits
            .iter()
            .copied()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, this| {
                if this.1 > best.1 { this } else { best }
            });
    let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    (index, 1.0 / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_names_the_largest() {
        let (index, score) = most_probable(&[0.0, 2.0]);
        assert_eq!(index, 1);
        assert!((score - 0.880_797).abs() < 1e-6, "{score}");
        // The largest logit is subtracted first: without that the result would be infinity over infinity.
        assert_eq!(most_probable(&[1000.0, 0.0]), (0, 1.0));
    }
}
