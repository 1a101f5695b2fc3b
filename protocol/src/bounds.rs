//! The check that a tensor's elements lie between bounds.

use std::fmt::Display;

use half::{bf16, f16};

use crate::Datatype;

/// The first element that is below `minimum` or above `maximum`: its index and its value, as it is to be told. `None` where
/// none is, where no bound is given, and for `BYTES`, which have no order. A NaN is outside of any bound.
///
/// `data` are raw little-endian elements. Whole numbers are compared exactly, whatever their size. A bound is first rounded
/// as an element is, so that 0.1 is not above a `maximum` of 0.1 in any of the datatypes for floats.
#[must_use]
pub fn first_outside(
    datatype: Datatype,
    data: &[u8],
    minimum: Option<f64>,
    maximum: Option<f64>,
) -> Option<(usize, String)> {
    if minimum.is_none() && maximum.is_none() {
        return None;
    }
    let low = minimum.unwrap_or(f64::NEG_INFINITY);
    let high = maximum.unwrap_or(f64::INFINITY);
    match datatype {
        Datatype::Bool | Datatype::Uint8 => whole(data, low, high, u8::from_le_bytes),
        Datatype::Uint16 => whole(data, low, high, u16::from_le_bytes),
        Datatype::Uint32 => whole(data, low, high, u32::from_le_bytes),
        Datatype::Uint64 => whole(data, low, high, u64::from_le_bytes),
        Datatype::Int8 => whole(data, low, high, i8::from_le_bytes),
        Datatype::Int16 => whole(data, low, high, i16::from_le_bytes),
        Datatype::Int32 => whole(data, low, high, i32::from_le_bytes),
        Datatype::Int64 => whole(data, low, high, i64::from_le_bytes),
        Datatype::Fp16 => {
            let rounded = |bound| f16::from_f64(bound);
            outside(data, rounded(low), rounded(high), f16::from_le_bytes)
        }
        Datatype::Bf16 => {
            let rounded = |bound| bf16::from_f64(bound);
            outside(data, rounded(low), rounded(high), bf16::from_le_bytes)
        }
        Datatype::Fp32 => {
            #[expect(clippy::cast_possible_truncation, reason = "said above")]
            let rounded = |bound| bound as f32;
            outside(data, rounded(low), rounded(high), f32::from_le_bytes)
        }
        Datatype::Fp64 => outside(data, low, high, f64::from_le_bytes),
        Datatype::Bytes => None,
    }
}

/// Finds the first whole number outside of its bounds. Every 64-bit one fits into an `i128`, into which the cast brings
/// a float without loss or, where it is larger still, as the largest.
fn whole<const N: usize, T: Copy + Into<i128>>(
    data: &[u8],
    low: f64,
    high: f64,
    read: impl Fn([u8; N]) -> T,
) -> Option<(usize, String)> {
    #[expect(clippy::cast_possible_truncation, reason = "said above")]
    let (low, high) = (low.ceil() as i128, high.floor() as i128);
    outside(data, low, high, |bytes| read(bytes).into())
}

fn outside<const N: usize, T: Copy + PartialOrd + Display>(
    data: &[u8],
    low: T,
    high: T,
    read: impl Fn([u8; N]) -> T,
) -> Option<(usize, String)> {
    let (elements, _) = data.as_chunks::<N>();
    let index = elements
        .iter()
        .position(|bytes| !(low..=high).contains(&read(*bytes)))?;
    Some((index, read(elements[index]).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw<const N: usize, T: Copy>(values: &[T], write: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|value| write(*value)).collect()
    }

    #[test]
    fn the_first_outside_is_told_with_its_value() {
        let ids = raw(&[0, 30_521, 30_522, -1], i64::to_le_bytes);
        let check = |minimum, maximum| first_outside(Datatype::Int64, &ids, minimum, maximum);
        assert_eq!(
            check(Some(0.0), Some(30_521.0)),
            Some((2, "30522".to_owned()))
        );
        assert_eq!(check(Some(0.0), None), Some((3, "-1".to_owned())));
        assert_eq!(check(Some(-1.0), Some(30_522.0)), None);
        assert_eq!(check(None, None), None);
        assert_eq!(check(Some(-0.5), None), Some((3, "-1".to_owned())));
        assert_eq!(check(None, Some(30_521.5)), Some((2, "30522".to_owned())));
    }

    #[test]
    fn every_datatype_is_read_as_what_it_is() {
        let of = |datatype, data: &[u8], minimum, maximum| {
            first_outside(datatype, data, Some(minimum), Some(maximum))
        };
        for (datatype, data, value) in [
            (Datatype::Bool, raw(&[0, 2], u8::to_le_bytes), "2"),
            (Datatype::Uint8, raw(&[1, 255], u8::to_le_bytes), "255"),
            (
                Datatype::Uint16,
                raw(&[1, 65_535], u16::to_le_bytes),
                "65535",
            ),
            (
                Datatype::Uint32,
                raw(&[1, 4_294_967_295], u32::to_le_bytes),
                "4294967295",
            ),
            (
                Datatype::Uint64,
                raw(&[1, u64::MAX], u64::to_le_bytes),
                "18446744073709551615",
            ),
            (Datatype::Int8, raw(&[1, -1], i8::to_le_bytes), "-1"),
            (Datatype::Int16, raw(&[1, -300], i16::to_le_bytes), "-300"),
            (
                Datatype::Int32,
                raw(&[1, -70_000], i32::to_le_bytes),
                "-70000",
            ),
            (
                Datatype::Int64,
                raw(&[1, i64::MIN], i64::to_le_bytes),
                "-9223372036854775808",
            ),
            (
                Datatype::Fp16,
                raw(&[1.0, 1.5].map(f16::from_f32), f16::to_le_bytes),
                "1.5",
            ),
            (
                Datatype::Bf16,
                raw(&[1.0, -1.5].map(bf16::from_f32), bf16::to_le_bytes),
                "-1.5",
            ),
            (Datatype::Fp32, raw(&[1.0, 1.1], f32::to_le_bytes), "1.1"),
            (Datatype::Fp64, raw(&[1.0, -0.1], f64::to_le_bytes), "-0.1"),
        ] {
            assert_eq!(
                of(datatype, &data, 0.0, 1.0),
                Some((1, value.to_owned())),
                "{datatype}"
            );
            assert_eq!(of(datatype, &data, -1e300, 1e300), None, "{datatype}");
        }
        assert_eq!(of(Datatype::Bytes, b"\x01\0\0\0a", 0.0, 1.0), None);
    }

    #[test]
    fn whole_numbers_that_no_float_holds_are_compared_exactly() {
        let bound = 9_007_199_254_740_992.0;
        let data = raw(
            &[9_007_199_254_740_992, 9_007_199_254_740_993],
            i64::to_le_bytes,
        );
        assert_eq!(
            first_outside(Datatype::Int64, &data, None, Some(bound)),
            Some((1, "9007199254740993".to_owned()))
        );
        // The maximum is 2^64, which is above every 64-bit number.
        let data = raw(&[u64::MAX], u64::to_le_bytes);
        let bound = 18_446_744_073_709_551_616.0;
        assert_eq!(
            first_outside(Datatype::Uint64, &data, None, Some(bound)),
            None
        );
        assert_eq!(
            first_outside(Datatype::Uint64, &data, Some(bound), None),
            Some((0, "18446744073709551615".to_owned()))
        );
    }

    #[test]
    fn a_nan_is_outside_of_any_bound() {
        let data = raw(&[1.0, f32::NAN], f32::to_le_bytes);
        let check = |minimum, maximum| first_outside(Datatype::Fp32, &data, minimum, maximum);
        assert_eq!(check(Some(f64::MIN), None), Some((1, "NaN".to_owned())));
        assert_eq!(check(None, Some(f64::MAX)), Some((1, "NaN".to_owned())));
        assert_eq!(check(None, None), None);
        let infinite = raw(&[f32::INFINITY], f32::to_le_bytes);
        assert_eq!(
            first_outside(Datatype::Fp32, &infinite, None, Some(1.0)),
            Some((0, "inf".to_owned()))
        );
        assert_eq!(
            first_outside(Datatype::Fp32, &infinite, Some(1.0), None),
            None
        );
    }

    #[test]
    fn a_bound_is_rounded_as_an_element_is() {
        let data = raw(&[0.1, -0.1], f32::to_le_bytes);
        assert_eq!(
            first_outside(Datatype::Fp32, &data, Some(-0.1), Some(0.1)),
            None
        );
        assert_eq!(
            first_outside(Datatype::Fp32, &data, Some(0.0), Some(0.1)),
            Some((1, "-0.1".to_owned()))
        );
    }
}
