//! The way from a model's outputs to what its task says of texts: labels, embeddings or scores.

use bytes::Bytes;
use carpool_crds::{
    Activation, Pooling, Task,
    tensor_names::{ATTENTION_MASK, EMBEDDING, LABEL, SCORE, TOKENS, TRUNCATED},
};
use carpool_protocol::{Datatype, Tensor};

use super::TextModel;
use crate::{
    block::extent,
    item::{Item, tensor_rows},
};

impl TextModel {
    /// Makes those of the outputs that a request asks for which the model itself doesn't give. An error where the model
    /// says nothing of a text, as it may of one without tokens.
    pub fn answers(&self, item: &Item, outputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let asks = |name: &str| item.outputs.iter().any(|output| output == name);
        let mut made = Vec::new();
        if self.outputs().iter().any(|name| asks(name)) {
            let first = &outputs[0];
            match self.text.task {
                Task::Classify => made.extend(self.classify(first)?),
                Task::Embed => made.push(self.embed(item, first)?),
                Task::Rerank => made.push(self.score(first)?),
            }
        }
        if !item.texts.is_empty() {
            let tokens = item.texts.iter().map(|text| text.tokens as u64);
            let tokens: Vec<u8> = tokens.flat_map(u64::to_le_bytes).collect();
            let truncated = item.texts.iter().map(|text| u8::from(text.truncated));
            let truncated: Vec<u8> = truncated.collect();
            for (name, datatype, data) in [
                (TOKENS, Datatype::Int64, tokens),
                (TRUNCATED, Datatype::Bool, truncated),
            ] {
                if asks(name) {
                    made.push(one_a_row(name, datatype, item.rows, data)?);
                }
            }
        }
        Ok(made)
    }

    /// Makes labels and scores of some rows of logits: softmax over each row, and the name of its largest value.
    fn classify(&self, logits: &Tensor) -> Result<[Tensor; 2], String> {
        let labels = &self.text.labels;
        let best: Vec<(usize, f32)> = floats(logits)
            .chunks_exact(labels.len())
            .map(most_probable)
            .collect();
        let scores = best.iter().map(|(_, score)| *score);
        let scores = finite(scores, "score")?;
        let labels = best.iter().map(|(index, _)| labels[*index].as_str());
        let shape = [best.len(), 1].map(size);
        let labels =
            Tensor::from_strings(LABEL, shape, labels).map_err(|error| error.to_string())?;
        let scores = one_a_row(SCORE, Datatype::Fp32, best.len(), scores)?;
        Ok([labels, scores])
    }

    /// Makes embeddings of the model's own or of one vector a token.
    fn embed(&self, item: &Item, output: &Tensor) -> Result<Tensor, String> {
        let width = output.shape.last().map_or(1, |width| extent(*width)).max(1);
        let mut vectors: Vec<f32> = match self.text.pooling {
            Pooling::None => floats(output),
            pooling => {
                let vectors = floats(output);
                let row = (vectors.len() / item.rows).max(1);
                let rows = vectors.chunks_exact(row).enumerate();
                rows.flat_map(|(index, row)| {
                    let tokens = row.chunks_exact(width).enumerate();
                    let real = tokens.filter(|(token, _)| self.is_real(item, index, *token));
                    let real = real.map(|(_, vector)| vector);
                    match pooling {
                        Pooling::Mean => mean(real, width),
                        _ => mean(real.take(1), width),
                    }
                })
                .collect()
            }
        };
        if self.text.normalize {
            vectors.chunks_exact_mut(width).for_each(normalize);
        }
        let data = finite(vectors.into_iter(), "embedding")?;
        let shape = [item.rows, width].map(size);
        Tensor::new(EMBEDDING, Datatype::Fp32, shape, data).map_err(|error| error.to_string())
    }

    /// Makes scores of the model's single numbers.
    fn score(&self, output: &Tensor) -> Result<Tensor, String> {
        let activate = |logit: f32| match self.text.activation {
            Activation::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
            Activation::None => logit,
        };
        let scores = finite(floats(output).into_iter().map(activate), "score")?;
        one_a_row(SCORE, Datatype::Fp32, tensor_rows(output), scores)
    }

    /// Whether a token of a row is no padding: by the mask, where the model has one.
    fn is_real(&self, item: &Item, row: usize, token: usize) -> bool {
        let mask = self
            .inputs
            .iter()
            .position(|(name, _)| name == ATTENTION_MASK);
        match (mask, item.texts.get(row)) {
            (Some(mask), _) => {
                let mask = &item.inputs[mask];
                let length = mask.shape.get(1).map_or(0, |length| extent(*length));
                let (elements, _) = mask.data.as_chunks::<{ size_of::<i64>() }>();
                let element = elements.get(row * length + token);
                element.is_some_and(|element| *element != [0; size_of::<i64>()])
            }
            (None, Some(text)) => token < text.tokens,
            (None, None) => true,
        }
    }
}

/// Makes an output of one element a row.
fn one_a_row(
    name: &str,
    datatype: Datatype,
    rows: usize,
    data: impl Into<Bytes>,
) -> Result<Tensor, String> {
    Tensor::new(name, datatype, [rows, 1].map(size), data).map_err(|error| error.to_string())
}

/// The size of a dimension, which memory holds and so 63 bits do.
fn size(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let (elements, _) = tensor.data.as_chunks();
    elements
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

/// Writes numbers, if they are all finite.
fn finite(values: impl Iterator<Item = f32>, what: &str) -> Result<Vec<u8>, String> {
    let mut data = Vec::with_capacity(values.size_hint().0 * size_of::<f32>());
    for value in values {
        if !value.is_finite() {
            return Err(format!("the model gave no finite {what}"));
        }
        data.extend_from_slice(&value.to_le_bytes());
    }
    Ok(data)
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

/// The mean of some vectors; of none it is not a number. Summed in double precision, in which thousands add up exactly
/// enough.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounded to single precision"
)]
fn mean<'a>(vectors: impl Iterator<Item = &'a [f32]>, width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    let mut count = 0.0;
    for vector in vectors {
        for (sum, value) in sum.iter_mut().zip(vector) {
            *sum += f64::from(*value);
        }
        count += 1.0;
    }
    sum.into_iter()
        .map(|sum: f64| (sum / count) as f32)
        .collect()
}

/// Brings a vector to length 1; one of zeros stays as it is.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounded to single precision"
)]
fn normalize(vector: &mut [f32]) {
    let square = |value: &f32| f64::from(*value).powi(2);
    let length = vector.iter().map(square).sum::<f64>().sqrt();
    if length > 0.0 {
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
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

    #[test]
    fn a_vector_is_brought_to_length_one() {
        let mut vector = [3.0, -4.0];
        normalize(&mut vector);
        assert_eq!(vector.map(f32::to_bits), [0.6_f32, -0.8].map(f32::to_bits));
        let mut nothing = [0.0, 0.0];
        normalize(&mut nothing);
        assert_eq!(nothing.map(f32::to_bits), [0, 0]);
    }

    #[test]
    fn a_mean_of_nothing_is_no_number() {
        let vectors = [[1.0, 2.0], [3.0, 6.0]];
        assert_eq!(mean(vectors.iter().map(|v| &v[..]), 2), [2.0, 4.0]);
        assert!(mean(std::iter::empty(), 2)[0].is_nan());
        assert_eq!(
            finite([f32::NAN].into_iter(), "embedding").unwrap_err(),
            "the model gave no finite embedding"
        );
    }
}
