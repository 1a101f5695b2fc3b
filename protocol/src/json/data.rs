//! The text of a tensor's data, parsed straight into raw bytes.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{
    element::{bf16, boolean, fp16, fp32, fp64, integer},
    hint::hint,
};
use crate::{Datatype, DecodeError, Tensor, TensorError, excerpt::Quoted, tensor::push_bytes};

/// Parses the elements in `text`, as `tensor`'s datatype and shape say. A flat array's length is not checked here.
pub(super) fn parse(tensor: &Tensor, text: &RawValue) -> Result<Vec<u8>, DecodeError> {
    let elements = tensor.elements()?;
    let text = text.get();
    let Some(inner) = text.strip_prefix('[') else {
        let message = format!("tensor {}: data is not an array", Quoted(&tensor.name));
        return Err(DecodeError::json(&message, None));
    };
    // An element and its comma are two characters at least: the text bounds what a shape can make us allocate.
    let capacity = match tensor.datatype.size() {
        Some(size) => elements.min(text.len() / 2).saturating_mul(size),
        None => text.len(),
    };
    let mut reader = Reader {
        tensor,
        nested: inner.trim_start().starts_with('['),
        lengths: Vec::new(),
        index: 0,
        data: Vec::with_capacity(capacity),
    };
    reader.read(text)?;
    Ok(reader.data)
}

struct Reader<'a> {
    tensor: &'a Tensor,
    /// Whether the outermost array holds arrays.
    nested: bool,
    /// The number of items so far in each array that is open.
    lengths: Vec<usize>,
    /// The number of elements so far.
    index: usize,
    data: Vec<u8>,
}

impl Reader<'_> {
    /// Reads `text`, which serde has found to be valid JSON: commas, colons and brackets are where they belong.
    fn read(&mut self, text: &str) -> Result<(), DecodeError> {
        let bytes = text.as_bytes();
        let mut at = 0;
        while let Some(first) = bytes.get(at) {
            match first {
                b',' | b' ' | b'\t' | b'\r' | b'\n' => at += 1,
                b'[' => {
                    self.open()?;
                    at += 1;
                }
                b']' => {
                    self.close()?;
                    at += 1;
                }
                b'"' => {
                    let end = at + string_length(&bytes[at..]);
                    self.string(&text[at..end])?;
                    at = end;
                }
                b'{' => return Err(self.value("{…}")),
                _ => at = self.scalars(text, at)?,
            }
        }
        Ok(())
    }

    /// Reads numbers, booleans and nulls from `at` on, up to the end of their array or to what is none of them, and gives
    /// the place of that.
    fn scalars(&mut self, text: &str, at: usize) -> Result<usize, DecodeError> {
        // Each datatype has a loop of its own, for most of a large message is read here.
        match self.tensor.datatype {
            Datatype::Bool => self.all(text, at, boolean),
            Datatype::Uint8 => self.all(text, at, integer(u8::to_le_bytes)),
            Datatype::Uint16 => self.all(text, at, integer(u16::to_le_bytes)),
            Datatype::Uint32 => self.all(text, at, integer(u32::to_le_bytes)),
            Datatype::Uint64 => self.all(text, at, integer(u64::to_le_bytes)),
            Datatype::Int8 => self.all(text, at, integer(i8::to_le_bytes)),
            Datatype::Int16 => self.all(text, at, integer(i16::to_le_bytes)),
            Datatype::Int32 => self.all(text, at, integer(i32::to_le_bytes)),
            Datatype::Int64 => self.all(text, at, integer(i64::to_le_bytes)),
            Datatype::Fp32 => self.all(text, at, fp32),
            Datatype::Fp64 => self.all(text, at, fp64),
            Datatype::Fp16 => self.all(text, at, fp16),
            Datatype::Bf16 => self.all(text, at, bf16),
            Datatype::Bytes => self.all(text, at, |_| None::<([u8; 0], usize)>),
        }
    }

    /// Reads the elements of one datatype from `at` on, each with `element`, and gives the place where they end.
    fn all<const N: usize>(
        &mut self,
        text: &str,
        mut at: usize,
        element: impl Fn(&[u8]) -> Option<([u8; N], usize)>,
    ) -> Result<usize, DecodeError> {
        if self.nested && self.lengths.len() != self.tensor.shape.len() {
            return Err(self.nesting());
        }
        let bytes = text.as_bytes();
        let before = self.index;
        while let Some(first) = bytes.get(at) {
            match first {
                b',' | b' ' | b'\t' | b'\r' | b'\n' => at += 1,
                b'[' | b']' | b'"' | b'{' => break,
                _ => {
                    let rest = &bytes[at..];
                    // A number that is only partly an element, such as the 1 of 1.5, is none.
                    let whole = element(rest)
                        .filter(|(_, length)| rest.get(*length).is_none_or(|byte| ends(*byte)));
                    let Some((raw, length)) = whole else {
                        let end = rest.iter().position(|byte| ends(*byte));
                        let given = &text[at..at + end.unwrap_or(rest.len())];
                        return Err(self.value(given));
                    };
                    self.data.extend_from_slice(&raw);
                    self.index += 1;
                    at += length;
                }
            }
        }
        if let Some(length) = self.lengths.last_mut() {
            *length += self.index - before;
        }
        Ok(at)
    }

    fn open(&mut self) -> Result<(), DecodeError> {
        let depth = if self.nested {
            self.tensor.shape.len()
        } else {
            1
        };
        if self.lengths.len() >= depth {
            return Err(self.nesting());
        }
        if let Some(length) = self.lengths.last_mut() {
            *length += 1;
        }
        self.lengths.push(0);
        Ok(())
    }

    fn close(&mut self) -> Result<(), DecodeError> {
        let depth = self.lengths.len();
        let given = self.lengths.pop().unwrap_or_default();
        match self.tensor.shape.get(depth.wrapping_sub(1)) {
            Some(expected) if self.nested && usize::try_from(*expected) != Ok(given) => {
                Err(DecodeError::ArrayLength {
                    tensor: self.tensor.name.clone(),
                    shape: self.tensor.shape.clone(),
                    depth,
                    expected: *expected,
                    given,
                })
            }
            _ => Ok(()),
        }
    }

    /// Counts an element in the array that is open.
    fn count(&mut self) -> Result<(), DecodeError> {
        if self.nested && self.lengths.len() != self.tensor.shape.len() {
            return Err(self.nesting());
        }
        if let Some(length) = self.lengths.last_mut() {
            *length += 1;
        }
        self.index += 1;
        Ok(())
    }

    fn string(&mut self, token: &str) -> Result<(), DecodeError> {
        if self.tensor.datatype != Datatype::Bytes {
            return Err(self.value(token));
        }
        let string = if token.contains('\\') {
            let string = serde_json::from_str(token).map_err(|error| {
                let message = format!(
                    "tensor {}: element {}: {error}",
                    Quoted(&self.tensor.name),
                    self.index
                );
                DecodeError::json(&message, hint(token.as_bytes(), &error))
            })?;
            Cow::Owned(string)
        } else {
            Cow::Borrowed(token.trim_matches('"'))
        };
        if push_bytes(&mut self.data, string.as_bytes()).is_none() {
            let (tensor, index) = (self.tensor.name.clone(), self.index);
            return Err(TensorError::ElementTooLong {
                tensor,
                index,
                given: string.len(),
            }
            .into());
        }
        self.count()
    }

    fn value(&self, given: &str) -> DecodeError {
        DecodeError::Value {
            tensor: self.tensor.name.clone(),
            datatype: self.tensor.datatype,
            index: self.index,
            given: given.to_owned(),
            expected: self.tensor.datatype.values(),
        }
    }

    fn nesting(&self) -> DecodeError {
        DecodeError::Nesting {
            tensor: self.tensor.name.clone(),
            shape: self.tensor.shape.clone(),
        }
    }
}

/// The elements of a flat array without a mistake, as they are written.
pub fn elements(array: &RawValue) -> impl Iterator<Item = &str> {
    let mut rest = array.get();
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(['[', ',', ' ', '\t', '\r', '\n']);
        let length = match rest.as_bytes() {
            [] | [b']', ..] => return None,
            string @ [b'"', ..] => string_length(string),
            other => other
                .iter()
                .position(|byte| ends(*byte))
                .unwrap_or(other.len()),
        };
        let (element, behind) = rest.split_at(length);
        rest = behind;
        Some(element)
    })
}

/// The length in bytes of the string that `text` begins with, quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    let end = text.iter().skip(1).position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

/// Whether a number, boolean or null ends before this byte.
fn ends(byte: u8) -> bool {
    matches!(byte, b',' | b']' | b' ' | b'\t' | b'\r' | b'\n')
}
