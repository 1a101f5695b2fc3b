//! The port for Kubernetes and Prometheus: `/metrics`, `/livez`, `/readyz` and `/model`.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use carpool_crds::{Loaded, NAME_HEADER};
use carpool_process::{Acceptor, ListenAddress, methods};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    live_settings::LiveSettings,
    metrics::Metrics,
    progress::{Hang, Progress},
};

/// The state that the admin port tells.
pub struct Admin {
    /// The worker's name, which each answer of the port carries.
    pub name: HeaderValue,
    /// Whether requests are served: the model is loaded and warmed up, and nothing told the process to stop.
    pub ready: AtomicBool,
    /// The model that was loaded and how it is served; `None` until then. It may change while the worker runs.
    pub model: watch::Sender<Option<Loaded>>,
    /// The process' metrics.
    pub metrics: Arc<Metrics>,
    /// The forward pass that the run thread is at.
    pub progress: Arc<Progress>,
    /// The settings, among them how long a forward pass may take.
    pub live_settings: watch::Receiver<LiveSettings>,
}

impl Admin {
    /// The forward pass that has taken longer than it may.
    #[must_use]
    pub fn hang(&self) -> Option<Hang> {
        let run_timeout = self.live_settings.borrow().run_timeout;
        self.progress.hang(run_timeout)
    }

    fn respond(&self, path: &str) -> Response<Full<Bytes>> {
        match path {
            "/livez" => match self.hang() {
                Some(hang) => text(StatusCode::SERVICE_UNAVAILABLE, hang.to_string()),
                None => text(StatusCode::OK, "ok"),
            },
            "/readyz" if self.ready.load(Ordering::Relaxed) => text(StatusCode::OK, "ok"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready"),
            "/metrics" => match self.metrics.encode() {
                Ok(metrics) => with_type(
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    metrics,
                ),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            "/model" => match self.model.borrow().as_ref().map(serde_json::to_string) {
                Some(Ok(json)) => with_type("application/json", json),
                Some(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "not loaded"),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "there is /metrics, /livez, /readyz and /model",
            ),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

fn with_type(content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Listens on the admin port.
pub async fn bind(address: ListenAddress) -> Result<TcpListener, String> {
    address
        .listen()
        .await
        .map_err(|error| format!("failed to listen on {address}: {error}"))
}

/// Answers requests to the admin port until the future is dropped.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let mut acceptor = Acceptor::new(listener);
    loop {
        let stream = acceptor.accept().await;
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let respond = |request: Request<Incoming>| {
                let respond = || admin.respond(request.uri().path());
                let mut response = methods::read(request.method(), respond);
                let headers = response.headers_mut();
                headers.insert(NAME_HEADER, admin.name.clone());
                async move { Ok::<_, Infallible>(response) }
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service_fn(respond));
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an admin connection broke");
            }
        });
    }
}
