//! The request as it is once decoded and ready to share a batch.

use std::{ops::Range, sync::Arc};

use carpool_protocol::Tensor;

use crate::block::{elements, extent};

/// A request as the model takes it.
#[derive(Debug)]
pub struct Item {
    /// The client's identifier, given back with the answer.
    pub id: String,
    /// The number of rows that the request holds; at least one.
    pub rows: usize,
    /// The tensors for the model's inputs, one each in the model's order, of shape `[rows, …]`.
    pub inputs: Vec<Tensor>,
    /// The names of the tensors that the client wants back, in its order.
    pub outputs: Vec<String>,
    /// The sizes of the request's variable dimensions, in the model's order.
    pub lengths: Vec<i64>,
    /// The sizes of those variable dimensions that the manifest doesn't say how to pad: only items that agree in these
    /// share a batch.
    pub unpadded: Vec<i64>,
    /// The reading of each row's text; empty where the request holds tensors.
    pub texts: Vec<ReadText>,
}

/// The reading of a text, or of a pair of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadText {
    /// The number of tokens that the model gets, those that the tokenizer adds among them.
    pub tokens: usize,
    /// Whether there is more of the text than these tokens.
    pub truncated: bool,
}

impl Item {
    /// The size of the first variable dimension, which is what padded batches are grouped by; 0 where there is none.
    #[must_use]
    pub fn length(&self) -> i64 {
        self.lengths.first().copied().unwrap_or(0)
    }

    /// Whether the request may share a batch with another.
    #[must_use]
    pub fn joins(&self, other: &Self, padded: bool) -> bool {
        if padded {
            self.unpadded == other.unpadded
        } else {
            self.lengths == other.lengths
        }
    }
}

/// A slice of a request: the rows that are its share of one batch.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The request.
    pub item: Arc<Item>,
    /// The range of the request's rows.
    pub rows: Range<usize>,
}

impl Slice {
    /// The slice that is the whole of a request.
    #[must_use]
    pub fn whole(item: Arc<Item>) -> Self {
        let rows = 0..item.rows;
        Self { item, rows }
    }

    /// The shape of one row of an input.
    #[must_use]
    pub fn shape(&self, index: usize) -> &[i64] {
        &self.item.inputs[index].shape[1..]
    }

    /// The bytes of this slice's rows of an input.
    #[must_use]
    pub fn data(&self, index: usize) -> bytes::Bytes {
        let tensor = &self.item.inputs[index];
        let row = tensor.data.len() / self.item.rows;
        tensor
            .data
            .slice(self.rows.start * row..self.rows.end * row)
    }

    /// The bytes of this slice's rows of all inputs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let all: usize = self.item.inputs.iter().map(|input| input.data.len()).sum();
        all / self.item.rows * self.rows.len()
    }

    /// The elements of this slice's rows of all inputs, padding not counted.
    #[must_use]
    pub fn elements(&self) -> usize {
        let of_a_row = |tensor: &Tensor| elements(&tensor.shape[1..]);
        self.rows.len() * self.item.inputs.iter().map(of_a_row).sum::<usize>()
    }
}

/// The number of rows of some slices together.
#[must_use]
pub fn rows(slices: &[Slice]) -> usize {
    slices.iter().map(|slice| slice.rows.len()).sum()
}

/// The number of rows of a tensor that has the batch dimension first.
#[must_use]
pub fn tensor_rows(tensor: &Tensor) -> usize {
    tensor.shape.first().map_or(0, |rows| extent(*rows))
}
