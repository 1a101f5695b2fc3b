//! The Open Inference Protocol, version 2: its messages, and its JSON and protobuf forms. No I/O.
//!
//! A message's tensors are raw little-endian bytes, whatever form they came in: a protobuf message's raw contents
//! are slices of it, JSON numbers are parsed straight into bytes.

mod bounds;
mod datatype;
mod error;
mod excerpt;
pub mod json;
mod message;
mod protobuf;
mod tensor;

pub use bounds::first_outside;
pub use datatype::{Datatype, UnknownDatatype};
pub use error::{DecodeError, EncodeError, TensorError};
pub use excerpt::{Shape, cut};
pub use message::{
    InferRequest, InferResponse, Parameter, Parameters, RequestView, RequestedOutput,
};
pub use tensor::{Tensor, TensorView};

/// The protobuf `FileDescriptorSet` of `proto/inference.proto`, which describes [`inference`] to clients.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));

/// The protobuf messages, generated from `proto/inference.proto`.
#[allow(missing_docs, clippy::pedantic, reason = "generated")]
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}
