//! An inference request and its response, free of the form they travel in.

use std::collections::{BTreeMap, BTreeSet};

use crate::{DecodeError, Tensor, TensorView};

/// Options by name.
pub type Parameters = BTreeMap<String, Parameter>;

/// The value of an option.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// A boolean.
    Bool(bool),
    /// An integer; JSON's numbers in this range are always read as this.
    Int64(i64),
    /// A string.
    String(String),
    /// A floating-point number.
    Double(f64),
    /// An integer that may be above `i64::MAX`.
    Uint64(u64),
}

/// A request: what a client asks of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest {
    /// The model's name.
    pub model_name: String,
    /// The model's version; empty leaves the choice to the server.
    pub model_version: String,
    /// The client's name for this request, which the response repeats; may be empty.
    pub id: String,
    /// Options for this request, such as `timeout` in microseconds.
    pub parameters: Parameters,
    /// The tensors for the model, their names unique.
    pub inputs: Vec<Tensor>,
    /// The tensors wanted back, their names unique; none means all.
    pub outputs: Vec<RequestedOutput>,
}

/// A view of a request without the elements of its tensors: enough to hold it against a model, whatever form it came
/// in.
#[derive(Clone, Debug)]
pub struct RequestView<'a> {
    /// The client's name for this request; may be empty.
    pub id: &'a str,
    /// Options for this request.
    pub parameters: &'a Parameters,
    /// The tensors for the model.
    pub inputs: Vec<TensorView<'a>>,
    /// The tensors wanted back; none means all.
    pub outputs: &'a [RequestedOutput],
}

impl InferRequest {
    /// A view of the request without the elements of its tensors.
    #[must_use]
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            id: &self.id,
            parameters: &self.parameters,
            inputs: self.inputs.iter().map(Tensor::view).collect(),
            outputs: &self.outputs,
        }
    }
}

/// A tensor that the client wants back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestedOutput {
    /// The tensor's name.
    pub name: String,
    /// Options for this tensor.
    pub parameters: Parameters,
}

/// A response: what a model answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferResponse {
    /// The name of the model that ran.
    pub model_name: String,
    /// The version of the model that ran; may be empty.
    pub model_version: String,
    /// The request's id; may be empty.
    pub id: String,
    /// Options that the server adds to the response.
    pub parameters: Parameters,
    /// The tensors from the model, their names unique.
    pub outputs: Vec<Tensor>,
}

/// The most tensors that a message may hold: sixteen times as many as a manifest may declare. An empty one is two bytes of
/// a message, and takes up to a thousand once it is read.
pub(crate) const MAX_TENSORS: usize = 256;

/// Refuses too many names, or a name given twice.
pub(crate) fn check_names<'a>(
    names: impl ExactSizeIterator<Item = &'a String>,
) -> Result<(), DecodeError> {
    if names.len() > MAX_TENSORS {
        return Err(DecodeError::TooManyTensors { limit: MAX_TENSORS });
    }
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(DecodeError::DuplicateTensor {
                tensor: name.clone(),
            });
        }
    }
    Ok(())
}
