//! Messages as JSON.
//!
//! Tensor data is one flat array, or arrays nested as the shape says; it is written flat. What JSON cannot say:
//!
//! - `FP16` and `BF16` are written as the numbers that they are in `FP32`, and read rounded to the nearest.
//! - Floats have no NaN and no infinities there: all three are written as `null`, and `null` is read as
//!   NaN. A number too large for the datatype is refused, never turned into an infinity.
//! - Integers are exact over their whole range, and refused when written with a fraction or an exponent.
//! - `BYTES` elements are strings; what is not UTF-8 in them is written as U+FFFD.
//! - A name given twice in an object is refused where it has a meaning, for readers differ in which one counts.
//! - Text is UTF-8; a byte order mark before it is skipped.
//! - A parameter from 0 to `i64::MAX` is read as `Int64`; one that is NaN or infinite is written as `null`, which is
//!   not read.

mod binary;
mod data;
mod decode;
mod element;
mod encode;
mod hint;
mod object;
mod parameters;
#[cfg(test)]
mod tests;

pub use data::elements;
pub use decode::{UnreadRequest, decode_object, decode_request, decode_response};
pub use encode::{encode_request, encode_response, encode_response_with};
