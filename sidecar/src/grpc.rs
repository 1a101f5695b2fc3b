//! gRPC on the port that HTTP has: the protocol's `GRPCInferenceService`, health and reflection.

mod codec;
mod deadline;
mod held;
mod infer;
mod metadata;
mod services;
mod stream;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tonic::{
    Status,
    codec::{Codec, CompressionEncoding},
    server::Grpc,
};

use self::held::{Held, Metered};
pub use self::infer::read;
use crate::{error::Error, metrics::Kind, payload::Payload, proxy::Proxy};

/// The path before the names of the protocol's methods.
const SERVICE: &str = "/inference.GRPCInferenceService/";

/// The time after a call's deadline by which it ends, whatever it waits for: so long its own error may take.
const GRACE: Duration = Duration::from_millis(250);

/// Whether a request is gRPC's. That of gRPC-Web is not: it is framed in another way.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = media_type.and_then(|given| given.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The client of a call, and the time at which the call's head was here.
#[derive(Debug, Clone)]
struct Call {
    client: Arc<str>,
    arrival: Instant,
}

/// Answers one call, whatever it is.
pub async fn serve(
    proxy: Arc<Proxy>,
    client: Arc<str>,
    request: Request<Incoming>,
) -> Response<Payload> {
    let call = Call {
        client,
        arrival: Instant::now(),
    };
    let path = request.uri().path().to_owned();
    let response = match path.strip_prefix(SERVICE) {
        Some("ModelInfer") => infer(proxy, call, request).await,
        Some("ModelStreamInfer") => stream(proxy, call, request).await,
        Some(method) => metadata::serve(proxy, method, request).await,
        None => services::serve(proxy, &path, request).await,
    };
    response.map(Payload::from)
}

/// Answers a call of `ModelInfer`.
async fn infer(
    proxy: Arc<Proxy>,
    call: Call,
    request: Request<Incoming>,
) -> Response<tonic::body::Body> {
    let mut open = proxy.metrics.open(Kind::Infer);
    // The settings are read and let go of: a slow body may outlast a revision.
    let (limit, deadline) = {
        let served = proxy.served();
        (
            served.max_request_bytes,
            call.arrival + served.timeout + GRACE,
        )
    };
    let told = Arc::new(OnceLock::new());
    let handle = {
        let (proxy, told) = (Arc::clone(&proxy), Arc::clone(&told));
        tower::service_fn(move |request| {
            infer::unary(Arc::clone(&proxy), call.clone(), Arc::clone(&told), request)
        })
    };
    let mut grpc = grpc(codec::Raw, request.headers(), limit);
    let held = Held::new(&proxy.body_budget, limit);
    let request = request.map(|body| Metered::new(body, held));
    let answer = timeout_at(deadline, grpc.unary(handle, request)).await;
    let response = answer.unwrap_or_else(|_| Status::from(&Error::Deadline).into_http());
    // A call that ended before its message was whole has met tonic or the body's own bounds.
    open.answered(told.get().copied().unwrap_or_else(|| status_of(&response)));
    response
}

/// Answers a call of `ModelStreamInfer`.
async fn stream(
    proxy: Arc<Proxy>,
    call: Call,
    request: Request<Incoming>,
) -> Response<tonic::body::Body> {
    let limit = proxy.served().max_request_bytes;
    let mut grpc = grpc(codec::RawStream, request.headers(), limit);
    let held = Held::new(&proxy.body_budget, limit);
    let handle = {
        let held = held.clone();
        tower::service_fn(move |request| {
            let answers = stream::answers(Arc::clone(&proxy), call.clone(), held.clone(), request);
            std::future::ready(Ok::<_, Status>(tonic::Response::new(answers)))
        })
    };
    let request = request.map(|body| Metered::new(body, held));
    grpc.streaming(handle, request).await
}

/// Sets up a call. Messages are read in any of the codings, and answered in the one that the client itself uses: most
/// clients say that they could read others, and would rather have the answer sooner.
fn grpc<C: Codec>(codec: C, headers: &HeaderMap, limit: u64) -> Grpc<C> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut grpc = Grpc::new(codec).max_decoding_message_size(limit);
    let used = headers.get("grpc-encoding").map(HeaderValue::as_bytes);
    for (name, coding) in [
        (&b"gzip"[..], CompressionEncoding::Gzip),
        (b"deflate", CompressionEncoding::Deflate),
        (b"zstd", CompressionEncoding::Zstd),
    ] {
        grpc = grpc.accept_compressed(coding);
        if used == Some(name) {
            grpc = grpc.send_compressed(coding);
        }
    }
    grpc
}

/// The status by which metrics count an answer that is not an inference's.
fn status_of(response: &Response<tonic::body::Body>) -> StatusCode {
    let code = response.headers().get("grpc-status");
    let code = code.map_or(tonic::Code::Ok, |code| {
        tonic::Code::from_bytes(code.as_bytes())
    });
    crate::error::counted_as(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_by_its_media_type() {
        let told = |media_type: &'static str| {
            let media_type = HeaderValue::from_static(media_type);
            is_grpc(&[(CONTENT_TYPE, media_type)].into_iter().collect())
        };
        for grpc in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=1",
        ] {
            assert!(told(grpc), "{grpc}");
        }
        for other in [
            "application/json",
            "application/grpc-web",
            "application/grpc-web+proto",
        ] {
            assert!(!told(other), "{other}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
