//! Tensors as raw bytes, their size checked against their shape.

use bytes::Bytes;

use crate::{Datatype, Parameters, TensorError};

/// The most dimensions of a tensor: those that libtorch's operators take.
const MAX_DIMENSIONS: usize = 64;

/// A named array, its elements in the form in which they travel.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The tensor's name, which the model gives it.
    pub name: String,
    /// The type of the tensor's elements.
    pub datatype: Datatype,
    /// The tensor's dimensions, none negative; the first counts the rows of a batch.
    pub shape: Vec<i64>,
    /// The tensor's elements in row-major order, little-endian; for `BYTES` each element after its length in four
    /// bytes.
    pub data: Bytes,
    /// Options of an output, such as `truncated`. Those of inputs are not kept.
    pub parameters: Parameters,
}

/// A tensor's description without its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// The tensor's name, which the model gives it.
    pub name: &'a str,
    /// The type of the tensor's elements.
    pub datatype: Datatype,
    /// The tensor's dimensions; the first counts the rows of a batch.
    pub shape: &'a [i64],
}

impl Tensor {
    /// Makes a tensor whose data has the size that `shape` and `datatype` say.
    pub fn new(
        name: impl Into<String>,
        datatype: Datatype,
        shape: impl Into<Vec<i64>>,
        data: impl Into<Bytes>,
    ) -> Result<Self, TensorError> {
        let tensor = Self {
            name: name.into(),
            datatype,
            shape: shape.into(),
            data: data.into(),
            parameters: Parameters::new(),
        };
        tensor.check()?;
        Ok(tensor)
    }

    /// Makes a `BYTES` tensor of `strings`, as many as `shape` has elements.
    pub fn from_strings<S: AsRef<[u8]>>(
        name: impl Into<String>,
        shape: impl Into<Vec<i64>>,
        strings: impl IntoIterator<Item = S>,
    ) -> Result<Self, TensorError> {
        let name = name.into();
        let mut data = Vec::new();
        for (index, string) in strings.into_iter().enumerate() {
            let string = string.as_ref();
            if push_bytes(&mut data, string).is_none() {
                return Err(TensorError::ElementTooLong {
                    tensor: name,
                    index,
                    given: string.len(),
                });
            }
        }
        Self::new(name, Datatype::Bytes, shape, data)
    }

    /// A view of the tensor without its elements.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        TensorView {
            name: &self.name,
            datatype: self.datatype,
            shape: &self.shape,
        }
    }

    /// The number of elements that the shape has: the product of its dimensions.
    pub fn elements(&self) -> Result<usize, TensorError> {
        if self.shape.len() > MAX_DIMENSIONS {
            return Err(TensorError::TooManyDimensions {
                tensor: self.name.clone(),
                given: self.shape.len(),
                limit: MAX_DIMENSIONS,
            });
        }
        if self.shape.iter().any(|dimension| *dimension < 0) {
            return Err(TensorError::NegativeDimension {
                tensor: self.name.clone(),
                shape: self.shape.clone(),
            });
        }
        // A zero anywhere makes the product zero, however large the other dimensions are.
        if self.shape.contains(&0) {
            return Ok(0);
        }
        self.shape
            .iter()
            .try_fold(1usize, |product, dimension| {
                product.checked_mul(usize::try_from(*dimension).ok()?)
            })
            .ok_or_else(|| self.too_large())
    }

    /// The elements of a `BYTES` tensor, in row-major order.
    pub fn bytes_elements(&self) -> Result<Vec<&[u8]>, TensorError> {
        if self.datatype != Datatype::Bytes {
            return Err(TensorError::NotBytes {
                tensor: self.name.clone(),
                datatype: self.datatype,
            });
        }
        let expected = self.elements()?;
        // The data bounds what a shape can make us allocate: each element is at least its length.
        let mut elements = Vec::with_capacity(expected.min(self.data.len() / 4));
        for element in BytesElements(&self.data) {
            match element {
                Some(element) => elements.push(element),
                None => {
                    return Err(TensorError::Truncated {
                        tensor: self.name.clone(),
                        index: elements.len(),
                    });
                }
            }
        }
        if elements.len() != expected {
            return Err(self.count(expected, elements.len()));
        }
        Ok(elements)
    }

    /// The elements of a `BYTES` tensor as text, in row-major order.
    pub fn strings(&self) -> Result<Vec<&str>, TensorError> {
        self.bytes_elements()?
            .into_iter()
            .enumerate()
            .map(|(index, element)| {
                std::str::from_utf8(element).map_err(|_| TensorError::NotUtf8 {
                    tensor: self.name.clone(),
                    index,
                })
            })
            .collect()
    }

    /// Whether the data is what `shape` and `datatype` say.
    pub(crate) fn check(&self) -> Result<(), TensorError> {
        let elements = self.elements()?;
        let Some(size) = self.datatype.size() else {
            return self.check_bytes(elements);
        };
        let expected = elements.checked_mul(size).ok_or_else(|| self.too_large())?;
        let given = self.data.len();
        if expected != given && given.is_multiple_of(size) {
            return Err(self.count(elements, given / size));
        }
        if expected != given {
            return Err(TensorError::Size {
                tensor: self.name.clone(),
                datatype: self.datatype,
                shape: self.shape.clone(),
                expected,
                given,
            });
        }
        if self.datatype == Datatype::Bool
            && let Some(index) = self.data.iter().position(|byte| *byte > 1)
        {
            return Err(TensorError::Bool {
                tensor: self.name.clone(),
                index,
                given: self.data[index],
            });
        }
        Ok(())
    }

    fn check_bytes(&self, expected: usize) -> Result<(), TensorError> {
        let mut given = 0;
        for element in BytesElements(&self.data) {
            if element.is_none() {
                return Err(TensorError::Truncated {
                    tensor: self.name.clone(),
                    index: given,
                });
            }
            given += 1;
        }
        if given == expected {
            Ok(())
        } else {
            Err(self.count(expected, given))
        }
    }

    fn count(&self, expected: usize, given: usize) -> TensorError {
        TensorError::Count {
            tensor: self.name.clone(),
            shape: self.shape.clone(),
            expected,
            given,
        }
    }

    fn too_large(&self) -> TensorError {
        TensorError::TooLarge {
            tensor: self.name.clone(),
            datatype: self.datatype,
            shape: self.shape.clone(),
        }
    }
}

/// An iterator over `BYTES` data; it gives `None` once, last, where an element is cut off.
pub(crate) struct BytesElements<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for BytesElements<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let element = self.0.split_first_chunk().and_then(|(length, rest)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            rest.split_at_checked(length)
        });
        self.0 = element.map_or(&[], |(_, rest)| rest);
        Some(element.map(|(element, _)| element))
    }
}

/// Appends an element of `BYTES` data; `None`, and nothing appended, if it is too long for its length's four bytes.
pub(crate) fn push_bytes(data: &mut Vec<u8>, element: &[u8]) -> Option<()> {
    let length = u32::try_from(element.len()).ok()?;
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(element);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_has_the_size_of_shape_and_datatype() {
        assert!(Tensor::new("x", Datatype::Fp32, [2, 3], vec![0; 24]).is_ok());
        assert!(Tensor::new("x", Datatype::Fp32, [], vec![0; 4]).is_ok());
        assert!(Tensor::new("x", Datatype::Fp32, [i64::MAX, 0], vec![]).is_ok());
        assert!(Tensor::new("x", Datatype::Fp32, [1; 64], vec![0; 4]).is_ok());
        let message = |shape: &[i64], datatype| {
            Tensor::new("x", datatype, shape, vec![2; 4])
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            message(&[1; 65], Datatype::Fp32),
            "tensor `x`: has 65 dimensions; there may be 64"
        );
        assert_eq!(
            message(&[2, 3], Datatype::Fp32),
            "tensor `x`: shape [2, 3] has 6 elements; 1 given: change the shape or the data"
        );
        assert_eq!(
            message(&[2, 3], Datatype::Fp64),
            "tensor `x`: shape [2, 3] of FP64 takes 48 bytes; 4 given"
        );
        assert_eq!(
            message(&[2, -1], Datatype::Fp32),
            "tensor `x`: shape [2, -1] has a negative dimension; each is 0 or more"
        );
        assert_eq!(
            message(&[i64::MAX], Datatype::Fp64),
            "tensor `x`: shape [9223372036854775807] of FP64 is larger than memory can be"
        );
        assert_eq!(
            message(&[4], Datatype::Bool),
            "tensor `x`: element 0 is the byte 2; BOOL takes 0 and 1"
        );
        assert_eq!(
            message(&[1], Datatype::Bytes),
            "tensor `x`: element 0 of its BYTES data is cut off"
        );
    }

    #[test]
    fn strings_come_back() {
        let tensor = Tensor::from_strings("text", [2, 1], ["", "I love you"]).unwrap();
        assert_eq!(&tensor.data[..], b"\0\0\0\0\x0a\0\0\0I love you");
        assert_eq!(tensor.strings().unwrap(), ["", "I love you"]);
        assert_eq!(
            Tensor::from_strings("text", [3], ["one"])
                .unwrap_err()
                .to_string(),
            "tensor `text`: shape [3] has 3 elements; 1 given: change the shape or the data"
        );
    }

    #[test]
    fn strings_are_utf8_in_a_bytes_tensor() {
        let tensor = Tensor::from_strings("x", [2], [&b"a"[..], b"\xff"]).unwrap();
        assert_eq!(tensor.bytes_elements().unwrap(), [&b"a"[..], b"\xff"]);
        assert_eq!(
            tensor.strings(),
            Err(TensorError::NotUtf8 {
                tensor: "x".into(),
                index: 1
            })
        );
        let tensor = Tensor::new("x", Datatype::Uint8, [1], vec![0]).unwrap();
        assert!(matches!(
            tensor.strings(),
            Err(TensorError::NotBytes { .. })
        ));
    }
}
