//! The elements of made-up tensors.

use std::ops::RangeInclusive;

use bytes::Bytes;
use carpool_crds::{
    Datatype, TensorSpec,
    tensor_names::{ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS},
};
use half::{bf16, f16};
use rand::{RngExt, rngs::StdRng};

use crate::assemble::element;

/// The content of made-up tensors, as far as their bounds allow. Whole numbers stay small: one that is no index of a
/// model's table is an error, on a GPU one that costs the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Floats from -1 to 1, whole numbers 0 and 1.
    Varied,
    /// Floats from 0 to 1, whole numbers 1 and 2.
    Positive,
    /// 1 everywhere.
    Ones,
    /// 0 everywhere.
    Zeros,
}

impl Fill {
    /// The fills, the most telling first.
    pub const ALL: [Self; 4] = [Self::Varied, Self::Positive, Self::Ones, Self::Zeros];
}

/// The bounds that an input's elements must lie between.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    low: f64,
    high: f64,
}

impl Bounds {
    /// The bounds that an input declares, and those of its datatype where that holds little.
    pub fn of(spec: &TensorSpec) -> Self {
        let (low, high) = match spec.datatype {
            Datatype::Uint8 => (0.0, 255.0),
            Datatype::Int8 => (-128.0, 127.0),
            Datatype::Int16 => (-32_768.0, 32_767.0),
            Datatype::Int32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
            _ => (f64::NEG_INFINITY, f64::INFINITY),
        };
        Self {
            low: spec.minimum.map_or(low, |minimum| minimum.max(low)),
            high: spec.maximum.map_or(high, |maximum| maximum.min(high)),
        }
    }

    /// The value between the bounds that is nearest to another.
    pub fn nearest(self, value: f64) -> f64 {
        value.max(self.low).min(self.high)
    }

    /// The value between the bounds that is nearest to another in single precision, to which bounds are rounded.
    #[expect(clippy::cast_possible_truncation, reason = "said above")]
    pub fn nearest32(self, value: f32) -> f32 {
        value.max(self.low as f32).min(self.high as f32)
    }

    /// The range between the bounds that is nearest to another, and as wide where there is room.
    fn floats(self, range: &RangeInclusive<f64>) -> RangeInclusive<f64> {
        let width = range.end() - range.start();
        let high = self.nearest(self.nearest(*range.start()) + width);
        self.nearest(high - width)..=high
    }

    /// The range of whole numbers between the bounds that is nearest to another, and as wide where there is room.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "what is beyond 64 bits becomes the last number that is not"
    )]
    fn whole(self, range: &RangeInclusive<i64>) -> RangeInclusive<i64> {
        let (low, high) = (self.low.ceil() as i64, self.high.floor() as i64);
        let nearest = |value: i64| value.max(low).min(high);
        let width = range.end() - range.start();
        let end = nearest(nearest(*range.start()).saturating_add(width));
        nearest(end.saturating_sub(width))..=end
    }
}

/// Makes this many elements of an input, as raw little-endian bytes. A text model's ids are those of a `vocabulary`.
pub fn values(
    spec: &TensorSpec,
    fill: Fill,
    count: usize,
    vocabulary: Option<i64>,
    random: &mut StdRng,
) -> Bytes {
    let known = match (spec.name.as_str(), vocabulary) {
        (ATTENTION_MASK, _) => Some(1..=1),
        (TOKEN_TYPE_IDS, _) => Some(0..=0),
        (INPUT_IDS, Some(vocabulary)) => Some(0..=vocabulary - 1),
        _ => None,
    };
    let (floats, whole) = match fill {
        Fill::Varied => (-1.0..=1.0, 0..=1),
        Fill::Positive => (0.0..=1.0, 1..=2),
        Fill::Ones => (1.0..=1.0, 1..=1),
        Fill::Zeros => (0.0..=0.0, 0..=0),
    };
    let bounds = Bounds::of(spec);
    let (floats, whole) = (
        bounds.floats(&floats),
        bounds.whole(&known.unwrap_or(whole)),
    );
    let mut float = || random.random_range(floats.clone());
    match spec.datatype {
        #[expect(clippy::cast_possible_truncation, reason = "rounded to the datatype")]
        Datatype::Fp32 => (0..count)
            .flat_map(|_| (float() as f32).to_le_bytes())
            .collect(),
        Datatype::Fp64 => (0..count).flat_map(|_| float().to_le_bytes()).collect(),
        Datatype::Fp16 => (0..count)
            .flat_map(|_| f16::from_f64(float()).to_le_bytes())
            .collect(),
        Datatype::Bf16 => (0..count)
            .flat_map(|_| bf16::from_f64(float()).to_le_bytes())
            .collect(),
        other => (0..count)
            .flat_map(|_| element(other, random.random_range(whole.clone())))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use carpool_protocol::first_outside;
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn ranges_move_between_the_bounds_and_shrink_only_where_they_must() {
        let bounds = |low, high| Bounds { low, high };
        let free = bounds(f64::NEG_INFINITY, f64::INFINITY);
        for (bounds, whole, floats) in [
            (free, 0..=1, -1.0..=1.0),
            (bounds(5.0, f64::INFINITY), 5..=6, 5.0..=7.0),
            (bounds(f64::NEG_INFINITY, -3.0), -4..=-3, -5.0..=-3.0),
            (bounds(0.5, 0.75), 0..=0, 0.5..=0.75),
            (bounds(1.0, 1.0), 1..=1, 1.0..=1.0),
            (bounds(-0.5, 1.5), 0..=1, -0.5..=1.5),
            (
                bounds(1e300, f64::INFINITY),
                i64::MAX..=i64::MAX,
                1e300..=1e300,
            ),
        ] {
            if bounds.low.ceil() <= bounds.high.floor() && bounds.low < 1e18 {
                assert_eq!(bounds.whole(&(0..=1)), whole, "{bounds:?}");
            }
            assert_eq!(bounds.floats(&(-1.0..=1.0)), floats, "{bounds:?}");
        }
    }

    #[test]
    fn whatever_is_made_up_lies_between_the_bounds() {
        let mut random = StdRng::seed_from_u64(0);
        let types = [
            carpool_crds::Datatype::Uint8,
            carpool_crds::Datatype::Int8,
            carpool_crds::Datatype::Int32,
            carpool_crds::Datatype::Int64,
            carpool_crds::Datatype::Fp16,
            carpool_crds::Datatype::Bf16,
            carpool_crds::Datatype::Fp32,
            carpool_crds::Datatype::Fp64,
        ];
        for name in ["x", INPUT_IDS, ATTENTION_MASK] {
            for (minimum, maximum) in [
                (None, None),
                (Some(3.0), None),
                (None, Some(0.0)),
                (Some(1.0), Some(1.5)),
                (Some(0.1), Some(10.3)),
            ] {
                for of in types {
                    let spec = TensorSpec {
                        name: name.to_owned(),
                        datatype: of,
                        shape: Vec::new(),
                        pad: None,
                        minimum,
                        maximum,
                    };
                    for fill in Fill::ALL {
                        let data = values(&spec, fill, 50, Some(100), &mut random);
                        let outside = first_outside(of.into(), &data, minimum, maximum);
                        assert_eq!(outside, None, "{spec:?} {fill:?}");
                    }
                }
            }
        }
    }
}
