//! A small HTTP client.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// The time after which a test gives up, longer than anything it waits for.
const PATIENCE: Duration = Duration::from_secs(20);

pub const JSON: Option<&str> = Some("application/json");

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The answer's JSON; an `Err` is a status other than 200, with the sentence that came with it.
    pub fn ok(self) -> Result<Value, (u16, String)> {
        match self.status {
            StatusCode::OK => Ok(self.json()),
            status => Err((status.as_u16(), self.error())),
        }
    }

    pub fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }

    /// The seconds of the answer's `Retry-After`.
    pub fn retry_after(&self) -> Option<u64> {
        self.headers
            .get("retry-after")?
            .to_str()
            .unwrap()
            .parse()
            .ok()
    }
}

/// Sends one request on a connection of its own.
pub async fn send<B>(request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    send_with(&http1(), request).await
}

/// Sends one request.
pub async fn send_with<B>(client: &Client<HttpConnector, B>, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    tokio::time::timeout(PATIENCE, async {
        let (head, body) = client.request(request).await.unwrap().into_parts();
        Answer {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    })
    .await
    .expect("an answer in time")
}

pub fn http1<B: Body<Data = Bytes> + Send>() -> Client<HttpConnector, B> {
    Client::builder(TokioExecutor::new()).build_http()
}

pub fn http2<B: Body<Data = Bytes> + Send>() -> Client<HttpConnector, B> {
    Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http()
}

pub fn get(address: SocketAddr, path: &str) -> Request<Full<Bytes>> {
    request(Method::GET, address, path, None, "")
}

/// A POST request of JSON.
pub fn post(address: SocketAddr, path: &str, body: impl ToString) -> Request<Full<Bytes>> {
    let body = body.to_string();
    request(Method::POST, address, path, JSON, body)
}

pub fn request(
    method: Method,
    address: SocketAddr,
    path: &str,
    media_type: Option<&str>,
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{address}{path}"));
    if let Some(media_type) = media_type {
        request = request.header("content-type", media_type);
    }
    request.body(Full::new(body.into())).unwrap()
}

/// Asks until the answer is the one wanted.
pub async fn until(ask: impl AsyncFn() -> Option<()>) {
    let wanted = async {
        while ask().await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wanted)
        .await
        .expect("it must come to this in time");
}
