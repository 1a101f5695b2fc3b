//! `POST /predict`: a text in, its label and score out, in the form of the article that started this project.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use carpool_protocol::{InferRequest, InferResponse, RequestedOutput, Tensor};
use http::Request;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use url::form_urlencoded;

use crate::{
    body,
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
pub async fn serve(proxy: &Proxy, request: Request<Incoming>) -> Result<Vec<u8>, Error> {
    let (head, body) = request.into_parts();
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
    drop(parsing);
    let answer = infer::ask(proxy, &served, question, caller).await?;
    let _responding = proxy.metrics.hop(Hop::Respond);
    respond(answer)
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

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

fn text(form: Form, body: &[u8]) -> Result<Cow<'_, str>, Error> {
    match form {
        Form::Json => match serde_json::from_slice(body) {
            Ok(Body { text }) => Ok(text),
            Err(error) if error.is_data() => Err(Error::Invalid(error.to_string())),
            Err(error) => Err(Error::Malformed(format!("failed to parse JSON: {error}"))),
        },
        Form::UrlEncoded => form_urlencoded::parse(body)
            .find_map(|(name, value)| (name == "text").then_some(value))
            .ok_or_else(|| Error::Invalid("the form has no field `text`".to_owned())),
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
