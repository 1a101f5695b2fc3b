//! Tests of the queue against a real redis-server, one per test.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy.toml allows them in test functions, and these helpers serve nothing else"
)]

mod answers;
mod artifacts;
mod bounds;
mod denied;
mod events;
mod failover;
mod faults;
mod following;
mod jobs;
mod lanes;
mod large;
mod quarantine;
mod relay;
mod server;
mod stress;
mod tls;
mod workers;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use carpool_queue::{
    Consumer, ConsumerLimits, ConsumerOptions, Endpoint, Job, JobId, Limits, Outcome, Producer,
    Submit, SubmitError,
};
use carpool_testkit::eventually;
use tokio::{task::JoinHandle, time::Instant};

const UID: &str = "6f1c1d5e-uid";
const REVISION: &str = "rev1";
const LEASE: Duration = Duration::from_secs(1);
const FOREVER: Duration = Duration::from_secs(30);

fn limits() -> Limits {
    Limits {
        max_length: 10_000,
        max_bytes: 1 << 30,
        max_request_bytes: 4 << 20,
        lease: LEASE,
        result_ttl: FOREVER,
        window: 32,
    }
}

fn producer(endpoint: &Endpoint, name: &str) -> Producer {
    Producer::start(endpoint.clone(), UID, name, limits()).unwrap()
}

async fn consumer(endpoint: &Endpoint, name: &str) -> Consumer {
    leased(endpoint, name, LEASE).await
}

async fn leased(endpoint: &Endpoint, name: &str, lease: Duration) -> Consumer {
    let mut options = options(name);
    options.limits.lease = lease;
    Consumer::connect(endpoint.clone(), options).await.unwrap()
}

fn options(name: &str) -> ConsumerOptions {
    ConsumerOptions {
        uid: UID.to_owned(),
        revision: REVISION.to_owned(),
        name: name.to_owned(),
        artifact: None,
        limits: ConsumerLimits {
            lease: LEASE,
            max_deliveries: 3,
            max_bytes: 1 << 30,
            result_ttl: FOREVER,
            default_priority: 1,
        },
    }
}

fn request(body: impl Into<Bytes>) -> Submit {
    let deadline = Instant::now() + Duration::from_secs(30);
    Submit::new(REVISION.into(), body.into(), 1, deadline)
}

/// Submits in a task of its own; aborting it drops the future.
fn submit(producer: &Producer, request: Submit) -> JoinHandle<Result<Outcome, SubmitError>> {
    let producer = producer.clone();
    tokio::spawn(async move { producer.submit(request).await })
}

fn answer(text: impl Into<Bytes>) -> Outcome {
    Outcome::Answer(text.into())
}

/// Fetches until some request comes.
async fn fetch(consumer: &Consumer, capacity: usize) -> Vec<Job> {
    loop {
        match consumer.fetch(capacity).await {
            Ok(jobs) if jobs.is_empty() => {}
            Ok(jobs) => return jobs,
            Err(error) => eprintln!("{error}"),
        }
    }
}

/// Fetches until so many requests have come, in one or several reads.
async fn fetch_all(consumer: &Consumer, count: usize) -> Vec<Job> {
    let mut jobs = Vec::new();
    while jobs.len() < count {
        jobs.extend(fetch(consumer, count - jobs.len()).await);
    }
    jobs
}

fn echo(jobs: Vec<Job>) -> Vec<(JobId, Outcome)> {
    jobs.into_iter()
        .map(|job| (job.id, answer(job.body)))
        .collect()
}

/// Runs a worker that answers each request with its own body.
fn worker(consumer: Consumer) -> JoinHandle<()> {
    let consumer = Arc::new(consumer);
    tokio::spawn(consumer.renewer().run());
    tokio::spawn(async move {
        let mut jobs = Vec::new();
        loop {
            jobs = if jobs.is_empty() {
                fetch(&consumer, 16).await
            } else {
                consumer.exchange(echo(jobs), 16).await.unwrap_or_default()
            };
        }
    })
}
