//! Slices side by side in one batch, padded to the longest, and the model's outputs cut apart again.

use bytes::{Bytes, BytesMut};
use carpool_crds::{Model, TensorSpec};
use carpool_protocol::Tensor;

use crate::{
    assemble::{datatype, element, fits, item_shape},
    block::{copy_common, elements, extent},
    item::Slice,
    sharing::axis,
    size::Size,
};

/// A batch as the model takes it.
pub struct Batch {
    /// One tensor for each of the model's inputs, in its order, of shape `[rows, …]`.
    pub inputs: Vec<Tensor>,
    /// Its size.
    pub size: Size,
}

impl Batch {
    /// Puts slices side by side. Dimensions in which they differ are padded to the longest, where the model says with what.
    pub fn stack(model: &Model, slices: &[Slice], size: Size) -> Result<Self, String> {
        let inputs = model.inputs.iter().zip(&size.row_shapes).enumerate();
        let inputs = inputs
            .map(|(index, (spec, longest))| {
                let padding = model.padding(spec);
                stack_input(spec, padding, index, size.rows, longest, slices)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { inputs, size })
    }

    /// Checks the model's outputs against what it declares and cuts out what belongs to each slice, in the slices'
    /// order, as it would be without padding.
    pub fn split(
        &self,
        model: &Model,
        slices: &[Slice],
        outputs: &[Tensor],
    ) -> Result<Vec<Vec<Tensor>>, String> {
        if outputs.len() != model.outputs.len() {
            return Err(format!(
                "the model gave {} outputs, {} are declared",
                outputs.len(),
                model.outputs.len()
            ));
        }
        let mut parts = vec![Vec::with_capacity(outputs.len()); slices.len()];
        for (spec, output) in model.outputs.iter().zip(outputs) {
            self.check(spec, output)?;
            let mut start = 0;
            for (slice, part) in slices.iter().zip(&mut parts) {
                let range = start..start + slice.rows.len();
                start = range.end;
                let shape = self.own_shape(model, spec, slice, &output.shape)?;
                let row = output.data.len() / self.size.rows;
                let data = output.data.slice(range.start * row..range.end * row);
                part.push(cut(spec, &data, range.len(), &output.shape[1..], &shape)?);
            }
        }
        Ok(parts)
    }

    fn check(&self, spec: &TensorSpec, output: &Tensor) -> Result<(), String> {
        let rows = output.shape.first().map(|rows| extent(*rows));
        if output.datatype == datatype(spec.datatype)
            && rows == Some(self.size.rows)
            && fits(spec, &output.shape)
        {
            return Ok(());
        }
        Err(format!(
            "the output {} is {} of shape {:?} for {} rows, declared is {} of shape {} for each",
            spec.name,
            output.datatype,
            output.shape,
            self.size.rows,
            spec.datatype,
            item_shape(spec)
        ))
    }

    /// The shape of a row of an output as the slice would have got it alone: a dimension with the name of an input's is as
    /// long as the slice's own, any other as long as the model made it.
    ///
    /// An error where the model made it of another length than it declares, or made a length that nothing says how to cut
    /// from rows that were padded.
    fn own_shape(
        &self,
        model: &Model,
        spec: &TensorSpec,
        slice: &Slice,
        shape: &[i64],
    ) -> Result<Vec<i64>, String> {
        let is_padded = || {
            let mut rows = self.size.row_shapes.iter().enumerate();
            rows.any(|(index, padded)| slice.shape(index) != padded)
        };
        spec.shape
            .iter()
            .zip(&shape[1..])
            .map(|(dimension, size)| {
                let followed = dimension.name().and_then(|name| axis(model, name));
                let Some((input, axis)) = followed else {
                    if dimension.fixed().is_none() && is_padded() {
                        return Err(format!(
                            "the output {} has a dimension {dimension}, off which padding can't be cut",
                            spec.name
                        ));
                    }
                    return Ok(*size);
                };
                let padded = self.size.row_shapes[input][axis];
                if padded != *size {
                    return Err(format!(
                        "the output {} is of shape {shape:?}, in which {dimension} is {size}; in the inputs it is {padded}",
                        spec.name
                    ));
                }
                Ok(slice.shape(input)[axis])
            })
            .collect()
    }
}

fn stack_input(
    spec: &TensorSpec,
    padding: Option<i64>,
    index: usize,
    rows: usize,
    longest: &[i64],
    slices: &[Slice],
) -> Result<Tensor, String> {
    let kind = datatype(spec.datatype);
    let shape = with_rows(rows, longest)?;
    let data = if let [slice] = slices {
        slice.data(index)
    } else {
        let equal = || slices.iter().all(|slice| slice.shape(index) == longest);
        if padding.is_none() && !equal() {
            return Err(format!(
                "the input {} differs in shape, and nothing says how to pad it",
                spec.name
            ));
        }
        let pad = element(spec.datatype, padding.unwrap_or(0));
        let row = elements(longest) * pad.len();
        let mut data = filled(&pad, rows * elements(longest));
        let mut start = 0;
        for slice in slices {
            let own = slice.shape(index);
            let end = start + slice.rows.len() * row;
            let (from, to) = (
                with_rows(slice.rows.len(), own)?,
                with_rows(slice.rows.len(), longest)?,
            );
            copy_common(
                &slice.data(index),
                &from,
                &mut data[start..end],
                &to,
                pad.len(),
            );
            start = end;
        }
        data.freeze()
    };
    Tensor::new(&spec.name, kind, shape, data).map_err(|error| error.to_string())
}

/// An output of one slice: what is its own of rows that are as long as the batch's longest.
fn cut(
    spec: &TensorSpec,
    data: &Bytes,
    rows: usize,
    padded: &[i64],
    own: &[i64],
) -> Result<Tensor, String> {
    let shape = with_rows(rows, own)?;
    let data = if padded == own {
        data.clone()
    } else {
        let size = element(spec.datatype, 0).len();
        let mut cut = BytesMut::zeroed(elements(&shape) * size);
        copy_common(data, &with_rows(rows, padded)?, &mut cut, &shape, size);
        cut.freeze()
    };
    Tensor::new(&spec.name, datatype(spec.datatype), shape, data).map_err(|error| error.to_string())
}

/// The outputs of a request that ran in several slices, as if it had run in one.
pub fn concatenate(mut parts: Vec<Vec<Tensor>>) -> Result<Vec<Tensor>, String> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let outputs = parts.first().map_or(0, Vec::len);
    (0..outputs)
        .map(|index| {
            let first = &parts[0][index];
            if parts
                .iter()
                .any(|part| part[index].shape[1..] != first.shape[1..])
            {
                return Err(format!(
                    "the output {} is of one shape for some rows and of another for others; send them one by one",
                    first.name
                ));
            }
            let rows = parts.iter().map(|part| extent(part[index].shape[0])).sum();
            let mut data = BytesMut::new();
            for part in &parts {
                data.extend_from_slice(&part[index].data);
            }
            Tensor::new(
                &first.name,
                first.datatype,
                with_rows(rows, &first.shape[1..])?,
                data.freeze(),
            )
            .map_err(|error| error.to_string())
        })
        .collect()
}

fn with_rows(rows: usize, shape: &[i64]) -> Result<Vec<i64>, String> {
    let rows = i64::try_from(rows).map_err(|error| error.to_string())?;
    Ok(std::iter::once(rows).chain(shape.iter().copied()).collect())
}

fn filled(element: &[u8], count: usize) -> BytesMut {
    if element.iter().all(|byte| *byte == 0) {
        // Zeroed pages come from the system as they are.
        BytesMut::zeroed(element.len() * count)
    } else {
        element.repeat(count).as_slice().into()
    }
}

#[cfg(test)]
mod tests;
