//! One request to the model, from its message to the worker's answer.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use carpool_protocol::InferRequest;
use http::{HeaderMap, Method, StatusCode};
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::{Call, SERVICE, codec::Answer, deadline};
use crate::{
    body,
    connections::Size,
    error::Error,
    followed::Followed,
    infer::{self, Caller, Validated},
    metrics::Hop,
    proxy::{Proxy, Served},
};

/// Answers the message of a call. `told` gets the HTTP status that the answer has.
pub async fn unary(
    proxy: Arc<Proxy>,
    call: Call,
    told: Arc<OnceLock<StatusCode>>,
    request: Request<Bytes>,
) -> Result<Response<Answer>, Status> {
    let (metadata, _, message) = request.into_parts();
    let headers = metadata.into_headers();
    let mut followed = followed(&headers);
    let answered = message_of(&proxy, &call, &headers, &mut followed, message).await;
    let status = answered
        .as_ref()
        .map_or_else(|(error, _)| error.status().0, |_| StatusCode::OK);
    let _ = told.set(status);
    match answered {
        Ok(answer) => {
            let size = Size(answer.len() as u64);
            let mut response = Response::new(answer);
            response.extensions_mut().insert(size);
            followed.answer(&headers, response.metadata_mut().as_mut());
            Ok(response)
        }
        Err((error, _)) => {
            let mut status = Status::from(&error);
            followed.answer(&headers, status.metadata_mut().as_mut());
            Err(status)
        }
    }
}

/// Begins to follow a request.
pub fn followed(headers: &HeaderMap) -> Followed {
    Followed::new(&Method::POST, SERVICE, headers)
}

/// Answers one message. An error comes with the request's own identifier, as far as it was read.
pub async fn message_of(
    proxy: &Proxy,
    call: &Call,
    headers: &HeaderMap,
    followed: &mut Followed,
    message: Bytes,
) -> Result<Answer, (Error, String)> {
    let span = followed.span.clone();
    let mut id = String::new();
    let caller = Caller {
        arrival: call.arrival,
        ..Caller::new(Arc::clone(&call.client), headers, followed)
    };
    let answered = answer(proxy, caller, headers, message, &mut id);
    answered.instrument(span.clone()).await.map_err(|error| {
        proxy.metrics.refused(error.status().1);
        tracing::debug!(parent: &span, %error, "request refused");
        (error, id)
    })
}

async fn answer(
    proxy: &Proxy,
    caller: Caller<'_>,
    headers: &HeaderMap,
    message: Bytes,
    id: &mut String,
) -> Result<Answer, Error> {
    let limit = deadline::of(headers)?;
    let served = proxy.served();
    let mut hops = proxy.metrics.hop_timer();
    let (request_id, validated) = {
        let served = Arc::clone(&served);
        body::off_reactor(message.len(), move || read(&served, message)).await?
    };
    id.clone_from(&request_id);
    let mut validated = validated?;
    hops.passed(Hop::Parse);
    validated.within(limit);
    let answer = infer::ask(proxy, &served, validated, caller, &mut hops).await?;
    let answer = Answer::new(&served.name, &served.revision, request_id, answer);
    hops.passed(Hop::Respond);
    Ok(answer)
}

/// Reads a message and holds it against the model. Its identifier is told in any case, once the message can be read.
pub fn read(served: &Served, message: Bytes) -> Result<(String, Result<Validated, Error>), Error> {
    let request = InferRequest::decode(message.clone())?;
    let version = Some(&*request.model_version).filter(|version| !version.is_empty());
    let validated = served
        .check_name(&request.model_name)
        .and_then(|()| served.check_version(version))
        .and_then(|()| Validated::of_message(served, &request, || message));
    Ok((request.id, validated))
}
