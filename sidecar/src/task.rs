//! The way of requests in forms that are made for a task: embeddings and reranking. Each is one of the protocol's requests
//! in other words, and goes through the queue as that.

use std::sync::Arc;

use carpool_crds::{Task, tensor_names::TOKENS};
use carpool_protocol::{InferRequest, InferResponse, RequestedOutput, Tensor};
use http::request::Parts;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    body::{self, IncomingBody},
    error::Error,
    infer::{self, Caller, Validated},
    metrics::Hop,
    proxy::{Proxy, Served},
};

/// A task's own form of requests and answers.
pub trait Form: Sized + Send + 'static {
    /// The task whose models are asked in this form.
    const TASK: Task;

    /// Reads a request: the protocol's request that says the same, and what the answer depends on besides.
    fn read(served: &Served, body: &[u8]) -> Result<(InferRequest, Self), Error>;

    /// Writes the answer.
    fn write(self, served: &Served, response: &InferResponse) -> Result<Vec<u8>, Error>;
}

/// Answers one request.
pub async fn serve<F: Form>(
    proxy: &Proxy,
    caller: Caller<'_>,
    head: &Parts,
    body: &mut IncomingBody,
) -> Result<Vec<u8>, Error> {
    body::check_json(&head.headers)?;
    proxy.served().check_task(F::TASK)?;
    let body = body::read(proxy, &head.headers, body, caller.arrival).await?;

    let served = proxy.served();
    served.check_task(F::TASK)?;
    let mut hops = proxy.metrics.hop_timer();
    let (validated, form) = {
        let (served, bytes) = (Arc::clone(&served), body.len());
        body::off_reactor(bytes, move || validated::<F>(&served, &body)).await?
    };
    hops.passed(Hop::Parse);
    let answer = infer::ask(proxy, &served, validated, caller, &mut hops).await?;
    // Numbers take several times as many bytes as text.
    let bytes = answer.len().saturating_mul(4);
    let write = move || form.write(&served, &infer::decode(answer)?);
    let answer = body::off_reactor(bytes, write).await?;
    hops.passed(Hop::Respond);
    Ok(answer)
}

/// Holds a request against the model.
pub fn validated<F: Form>(served: &Served, body: &[u8]) -> Result<(Validated, F), Error> {
    let (request, form) = F::read(served, body)?;
    let validated = Validated::of_message(served, &request, || request.encode())?;
    Ok((validated, form))
}

/// The protocol's request for some outputs and the number of tokens of each text.
pub fn request(inputs: Vec<Tensor>, output: &str) -> InferRequest {
    let outputs = [output, TOKENS].map(|name| RequestedOutput {
        name: name.to_owned(),
        ..RequestedOutput::default()
    });
    InferRequest {
        inputs,
        outputs: outputs.into(),
        ..InferRequest::default()
    }
}

/// Makes an input of some texts, one a row.
pub fn texts(name: &str, texts: &[String]) -> Result<Tensor, Error> {
    let rows = i64::try_from(texts.len()).unwrap_or(i64::MAX);
    Tensor::from_strings(name, [rows, 1], texts).map_err(|error| Error::Invalid(error.to_string()))
}

/// The numbers in one of the answer's outputs.
pub fn floats(response: &InferResponse, name: &str) -> Result<Vec<f32>, Error> {
    let (elements, _) = output(response, name)?.data.as_chunks();
    Ok(elements
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect())
}

/// One of the answer's outputs.
pub fn output<'a>(response: &'a InferResponse, name: &str) -> Result<&'a Tensor, Error> {
    let output = response.outputs.iter().find(|output| output.name == name);
    output.ok_or_else(|| Error::Internal(format!("the worker's answer has no {name}")))
}

/// The tokens that a request took, as `OpenAI` counts them.
#[derive(Serialize)]
pub struct Usage {
    prompt_tokens: i64,
    total_tokens: i64,
}

impl Usage {
    /// Counts the tokens of all texts, those that the tokenizer adds among them.
    pub fn of(response: &InferResponse) -> Result<Self, Error> {
        let (elements, _) = output(response, TOKENS)?.data.as_chunks();
        let counts = elements.iter().map(|bytes| i64::from_le_bytes(*bytes));
        let tokens = counts.sum();
        Ok(Self {
            prompt_tokens: tokens,
            total_tokens: tokens,
        })
    }
}

/// Makes the error of a field.
pub fn field(field: &'static str, message: impl Into<String>) -> Error {
    Error::Field {
        field,
        message: message.into(),
    }
}

/// Reads a field that is a string.
pub fn string(name: &'static str, value: Option<&RawValue>) -> Result<String, Error> {
    let value = value.ok_or_else(|| field(name, "missing: a string"))?;
    match kind(value.get()) {
        STRING => text(value),
        given => Err(field(name, format!("expected {STRING}, given {given}"))),
    }
}

/// Reads a list, its items as they are written: what they are read into may be larger, and most of a wrong list is not read.
pub fn list<'a>(
    name: &'static str,
    expected: &str,
    value: &'a RawValue,
) -> Result<Vec<&'a RawValue>, Error> {
    let items: Vec<&RawValue> = match kind(value.get()) {
        LIST => serde_json::from_str(value.get()).map_err(|error| unreadable(&error))?,
        given => return Err(field(name, format!("expected {expected}, given {given}"))),
    };
    if items.is_empty() {
        return Err(field(name, "it is empty; at least one text is needed"));
    }
    Ok(items)
}

/// Reads a value that is known to be a string.
pub fn text(value: &RawValue) -> Result<String, Error> {
    serde_json::from_str(value.get()).map_err(|error| unreadable(&error))
}

fn unreadable(error: &serde_json::Error) -> Error {
    Error::Malformed(error.to_string())
}

/// Refuses the name of another model; none is this one.
pub fn check_model(served: &Served, model: Option<&RawValue>) -> Result<(), Error> {
    match model {
        None => Ok(()),
        given => served.check_name(&string("model", given)?),
    }
}

/// The kind of a string.
pub const STRING: &str = "a string";
/// The kind of a list.
pub const LIST: &str = "an array";
/// The kind of an object.
pub const OBJECT: &str = "an object";
/// The kind of a number.
pub const NUMBER: &str = "a number";

/// The kind of a JSON value, which its first character tells.
pub fn kind(value: &str) -> &'static str {
    match value.as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => STRING,
        Some(b'[') => LIST,
        Some(b'{') => OBJECT,
        _ => NUMBER,
    }
}
