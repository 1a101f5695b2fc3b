//! The readers of what clients and workers send, for tests that send anything. They are no part of what this crate offers.
//!
//! Each gives the error that the sender would be told.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde_json::json;

use crate::{
    binary::{self, BinaryOutputs},
    embeddings,
    error::Error,
    grpc, infer,
    infer::Validated,
    predict,
    proxy::Served,
    rerank,
    task::{self, Form},
    v1,
};

/// The models whose requests are read: one of tensors of several types and shapes, one of few, and one of texts for each task.
static MODELS_SERVED: LazyLock<Vec<Served>> = LazyLock::new(|| {
    let tensors = json!({
        "uri": "file://m",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2], "minimum": -9, "maximum": 9},
            {"name": "ids", "datatype": "INT64", "shape": ["n"]},
            {"name": "mask", "datatype": "BOOL", "shape": ["n"]},
        ],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}],
    });
    let one = json!({
        "uri": "file://m",
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP64", "shape": [2]}],
    });
    let text = json!({
        "uri": "file://m",
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2]}],
        "text": {"tokenizer": "tokenizer.json", "maxLength": 128, "labels": ["NEGATIVE", "POSITIVE"]},
    });
    let embed = json!({
        "uri": "file://m",
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1]}],
        "outputs": [{"name": "vector", "datatype": "FP32", "shape": [2]}],
        "text": {"tokenizer": "tokenizer.json", "task": "Embed"},
    });
    let rerank = json!({
        "uri": "file://m",
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1]}],
        "outputs": [{"name": "logit", "datatype": "FP32", "shape": [1]}],
        "text": {"tokenizer": "tokenizer.json", "task": "Rerank"},
    });
    let models = [tensors, one, text, embed, rerank].into_iter();
    models.filter_map(|model| served(&model)).collect()
});

fn served(model: &serde_json::Value) -> Option<Served> {
    let config = json!({
        "name": "m",
        "namespace": "default",
        "uid": "0",
        "serving": "r1",
        "models": {"r1": model},
        "batching": {},
        "queue": {},
        "device": "cpu",
    });
    let config = serde_json::from_value(config).ok()?;
    Served::new(&config, None).ok()
}

/// The number of models. Each function takes the place of one of them, and reads what is sent to it.
pub const MODELS: usize = 5;

fn model(place: usize) -> Result<&'static Served, String> {
    MODELS_SERVED
        .get(place)
        .ok_or_else(|| format!("there is no model {place}"))
}

fn told<T>(read: Result<T, Error>) -> Result<(), String> {
    read.map(drop).map_err(|error| error.to_string())
}

/// Reads a request of the protocol in JSON.
pub fn oip_json(place: usize, body: &[u8]) -> Result<(), String> {
    let body = Bytes::copy_from_slice(body);
    told(Validated::of_json(model(place)?, body, None))
}

/// Reads a request of the protocol in JSON and binary tensor data. The first line of `input` is the header that says where
/// the JSON ends.
pub fn oip_binary(place: usize, input: &[u8]) -> Result<(), String> {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (header, body) = input.split_at(end.unwrap_or(input.len()));
    let Ok(header) = HeaderValue::from_bytes(header) else {
        return Ok(());
    };
    let headers: HeaderMap = [(binary::JSON_LENGTH, header)].into_iter().collect();
    let length = binary::json_length(&headers).map_err(|error| error.to_string())?;
    let body = Bytes::copy_from_slice(body.get(1..).unwrap_or_default());
    told(Validated::of_json(model(place)?, body, length))
}

/// Reads a request of the first protocol.
pub fn v1(place: usize, body: &[u8]) -> Result<(), String> {
    told(v1::validated(model(place)?, body))
}

/// Reads a text, as JSON and as a form.
pub fn predict(place: usize, body: &[u8]) -> Result<(), String> {
    told(predict::validated(model(place)?, predict::Form::Json, body))?;
    told(predict::validated(
        model(place)?,
        predict::Form::UrlEncoded,
        body,
    ))
}

/// Reads a request for embeddings.
pub fn embeddings(place: usize, body: &[u8]) -> Result<(), String> {
    told(task::validated::<embeddings::Form>(model(place)?, body))
}

/// Reads a request for the scores of documents.
pub fn rerank(place: usize, body: &[u8]) -> Result<(), String> {
    told(task::validated::<rerank::Form>(model(place)?, body))
}

/// Reads a message of gRPC.
pub fn grpc(place: usize, message: &[u8]) -> Result<(), String> {
    let read = grpc::read(model(place)?, Bytes::copy_from_slice(message));
    told(read.and_then(|(_, validated)| validated))
}

/// The number of forms in which [`answer`] writes an answer.
pub const FORMS: usize = 8;

/// Reads a worker's answer, and writes it in one of the forms that clients may want.
pub fn answer(form: usize, message: &[u8]) -> Result<(), String> {
    let message = Bytes::copy_from_slice(message);
    let outputs = match form {
        0 => BinaryOutputs::default(),
        1 => BinaryOutputs::all(),
        2 => return told(predict::respond(message)),
        // The models of tensors, and the first of texts.
        3 => return told(v1::predictions(model(0)?, 2, message)),
        4 => return told(v1::predictions(model(2)?, 2, message)),
        form => {
            let response = infer::decode(message).map_err(|error| error.to_string())?;
            return match form {
                5 => told(embeddings::Form::Float.write(model(3)?, &response)),
                6 => told(embeddings::Form::Base64.write(model(3)?, &response)),
                _ => told(rerank::Form::of_all().write(model(4)?, &response)),
            };
        }
    };
    let response = infer::decode(message).map_err(|error| error.to_string())?;
    told(outputs.encode(&response))
}
