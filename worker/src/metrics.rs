//! The metrics of the process, for Prometheus.

use std::{sync::atomic::AtomicU64, time::Duration};

use carpool_queue::{FailureKind, Outcome};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::size::Size;

/// A part of a request's way through the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// The part from the write that carries answers and the next fetch to its reply.
    Exchange,
    /// The part in which requests are decoded and tokenized.
    Assemble,
    /// The part on the run thread: the forward pass, again in parts where it fails.
    Run,
    /// The part in which a batch's outputs are cut apart and its answers encoded.
    Encode,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HopLabel {
    hop: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// The worker's metrics, all prefixed `carpool_worker_`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    batch_size: Histogram,
    queue_wait: Histogram,
    forward: Histogram,
    padding: Histogram,
    hops: Family<HopLabel, Histogram, fn() -> Histogram>,
    requests: Family<ResultLabel, Counter>,
    in_flight: Gauge,
    busy: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("carpool_worker");
        let batch_size = Histogram::new(exponential_buckets(1.0, 2.0, 11));
        registry.register_with_unit(
            "batch_size",
            "Rows of a forward pass",
            Unit::Other("rows".to_owned()),
            batch_size.clone(),
        );
        let queue_wait = seconds();
        registry.register_with_unit(
            "queue_wait",
            "From a request's entry into the queue to the start of its batch",
            Unit::Seconds,
            queue_wait.clone(),
        );
        let forward = seconds();
        registry.register_with_unit("forward", "Forward passes", Unit::Seconds, forward.clone());
        let padding = Histogram::new((0..10).map(|tenths| f64::from(tenths) / 10.0));
        registry.register_with_unit(
            "padding",
            "Share of a batch's input elements that is padding",
            Unit::Ratios,
            padding.clone(),
        );
        let hops = Family::<HopLabel, Histogram, fn() -> Histogram>::new_with_constructor(seconds);
        registry.register_with_unit(
            "hop",
            "The parts of a batch's way through the worker",
            Unit::Seconds,
            hops.clone(),
        );
        let requests = Family::<ResultLabel, Counter>::default();
        registry.register(
            "requests",
            "Requests by what became of them",
            requests.clone(),
        );
        let in_flight = Gauge::default();
        registry.register(
            "in_flight",
            "Requests fetched and not yet answered",
            in_flight.clone(),
        );
        let busy = Gauge::default();
        registry.register("busy", "1 while a batch runs, else 0", busy.clone());
        Self {
            registry,
            batch_size,
            queue_wait,
            forward,
            padding,
            hops,
            requests,
            in_flight,
            busy,
        }
    }
}

impl Metrics {
    /// Counts a forward pass that took this long.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn forward(&self, size: &Size, took: Duration) {
        self.batch_size.observe(size.rows as f64);
        self.forward.observe(took.as_secs_f64());
        self.padding
            .observe(size.padding as f64 / size.elements.max(1) as f64);
    }

    /// Counts the time that a request waited for its first batch.
    pub fn queue_wait(&self, waited: Duration) {
        self.queue_wait.observe(waited.as_secs_f64());
    }

    /// Counts the time that a part of the way took.
    pub fn hop(&self, hop: Hop, took: Duration) {
        let hop = match hop {
            Hop::Exchange => "exchange",
            Hop::Assemble => "assemble",
            Hop::Run => "run",
            Hop::Encode => "encode",
        };
        self.hops
            .get_or_create(&HopLabel { hop })
            .observe(took.as_secs_f64());
    }

    /// Counts requests that were fetched.
    pub fn fetched(&self, requests: usize) {
        self.in_flight
            .inc_by(i64::try_from(requests).unwrap_or(i64::MAX));
    }

    /// Counts a request that is answered.
    pub fn answered(&self, outcome: &Outcome) {
        self.in_flight.dec();
        let result = match outcome {
            Outcome::Answer(_) => "answered",
            Outcome::Failure(failure) => match failure.kind {
                FailureKind::Invalid => "invalid",
                FailureKind::Expired => "expired",
                FailureKind::Model | FailureKind::TooManyDeliveries => "failed",
            },
        };
        self.requests.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts requests whose clients left before they ran.
    pub fn abandoned(&self, count: usize) {
        self.in_flight
            .dec_by(i64::try_from(count).unwrap_or(i64::MAX));
        let result = "abandoned";
        self.requests
            .get_or_create(&ResultLabel { result })
            .inc_by(count as u64);
    }

    /// Marks the device busy until the guard is dropped.
    #[must_use]
    pub fn busy(&self) -> Busy<'_> {
        self.busy.set(1.0);
        Busy(&self.busy)
    }

    /// Writes all metrics as Prometheus reads them.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A guard for as long as which the device counts as busy.
pub struct Busy<'a>(&'a Gauge<f64, AtomicU64>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(0.0);
    }
}

/// A histogram from 25 µs to 52 s, doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(25e-6, 2.0, 22))
}
