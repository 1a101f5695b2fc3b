//! Slices side by side in one batch, padded to the longest, and the model's outputs cut apart again.

use bytes::BytesMut;
use carpool_crds::{Model, TensorSpec};
use carpool_protocol::Tensor;

use crate::{
    assemble::element,
    block::{copy_common, elements, extent},
    item::{Slice, tensor_rows},
    sharing::axis,
    size::Size,
};

/// A batch as the model takes it.
pub struct Batch {
    /// The tensors for the model's inputs, one each in its order, of shape `[rows, …]`.
    pub inputs: Vec<Tensor>,
    /// The size of the batch.
    pub size: Size,
}

impl Batch {
    /// Puts slices side by side. Dimensions in which they differ are padded to the longest, where the manifest says
    /// with what.
    pub fn stack(model: &Model, slices: &[Slice], size: Size) -> Result<Self, String> {
        let inputs = (0..model.inputs.len())
            .map(|index| stack_input(model, index, &size, slices))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { inputs, size })
    }
}

/// Checks the model's outputs against what the manifest declares and finds each slice's part of them, in the slices'
/// order. Nothing is copied yet.
pub fn split(
    size: &Size,
    model: &Model,
    slices: &[Slice],
    outputs: &[Tensor],
) -> Result<Vec<Vec<Part>>, String> {
    if outputs.len() != model.outputs.len() {
        return Err(format!(
            "the model gave {} outputs, {} are declared",
            outputs.len(),
            model.outputs.len()
        ));
    }
    let mut parts = vec![Vec::with_capacity(outputs.len()); slices.len()];
    for (spec, output) in model.outputs.iter().zip(outputs) {
        check(size, spec, output)?;
        let mut start = 0;
        for (slice, part) in slices.iter().zip(&mut parts) {
            let range = start..start + slice.rows.len();
            start = range.end;
            let shape = own_shape(size, model, spec, slice, &output.shape)?;
            let row = output.data.len() / size.rows;
            let data = output.data.slice(range.start * row..range.end * row);
            let padded = with_rows(range.len(), &output.shape[1..])?;
            let tensor = Tensor::new(&spec.name, output.datatype, padded, data)
                .map_err(|error| error.to_string())?;
            part.push(Part { tensor, row: shape });
        }
    }
    Ok(parts)
}

fn check(size: &Size, spec: &TensorSpec, output: &Tensor) -> Result<(), String> {
    let fits = output
        .shape
        .split_first()
        .is_some_and(|(rows, item)| extent(*rows) == size.rows && spec.allows_output(item));
    if fits && output.datatype == spec.datatype.into() {
        return Ok(());
    }
    Err(format!(
        "the output {} is {} of shape {:?} for {} rows, declared is {} of shape {} for each",
        spec.name,
        output.datatype,
        output.shape,
        size.rows,
        spec.datatype,
        spec.written_shape()
    ))
}

/// The shape of a row of an output as the slice would have got it alone: a dimension with the name of an input's is as
/// long as the slice's own, any other as long as the model made it.
///
/// An error where the model made it of another length than it declares, or made a length that nothing says how to cut
/// from rows that were padded.
fn own_shape(
    size: &Size,
    model: &Model,
    spec: &TensorSpec,
    slice: &Slice,
    shape: &[i64],
) -> Result<Vec<i64>, String> {
    let is_padded = || {
        let mut rows = size.row_shapes.iter().enumerate();
        rows.any(|(index, padded)| slice.shape(index) != padded)
    };
    spec.shape
            .iter()
            .zip(&shape[1..])
            .map(|(dimension, made)| {
                let followed = dimension.name().and_then(|name| axis(model, name));
                let Some((input, axis)) = followed else {
                    if dimension.fixed().is_none() && is_padded() {
                        return Err(format!(
                            "the output {} has a dimension {dimension}, off which padding can't be cut",
                            spec.name
                        ));
                    }
                    return Ok(*made);
                };
                let padded = size.row_shapes[input][axis];
                if padded != *made {
                    return Err(format!(
                        "the output {} is of shape {shape:?}, in which {dimension} is {made}; in the inputs it is {padded}",
                        spec.name
                    ));
                }
                Ok(slice.shape(input)[axis])
            })
            .collect()
}

fn stack_input(
    model: &Model,
    index: usize,
    size: &Size,
    slices: &[Slice],
) -> Result<Tensor, String> {
    let (spec, longest) = (&model.inputs[index], &size.row_shapes[index][..]);
    let padding = model.padding(spec);
    let shape = with_rows(size.rows, longest)?;
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
        if equal() {
            // Rows of equal shape are the batch as they stand side by side: nothing is to be filled first.
            let mut data =
                BytesMut::with_capacity(slices.iter().map(|slice| slice.data(index).len()).sum());
            for slice in slices {
                data.extend_from_slice(&slice.data(index));
            }
            return Tensor::new(&spec.name, spec.datatype.into(), shape, data)
                .map_err(|error| error.to_string());
        }
        let pad = element(spec.datatype, padding.unwrap_or(0));
        let row = elements(longest) * pad.len();
        let mut data = filled(&pad, size.rows * elements(longest));
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
    Tensor::new(&spec.name, spec.datatype.into(), shape, data).map_err(|error| error.to_string())
}

/// The part of an output that belongs to one slice, with the padding that it may have.
#[derive(Debug, Clone)]
pub struct Part {
    tensor: Tensor,
    /// The shape of one of the part's rows without padding.
    row: Vec<i64>,
}

impl Part {
    /// Cuts padding off. Copies where there is some.
    pub fn cut(self) -> Result<Tensor, String> {
        let Self { tensor, row } = self;
        if tensor.shape[1..] == row {
            return Ok(tensor);
        }
        let shape = with_rows(tensor_rows(&tensor), &row)?;
        let size = tensor.data.len() / elements(&tensor.shape).max(1);
        let mut data = BytesMut::zeroed(elements(&shape) * size);
        copy_common(&tensor.data, &tensor.shape, &mut data, &shape, size);
        Tensor::new(&tensor.name, tensor.datatype, shape, data).map_err(|error| error.to_string())
    }
}

/// Makes a part that has no padding.
impl From<Tensor> for Part {
    fn from(tensor: Tensor) -> Self {
        let row = tensor.shape.iter().skip(1).copied().collect();
        Self { tensor, row }
    }
}

/// Cuts padding off a slice's outputs.
pub fn cut(parts: Vec<Part>) -> Result<Vec<Tensor>, String> {
    parts.into_iter().map(Part::cut).collect()
}

/// Joins the outputs of a request that ran in several slices, as if it had run in one.
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
