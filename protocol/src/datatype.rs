//! The protocol's names for the types of tensor elements.

use std::{fmt, str::FromStr};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Datatype {
    /// A byte, 0 or 1.
    Bool,
    /// An unsigned whole number of 8 bits.
    Uint8,
    /// An unsigned whole number of 16 bits.
    Uint16,
    /// An unsigned whole number of 32 bits.
    Uint32,
    /// An unsigned whole number of 64 bits.
    Uint64,
    /// A signed whole number of 8 bits.
    Int8,
    /// A signed whole number of 16 bits.
    Int16,
    /// A signed whole number of 32 bits.
    Int32,
    /// A signed whole number of 64 bits.
    Int64,
    /// A floating-point number of IEEE 754 half precision.
    Fp16,
    /// A floating-point number that is the upper half of an `FP32`.
    Bf16,
    /// A floating-point number of IEEE 754 single precision.
    Fp32,
    /// A floating-point number of IEEE 754 double precision.
    Fp64,
    /// A string of bytes of any length.
    Bytes,
}

impl Datatype {
    /// The datatypes, in the protocol's order.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's name, such as `FP32`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// The bytes that one element takes; `None` for `BYTES`, whose elements carry their length.
    #[must_use]
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }

    /// The elements that the datatype has, in words.
    pub(crate) const fn values(self) -> &'static str {
        match self {
            Self::Bool => "true and false",
            Self::Uint8 => "whole numbers from 0 to 255",
            Self::Uint16 => "whole numbers from 0 to 65535",
            Self::Uint32 => "whole numbers from 0 to 4294967295",
            Self::Uint64 => "whole numbers from 0 to 18446744073709551615",
            Self::Int8 => "whole numbers from -128 to 127",
            Self::Int16 => "whole numbers from -32768 to 32767",
            Self::Int32 => "whole numbers from -2147483648 to 2147483647",
            Self::Int64 => "whole numbers from -9223372036854775808 to 9223372036854775807",
            Self::Fp16 => "numbers from -65504 to 65504, and null for NaN",
            Self::Bf16 => "numbers from -3.3895314e38 to 3.3895314e38, and null for NaN",
            Self::Fp32 => "numbers from -3.4028235e38 to 3.4028235e38, and null for NaN",
            Self::Fp64 => {
                "numbers from -1.7976931348623157e308 to 1.7976931348623157e308, and null for NaN"
            }
            Self::Bytes => "strings",
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no datatype's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to read a datatype: it is one of BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, \
     FP16, BF16, FP32, FP64, BYTES"
)]
pub struct UnknownDatatype;

impl FromStr for Datatype {
    type Err = UnknownDatatype;

    fn from_str(name: &str) -> Result<Self, UnknownDatatype> {
        Self::ALL
            .into_iter()
            .find(|datatype| datatype.name() == name)
            .ok_or(UnknownDatatype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_and_is_listed_in_the_error() {
        let message = UnknownDatatype.to_string();
        for datatype in Datatype::ALL {
            assert_eq!(datatype.to_string().parse(), Ok(datatype));
            assert!(message.contains(datatype.name()));
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for name in ["", "fp32", "FP32 ", "TYPE_FP32", "STRING"] {
            assert_eq!(name.parse::<Datatype>(), Err(UnknownDatatype));
        }
    }
}
