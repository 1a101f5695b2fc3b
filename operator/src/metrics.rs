//! What the operator measures of itself, for Prometheus.

use std::{fmt, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// The outcome of a reconcile: `ok`, or an error's category.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// Few and stable.
    pub result: &'static str,
}

/// A resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModelLabels {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Everything that is measured.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciles, by outcome.
    pub reconciles: Family<Outcome, Counter>,
    /// How long they took.
    pub reconcile_duration: Histogram,
    /// Workers asked for.
    pub wanted: Family<ModelLabels, Gauge>,
    /// Workers that are Ready.
    pub ready: Family<ModelLabels, Gauge>,
    /// Requests waiting and in flight.
    pub queue_length: Family<ModelLabels, Gauge<i64>>,
    /// Whether this process leads.
    pub leading: Gauge<u64, AtomicU64>,
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("carpool_operator");
        let reconciles = Family::default();
        registry.register("reconciles", "Reconciles, by outcome", reconciles.clone());
        let reconcile_duration = Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]);
        registry.register(
            "reconcile_duration_seconds",
            "How long a reconcile took",
            reconcile_duration.clone(),
        );
        let wanted = Family::default();
        registry.register("workers_wanted", "Workers asked for", wanted.clone());
        let ready = Family::default();
        registry.register("workers_ready", "Workers that are Ready", ready.clone());
        let queue_length = Family::default();
        registry.register(
            "queue_length",
            "Requests waiting and in flight",
            queue_length.clone(),
        );
        let leading = Gauge::default();
        registry.register("leading", "1 where this process leads", leading.clone());
        Self {
            registry,
            reconciles,
            reconcile_duration,
            wanted,
            ready,
            queue_length,
            leading,
        }
    }

    /// Everything in Prometheus' text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Takes out a resource that is gone.
    pub fn forget(&self, labels: &ModelLabels) {
        self.wanted.remove(labels);
        self.ready.remove(labels);
        self.queue_length.remove(labels);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
