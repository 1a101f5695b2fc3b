//! The admin ports of proxies and workers, asked over plain HTTP: the queue's length, the model as it is served,
//! readiness, metrics.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use carpool_crds::{Loaded, NAME_HEADER};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{StatusCode, Uri, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::{Deserialize, de::DeserializeOwned};

/// The time within which a process must answer. A tick of the scaler is a second.
const TIMEOUT: Duration = Duration::from_millis(900);
/// The most bytes of an answer.
const MAX_BYTES: usize = 1 << 20;

/// A proxy's answer to `/backlog`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Backlog {
    /// The revision that this proxy feeds.
    pub serving: String,
    /// The backlog of each revision.
    pub revisions: BTreeMap<String, RevisionBacklog>,
}

/// The backlog of one revision's queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RevisionBacklog {
    /// Requests waiting and in flight.
    pub length: u64,
    /// Workers that have taken requests, by pod name.
    #[serde(default)]
    pub workers: BTreeMap<String, WorkerBacklog>,
}

impl RevisionBacklog {
    /// Whether the worker of this name holds no request.
    #[must_use]
    pub fn is_idle(&self, worker: &str) -> bool {
        self.workers
            .get(worker)
            .is_none_or(|worker| worker.pending == 0)
    }
}

/// The backlog of one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct WorkerBacklog {
    /// Requests that the worker has taken and not yet answered.
    pub pending: u64,
}

/// A reason why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address and the path make no URL.
    #[error("failed to write the URL: {0}")]
    Url(#[from] hyper::http::uri::InvalidUri),
    /// The connection failed or broke.
    #[error("failed to ask {0}: {1}")]
    Request(Uri, Box<hyper_util::client::legacy::Error>),
    /// The answer did not come within the time-out.
    #[error("failed to ask {0}: no answer within {TIMEOUT:?}")]
    Timeout(Uri),
    /// The answer has another status than 200.
    #[error("failed to ask {0}: {1}")]
    Status(Uri, StatusCode),
    /// The answer is of a process of another name.
    #[error("{0} is not the admin port of {1}")]
    Stranger(Uri, Box<str>),
    /// The body broke off or is too large.
    #[error("failed to read the answer of {0}: {1}")]
    Body(Uri, Box<dyn std::error::Error + Send + Sync>),
    /// The body is not the JSON that was agreed on.
    #[error("failed to understand the answer of {0}: {1}")]
    Parse(Uri, serde_json::Error),
}

/// A client of admin ports.
#[derive(Debug, Clone)]
pub struct AdminClient {
    client: Client<HttpConnector, Empty<Bytes>>,
    name: Option<String>,
}

impl AdminClient {
    /// Returns a client that keeps one connection to each process that it asks every second.
    #[must_use]
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(10))
            .pool_max_idle_per_host(1)
            .build(connector);
        Self { client, name: None }
    }

    /// Returns a client that takes answers of the process of this name only: an address may have gone to another one.
    #[must_use]
    pub fn of(&self, name: &str) -> Self {
        Self {
            client: self.client.clone(),
            name: Some(name.to_owned()),
        }
    }

    /// Asks a proxy for the backlog of the queue.
    pub async fn backlog(&self, ip: IpAddr, port: u16) -> Result<Backlog, AdminError> {
        self.get_json(ip, port, "backlog").await
    }

    /// Asks a worker what it has loaded, and how it serves it.
    pub async fn loaded(&self, ip: IpAddr, port: u16) -> Result<Loaded, AdminError> {
        self.get_json(ip, port, "model").await
    }

    /// Whether the process says that it is ready.
    pub async fn ready(&self, ip: IpAddr, port: u16) -> bool {
        self.get(ip, port, "readyz").await.is_ok()
    }

    /// Asks a process for its metrics, in Prometheus' text format.
    pub async fn metrics(&self, ip: IpAddr, port: u16) -> Result<String, AdminError> {
        let (_, body) = self.get(ip, port, "metrics").await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn get_json<T: DeserializeOwned>(
        &self,
        ip: IpAddr,
        port: u16,
        path: &str,
    ) -> Result<T, AdminError> {
        let (uri, body) = self.get(ip, port, path).await?;
        serde_json::from_slice(&body).map_err(|error| AdminError::Parse(uri, error))
    }

    async fn get(&self, ip: IpAddr, port: u16, path: &str) -> Result<(Uri, Bytes), AdminError> {
        let address = std::net::SocketAddr::new(ip, port);
        let uri: Uri = format!("http://{address}/{path}").parse()?;
        let asked = async {
            let response = self
                .client
                .get(uri.clone())
                .await
                .map_err(|error| AdminError::Request(uri.clone(), Box::new(error)))?;
            if let Some(name) = &self.name {
                let header = response.headers().get(NAME_HEADER);
                let says = header.map(|says| String::from_utf8_lossy(says.as_bytes()));
                if says.as_deref() != Some(name) {
                    let says = says.as_deref().unwrap_or("somebody without a name");
                    let which = format!("{name} but of {says}").into();
                    return Err(AdminError::Stranger(uri.clone(), which));
                }
            }
            if response.status() != StatusCode::OK {
                return Err(AdminError::Status(uri.clone(), response.status()));
            }
            let body = Limited::new(response.into_body(), MAX_BYTES)
                .collect()
                .await
                .map_err(|error| AdminError::Body(uri.clone(), error))?;
            Ok((uri.clone(), body.to_bytes()))
        };
        tokio::time::timeout(TIMEOUT, asked)
            .await
            .unwrap_or_else(|_| Err(AdminError::Timeout(uri.clone())))
    }
}

impl Default for AdminClient {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Starts a proxy that gives one answer, and returns its port.
    async fn proxy(answer: impl Into<String>) -> u16 {
        let answer = answer.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /backlog HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn a_proxys_answer_is_read() {
        let port = proxy(concat!(
            "HTTP/1.1 200 OK\r\ncontent-length: 125\r\n\r\n",
            r#"{"serving":"b","revisions":{"a":{"length":12,"pending":4,"bytes":3400,"workers":{"a-1":{"pending":4}}}},"open":3,"new":true} "#,
        ))
        .await;
        let backlog = AdminClient::new()
            .backlog([127, 0, 0, 1].into(), port)
            .await
            .unwrap();
        assert_eq!(backlog.serving, "b");
        assert_eq!(backlog.revisions["a"].length, 12);
        assert_eq!(backlog.revisions["a"].workers["a-1"].pending, 4);
    }

    #[tokio::test]
    async fn a_proxy_that_does_not_know_is_no_answer() {
        let port = proxy("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        let error = AdminClient::new()
            .backlog([127, 0, 0, 1].into(), port)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
    }

    #[tokio::test]
    async fn another_process_at_an_address_has_no_say() {
        let empty = r#"{"serving":"b","revisions":{}}"#;
        for (header, says) in [
            ("carpool-name: m-proxy-1\r\n", Ok(())),
            ("carpool-name: m-worker-0\r\n", Err("but of m-worker-0")),
            ("", Err("but of somebody without a name")),
        ] {
            let answer = format!("HTTP/1.1 200 OK\r\n{header}content-length: 30\r\n\r\n{empty}");
            let port = proxy(answer).await;
            let client = AdminClient::new().of("m-proxy-1");
            let answer = client.backlog([127, 0, 0, 1].into(), port).await;
            match (answer, says) {
                (Ok(_), Ok(())) => (),
                (Err(error), Err(says)) => assert!(error.to_string().ends_with(says), "{error}"),
                (answer, _) => panic!("{header}: {answer:?}"),
            }
        }
    }

    #[test]
    fn a_worker_that_holds_nothing_is_idle() {
        let queued = RevisionBacklog {
            length: 4,
            workers: [
                ("a".to_owned(), WorkerBacklog { pending: 4 }),
                ("b".to_owned(), WorkerBacklog { pending: 0 }),
            ]
            .into(),
        };
        assert!(!queued.is_idle("a"));
        assert!(queued.is_idle("b"));
        assert!(queued.is_idle("has not asked for any yet"));
    }
}
