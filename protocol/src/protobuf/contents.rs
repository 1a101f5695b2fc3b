//! Typed tensor contents turned into raw ones.

use std::fmt::Display;

use bytes::Bytes;

use crate::{
    Datatype, DecodeError, TensorError, inference::InferTensorContents, tensor::push_bytes,
};

/// Turns the elements in `contents` into raw ones. Their number is not checked here.
pub(super) fn to_raw(
    tensor: &str,
    datatype: Datatype,
    contents: &InferTensorContents,
) -> Result<Bytes, DecodeError> {
    let expected = field(datatype);
    if let Some(given) = filled(contents).find(|field| *field != expected) {
        return Err(DecodeError::Contents {
            tensor: tensor.to_owned(),
            datatype,
            expected,
            given,
        });
    }
    let signed = &contents.int_contents;
    let unsigned = &contents.uint_contents;
    let data = match datatype {
        Datatype::Bool => contents
            .bool_contents
            .iter()
            .map(|value| u8::from(*value))
            .collect(),
        Datatype::Int8 => narrow(tensor, datatype, signed, i8::to_le_bytes)?,
        Datatype::Int16 => narrow(tensor, datatype, signed, i16::to_le_bytes)?,
        Datatype::Int32 => narrow(tensor, datatype, signed, i32::to_le_bytes)?,
        Datatype::Uint8 => narrow(tensor, datatype, unsigned, u8::to_le_bytes)?,
        Datatype::Uint16 => narrow(tensor, datatype, unsigned, u16::to_le_bytes)?,
        Datatype::Uint32 => narrow(tensor, datatype, unsigned, u32::to_le_bytes)?,
        Datatype::Int64 => contents
            .int64_contents
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Datatype::Uint64 => contents
            .uint64_contents
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Datatype::Fp32 => contents
            .fp32_contents
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Datatype::Fp64 => contents
            .fp64_contents
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Datatype::Bytes => strings(tensor, &contents.bytes_contents)?,
        // The result is empty, for no field holds such elements; the size check says so.
        Datatype::Fp16 | Datatype::Bf16 => Vec::new(),
    };
    Ok(data.into())
}

/// The one field of `InferTensorContents` that holds elements of `datatype`.
const fn field(datatype: Datatype) -> &'static str {
    match datatype {
        Datatype::Bool => "bool_contents",
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => "int_contents",
        Datatype::Int64 => "int64_contents",
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => "uint_contents",
        Datatype::Uint64 => "uint64_contents",
        Datatype::Fp32 => "fp32_contents",
        Datatype::Fp64 => "fp64_contents",
        Datatype::Bytes => "bytes_contents",
        Datatype::Fp16 | Datatype::Bf16 => "raw contents",
    }
}

/// The names of the fields that hold anything.
fn filled(contents: &InferTensorContents) -> impl Iterator<Item = &'static str> {
    [
        ("bool_contents", contents.bool_contents.is_empty()),
        ("int_contents", contents.int_contents.is_empty()),
        ("int64_contents", contents.int64_contents.is_empty()),
        ("uint_contents", contents.uint_contents.is_empty()),
        ("uint64_contents", contents.uint64_contents.is_empty()),
        ("fp32_contents", contents.fp32_contents.is_empty()),
        ("fp64_contents", contents.fp64_contents.is_empty()),
        ("bytes_contents", contents.bytes_contents.is_empty()),
    ]
    .into_iter()
    .filter_map(|(field, is_empty)| (!is_empty).then_some(field))
}

/// Turns elements that travel as 32 bits into the datatype's own width.
fn narrow<Wide: Copy + Display, Narrow: TryFrom<Wide>, const N: usize>(
    tensor: &str,
    datatype: Datatype,
    values: &[Wide],
    to_le_bytes: fn(Narrow) -> [u8; N],
) -> Result<Vec<u8>, DecodeError> {
    let mut data = Vec::with_capacity(values.len() * N);
    for (index, wide) in values.iter().enumerate() {
        let Ok(value) = Narrow::try_from(*wide) else {
            return Err(DecodeError::Value {
                tensor: tensor.to_owned(),
                datatype,
                index,
                given: wide.to_string(),
                expected: datatype.values(),
            });
        };
        data.extend_from_slice(&to_le_bytes(value));
    }
    Ok(data)
}

fn strings(tensor: &str, elements: &[Bytes]) -> Result<Vec<u8>, TensorError> {
    let mut data = Vec::with_capacity(elements.iter().map(|element| element.len() + 4).sum());
    for (index, element) in elements.iter().enumerate() {
        if push_bytes(&mut data, element).is_none() {
            return Err(TensorError::ElementTooLong {
                tensor: tensor.to_owned(),
                index,
                given: element.len(),
            });
        }
    }
    Ok(data)
}
