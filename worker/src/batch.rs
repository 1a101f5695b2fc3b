//! Slices side by side in one batch, padded to the longest, and the model's outputs cut apart again.

use bytes::{Bytes, BytesMut};
use carpool_crds::{Model, TensorSpec};
use carpool_protocol::Tensor;

use crate::{
    assemble::{datatype, element, fits},
    block::{copy_common, elements, extent},
    item::Slice,
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
    /// Puts slices side by side. Dimensions in which they differ are padded to the longest with the input's `pad`.
    pub fn stack(model: &Model, slices: &[Slice], size: Size) -> Result<Self, String> {
        let inputs = model.inputs.iter().zip(&size.row_shapes).enumerate();
        let inputs = inputs
            .map(|(index, (spec, longest))| stack_input(spec, index, size.rows, longest, slices))
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
            "the output {} is {} of shape {:?} for {} rows, declared is {} of shape {:?} for each",
            spec.name, output.datatype, output.shape, self.size.rows, spec.datatype, spec.shape
        ))
    }

    /// The shape of a row of an output as the slice would have got it alone.
    ///
    /// An output's variable dimension is as long as the inputs' variable dimensions that it follows, known by their
    /// size in this batch. An error where the slice was padded and those are none, or of several lengths in the slice's
    /// own inputs: how much of the output is padding can't be told then, and the slice must run without.
    fn own_shape(
        &self,
        model: &Model,
        spec: &TensorSpec,
        slice: &Slice,
        shape: &[i64],
    ) -> Result<Vec<i64>, String> {
        let tensors = self.inputs.iter().zip(&slice.item.inputs);
        let lengths: Vec<(i64, i64)> = model
            .inputs
            .iter()
            .zip(tensors)
            .flat_map(|(spec, (padded, own))| {
                let sizes = padded.shape[1..].iter().zip(&own.shape[1..]);
                spec.shape.iter().zip(sizes)
            })
            .filter(|(declared, _)| **declared == -1)
            .map(|(_, (padded, own))| (*padded, *own))
            .collect();
        let is_padded = lengths.iter().any(|(padded, own)| padded != own);
        let own_length = |size: i64| {
            let mut own = lengths
                .iter()
                .filter(|(padded, _)| *padded == size)
                .map(|(_, own)| *own);
            let first = own.next()?;
            own.all(|other| other == first).then_some(first)
        };
        spec.shape
            .iter()
            .zip(&shape[1..])
            .map(|(declared, size)| {
                if *declared != -1 || !is_padded {
                    return Ok(*size);
                }
                own_length(*size).ok_or_else(|| {
                    format!(
                        "the output {} is of shape {shape:?}, in which padding can't be told from the rest",
                        spec.name
                    )
                })
            })
            .collect()
    }
}

fn stack_input(
    spec: &TensorSpec,
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
        let pad = element(spec.datatype, spec.pad.unwrap_or(0));
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
                    "the slices of the output {} differ in shape",
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
mod tests {
    use std::sync::Arc;

    use carpool_protocol::Datatype;

    use super::*;
    use crate::item::Item;

    fn spec(name: &str, shape: &[i64], pad: Option<i64>) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            datatype: carpool_crds::Datatype::Int16,
            shape: shape.to_vec(),
            pad,
        }
    }

    fn declared(inputs: Vec<TensorSpec>, output: &[i64]) -> Model {
        Model {
            uri: String::new(),
            sha256: None,
            format: carpool_crds::Format::TorchScript,
            inputs,
            outputs: vec![spec("y", output, None)],
            text: None,
        }
    }

    fn model(pad: Option<i64>) -> Model {
        declared(vec![spec("x", &[-1, 2], pad)], &[-1, 2])
    }

    fn tensor(shape: &[i64], values: &[i16]) -> Tensor {
        let data: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Tensor::new("x", Datatype::Int16, shape, data).unwrap()
    }

    fn slice(inputs: Vec<Tensor>, rows: std::ops::Range<usize>) -> Slice {
        let item = Item {
            id: String::new(),
            rows: extent(inputs[0].shape[0]),
            length: extent(inputs[0].shape[1]),
            inputs,
            outputs: Vec::new(),
        };
        Slice {
            item: Arc::new(item),
            rows,
        }
    }

    fn stack(model: &Model, slices: &[Slice]) -> Batch {
        let size = Size::of(model, slices).unwrap();
        Batch::stack(model, slices, size).unwrap()
    }

    /// The shapes that an output of one variable dimension is cut to for a batch of requests of one row, each given
    /// by the lengths of its inputs.
    fn cut_to<const N: usize>(requests: &[[i64; N]], output: i64) -> Result<Vec<Vec<i64>>, String> {
        let model = declared(vec![spec("x", &[-1], None); N], &[-1]);
        let zeros = |shape: [i64; 2]| tensor(&shape, &vec![0; elements(&shape)]);
        let slices: Vec<Slice> = requests
            .iter()
            .map(|lengths| slice(lengths.map(|length| zeros([1, length])).to_vec(), 0..1))
            .collect();
        let batch = stack(&model, &slices);
        let rows = i64::try_from(requests.len()).unwrap();
        let parts = batch.split(&model, &slices, &[zeros([rows, output])])?;
        Ok(parts
            .into_iter()
            .map(|part| part[0].shape.clone())
            .collect())
    }

    #[test]
    fn an_output_follows_the_inputs_of_its_length() {
        // The second of the inputs, which isn't the first that was padded.
        let shapes = cut_to(&[[3, 10], [6, 12]], 12).unwrap();
        assert_eq!(shapes, [[1, 10], [1, 12]]);
        // Two that are always of one length, as ids and mask are.
        let shapes = cut_to(&[[3, 3], [6, 6]], 6).unwrap();
        assert_eq!(shapes, [[1, 3], [1, 6]]);
    }

    #[test]
    fn an_output_that_may_follow_either_input_is_not_cut_by_chance() {
        let error = cut_to(&[[3, 10], [10, 4]], 10).unwrap_err();
        assert!(error.contains("output y"), "{error}");
    }

    #[test]
    fn an_output_of_a_length_of_its_own_stays_whole_where_nothing_was_padded() {
        assert!(cut_to(&[[6], [8]], 4).is_err());
        assert_eq!(cut_to(&[[8], [8]], 4).unwrap(), [[1, 4], [1, 4]]);
        assert_eq!(cut_to(&[[6]], 3).unwrap(), [[1, 3]]);
    }

    #[test]
    fn shorter_items_are_padded_and_cut_back() {
        let model = model(Some(-1));
        let slices = [
            slice(vec![tensor(&[2, 1, 2], &[1, 2, 3, 4])], 1..2),
            slice(vec![tensor(&[1, 2, 2], &[5, 6, 7, 8])], 0..1),
        ];
        let batch = stack(&model, &slices);
        let expected = tensor(&[2, 2, 2], &[3, 4, -1, -1, 5, 6, 7, 8]);
        assert_eq!(batch.inputs, std::slice::from_ref(&expected));
        let Size {
            rows,
            elements,
            padding,
            ..
        } = batch.size;
        assert_eq!((rows, elements, padding), (2, 8, 2));

        let parts = batch.split(&model, &slices, &[expected]).unwrap();
        assert_eq!(
            (&parts[0][0].shape, &parts[0][0].data),
            (&vec![1, 1, 2], &slices[0].data(0))
        );
        assert_eq!(
            (&parts[1][0].shape, &parts[1][0].data),
            (&vec![1, 2, 2], &slices[1].data(0))
        );
        assert_eq!(parts[1][0].name, "y");
    }

    #[test]
    fn a_lone_slice_is_not_copied() {
        let slices = [slice(vec![tensor(&[3, 1, 2], &[1, 2, 3, 4, 5, 6])], 1..3)];
        let batch = stack(&model(None), &slices);
        let whole = &slices[0].item.inputs[0].data;
        assert_eq!(batch.inputs[0].data.as_ptr(), whole[4..].as_ptr());
    }

    #[test]
    fn parts_of_one_request_become_one_answer() {
        let parts = vec![
            vec![tensor(&[1, 2], &[1, 2])],
            vec![tensor(&[2, 2], &[3, 4, 5, 6])],
        ];
        assert_eq!(
            concatenate(parts).unwrap(),
            [tensor(&[3, 2], &[1, 2, 3, 4, 5, 6])]
        );
        let parts = vec![vec![tensor(&[1, 2], &[1, 2])], vec![tensor(&[1, 1], &[3])]];
        assert!(concatenate(parts).unwrap_err().contains("differ in shape"));
    }
}
