//! The mistakes that a message may hold, and whose fault each is.

use crate::{
    Datatype, UnknownDatatype,
    excerpt::{Quoted, Shape},
};

/// The reason that a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Text that is not JSON, or JSON that is not the message.
    #[error("failed to parse JSON: {message}")]
    Json {
        /// The place and the mistake, such as ``inputs[0]: missing field `shape` at line 1 column 20``.
        message: String,
    },
    /// Bytes that are not the protobuf message.
    #[error("failed to parse protobuf: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// More tensors than any model takes.
    #[error("failed to read the tensors: there are more than {limit} in one message")]
    TooManyTensors {
        /// The most tensors that there may be.
        limit: usize,
    },
    /// Raw contents for some tensors and not for others.
    #[error(
        "failed to read raw contents: there are {given} for {tensors} tensors; each has one, or none has"
    )]
    RawContents {
        /// Tensors in the message.
        tensors: usize,
        /// Raw contents in the message.
        given: usize,
    },
    /// A tensor whose elements are given twice.
    #[error("tensor {}: has raw and typed contents; give one of them", Quoted(.tensor))]
    ContentsTwice {
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor without elements.
    #[error("tensor {}: has no data: give `data` or, with binary tensor data, `binary_data_size`", Quoted(.tensor))]
    NoData {
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor with elements in JSON and behind it.
    #[error("tensor {}: has `data` and `binary_data_size`; give one of them", Quoted(.tensor))]
    DataTwice {
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor with binary data in a message that has none.
    #[error(
        "tensor {}: has `binary_data_size`, but the header Inference-Header-Content-Length does not say where the JSON ends",
        Quoted(.tensor)
    )]
    NoBinaryPart {
        /// The tensor's name.
        tensor: String,
    },
    /// A size of binary data that is no size.
    #[error("tensor {}: `binary_data_size` must be a number of bytes, 0 or more", Quoted(.tensor))]
    BinarySize {
        /// The tensor's name.
        tensor: String,
    },
    /// Less binary data than its tensor says.
    #[error("tensor {}: `binary_data_size` is {size}, but only {left} bytes are left for it", Quoted(.tensor))]
    BytesMissing {
        /// The tensor's name.
        tensor: String,
        /// The bytes that the tensor says it has.
        size: usize,
        /// The bytes behind the JSON and the tensors before this one.
        left: usize,
    },
    /// Binary data that is no tensor's.
    #[error("{given} bytes too many follow {}", after(.last.as_deref()))]
    BytesLeft {
        /// The last tensor with binary data.
        last: Option<String>,
        /// The number of bytes.
        given: usize,
    },
    /// Binary data that is not what its tensor's shape and datatype say.
    #[error(transparent)]
    Binary(TensorError),
    /// A parameter without a value.
    #[error("parameter {}: has no value", Quoted(.name))]
    ParameterWithoutValue {
        /// The parameter's name.
        name: String,
    },
    /// A datatype that the protocol does not have.
    #[error("tensor {}: datatype {}: {source}", Quoted(.tensor), Quoted(.given))]
    Datatype {
        /// The tensor's name.
        tensor: String,
        /// The datatype as given.
        given: String,
        /// The datatypes that there are.
        source: UnknownDatatype,
    },
    /// Two tensors of one name.
    #[error("tensor {}: is given twice", Quoted(.tensor))]
    DuplicateTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// Typed contents in a field that is not the datatype's, or in none.
    #[error("tensor {}: {datatype} takes {expected}; {given} given", Quoted(.tensor))]
    Contents {
        /// The tensor's name.
        tensor: String,
        /// The tensor's datatype.
        datatype: Datatype,
        /// The field that the elements belong into.
        expected: &'static str,
        /// The fields that the elements are in.
        given: &'static str,
    },
    /// An element that the datatype does not have.
    #[error("tensor {}: element {index} is {}; {datatype} takes {expected}", Quoted(.tensor), Quoted(.given))]
    Value {
        /// The tensor's name.
        tensor: String,
        /// The tensor's datatype.
        datatype: Datatype,
        /// The element's index, counted from 0 in row-major order.
        index: usize,
        /// The element as given.
        given: String,
        /// The elements that are allowed.
        expected: &'static str,
    },
    /// A nested array of another length than the shape says.
    #[error(
        "tensor {}: an array {depth} deep in its data has {given} items; shape {} says {expected}",
        Quoted(.tensor),
        Shape(.shape)
    )]
    ArrayLength {
        /// The tensor's name.
        tensor: String,
        /// The tensor's shape.
        shape: Vec<i64>,
        /// The depth of the array, 1 for the outermost.
        depth: usize,
        /// The number of items that the shape says.
        expected: i64,
        /// The number of items that the array has.
        given: usize,
    },
    /// Arrays nested deeper or less deep than the shape has dimensions.
    #[error(
        "tensor {}: its data is nested unlike shape {}; give one flat array, or arrays nested {} deep",
        Quoted(.tensor),
        Shape(.shape),
        .shape.len().max(1)
    )]
    Nesting {
        /// The tensor's name.
        tensor: String,
        /// The tensor's shape.
        shape: Vec<i64>,
    },
    /// A tensor that does not hold together.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl DecodeError {
    /// Makes an error of the JSON library's words. It repeats what it was given, however long that is, so they are cut,
    /// but for the hint at their end.
    pub(crate) fn json(message: &str, hint: Option<String>) -> Self {
        const LIMIT: usize = 256;
        let mut message: String = message.chars().take(LIMIT).collect();
        if let Some(hint) = hint {
            message.push_str("; ");
            message.push_str(&hint);
        }
        Self::Json { message }
    }

    /// Whether the message itself is broken (HTTP 400), not its content wrong (HTTP 422).
    #[must_use]
    pub const fn is_malformed(&self) -> bool {
        match self {
            Self::Json { .. }
            | Self::Protobuf(_)
            | Self::TooManyTensors { .. }
            | Self::RawContents { .. }
            | Self::ContentsTwice { .. }
            | Self::NoData { .. }
            | Self::DataTwice { .. }
            | Self::NoBinaryPart { .. }
            | Self::BinarySize { .. }
            | Self::BytesMissing { .. }
            | Self::BytesLeft { .. }
            | Self::Binary(_)
            | Self::ParameterWithoutValue { .. } => true,
            Self::Datatype { .. }
            | Self::DuplicateTensor { .. }
            | Self::Contents { .. }
            | Self::Value { .. }
            | Self::ArrayLength { .. }
            | Self::Nesting { .. }
            | Self::Tensor(_) => false,
        }
    }
}

fn after(last: Option<&str>) -> String {
    match last {
        Some(tensor) => format!("the binary data of tensor {}, the last one", Quoted(tensor)),
        None => "the JSON, in which no tensor has `binary_data_size`".to_owned(),
    }
}

/// The reason that a message could not be written as JSON.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A tensor that does not hold together.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The JSON library's error.
    #[error("failed to write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The reason that a tensor does not hold together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// More dimensions than any model takes.
    #[error("tensor {}: has {given} dimensions; there may be {limit}", Quoted(.tensor))]
    TooManyDimensions {
        /// The tensor's name.
        tensor: String,
        /// The number of dimensions given.
        given: usize,
        /// The most that there may be.
        limit: usize,
    },
    /// A dimension below zero.
    #[error("tensor {}: shape {} has a negative dimension; each is 0 or more", Quoted(.tensor), Shape(.shape))]
    NegativeDimension {
        /// The tensor's name.
        tensor: String,
        /// The shape as given.
        shape: Vec<i64>,
    },
    /// More elements or bytes than this machine can address.
    #[error("tensor {}: shape {} of {datatype} is larger than memory can be", Quoted(.tensor), Shape(.shape))]
    TooLarge {
        /// The tensor's name.
        tensor: String,
        /// The type of the tensor's elements.
        datatype: Datatype,
        /// The shape as given.
        shape: Vec<i64>,
    },
    /// Data of another size than shape and datatype say, and that are no whole number of elements.
    #[error("tensor {}: shape {} of {datatype} takes {expected} bytes; {given} given", Quoted(.tensor), Shape(.shape))]
    Size {
        /// The tensor's name.
        tensor: String,
        /// The type of the tensor's elements.
        datatype: Datatype,
        /// The shape as given.
        shape: Vec<i64>,
        /// The number of bytes that shape and datatype make.
        expected: usize,
        /// The number of bytes given.
        given: usize,
    },
    /// Another number of elements than the shape says.
    #[error(
        "tensor {}: shape {} has {expected} elements; {given} given: change the shape or the data",
        Quoted(.tensor),
        Shape(.shape)
    )]
    Count {
        /// The tensor's name.
        tensor: String,
        /// The shape as given.
        shape: Vec<i64>,
        /// The number of elements that the shape makes.
        expected: usize,
        /// The number of elements given.
        given: usize,
    },
    /// A `BYTES` element whose length reaches past the end of the data.
    #[error("tensor {}: element {index} of its BYTES data is cut off", Quoted(.tensor))]
    Truncated {
        /// The tensor's name.
        tensor: String,
        /// The element's index, counted from 0.
        index: usize,
    },
    /// A `BYTES` element longer than its four-byte length can say.
    #[error("tensor {}: element {index} has {given} bytes; a BYTES element has at most {}", Quoted(.tensor), u32::MAX)]
    ElementTooLong {
        /// The tensor's name.
        tensor: String,
        /// The element's index, counted from 0.
        index: usize,
        /// The element's length in bytes.
        given: usize,
    },
    /// A `BOOL` element that is neither 0 nor 1.
    #[error("tensor {}: element {index} is the byte {given}; BOOL takes 0 and 1", Quoted(.tensor))]
    Bool {
        /// The tensor's name.
        tensor: String,
        /// The element's index, counted from 0.
        index: usize,
        /// The byte as given.
        given: u8,
    },
    /// Strings asked of a tensor of another datatype.
    #[error("tensor {}: has datatype {datatype}; strings are BYTES", Quoted(.tensor))]
    NotBytes {
        /// The tensor's name.
        tensor: String,
        /// The tensor's datatype.
        datatype: Datatype,
    },
    /// A string that is not UTF-8.
    #[error("tensor {}: element {index} is not a UTF-8 string", Quoted(.tensor))]
    NotUtf8 {
        /// The tensor's name.
        tensor: String,
        /// The element's index, counted from 0.
        index: usize,
    },
}
