//! `POST /rerank`: a query and documents in, the documents' scores out, the best first. Requests and answers are those that
//! Cohere, Jina and vLLM have; a request whose documents are `texts` is answered as Text Embeddings Inference does.

use carpool_crds::{
    Activation, Task,
    tensor_names::{DOCUMENT, QUERY, SCORE},
};
use carpool_protocol::{InferRequest, InferResponse, json::decode_object};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::Error,
    proxy::Served,
    task::{self, Usage, check_model, field, floats, kind, string},
};

#[derive(Deserialize)]
struct Request {
    model: Option<Value>,
    query: Option<Value>,
    documents: Option<Value>,
    top_n: Option<Value>,
    return_documents: Option<bool>,
    max_tokens_per_doc: Option<Value>,
    /// The documents, in the words of Text Embeddings Inference, as the two that follow.
    texts: Option<Value>,
    return_text: Option<bool>,
    raw_scores: Option<bool>,
}

/// The parts of a request that its answer depends on besides the scores.
pub struct Form {
    /// The documents, where the answer is to hold them.
    documents: Option<Vec<String>>,
    /// The most documents that the answer is to hold.
    top: usize,
    /// Whether the answer is one of Text Embeddings Inference.
    is_bare: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    results: Vec<Ranked>,
    usage: Usage,
}

#[derive(Serialize)]
struct Ranked {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
}

#[derive(Serialize)]
struct Document {
    text: String,
}

/// A document in an answer of Text Embeddings Inference.
#[derive(Serialize)]
struct Bare {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl task::Form for Form {
    const TASK: Task = Task::Rerank;

    fn read(served: &Served, body: &[u8]) -> Result<(InferRequest, Self), Error> {
        let request: Request = decode_object(body)?;
        check_model(served, request.model)?;
        let query = string("query", request.query)?;
        let is_bare = request.documents.is_none() && request.texts.is_some();
        let documents = if is_bare {
            strings("texts", request.texts)?
        } else if request.texts.is_some() {
            return Err(field("texts", "documents are given, too; leave one out"));
        } else {
            strings("documents", request.documents)?
        };
        let top = top(request.top_n)?.unwrap_or(documents.len());
        if request
            .max_tokens_per_doc
            .is_some_and(|given| !given.is_null())
        {
            let message =
                "is not built yet; leave it out: pairs are cut to spec.model.text.maxLength";
            return Err(field("max_tokens_per_doc", message));
        }
        let activation = served.model.text.as_ref().map(|text| text.activation);
        if request.raw_scores == Some(true) && activation != Some(Activation::None) {
            let message = "the model's scores go through a sigmoid; leave it out, or ask for the model's own output by \
                           the Open Inference Protocol";
            return Err(field("raw_scores", message));
        }
        let inputs = vec![
            task::texts(QUERY, &[query])?,
            task::texts(DOCUMENT, &documents)?,
        ];
        let wanted = if is_bare {
            request.return_text
        } else {
            request.return_documents
        };
        let form = Self {
            documents: wanted.unwrap_or(false).then_some(documents),
            top,
            is_bare,
        };
        Ok((task::request(inputs, SCORE), form))
    }

    fn write(self, served: &Served, response: &InferResponse) -> Result<Vec<u8>, Error> {
        let mut ranked: Vec<(usize, f32)> =
            floats(response, SCORE)?.into_iter().enumerate().collect();
        // Documents of one score stay in their order.
        ranked.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        ranked.truncate(self.top);
        let text = |index: usize| self.documents.as_ref()?.get(index).cloned();
        let written = if self.is_bare {
            let bare = ranked.into_iter().map(|(index, score)| Bare {
                index,
                score,
                text: text(index),
            });
            serde_json::to_vec(&bare.collect::<Vec<_>>())
        } else {
            let results = ranked.into_iter().map(|(index, score)| Ranked {
                index,
                relevance_score: score,
                document: text(index).map(|text| Document { text }),
            });
            serde_json::to_vec(&Answer {
                model: &served.name,
                results: results.collect(),
                usage: Usage::of(response)?,
            })
        };
        written.map_err(|error| Error::Internal(format!("failed to write the answer: {error}")))
    }
}

/// Reads documents, each a string or an object with a `text`.
fn strings(name: &'static str, value: Option<Value>) -> Result<Vec<String>, Error> {
    let items = match value {
        Some(Value::Array(items)) => items,
        None | Some(Value::Null) => return Err(field(name, "missing: a list of strings")),
        Some(other) => {
            let message = format!("expected a list of strings, given {}", kind(&other));
            return Err(field(name, message));
        }
    };
    if items.is_empty() {
        return Err(field(name, "it holds no document; at least one is needed"));
    }
    let items = items
        .into_iter()
        .enumerate()
        .map(|(index, item)| match item {
            Value::String(text) => Ok(text),
            Value::Object(mut document) => match document.remove("text") {
                Some(Value::String(text)) => Ok(text),
                _ => Err(field(
                    name,
                    format!("the object at {index} has no string \"text\""),
                )),
            },
            other => {
                let message = format!("expected strings, given {} at {index}", kind(&other));
                Err(field(name, message))
            }
        });
    items.collect()
}

fn top(given: Option<Value>) -> Result<Option<usize>, Error> {
    let Some(given) = given.filter(|given| !given.is_null()) else {
        return Ok(None);
    };
    let Some(top @ 1..) = given.as_u64() else {
        let message = format!("expected a whole number of at least 1, given {given}");
        return Err(field("top_n", message));
    };
    Ok(Some(usize::try_from(top).unwrap_or(usize::MAX)))
}
