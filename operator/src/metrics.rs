//! The operator's metrics, for Prometheus.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};

use crate::{
    calls::Calls,
    memory::{Memory, lock},
};

/// The outcome of a reconcile: `ok`, or an error's category.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// Few and stable.
    pub result: &'static str,
}

/// Everything that is measured.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciles, by outcome.
    pub reconciles: Family<Outcome, Counter>,
    /// Duration of reconciles, in seconds.
    pub reconcile_duration: Histogram,
    /// Whether this process leads.
    pub leading: Gauge<u64, AtomicU64>,
    /// Models whose pods wait for their turn of an upgrade.
    pub updates_waiting: Gauge<u64, AtomicU64>,
    /// Calls to the API server.
    pub calls: Calls,
}

impl Metrics {
    /// Registers everything. What is measured of resources is read from `memory`.
    #[must_use]
    pub fn new(memory: Arc<Memory>, calls: Calls) -> Self {
        let mut registry = Registry::with_prefix("carpool_operator");
        let reconciles = Family::default();
        registry.register("reconciles", "Reconciles, by outcome", reconciles.clone());
        let reconcile_duration = Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]);
        registry.register(
            "reconcile_duration_seconds",
            "How long a reconcile took",
            reconcile_duration.clone(),
        );
        registry.register(
            "api_calls",
            "Calls to the API server, by verb and kind",
            calls.counts.clone(),
        );
        registry.register_collector(Box::new(Models(memory)));
        let leading = Gauge::default();
        registry.register("leading", "1 where this process leads", leading.clone());
        let updates_waiting = Gauge::default();
        registry.register(
            "updates_waiting",
            "Models whose pods wait for their turn of an upgrade",
            updates_waiting.clone(),
        );
        Self {
            registry,
            reconciles,
            reconcile_duration,
            leading,
            updates_waiting,
            calls,
        }
    }

    /// The reason why this process does nothing any more and should be started anew, if there is one.
    #[must_use]
    pub fn ailing(&self, now: Instant) -> Option<String> {
        let dead = self.calls.dead(now);
        (!dead.is_empty()).then(|| {
            format!(
                "watches of {} could not be taken up for minutes; the log says why",
                dead.join(", ")
            )
        })
    }

    /// Everything in Prometheus' text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The gauges of all resources, read from the operator's memory, so that a resource that is gone leaves none.
#[derive(Debug)]
struct Models(Arc<Memory>);

impl Collector for Models {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = Instant::now();
        let (mut wanted, mut ready, mut queued) = (Vec::new(), Vec::new(), Vec::new());
        for (labels, remembered) in self.0.all() {
            let remembered = lock(&remembered);
            if let Some(workers) = remembered.workers {
                wanted.push((labels.clone(), i64::from(workers.wanted)));
                ready.push((labels.clone(), whole(workers.ready)));
            }
            if let Some(sample) = remembered.fresh(now) {
                queued.push((labels, whole(sample.total())));
            }
        }
        for (name, help, gauges) in [
            ("workers_wanted", "Workers asked for", wanted),
            ("workers_ready", "Workers that are Ready", ready),
            ("queue_length", "Requests waiting and in flight", queued),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, value) in gauges {
                let gauge = metric.encode_family(&labels)?;
                ConstGauge::new(value).encode(gauge)?;
            }
        }
        Ok(())
    }
}

fn whole(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{memory::WorkerCounts, reconcile::fixtures};

    #[test]
    fn a_resource_that_is_gone_leaves_no_metrics() {
        let memory = Arc::new(Memory::default());
        let metrics = Metrics::new(Arc::clone(&memory), Calls::default());
        let remembered = memory.of(&fixtures::sentiment());
        lock(&remembered).workers = Some(WorkerCounts {
            wanted: 3,
            ready: 2,
        });
        let text = metrics.encode().unwrap();
        let labels = r#"{namespace="nlp",name="sentiment"}"#;
        assert!(
            text.contains(&format!("carpool_operator_workers_wanted{labels} 3")),
            "{text}"
        );
        assert!(
            text.contains(&format!("carpool_operator_workers_ready{labels} 2")),
            "{text}"
        );
        memory.retain(&BTreeSet::new());
        // A reconcile that was under way when the resource went.
        lock(&remembered).workers = Some(WorkerCounts::default());
        assert!(!metrics.encode().unwrap().contains("sentiment"));
    }
}
