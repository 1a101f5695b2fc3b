//! Tensors whose elements follow the JSON as raw bytes: the protocol's binary tensor data extension, as Triton has it.

use bytes::Bytes;

use crate::{DecodeError, Parameter};

/// The parameter of a tensor that counts the bytes of its elements.
pub(super) const SIZE: &str = "binary_data_size";

/// The bytes after the JSON that no tensor has taken yet.
pub(super) struct Rest {
    bytes: Bytes,
    /// The tensor that took some last.
    last: Option<String>,
}

impl Rest {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes, last: None }
    }

    /// Refuses bytes that are left when every tensor has its own.
    pub(super) fn end(self) -> Result<(), DecodeError> {
        match self.bytes.len() {
            0 => Ok(()),
            given => Err(DecodeError::BytesLeft {
                last: self.last,
                given,
            }),
        }
    }
}

/// Takes the elements of a tensor, as many bytes as its parameter says, off those that follow the JSON.
pub(super) fn take(
    tensor: &str,
    size: &Parameter,
    rest: Option<&mut Rest>,
) -> Result<Bytes, DecodeError> {
    let tensor = tensor.to_owned();
    let Some(rest) = rest else {
        return Err(DecodeError::NoBinaryPart { tensor });
    };
    let size = match size {
        Parameter::Int64(size) => usize::try_from(*size).ok(),
        Parameter::Uint64(size) => usize::try_from(*size).ok(),
        _ => None,
    };
    let Some(size) = size else {
        return Err(DecodeError::BinarySize { tensor });
    };
    let left = rest.bytes.len();
    if size > left {
        return Err(DecodeError::BytesMissing { tensor, size, left });
    }
    rest.last = Some(tensor);
    Ok(rest.bytes.split_to(size))
}
