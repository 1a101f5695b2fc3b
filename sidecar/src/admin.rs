//! The admin port: metrics, probes, and what the operator scales on.

use std::{convert::Infallible, sync::Arc};

use carpool_crds::NAME_HEADER;
use carpool_process::methods;
use carpool_queue::RevisionBacklog;
use http::{HeaderValue, Method, Request, Response, header::CONTENT_TYPE};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

use crate::{
    error::Error,
    payload::Payload,
    proxy::{self, Proxy},
    routes,
};

/// The media type of metrics as `prometheus_client` writes them.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers one request to the admin port, under the proxy's name.
pub async fn serve(
    proxy: Arc<Proxy>,
    name: HeaderValue,
    request: Request<Incoming>,
) -> Result<Response<Payload>, Infallible> {
    let answer = dispatch(&proxy, &request).await;
    let mut response = answer.unwrap_or_else(|error| error.response());
    response.headers_mut().insert(NAME_HEADER, name);
    if request.method() == Method::HEAD {
        return Ok(methods::head(response));
    }
    Ok(response)
}

async fn dispatch(proxy: &Proxy, request: &Request<Incoming>) -> Result<Response<Payload>, Error> {
    let method = request.method();
    if method == Method::OPTIONS {
        return Ok(methods::options(methods::READ));
    }
    if method != Method::GET && method != Method::HEAD {
        return Err(Error::Method {
            given: method.clone(),
            allowed: methods::READ,
        });
    }
    match request.uri().path() {
        "/livez" => Ok(text("ok\n".to_owned(), "text/plain; charset=utf-8")),
        "/readyz" => {
            proxy.takes_requests().await?;
            Ok(text("ok\n".to_owned(), "text/plain; charset=utf-8"))
        }
        "/metrics" => {
            let metrics = proxy.metrics.encode();
            let metrics = metrics.map_err(|error| {
                Error::Internal(format!("failed to write the metrics: {error}"))
            })?;
            Ok(text(metrics, OPEN_METRICS))
        }
        "/backlog" => Ok(routes::json(backlog(proxy).await?.to_string())),
        path => Err(Error::UnknownPath {
            given: path.to_owned(),
            served: "/livez, /readyz, /metrics and /backlog",
        }),
    }
}

/// The answer to `/backlog`: what the queue holds for each revision, and the revision that this proxy feeds.
async fn backlog(proxy: &Proxy) -> Result<Value, Error> {
    let mut backlog = proxy.producer().backlog().await.map_err(|error| {
        tracing::warn!(%error, "the backlog is unknown");
        proxy::redis_unreachable()
    })?;
    for (revision, open) in proxy.open_of_previous() {
        let held = backlog.revisions.entry(revision.to_string()).or_default();
        held.length = held.length.max(open);
    }
    let revisions: Map<String, Value> = backlog
        .revisions
        .into_iter()
        .map(|(revision, held)| (revision, of_revision(held)))
        .collect();
    Ok(json!({
        "serving": &*proxy.served().revision,
        "revisions": revisions,
        "open": proxy.producer().in_flight(),
    }))
}

fn of_revision(held: RevisionBacklog) -> Value {
    let RevisionBacklog {
        length,
        pending,
        bytes,
        consumers,
    } = held;
    let workers: Map<String, Value> = consumers
        .into_iter()
        .map(|worker| (worker.name, json!({"pending": worker.pending})))
        .collect();
    json!({"length": length, "pending": pending, "bytes": bytes, "workers": workers})
}

fn text(body: String, media_type: &'static str) -> Response<Payload> {
    let mut response = Response::new(Payload::from(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
