//! One element's text, a JSON number, boolean or null, turned into raw bytes; `None` where the datatype has none such.

use std::str::FromStr;

pub(super) fn boolean(token: &str) -> Option<[u8; 1]> {
    token.parse::<bool>().ok().map(|value| [u8::from(value)])
}

pub(super) fn integer<T: FromStr, const N: usize>(
    to_le_bytes: fn(T) -> [u8; N],
) -> impl Fn(&str) -> Option<[u8; N]> {
    move |token| token.parse().ok().map(to_le_bytes)
}

// Each float in its own width: 7.038531e-26 read as 64 bits and then cut to 32 is another number.
pub(super) fn fp32(token: &str) -> Option<[u8; 4]> {
    float(token, f32::NAN, f32::is_finite).map(f32::to_le_bytes)
}

pub(super) fn fp64(token: &str) -> Option<[u8; 8]> {
    float(token, f64::NAN, f64::is_finite).map(f64::to_le_bytes)
}

/// A number beyond the type's range parses as an infinity, which JSON does not have.
fn float<T: FromStr + Copy>(token: &str, nan: T, is_finite: fn(T) -> bool) -> Option<T> {
    if token == "null" {
        return Some(nan);
    }
    token.parse().ok().filter(|value| is_finite(*value))
}
