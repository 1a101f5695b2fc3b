//! A client for the tests: sends numbered requests from many connections and prints one JSON line for each answer.
//!
//! The program ends after `--count` requests, or at SIGTERM once what is open has been answered.

use std::{
    error::Error,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Uri};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

const ROUTED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Args {
    /// The URL of the model, such as <http://sentiment>.
    #[arg(long, env = "CARPOOL_URL")]
    url: String,
    /// The model's name.
    #[arg(long)]
    model: String,
    /// A JSON array whose every element is one request's `inputs`. Without it request N holds `x`, FP32 [1, 1], of value N.
    #[arg(long)]
    inputs: Option<PathBuf>,
    /// Connections that each send one request after another.
    #[arg(long, default_value_t = 1)]
    clients: u32,
    /// The number of requests to send in all.
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
}

struct Load {
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
    inputs: Vec<Value>,
    next: AtomicU64,
    count: u64,
    stopped: AtomicBool,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let inputs = match &args.inputs {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => Vec::new(),
    };
    let load = Arc::new(Load {
        client: Client::builder(TokioExecutor::new()).build_http(),
        uri: format!("{}/v2/models/{}/infer", args.url, args.model).parse()?,
        inputs,
        next: AtomicU64::new(0),
        count: args.count,
        stopped: AtomicBool::new(false),
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let stopper = Arc::clone(&load);
    tokio::spawn(async move {
        terminate.recv().await;
        stopper.stopped.store(true, Ordering::Relaxed);
    });
    load.routed(&args.url).await?;
    let clients: Vec<_> = (0..args.clients)
        .map(|_| tokio::spawn(Arc::clone(&load).client()))
        .collect();
    for client in clients {
        client.await?;
    }
    Ok(())
}

impl Load {
    /// Waits until the URL takes connections: nodes learn of a Service's endpoints a moment after they are Ready.
    async fn routed(&self, url: &str) -> Result<(), Box<dyn Error>> {
        let uri: Uri = format!("{url}/v2/health/live").parse()?;
        let give_up = Instant::now() + ROUTED_WITHIN;
        while let Err(error) = self.client.get(uri.clone()).await {
            if Instant::now() > give_up {
                return Err(error.into());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn client(self: Arc<Self>) {
        while !self.stopped.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                return;
            }
            let begin = Instant::now();
            let (status, answer) = match self.send(number).await {
                Ok((status, answer)) => (status, answer),
                Err(error) => (0, json!({"error": error.to_string()})),
            };
            let millis = begin.elapsed().as_secs_f64() * 1e3;
            let at = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64();
            println!(
                "{}",
                json!({"number": number, "status": status, "at": at, "millis": millis, "answer": answer})
            );
        }
    }

    async fn send(&self, number: u64) -> Result<(u16, Value), Box<dyn Error + Send + Sync>> {
        let inputs = match self.inputs.len() as u64 {
            0 => json!([{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [number]}]),
            count => self.inputs[usize::try_from(number % count)?].clone(),
        };
        let body = json!({"id": number.to_string(), "inputs": inputs}).to_string();
        let request = Request::post(self.uri.clone())
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = self.client.request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, serde_json::from_slice(&body)?))
    }
}
