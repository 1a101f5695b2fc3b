//! The rig: one proxy under test, with its Redis.

use std::{net::SocketAddr, path::PathBuf};

use carpool_protocol::InferRequest;
use carpool_queue::{Endpoint, Job, Outcome};
use carpool_sidecar::{Args, Server, Settings};
use carpool_testkit::RedisServer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::oneshot,
    task::{AbortHandle, JoinHandle},
};

use crate::{
    client::{Answer, get, post, send, until},
    worker,
};

pub const UID: &str = "0b6f1c1e";
pub const INFER: &str = "/v2/models/m/infer";

/// A model of one input and one output, two numbers each.
pub fn pairs() -> Value {
    json!({
        "uri": "file://m",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}],
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [2]}],
    })
}

/// A model of texts.
pub fn texts() -> Value {
    json!({
        "uri": "file://m",
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2]}],
        "text": {"tokenizer": "tokenizer.json", "labels": ["NEGATIVE", "POSITIVE"]},
    })
}

/// A configuration that serves one model as revision `r1`.
pub fn config(model: &Value) -> Value {
    json!({
        "name": "m",
        "namespace": "default",
        "uid": UID,
        "serving": "r1",
        "models": {"r1": model},
        "batching": {},
        "queue": {"timeout": "10s", "lease": "1s", "maxRequestBytes": "1Mi"},
        "device": "cpu",
    })
}

/// A request of one row for [`pairs`].
pub fn pair() -> Value {
    json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}]})
}

/// A proxy that serves, with its Redis.
pub struct Rig {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub redis: Option<RedisServer>,
    pub port: u16,
    config_file: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
    _folder: TempDir,
}

impl Rig {
    /// Starts a proxy with a Redis that runs.
    pub async fn start(config: Value) -> Self {
        Self::start_with(config, Args::default()).await
    }

    /// Starts a proxy with a Redis that runs and some arguments of the test's own.
    pub async fn start_with(config: Value, args: Args) -> Self {
        let redis = RedisServer::start();
        let port = redis.port;
        let rig = Self {
            redis: Some(redis),
            ..Self::launch(config, port, args).await
        };
        rig.is_ready().await;
        rig
    }

    /// Starts another proxy of the same model and Redis.
    pub async fn beside(&self) -> Self {
        let config = std::fs::read_to_string(&self.config_file).unwrap();
        let args = Args {
            name: Some("p2".to_owned()),
            ..Args::default()
        };
        Self::launch(config.parse().unwrap(), self.port, args).await
    }

    /// Starts a proxy with a Redis that isn't there, or not yet.
    pub async fn without_redis(config: Value, port: u16) -> Self {
        Self::launch(config, port, Args::default()).await
    }

    async fn launch(config: Value, port: u16, args: Args) -> Self {
        let folder = TempDir::new().unwrap();
        let config_file = folder.path().join("config.yaml");
        std::fs::write(&config_file, config.to_string()).unwrap();
        let settings = Settings::new(Args {
            config: Some(config_file.clone()),
            redis_url: Some(url(port)),
            listen: Some("127.0.0.1:0".to_owned()),
            admin_listen: Some("127.0.0.1:0".to_owned()),
            name: args.name.clone().or_else(|| Some("p1".to_owned())),
            ..args
        });
        let server = Server::bind(settings.unwrap()).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        Self {
            address: server.address().unwrap(),
            admin: server.admin_address().unwrap(),
            redis: None,
            port,
            config_file,
            stop: Some(stop),
            running: tokio::spawn(server.run(async { stopped.await.unwrap_or(()) })),
            _folder: folder,
        }
    }

    pub fn connection(&self) -> Endpoint {
        Endpoint::from_url(&url(self.port)).unwrap()
    }

    /// Starts a worker of revision `r1` that echoes.
    pub fn echo(&self) -> AbortHandle {
        self.work("r1", worker::echo)
    }

    /// Starts a worker.
    pub fn work(
        &self,
        revision: &'static str,
        model: impl Fn(&Job, InferRequest) -> Outcome + Send + 'static,
    ) -> AbortHandle {
        tokio::spawn(worker::work(self.connection(), revision, model)).abort_handle()
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(get(self.address, path)).await
    }

    pub async fn post(&self, path: &str, body: impl ToString) -> Answer {
        send(post(self.address, path, body)).await
    }

    /// Sends a request that nothing waits for here.
    pub fn post_later(&self, path: &str, body: impl ToString) -> JoinHandle<Answer> {
        tokio::spawn(send(post(self.address, path, body)))
    }

    pub async fn admin(&self, path: &str) -> Answer {
        send(get(self.admin, path)).await
    }

    /// Waits until the queue of a revision holds so many requests.
    pub async fn length(&self, revision: &str, wanted: u64) {
        until(async || {
            let backlog = self.admin("/backlog").await.ok().ok()?;
            let length = backlog["revisions"][revision]["length"].as_u64();
            (length.unwrap_or(0) == wanted).then_some(())
        })
        .await;
    }

    /// Waits until the proxy is ready.
    pub async fn is_ready(&self) {
        until(async || {
            self.admin("/readyz")
                .await
                .status
                .is_success()
                .then_some(())
        })
        .await;
    }

    /// Waits until the metrics hold a line.
    pub async fn measures(&self, line: &str) {
        until(async || {
            let metrics = self.admin("/metrics").await.body;
            let metrics = str::from_utf8(&metrics).unwrap();
            metrics.lines().any(|other| other == line).then_some(())
        })
        .await;
    }

    /// Changes the configuration as Kubernetes does: by renaming another file over it.
    pub fn configure(&self, text: impl ToString) {
        let next = self.config_file.with_extension("next");
        std::fs::write(&next, text.to_string()).unwrap();
        std::fs::rename(next, &self.config_file).unwrap();
    }

    /// Tells the proxy to stop.
    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits until the proxy has stopped.
    pub async fn stopped(self) {
        self.running.await.unwrap();
    }
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}
