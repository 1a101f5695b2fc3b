//! The operator's own port: `/metrics`, `/livez`, `/readyz`.

use std::{convert::Infallible, sync::Arc, time::Instant};

use carpool_process::{Acceptor, methods};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// Answers until dropped. An operator that waits for its turn to lead is ready: it can take over.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    let mut acceptor = Acceptor::new(listener);
    loop {
        let stream = acceptor.accept().await;
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let respond = || respond(request.uri().path(), &metrics);
                let response = methods::read(request.method(), respond);
                async { Ok::<_, Infallible>(response) }
            });
            // A client that goes away is no concern of ours.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn respond(path: &str, metrics: &Metrics) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    match path {
        "/readyz" => response(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/livez" => match metrics.ailing(Instant::now()) {
            None => response(StatusCode::OK, TEXT, "ok\n".to_owned()),
            Some(why) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        },
        "/metrics" => match metrics.encode() {
            Ok(text) => response(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                text,
            ),
            Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
        },
        _ => response(
            StatusCode::NOT_FOUND,
            TEXT,
            "there is /metrics, /livez and /readyz\n".to_owned(),
        ),
    }
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let content_type = hyper::header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
