//! One element, a JSON number, boolean or null, turned into raw bytes.
//!
//! Each of these functions gives the element that a text begins with and the bytes of text that it took; `None` where
//! the datatype has none such. The text may go on: whether it may do so there is not looked at.

use half::{bf16, f16};
use lexical_core::{FromLexical, parse_partial};

pub(super) fn boolean(text: &[u8]) -> Option<([u8; 1], usize)> {
    [("true", [1]), ("false", [0])]
        .into_iter()
        .find_map(|(word, raw)| {
            text.starts_with(word.as_bytes())
                .then_some((raw, word.len()))
        })
}

pub(super) fn integer<T: FromLexical, const N: usize>(
    to_le_bytes: fn(T) -> [u8; N],
) -> impl Fn(&[u8]) -> Option<([u8; N], usize)> {
    move |text| {
        let (value, length) = parse_partial(text).ok()?;
        Some((to_le_bytes(value), length))
    }
}

// Each float is read in its own width: 7.038531e-26 read as 64 bits and then cut to 32 is another number.
pub(super) fn fp32(text: &[u8]) -> Option<([u8; 4], usize)> {
    let (value, length) = float(text, f32::NAN, f32::is_finite)?;
    Some((value.to_le_bytes(), length))
}

pub(super) fn fp64(text: &[u8]) -> Option<([u8; 8], usize)> {
    let (value, length) = float(text, f64::NAN, f64::is_finite)?;
    Some((value.to_le_bytes(), length))
}

// A float of 16 bits is the nearest to the text's nearest 64 bits, which between two of them may be the other one.
pub(super) fn fp16(text: &[u8]) -> Option<([u8; 2], usize)> {
    let (value, length) = float(text, f64::NAN, |value| f16::from_f64(value).is_finite())?;
    Some((f16::from_f64(value).to_le_bytes(), length))
}

pub(super) fn bf16(text: &[u8]) -> Option<([u8; 2], usize)> {
    let (value, length) = float(text, f64::NAN, |value| bf16::from_f64(value).is_finite())?;
    Some((bf16::from_f64(value).to_le_bytes(), length))
}

/// Reads a float. A number beyond the type's range would become an infinity, which JSON does not have, so it is none.
fn float<T: FromLexical + Copy>(
    text: &[u8],
    nan: T,
    is_finite: impl Fn(T) -> bool,
) -> Option<(T, usize)> {
    const NULL: &[u8] = b"null";
    if text.starts_with(NULL) {
        return Some((nan, NULL.len()));
    }
    parse_partial(text)
        .ok()
        .filter(|(value, _)| is_finite(*value))
}
