//! `POST /predict`: a text in, its label and score out, in the form of the article that started this project.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use carpool_crds::{
    Task,
    tensor_names::{LABEL, SCORE, TEXT},
};
use carpool_protocol::{InferRequest, InferResponse, RequestedOutput, Tensor, json::decode_object};
use http::request::Parts;
use serde::{Deserialize, Deserializer};
use serde_json::{json, value::RawValue};
use url::form_urlencoded;

use crate::{
    body::{self, IncomingBody},
    error::Error,
    infer::{self, Caller, Validated},
    metrics::Hop,
    proxy::{Proxy, Served},
    task::{STRING, kind},
};

/// The forms in which a text may come.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// An object.
    Json,
    /// The fields of an HTML form.
    UrlEncoded,
}

/// The JSON form of a request. A name given twice is an error, as readers differ in which one counts.
#[derive(Deserialize)]
struct Fields<'a> {
    /// The value as it is written: what is no text may be large once it is read.
    #[serde(borrow, default, deserialize_with = "any_value")]
    text: Option<&'a RawValue>,
}

/// The same where it is known to hold a text.
#[derive(Deserialize)]
struct Text {
    text: String,
}

/// Reads a field's value, `null` included.
fn any_value<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

/// Answers one request.
pub async fn serve(
    proxy: &Proxy,
    caller: Caller<'_>,
    head: &Parts,
    body: &mut IncomingBody,
) -> Result<Vec<u8>, Error> {
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
    proxy.served().check_task(Task::Classify)?;
    let body = body::read(proxy, &head.headers, body, caller.arrival).await?;

    let served = proxy.served();
    served.check_task(Task::Classify)?;
    let mut hops = proxy.metrics.hop_timer();
    let validated = {
        let served = Arc::clone(&served);
        body::off_reactor(body.len(), move || validated(&served, form, &body)).await?
    };
    hops.passed(Hop::Parse);
    let answer = infer::ask(proxy, &served, validated, caller, &mut hops).await?;
    let response = respond(answer)?;
    hops.passed(Hop::Respond);
    Ok(response)
}

/// Makes the request of the protocol that asks for a text's label and score.
pub fn validated(served: &Served, form: Form, body: &[u8]) -> Result<Validated, Error> {
    let text = text(form, body)?;
    let input = Tensor::from_strings(TEXT, [1, 1], [text.as_bytes()])
        .map_err(|error| Error::Invalid(error.to_string()))?;
    let outputs = [LABEL, SCORE].map(|name| RequestedOutput {
        name: name.to_owned(),
        ..RequestedOutput::default()
    });
    let request = InferRequest {
        inputs: vec![input],
        outputs: outputs.into(),
        ..InferRequest::default()
    };
    Validated::of_message(served, &request, || request.encode())
}

fn text(form: Form, body: &[u8]) -> Result<Cow<'_, str>, Error> {
    match form {
        Form::Json => {
            let text = decode_object::<Fields<'_>>(body)?.text;
            let text = text.ok_or_else(missing)?.get();
            match kind(text) {
                STRING => Ok(decode_object::<Text>(body)?.text.into()),
                given => Err(Error::Invalid(format!(
                    "text: expected {STRING}, given {given}"
                ))),
            }
        }
        Form::UrlEncoded => {
            let mut texts = form_urlencoded::parse(body)
                .filter_map(|(name, value)| (name == "text").then_some(value));
            let text = texts.next().ok_or_else(missing)?;
            match texts.count() {
                0 => Ok(text),
                more => Err(Error::Malformed(format!(
                    "text: given {} times; send one, and each other in a request of its own",
                    more + 1
                ))),
            }
        }
    }
}

fn missing() -> Error {
    Error::Invalid("text: missing".to_owned())
}

pub fn respond(answer: Bytes) -> Result<Vec<u8>, Error> {
    let response = infer::decode(answer)?;
    let (label, score) = label_and_score(&response)
        .ok_or_else(|| Error::Internal("the worker's answer has no label and score".to_owned()))?;
    Ok(article_answer(label, score).into_bytes())
}

fn label_and_score(response: &InferResponse) -> Option<(&str, f32)> {
    let output = |name| response.outputs.iter().find(|output| output.name == name);
    let label = *output(LABEL)?.strings().ok()?.first()?;
    let score = *output(SCORE)?.data.first_chunk()?;
    Some((label, f32::from_le_bytes(score)))
}

/// The article's answer, spaces and all: JSON whose `data` is a string of JSON whose `score` is a string.
fn article_answer(label: &str, score: f32) -> String {
    let (label, score) = (json!(label), python_float(score));
    let data = format!("{{\"label\": {label}, \"score\": \"{score}\"}}");
    format!("{{\"code\": \"200\", \"data\": {}}}", json!(data))
}

/// Writes a score as Python's `str` does, where it is a `float`: the shortest digits that come back to it in double
/// precision, more than single precision needs.
fn python_float(score: f32) -> String {
    let score = f64::from(score);
    if !score.is_finite() {
        return score.to_string().to_ascii_lowercase();
    }
    // Rust's form for debugging has an exponent for the same numbers, and writes only that in another way.
    let text = format!("{score:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_articles_bytes() {
        assert_eq!(
            article_answer("POSITIVE", 0.999_865_65),
            r#"{"code": "200", "data": "{\"label\": \"POSITIVE\", \"score\": \"0.9998656511306763\"}"}"#
        );
    }

    #[test]
    fn a_label_can_hold_anything() {
        let answer: serde_json::Value =
            serde_json::from_str(&article_answer("a \"b\" \\ ü\n", 1.0)).unwrap();
        let data: serde_json::Value =
            serde_json::from_str(answer["data"].as_str().unwrap()).unwrap();
        assert_eq!(data, json!({"label": "a \"b\" \\ ü\n", "score": "1.0"}));
    }

    /// The columns are Python's: `[(f"{bits:#010x}", str(struct.unpack("f", struct.pack("I", bits))[0]))]`.
    #[test]
    fn scores_are_written_as_python_does() {
        for (bits, expected) in [
            (0x0000_0000, "0.0"),
            (0x3f80_0000, "1.0"),
            (0x3f00_0000, "0.5"),
            (0x3f7d_70a4, "0.9900000095367432"),
            (0x3f7f_f732, "0.9998656511306763"),
            (0x3f3b_26a8, "0.7310585975646973"),
            (0x3eaa_aaab, "0.3333333432674408"),
            (0x38d1_b717, "9.999999747378752e-05"),
            (0x38d1_b68e, "9.999900066759437e-05"),
            (0x3727_c5ac, "9.999999747378752e-06"),
            (0x3421_0fb0, "1.500000053056283e-07"),
            (0x2edb_e6ff, "1.000000013351432e-10"),
            (0x2e5b_e6ff, "5.00000006675716e-11"),
            (0x0000_0001, "1.401298464324817e-45"),
            (0x38d1_bc76, "0.00010001000191550702"),
            (0x47f1_2065, "123456.7890625"),
            (0x5863_5fa9, "999999986991104.0"),
            (0x5a0e_1bc9, "9999999198822400.0"),
            (0x5a0e_1bca, "1.0000000272564224e+16"),
            (0x6407_8678, "9.999999778196308e+21"),
            (0x7f7f_ffff, "3.4028234663852886e+38"),
            (0x7fc0_0000, "nan"),
            (0x7f80_0000, "inf"),
            (0xff80_0000, "-inf"),
        ] {
            assert_eq!(python_float(f32::from_bits(bits)), expected, "{bits:#010x}");
        }
    }
}
