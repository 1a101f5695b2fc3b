//! One element's text, turned into raw bytes.

use std::str::FromStr;

use crate::Datatype;

/// Appends the element that `token`, a JSON number, boolean or null, stands for; false if `datatype` has none such.
pub(super) fn push_scalar(data: &mut Vec<u8>, datatype: Datatype, token: &str) -> bool {
    match datatype {
        Datatype::Bool => push(data, boolean(token).map(|value| [u8::from(value)])),
        Datatype::Uint8 => push(data, integer(token, u8::to_le_bytes)),
        Datatype::Uint16 => push(data, integer(token, u16::to_le_bytes)),
        Datatype::Uint32 => push(data, integer(token, u32::to_le_bytes)),
        Datatype::Uint64 => push(data, integer(token, u64::to_le_bytes)),
        Datatype::Int8 => push(data, integer(token, i8::to_le_bytes)),
        Datatype::Int16 => push(data, integer(token, i16::to_le_bytes)),
        Datatype::Int32 => push(data, integer(token, i32::to_le_bytes)),
        Datatype::Int64 => push(data, integer(token, i64::to_le_bytes)),
        // Each float in its own width: 7.038531e-26 read as 64 bits and then cut to 32 is another number.
        Datatype::Fp32 => push(
            data,
            float(token, f32::NAN, f32::is_finite).map(f32::to_le_bytes),
        ),
        Datatype::Fp64 => push(
            data,
            float(token, f64::NAN, f64::is_finite).map(f64::to_le_bytes),
        ),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => false,
    }
}

fn push<const N: usize>(data: &mut Vec<u8>, element: Option<[u8; N]>) -> bool {
    element
        .map(|element| data.extend_from_slice(&element))
        .is_some()
}

fn boolean(token: &str) -> Option<bool> {
    token.parse().ok()
}

fn integer<T: FromStr, const N: usize>(
    token: &str,
    to_le_bytes: fn(T) -> [u8; N],
) -> Option<[u8; N]> {
    token.parse().ok().map(to_le_bytes)
}

/// A number beyond the type's range parses as an infinity, which JSON does not have.
fn float<T: FromStr + Copy>(token: &str, nan: T, is_finite: fn(T) -> bool) -> Option<T> {
    if token == "null" {
        return Some(nan);
    }
    token.parse().ok().filter(|value| is_finite(*value))
}
