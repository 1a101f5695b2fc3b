//! Proxies and workers, and the requests that go through them.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant as StdInstant},
};

use bytes::Bytes;
use carpool_queue::{
    Consumer, ConsumerLimits, ConsumerOptions, Endpoint, Job, JobId, Limits, Outcome, Producer,
    Submit, SubmitError,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::Error;

pub const UID: &str = "strain";
const REVISION: &str = "rev1";
/// The lease of a resource that names none.
const LEASE: Duration = Duration::from_secs(5);
const MAX_BYTES: u64 = 512 << 20;
/// The time that a request may take. Every scenario is over long before, so a later answer is lost.
const TIMEOUT: Duration = Duration::from_mins(2);
const TICK: Duration = Duration::from_millis(5);

pub fn limits(max_length: u64) -> Limits {
    Limits {
        max_length,
        max_bytes: MAX_BYTES,
        max_request_bytes: 4 << 20,
        lease: LEASE,
        result_ttl: Duration::from_mins(1),
        window: 1024,
    }
}

/// Starts `count` proxies, and waits until Redis answers each.
pub async fn producers(
    connection: &Endpoint,
    count: usize,
    limits: Limits,
) -> Result<Vec<Producer>, Error> {
    let mut producers = Vec::new();
    for index in 0..count {
        let producer = Producer::start(connection.clone(), UID, &format!("proxy-{index}"), limits)?;
        if !producer.ping().await {
            return Err("Redis does not answer a proxy".into());
        }
        producers.push(producer);
    }
    Ok(producers)
}

/// A simulated model.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// The most requests in a batch.
    pub batch: usize,
    /// The time that a batch takes.
    pub time: Duration,
    /// The bytes of each answer; `None`: as many as the request has.
    pub answer: Option<usize>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            batch: 32,
            time: Duration::from_millis(5),
            answer: None,
        }
    }
}

/// Workers, which end when this is dropped. They have a thread of their own: however busy the proxies are, workers wait
/// for Redis and the queue alone.
pub struct Workers {
    runtime: Option<Runtime>,
    go: watch::Sender<bool>,
    runs: Arc<AtomicU64>,
}

impl Workers {
    /// Starts workers that join the queue, and wait for [`Self::go`].
    pub async fn join(connection: &Endpoint, count: usize, model: Model) -> Result<Self, Error> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let mut workers = Self {
            runtime: None,
            go: watch::Sender::new(false),
            runs: Arc::default(),
        };
        for index in 0..count {
            let options = ConsumerOptions {
                uid: UID.to_owned(),
                revision: REVISION.to_owned(),
                name: format!("worker-{index}"),
                artifact: None,
                limits: ConsumerLimits {
                    lease: LEASE,
                    max_deliveries: 3,
                    max_bytes: MAX_BYTES,
                    result_ttl: Duration::from_mins(1),
                    default_priority: 1,
                },
            };
            let consumer = runtime
                .spawn(Consumer::connect(connection.clone(), options))
                .await??;
            let (go, runs) = (workers.go.subscribe(), workers.runs.clone());
            runtime.spawn(work(consumer, model, go, runs));
        }
        workers.runtime = Some(runtime);
        Ok(workers)
    }

    pub fn go(&self) {
        self.go.send_replace(true);
    }

    /// Returns the number of requests that were run so far.
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn work(
    consumer: Consumer,
    model: Model,
    mut go: watch::Receiver<bool>,
    runs: Arc<AtomicU64>,
) {
    let renewal = tokio::spawn(consumer.renewer().run());
    if go.wait_for(|go| *go).await.is_err() {
        return;
    }
    let mut jobs: Vec<Job> = Vec::new();
    while !renewal.is_finished() {
        jobs = if jobs.is_empty() {
            // The consumer pauses after an error.
            consumer.fetch(model.batch).await
        } else {
            runs.fetch_add(jobs.len() as u64, Ordering::Relaxed);
            if !model.time.is_zero() {
                sleep(model.time).await;
            }
            let answers = jobs.into_iter().map(|job| run(&model, job)).collect();
            consumer.exchange(answers, model.batch).await
        }
        .unwrap_or_default();
    }
}

fn run(model: &Model, job: Job) -> (JobId, Outcome) {
    let answer = match model.answer {
        Some(size) => body(number(&job.body).unwrap_or_default(), size),
        None => job.body,
    };
    (job.id, Outcome::Answer(answer))
}

/// Returns a body of this size that begins with a number.
fn body(number: u64, size: usize) -> Bytes {
    let mut body = vec![0; size.max(8)];
    body[..8].copy_from_slice(&number.to_le_bytes());
    body.into()
}

fn number(body: &[u8]) -> Option<u64> {
    body.first_chunk().copied().map(u64::from_le_bytes)
}

/// The results of numbered requests.
#[derive(Default)]
pub struct Tally {
    next: AtomicU64,
    /// Requests refused because the queue was full.
    pub refused: AtomicU64,
    /// Requests refused because Redis could not be reached.
    pub unreachable: AtomicU64,
    /// Requests without an answer in time.
    pub lost: AtomicU64,
    /// Answers with another one's number, and numbers that were answered before.
    pub doubled: AtomicU64,
    /// Failures of the model, which never fails.
    pub failed: AtomicU64,
    seen: Mutex<HashSet<u64>>,
    micros: Mutex<Vec<u64>>,
    /// The times of the first and the last answer.
    span: Mutex<Option<(StdInstant, StdInstant)>>,
}

impl Tally {
    pub fn sent(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    pub fn answered(&self) -> usize {
        lock(&self.seen).len()
    }

    /// Returns the times of the first and the last answer.
    pub fn span(&self) -> Option<(StdInstant, StdInstant)> {
        *lock(&self.span)
    }

    /// Returns the microseconds that this share of the answers took at most.
    pub fn quantile(&self, numerator: usize, denominator: usize) -> u64 {
        let mut micros = lock(&self.micros);
        micros.sort_unstable();
        let index = micros.len() * numerator / denominator;
        micros
            .get(index.min(micros.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }

    /// Sends one request and counts its result.
    pub async fn send(&self, producer: &Producer, size: usize) -> Result<(), SubmitError> {
        let sent = self.next.fetch_add(1, Ordering::Relaxed);
        let begun = StdInstant::now();
        let outcome = producer.submit(request(sent, size)).await;
        let now = StdInstant::now();
        let count = match &outcome {
            Ok(Outcome::Answer(answer)) => {
                lock(&self.micros)
                    .push(u64::try_from(now.duration_since(begun).as_micros()).unwrap_or(u64::MAX));
                lock(&self.span).get_or_insert((now, now)).1 = now;
                if number(answer) == Some(sent) && lock(&self.seen).insert(sent) {
                    return Ok(());
                }
                &self.doubled
            }
            Ok(Outcome::Failure(_)) => &self.failed,
            Err(SubmitError::Full { .. }) => &self.refused,
            Err(SubmitError::Unreachable { .. }) => &self.unreachable,
            Err(_) => &self.lost,
        };
        count.fetch_add(1, Ordering::Relaxed);
        outcome.map(drop)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn request(number: u64, size: usize) -> Submit {
    let deadline = Instant::now() + TIMEOUT;
    Submit::new(REVISION.into(), body(number, size), 1, deadline)
}

/// Starts clients at each proxy, each of which sends one request after another.
pub async fn closed(
    producers: &[Producer],
    clients: usize,
    size: usize,
    time: Duration,
) -> Result<Arc<Tally>, Error> {
    let tally = Arc::new(Tally::default());
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for producer in producers {
        for _ in 0..clients {
            let (producer, tally) = (producer.clone(), tally.clone());
            tasks.spawn(async move {
                while Instant::now() < until {
                    if tally.send(&producer, size).await.is_err() {
                        sleep(TICK).await;
                    }
                }
            });
        }
    }
    finish(tasks).await?;
    Ok(tally)
}

/// Sends small requests at a steady rate, however those before fare.
pub async fn arrivals(
    producers: &[Producer],
    each_second: f64,
    time: Duration,
) -> Result<Arc<Tally>, Error> {
    let tally = Arc::new(Tally::default());
    let begun = StdInstant::now();
    let mut tasks = JoinSet::new();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = producers.iter().cycle();
    let mut sent = 0.0;
    while begun.elapsed() < time {
        tick.tick().await;
        let due = begun.elapsed().as_secs_f64() * each_second;
        while sent < due
            && let Some(producer) = next.next()
        {
            sent += 1.0;
            let (producer, tally) = (producer.clone(), tally.clone());
            tasks.spawn(async move {
                // The tally counts the result.
                let _ = tally.send(&producer, 256).await;
            });
        }
    }
    finish(tasks).await?;
    Ok(tally)
}

pub async fn finish(mut tasks: JoinSet<()>) -> Result<(), Error> {
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}
