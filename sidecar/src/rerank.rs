//! `POST /rerank`: a query and documents in, the documents' scores out, the best first. Requests and answers are those that
//! Cohere, Jina and vLLM have; a request whose documents are `texts` is answered as Text Embeddings Inference does.

use carpool_crds::{
    Activation, Task,
    tensor_names::{DOCUMENT, QUERY, SCORE},
};
use carpool_protocol::{InferRequest, InferResponse, cut, json::decode_object};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    error::Error,
    proxy::Served,
    task::{self, OBJECT, STRING, Usage, check_model, field, floats, kind, list, string, text},
};

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    query: Option<&'a RawValue>,
    #[serde(borrow)]
    documents: Option<&'a RawValue>,
    #[serde(borrow)]
    top_n: Option<&'a RawValue>,
    return_documents: Option<bool>,
    #[serde(borrow)]
    max_tokens_per_doc: Option<&'a RawValue>,
    /// The documents, in the words of Text Embeddings Inference, as the two that follow.
    #[serde(borrow)]
    texts: Option<&'a RawValue>,
    return_text: Option<bool>,
    raw_scores: Option<bool>,
}

/// A document that is an object.
#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    text: Option<&'a RawValue>,
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

impl Form {
    /// The form of an answer that holds all scores, and no documents.
    pub fn of_all() -> Self {
        Self {
            documents: None,
            top: usize::MAX,
            is_bare: false,
        }
    }
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
        let request: Request<'_> = decode_object(body)?;
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
        if request.max_tokens_per_doc.is_some() {
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
fn strings(name: &'static str, value: Option<&RawValue>) -> Result<Vec<String>, Error> {
    let expected = "a list of strings";
    let value = value.ok_or_else(|| field(name, format!("missing: {expected}")))?;
    let items = list(name, expected, value)?.into_iter().enumerate();
    let texts = items.map(|(index, item)| match kind(item.get()) {
        STRING => text(item),
        OBJECT => {
            let Object { text: inner } = decode_object(item.get().as_bytes())?;
            match inner.filter(|inner| kind(inner.get()) == STRING) {
                Some(inner) => text(inner),
                None => Err(field(
                    name,
                    format!("the object at {index} has no string \"text\""),
                )),
            }
        }
        given => Err(field(
            name,
            format!("expected {expected}, given {given} at {index}"),
        )),
    });
    texts.collect()
}

fn top(given: Option<&RawValue>) -> Result<Option<usize>, Error> {
    let Some(given) = given else {
        return Ok(None);
    };
    match serde_json::from_str(given.get()) {
        Ok(top @ 1..) => Ok(Some(top)),
        _ => Err(field(
            "top_n",
            format!(
                "expected a whole number of at least 1, given {}",
                cut(given.get())
            ),
        )),
    }
}
