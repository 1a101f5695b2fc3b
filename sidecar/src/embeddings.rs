//! `POST /v1/embeddings`: texts in, vectors out, in the form of `OpenAI`, errors too.

use base64::{Engine, prelude::BASE64_STANDARD};
use carpool_crds::{
    Task,
    tensor_names::{EMBEDDING, TEXT},
};
use carpool_protocol::{InferRequest, InferResponse, cut, json::decode_object};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use crate::{
    error::Error,
    metadata,
    payload::Payload,
    proxy::Served,
    task::{self, LIST, NUMBER, STRING, Usage, check_model, field, kind, list, output, text},
};

/// A request. What `OpenAI` has besides, such as `user`, has no bearing on the answer.
#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    encoding_format: Option<&'a RawValue>,
    #[serde(borrow)]
    dimensions: Option<&'a RawValue>,
}

/// The form in which an answer holds numbers.
pub enum Form {
    Float,
    /// Little-endian, in base64: what `OpenAI`'s clients ask for.
    Base64,
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    #[serde(rename = "embedding")]
    vector: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

impl task::Form for Form {
    const TASK: Task = Task::Embed;

    fn read(served: &Served, body: &[u8]) -> Result<(InferRequest, Self), Error> {
        let request: Request<'_> = decode_object(body)?;
        check_model(served, request.model)?;
        let input = task::texts(TEXT, &texts(request.input)?)?;
        let size = metadata::embedding_size(&served.model);
        if let Some(given) = request.dimensions
            && serde_json::from_str(given.get()).ok() != Some(size)
        {
            let given = cut(given.get());
            let message = format!("the model gives {size}, and no other number; given {given}");
            return Err(field("dimensions", message));
        }
        let form = match request.encoding_format.map(RawValue::get) {
            None | Some("\"float\"") => Self::Float,
            Some("\"base64\"") => Self::Base64,
            Some(given) => {
                let given = cut(given);
                let message = format!("expected \"float\" or \"base64\", given {given}");
                return Err(field("encoding_format", message));
            }
        };
        Ok((task::request(vec![input], EMBEDDING), form))
    }

    fn write(self, served: &Served, response: &InferResponse) -> Result<Vec<u8>, Error> {
        let vectors = output(response, EMBEDDING)?;
        let width = vectors.shape.last().copied().unwrap_or_default();
        let bytes = usize::try_from(width).unwrap_or_default() * size_of::<f32>();
        let rows = vectors.data.chunks(bytes.max(1)).enumerate();
        let data = rows.map(|(index, row)| Embedding {
            object: "embedding",
            index,
            vector: match self {
                Self::Base64 => Vector::Base64(BASE64_STANDARD.encode(row)),
                Self::Float => {
                    let (elements, _) = row.as_chunks();
                    let floats = elements.iter().map(|bytes| f32::from_le_bytes(*bytes));
                    Vector::Float(floats.collect())
                }
            },
        });
        let answer = Answer {
            object: "list",
            data: data.collect(),
            model: &served.name,
            usage: Usage::of(response)?,
        };
        serde_json::to_vec(&answer)
            .map_err(|error| Error::Internal(format!("failed to write the answer: {error}")))
    }
}

fn texts(input: Option<&RawValue>) -> Result<Vec<String>, Error> {
    let expected = "a string or a list of strings";
    let input = input.ok_or_else(|| field("input", format!("missing: {expected}")))?;
    if kind(input.get()) == STRING {
        return Ok(vec![text(input)?]);
    }
    let items = list("input", expected, input)?.into_iter().enumerate();
    let texts = items.map(|(index, item)| match kind(item.get()) {
        STRING => text(item),
        NUMBER | LIST => Err(field(
            "input",
            format!(
                "token ids are not taken, as the model's own tokenizer makes them; give {expected}"
            ),
        )),
        given => Err(field(
            "input",
            format!("expected {expected}, given {given} at {index}"),
        )),
    });
    texts.collect()
}

/// The answer that tells a client of `OpenAI`'s of an error. `OpenAI` itself says 400 of every request that can't be
/// served as it is.
pub fn error_response(error: &Error) -> Response<Payload> {
    let status = match error.status().0 {
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        other => other,
    };
    let (param, code) = match error {
        Error::Field { field, .. } => (Some(*field), None),
        Error::UnknownModel { .. } => (Some("model"), Some("model_not_found")),
        _ => (None, None),
    };
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    let message = error.to_string();
    error.response_with(
        status,
        &json!({"error": {"message": message, "type": kind, "param": param, "code": code}}),
    )
}
