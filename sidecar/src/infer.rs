//! `POST /v2/models/NAME/infer`: the protocol's JSON in and out.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use carpool_protocol::{DecodeError, InferRequest, InferResponse, Parameter, json};
use carpool_queue::{Outcome, Submit};
use http::{HeaderMap, request::Parts};
use tokio::time::Instant;

use crate::{
    body::{self, Arriving},
    error::Error,
    metrics::Hop,
    proxy::{Proxy, Served},
    trace, validate,
};

/// The header that says where JSON ends and binary tensors begin.
const BINARY: &str = "inference-header-content-length";

/// A request that the model can take, ready for the queue.
pub struct Question {
    body: Bytes,
    rows: u32,
    timeout: Duration,
    /// The client's identifier, given back with the answer.
    id: String,
}

impl Question {
    /// Holds a request against the model.
    pub fn new(served: &Served, request: &InferRequest) -> Result<Self, Error> {
        let asked = timeout(request)?;
        Ok(Self {
            rows: validate::rows(&served.model, request)?,
            body: request.encode(),
            timeout: asked.map_or(served.timeout, |asked| asked.min(served.timeout)),
            id: request.id.clone(),
        })
    }
}

/// When a request came, and as part of which trace.
pub struct Caller {
    /// When its head was here.
    pub arrival: Instant,
    /// W3C `traceparent`.
    pub trace: Option<String>,
}

impl Caller {
    /// Whose request's head is here now.
    pub fn of(headers: &HeaderMap) -> Self {
        Self {
            arrival: Instant::now(),
            trace: trace::parent(headers),
        }
    }
}

/// Answers one request with the protocol's JSON.
pub async fn serve(
    proxy: &Proxy,
    head: &Parts,
    body: &mut Arriving,
    version: Option<&str>,
) -> Result<Vec<u8>, Error> {
    let caller = Caller::of(&head.headers);
    let media_type = |given: String| Error::MediaType {
        expected: "application/json",
        given,
    };
    match body::media_type(&head.headers) {
        Some(given) if given != "application/json" => return Err(media_type(given)),
        _ if head.headers.contains_key(BINARY) => {
            return Err(media_type(
                "binary tensors, which are not built yet".to_owned(),
            ));
        }
        _ => {}
    }
    let body = body::read(proxy, &head.headers, body, caller.arrival).await?;

    let served = proxy.served();
    served.check_version(version)?;
    let parsing = proxy.metrics.hop(Hop::Parse);
    let question = {
        let served = Arc::clone(&served);
        body::off_reactor(body.len(), move || {
            let request = json::decode_request(&body, &served.name, &served.revision)?;
            Question::new(&served, &request)
        })
        .await?
    };
    parsing.done();

    let id = question.id.clone();
    let answer = ask(proxy, &served, question, caller).await?;

    let responding = proxy.metrics.hop(Hop::Respond);
    let response = body::off_reactor(answer.len(), move || {
        let response = InferResponse {
            model_name: served.name.clone(),
            model_version: served.revision.to_string(),
            id,
            ..decode(answer)?
        };
        json::encode_response(&response)
            .map_err(|error| Error::Internal(format!("failed to write the answer: {error}")))
    })
    .await?;
    responding.done();
    Ok(response)
}

/// Puts a request into the queue and waits for the model's answer, an encoded `ModelInferResponse`.
/// Dropped, it takes the request out again.
pub async fn ask(
    proxy: &Proxy,
    served: &Served,
    question: Question,
    caller: Caller,
) -> Result<Bytes, Error> {
    let queueing = proxy.metrics.hop(Hop::Queue);
    let outcome = proxy
        .producer
        .submit(Submit {
            revision: Arc::clone(&served.revision),
            body: question.body,
            rows: question.rows,
            trace: caller.trace,
            client: None,
            deadline: caller.arrival + question.timeout,
        })
        .await?;
    queueing.done();
    match outcome {
        Outcome::Answer(answer) => Ok(answer),
        Outcome::Failure(failure) => Err(failure.into()),
    }
}

/// What a worker answered.
pub fn decode(answer: Bytes) -> Result<InferResponse, Error> {
    InferResponse::decode(answer)
        .map_err(|error| Error::Internal(format!("failed to read the worker's answer: {error}")))
}

/// The client's own limit, from the parameter `timeout` in microseconds.
fn timeout(request: &InferRequest) -> Result<Option<Duration>, Error> {
    let micros = match request.parameters.get("timeout") {
        None => return Ok(None),
        Some(Parameter::Int64(micros)) => u64::try_from(*micros).ok(),
        Some(Parameter::Uint64(micros)) => Some(*micros),
        Some(_) => None,
    };
    match micros {
        Some(micros @ 1..) => Ok(Some(Duration::from_micros(micros))),
        _ => Err(Error::Malformed(
            "parameter \"timeout\" must be a whole number of microseconds, at least 1".to_owned(),
        )),
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        if error.is_malformed() {
            Self::Malformed(error.to_string())
        } else {
            Self::Invalid(error.to_string())
        }
    }
}
