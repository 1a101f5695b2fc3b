//! `POST /v1/models/NAME:predict`: `KServe`'s first protocol, which TensorFlow Serving had before it. A request holds rows,
//! each the value of the model's one input or an object of values by the names of its inputs; so does an answer.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use carpool_protocol::{InferResponse, json};
use http::{Response, request::Parts};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    body::{self, IncomingBody},
    error::Error,
    infer::{self, Caller, Validated},
    metadata,
    metrics::Hop,
    payload::Payload,
    proxy::{Proxy, Served},
    routes,
};

/// A request: rows, and the name of a signature, of which a model has one here.
#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    instances: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    inputs: Option<&'a RawValue>,
}

/// Answers one request.
pub async fn serve(
    proxy: &Proxy,
    caller: Caller<'_>,
    head: &Parts,
    body: &mut IncomingBody,
) -> Result<Response<Payload>, Error> {
    match body::media_type(&head.headers) {
        Some(given) if given != "application/json" => {
            return Err(Error::MediaType {
                expected: "application/json",
                given,
            });
        }
        _ => {}
    }
    let body = body::read(proxy, &head.headers, body, caller.arrival).await?;
    let served = proxy.served();
    let mut hops = proxy.metrics.hop_timer();
    let validated = {
        let (served, bytes) = (Arc::clone(&served), body.len());
        let read = move || Validated::of_json(&served, to_tensors(&served, &body)?, None);
        body::off_reactor(bytes, read).await?
    };
    hops.passed(Hop::Parse);
    let answer = infer::ask(proxy, &served, validated, caller, &mut hops).await?;
    let answer = {
        let served = Arc::clone(&served);
        body::off_reactor(answer.len(), move || predictions(&served, answer)).await?
    };
    hops.passed(Hop::Respond);
    Ok(routes::json(answer))
}

/// Writes the rows of a request as a request of the second protocol, one tensor for each input.
fn to_tensors(served: &Served, body: &[u8]) -> Result<Bytes, Error> {
    let request: Request<'_> = json::decode_object(body)?;
    let Some(rows) = request.instances else {
        let instead = match request.inputs {
            Some(_) => "; `inputs` are columns, which are not read: give rows",
            None => "",
        };
        return Err(Error::Malformed(format!(
            "instances: missing: a list of rows{instead}"
        )));
    };
    if rows.is_empty() {
        return Err(Error::Invalid(
            "instances: there are none; at least one is needed".to_owned(),
        ));
    }
    let (inputs, _) = metadata::tensors(served);
    let are_named = rows[0].get().starts_with('{');
    let mut columns: BTreeMap<&str, Vec<&RawValue>> = BTreeMap::new();
    match (&inputs[..], are_named) {
        ([only], false) => {
            columns.insert(only.name, rows);
        }
        (inputs, false) => {
            let names: Vec<&str> = inputs.iter().map(|input| input.name).collect();
            return Err(Error::Invalid(format!(
                "instances[0]: expected an object of {}, given {}",
                names.join(", "),
                brief(rows[0].get())
            )));
        }
        (inputs, true) => {
            for (index, row) in rows.iter().enumerate() {
                let row: BTreeMap<String, &RawValue> = json::decode_object(row.get().as_bytes())
                    .map_err(|error| Error::Invalid(format!("instances[{index}]: {error}")))?;
                for (name, value) in row {
                    let input = inputs.iter().find(|input| input.name == name);
                    let Some(input) = input else {
                        return Err(Error::Invalid(format!(
                            "instances[{index}]: unknown input {name:?}"
                        )));
                    };
                    columns.entry(input.name).or_default().push(value);
                }
                if let Some(missing) = inputs
                    .iter()
                    .find(|input| columns.get(input.name).map_or(0, Vec::len) != index + 1)
                {
                    return Err(Error::Invalid(format!(
                        "instances[{index}]: input {:?} is missing",
                        missing.name
                    )));
                }
            }
        }
    }
    let mut tensors = Vec::new();
    for input in &inputs {
        let Some(values) = columns.get(input.name) else {
            continue;
        };
        let mut shape = vec![values.len()];
        let first: Value = serde_json::from_str(values[0].get())
            .map_err(|error| Error::Malformed(format!("instances[0]: {error}")))?;
        dimensions(&first, &mut shape);
        // A row of one value may be that value.
        if shape.len() == 1 && input.shape.len() == 2 {
            shape.push(1);
        }
        let data: Vec<&str> = values.iter().map(|value| value.get()).collect();
        tensors.push(format!(
            "{{\"name\":{},\"datatype\":\"{}\",\"shape\":{},\"data\":[{}]}}",
            json!(input.name),
            input.datatype,
            json!(shape),
            data.join(",")
        ));
    }
    Ok(format!("{{\"inputs\":[{}]}}", tensors.join(",")).into())
}

/// Appends the lengths of nested lists, by the first of each.
fn dimensions(value: &Value, shape: &mut Vec<usize>) {
    if let Value::Array(items) = value {
        shape.push(items.len());
        if let Some(first) = items.first() {
            dimensions(first, shape);
        }
    }
}

/// Writes a worker's answer as rows.
fn predictions(served: &Served, answer: Bytes) -> Result<Vec<u8>, Error> {
    let response = infer::decode(answer)?;
    let rows = rows(&response, served.model.text.is_some())?;
    let predictions: Vec<Value> = rows
        .into_iter()
        .map(|row| match row.len() {
            1 => row
                .into_iter()
                .next()
                .map(|(_, value)| value)
                .unwrap_or_default(),
            _ => Value::Object(row),
        })
        .collect();
    Ok(json!({ "predictions": predictions })
        .to_string()
        .into_bytes())
}

/// The outputs of each row, by name. A text's label and score are not lists of one.
fn rows(response: &InferResponse, of_texts: bool) -> Result<Vec<Map<String, Value>>, Error> {
    let broken = |error: String| Error::Internal(format!("failed to write the answer: {error}"));
    let json = json::encode_response(response).map_err(|error| broken(error.to_string()))?;
    let json: Value = serde_json::from_slice(&json).map_err(|error| broken(error.to_string()))?;
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    let outputs = json["outputs"].as_array().map_or(&[][..], Vec::as_slice);
    for (output, tensor) in outputs.iter().zip(&response.outputs) {
        let items = output["data"].as_array().map_or(&[][..], Vec::as_slice);
        let mut shape = tensor
            .shape
            .iter()
            .map(|size| usize::try_from(*size).unwrap_or(0));
        let count = shape.next().unwrap_or(0);
        let inner: Vec<usize> = if of_texts {
            Vec::new()
        } else {
            shape.collect()
        };
        rows.resize_with(rows.len().max(count), Map::new);
        let size = inner.iter().product::<usize>().max(1);
        for (row, items) in rows.iter_mut().zip(items.chunks(size)) {
            row.insert(tensor.name.clone(), nested(items, &inner));
        }
    }
    Ok(rows)
}

/// Nests a flat list as the dimensions say.
fn nested(items: &[Value], shape: &[usize]) -> Value {
    match shape {
        [] => items.first().cloned().unwrap_or_default(),
        [_] => Value::from(items),
        [_, rest @ ..] => {
            let size = rest.iter().product::<usize>().max(1);
            items.chunks(size).map(|part| nested(part, rest)).collect()
        }
    }
}

/// The beginning of a value, for a message.
fn brief(text: &str) -> String {
    text.chars().take(40).collect()
}
