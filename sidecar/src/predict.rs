//! `POST /predict`: a text in, its label and score out, in the form of the article that started this project.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use carpool_protocol::{InferRequest, InferResponse, RequestedOutput, Tensor};
use http::request::Parts;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::{
    body::{self, Arriving},
    error::Error,
    infer::{self, Caller, Question},
    metrics::Hop,
    proxy::{Proxy, Served},
    validate::{LABEL, SCORE, TEXT},
};

/// The forms in which a text may come.
#[derive(Debug, Clone, Copy)]
enum Form {
    Json,
    UrlEncoded,
}

/// Answers one request.
pub async fn serve(proxy: &Proxy, head: &Parts, body: &mut Arriving) -> Result<Vec<u8>, Error> {
    let caller = Caller::of(&head.headers);
    let form = match body::media_type(&head.headers).as_deref() {
        Some("application/json") => Form::Json,
        Some("application/x-www-form-urlencoded") => Form::UrlEncoded,
        given => {
            return Err(Error::MediaType {
                expected: "application/json or application/x-www-form-urlencoded",
                given: given.unwrap_or("of no type").to_owned(),
            });
        }
    };
    check_takes_text(&proxy.served())?;
    let body = body::read(proxy, &head.headers, body, caller.arrival).await?;

    let served = proxy.served();
    check_takes_text(&served)?;
    let parsing = proxy.metrics.hop(Hop::Parse);
    let question = {
        let served = Arc::clone(&served);
        body::off_reactor(body.len(), move || question(&served, form, &body)).await?
    };
    parsing.done();
    let answer = infer::ask(proxy, &served, question, caller).await?;
    let responding = proxy.metrics.hop(Hop::Respond);
    let response = respond(answer)?;
    responding.done();
    Ok(response)
}

fn check_takes_text(served: &Served) -> Result<(), Error> {
    match served.model.text {
        Some(_) => Ok(()),
        None => Err(Error::NoText {
            name: served.name.clone(),
        }),
    }
}

/// The request of the protocol that asks for a text's label and score.
fn question(served: &Served, form: Form, body: &[u8]) -> Result<Question, Error> {
    let text = text(form, body)?;
    let input = Tensor::from_strings(TEXT, [1, 1], [text.as_bytes()])
        .map_err(|error| Error::Invalid(error.to_string()))?;
    let outputs = [LABEL, SCORE].map(|name| RequestedOutput {
        name: name.to_owned(),
        ..RequestedOutput::default()
    });
    let request = InferRequest {
        model_name: served.name.clone(),
        model_version: served.revision.to_string(),
        inputs: vec![input],
        outputs: outputs.into(),
        ..InferRequest::default()
    };
    Question::new(served, &request)
}

fn text(form: Form, body: &[u8]) -> Result<Cow<'_, str>, Error> {
    match form {
        Form::Json => {
            let body: Value = serde_json::from_slice(body)
                .map_err(|error| Error::Malformed(format!("failed to parse JSON: {error}")))?;
            let Value::Object(mut fields) = body else {
                let given = kind(&body);
                return Err(Error::Malformed(format!(
                    "expected an object, given {given}"
                )));
            };
            match fields.remove("text") {
                Some(Value::String(text)) => Ok(text.into()),
                Some(other) => {
                    let given = kind(&other);
                    Err(Error::Invalid(format!(
                        "text: expected a string, given {given}"
                    )))
                }
                None => Err(Error::Invalid("text: missing".to_owned())),
            }
        }
        Form::UrlEncoded => form_urlencoded::parse(body)
            .find_map(|(name, value)| (name == "text").then_some(value))
            .ok_or_else(|| Error::Invalid("text: missing".to_owned())),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn respond(answer: Bytes) -> Result<Vec<u8>, Error> {
    let response = infer::decode(answer)?;
    let (label, score) = label_and_score(&response)
        .ok_or_else(|| Error::Internal("the worker's answer has no label and score".to_owned()))?;
    Ok(article(label, score).into_bytes())
}

fn label_and_score(response: &InferResponse) -> Option<(&str, f32)> {
    let output = |name| response.outputs.iter().find(|output| output.name == name);
    let label = *output(LABEL)?.strings().ok()?.first()?;
    let score = *output(SCORE)?.data.first_chunk()?;
    Some((label, f32::from_le_bytes(score)))
}

/// The article's answer, spaces and all: JSON whose `data` is a string of JSON whose `score` is a string.
fn article(label: &str, score: f32) -> String {
    let data = format!("{{\"label\": {}, \"score\": \"{score:.2}\"}}", json!(label));
    format!("{{\"code\": \"200\", \"data\": {}}}", json!(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_articles_bytes() {
        assert_eq!(
            article("POSITIVE", 0.9871),
            r#"{"code": "200", "data": "{\"label\": \"POSITIVE\", \"score\": \"0.99\"}"}"#
        );
    }

    #[test]
    fn a_label_can_hold_anything() {
        let answer: serde_json::Value =
            serde_json::from_str(&article("a \"b\" \\ ü\n", 1.0)).unwrap();
        let data: serde_json::Value =
            serde_json::from_str(answer["data"].as_str().unwrap()).unwrap();
        assert_eq!(data, json!({"label": "a \"b\" \\ ü\n", "score": "1.00"}));
    }
}
