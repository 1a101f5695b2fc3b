//! The size of a batch, known before any of it is made.

use carpool_crds::Model;

use crate::{
    block::extent,
    item::{Slice, rows},
};

/// The size of a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Size {
    /// The number of rows.
    pub rows: usize,
    /// The shape of a row of each of the model's inputs: in each dimension that of the longest.
    pub row_shapes: Vec<Vec<i64>>,
    /// The number of elements of all inputs, padding included.
    pub elements: usize,
    /// The number of elements of all inputs that are padding.
    pub padding: usize,
}

impl Size {
    /// The size of these slices side by side; `None` where it is more than can be counted. Padding multiplies: of a few
    /// requests the longest in one dimension and the longest in another are, side by side, as large as their product.
    #[must_use]
    pub fn of(model: &Model, slices: &[Slice]) -> Option<Self> {
        let rows = rows(slices);
        let inputs = model.inputs.iter().enumerate();
        let row_shapes: Vec<Vec<i64>> = inputs
            .map(|(index, spec)| longest(spec.shape.len(), index, slices))
            .collect();
        let elements = row_shapes.iter().try_fold(0, |sum: usize, row| {
            let mut sizes = row.iter().map(|size| extent(*size));
            sum.checked_add(sizes.try_fold(rows, usize::checked_mul)?)
        })?;
        let real: usize = slices.iter().map(Slice::elements).sum();
        Some(Self {
            rows,
            row_shapes,
            elements,
            padding: elements.saturating_sub(real),
        })
    }
}

fn longest(dimensions: usize, index: usize, slices: &[Slice]) -> Vec<i64> {
    let mut longest = vec![0; dimensions];
    for slice in slices {
        for (longest, size) in longest.iter_mut().zip(slice.shape(index)) {
            *longest = (*longest).max(*size);
        }
    }
    longest
}
