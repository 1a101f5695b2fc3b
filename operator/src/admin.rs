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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;
    use serde_json::json;

    use super::*;
    use crate::{
        calls::Calls,
        cluster::Cluster,
        memory::Memory,
        reconcile::mock::{counted_api_server, failure},
    };

    #[tokio::test]
    async fn an_operator_whose_watches_are_dead_is_not_alive() {
        let calls = Calls::default();
        let (client, _) = counted_api_server(&calls, |call| {
            let watches = call.query.contains("watch=true");
            Some(match call.target.as_str() {
                target if target.ends_with("/pods") => failure(500, "Internal", "no"),
                _ if watches => failure(200, "", ""),
                _ => (
                    200,
                    json!({"metadata": {"resourceVersion": "1"}, "items": []}),
                ),
            })
        });
        let metrics = Metrics::new(Arc::new(Memory::default()), calls.clone());
        let livez = || respond("/livez", &metrics).status();
        assert_eq!(
            livez(),
            StatusCode::OK,
            "an operator that does not lead watches nothing"
        );

        let (_cluster, watches) = Cluster::watch(&client);
        let long_ago = Instant::now().checked_sub(Duration::from_mins(11)).unwrap();
        calls.expect(Cluster::watched(), long_ago);
        assert_eq!(livez(), StatusCode::SERVICE_UNAVAILABLE);
        let polled = futures::future::join(
            watches.models.for_each(|_| async {}),
            watches.children.for_each(|_| async {}),
        );
        let _ = tokio::time::timeout(Duration::from_millis(300), polled).await;
        assert_eq!(calls.dead(Instant::now()), ["pods"]);
        assert_eq!(livez(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(respond("/readyz", &metrics).status(), StatusCode::OK);
    }
}
