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
mod tests {
    use std::sync::Arc;

    use carpool_crds::Dimension;
    use carpool_protocol::Datatype;

    use super::*;
    use crate::item::Item;

    fn spec(name: &str, shape: &[&str], pad: Option<i64>) -> TensorSpec {
        let dimension = |text: &&str| {
            text.parse()
                .map_or_else(|_| (*text).into(), Dimension::Size)
        };
        TensorSpec {
            name: name.to_owned(),
            datatype: carpool_crds::Datatype::Int16,
            shape: shape.iter().map(dimension).collect(),
            pad,
        }
    }

    fn declared(inputs: Vec<TensorSpec>, output: &[&str]) -> Model {
        Model {
            uri: String::new(),
            sha256: None,
            format: carpool_crds::Format::TorchScript,
            inputs,
            outputs: vec![spec("y", output, None)],
            text: None,
            example: None,
        }
    }

    fn model(pad: Option<i64>) -> Model {
        declared(vec![spec("x", &["seq", "2"], pad)], &["seq", "2"])
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
            lengths: inputs.iter().map(|input| input.shape[1]).collect(),
            unpadded: Vec::new(),
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

    /// The shapes that an output of one variable dimension is cut to for requests of one row, each given by the lengths of
    /// its inputs `a` and `b`, in a batch for which the model makes it of a length.
    fn cut_to(requests: &[[i64; 2]], output: &str, length: i64) -> Result<Vec<Vec<i64>>, String> {
        let inputs = ["a", "b"].map(|name| spec(name, &[name], Some(0)));
        let model = declared(inputs.to_vec(), &[output]);
        let zeros = |shape: [i64; 2]| tensor(&shape, &vec![0; elements(&shape)]);
        let slices: Vec<Slice> = requests
            .iter()
            .map(|lengths| slice(lengths.map(|length| zeros([1, length])).to_vec(), 0..1))
            .collect();
        let batch = stack(&model, &slices);
        let rows = i64::try_from(requests.len()).unwrap();
        let parts = batch.split(&model, &slices, &[zeros([rows, length])])?;
        Ok(parts
            .into_iter()
            .map(|part| part[0].shape.clone())
            .collect())
    }

    #[test]
    fn an_output_follows_the_input_dimension_of_its_name() {
        let requests = [[2, 5], [3, 6]];
        assert_eq!(cut_to(&requests, "a", 3).unwrap(), [[1, 2], [1, 3]]);
        assert_eq!(cut_to(&requests, "b", 6).unwrap(), [[1, 5], [1, 6]]);
        // Their names tell apart what chance made of one length.
        let crossed = [[3, 10], [10, 4]];
        assert_eq!(cut_to(&crossed, "a", 10).unwrap(), [[1, 3], [1, 10]]);
        assert_eq!(cut_to(&crossed, "b", 10).unwrap(), [[1, 10], [1, 4]]);
    }

    #[test]
    fn an_output_must_be_as_long_as_what_it_follows() {
        for requests in [&[[2, 5], [3, 6]][..], &[[3, 6]]] {
            let error = cut_to(requests, "a", 6).unwrap_err();
            assert!(
                error.contains("in which a is 6; in the inputs it is 3"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_output_of_a_length_of_its_own_is_never_cut() {
        for output in ["-1", "own"] {
            // By chance it is as long as the second input was padded to.
            let error = cut_to(&[[2, 5], [3, 6]], output, 6).unwrap_err();
            assert!(error.contains("padding can't be cut"), "{error}");
            assert_eq!(
                cut_to(&[[3, 6], [3, 6]], output, 6).unwrap(),
                [[1, 6], [1, 6]]
            );
            assert_eq!(cut_to(&[[3, 6]], output, 0).unwrap(), [[1, 0]]);
        }
    }

    #[test]
    fn what_nothing_says_how_to_pad_shares_no_batch() {
        let model = model(None);
        let slices = [
            slice(vec![tensor(&[1, 1, 2], &[1, 2])], 0..1),
            slice(vec![tensor(&[1, 2, 2], &[5, 6, 7, 8])], 0..1),
        ];
        let size = Size::of(&model, &slices).unwrap();
        let error = Batch::stack(&model, &slices, size).err().unwrap();
        assert!(error.contains("the input x differs in shape"), "{error}");
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
        assert!(
            concatenate(parts)
                .unwrap_err()
                .contains("send them one by one")
        );
    }
}
