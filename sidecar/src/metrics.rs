//! What the proxy measures of itself, for Prometheus. A drop guard counts requests, so no way out is forgotten.

use std::time::Instant;

use http::StatusCode;
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

use crate::error::CLIENT_LEFT;

/// A part of a request's way through the proxy.
#[derive(Debug, Clone, Copy)]
pub enum Hop {
    /// From the last byte of the body to an encoded, validated request.
    Parse,
    /// From there to the worker's answer: the queue, the batch, the way back.
    Queue,
    /// From there to the answer's bytes.
    Respond,
}

impl Hop {
    const fn label(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Queue => "queue",
            Self::Respond => "respond",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HopLabel {
    hop: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The proxy's metrics, all prefixed `carpool_proxy_`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    duration: Histograms<RequestLabels>,
    hops: Histograms<HopLabel>,
    open: Gauge,
    reloads: Family<ResultLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("carpool_proxy");
        let requests = Family::default();
        registry.register(
            "requests",
            "Requests by what served them and the status they ended with; 499: the client left",
            requests.clone(),
        );
        let refusals = Family::default();
        registry.register(
            "refusals",
            "Inference requests that got no answer from the model, by reason",
            refusals.clone(),
        );
        let duration = Histograms::new_with_constructor(seconds);
        registry.register_with_unit(
            "request_duration",
            "From a request's head to its answer, by what served it and the status it ended with",
            Unit::Seconds,
            duration.clone(),
        );
        let hops = Histograms::new_with_constructor(seconds);
        registry.register_with_unit(
            "hop",
            "The parts of a request's way through the proxy",
            Unit::Seconds,
            hops.clone(),
        );
        let open = Gauge::default();
        registry.register(
            "open_requests",
            "Requests that are being served",
            open.clone(),
        );
        let reloads = Family::default();
        registry.register(
            "config_reloads",
            "Changes of the configuration file, applied or refused",
            reloads.clone(),
        );
        Self {
            registry,
            requests,
            refusals,
            duration,
            hops,
            open,
            reloads,
        }
    }
}

impl Metrics {
    /// A request has come in.
    #[must_use]
    pub fn open(&self, route: &'static str) -> OpenRequest<'_> {
        self.open.inc();
        OpenRequest {
            metrics: self,
            route,
            since: Instant::now(),
            code: CLIENT_LEFT,
        }
    }

    /// A part of the way begins.
    pub fn hop(&self, hop: Hop) -> OpenHop<'_> {
        OpenHop {
            metrics: self,
            hop,
            since: Instant::now(),
        }
    }

    /// An inference request is refused.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The configuration file changed.
    pub fn reloaded(&self, applied: bool) {
        let result = if applied { "applied" } else { "refused" };
        self.reloads.get_or_create(&ResultLabel { result }).inc();
    }

    /// All of them, as Prometheus reads them.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A request that is being served. Dropped without an answer, it counts as one whose client left.
#[derive(Debug)]
pub struct OpenRequest<'a> {
    metrics: &'a Metrics,
    route: &'static str,
    since: Instant,
    code: u16,
}

impl OpenRequest<'_> {
    /// It is answered, be it with an error.
    pub fn answered(&mut self, status: StatusCode) {
        self.code = status.as_u16();
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        let Self {
            metrics,
            route,
            since,
            code,
        } = *self;
        metrics.open.dec();
        let labels = RequestLabels { route, code };
        metrics.requests.get_or_create(&labels).inc();
        metrics
            .duration
            .get_or_create(&labels)
            .observe(since.elapsed().as_secs_f64());
    }
}

/// A part of the way. Dropped before it is done, it counts as nothing: refusals take no time.
#[derive(Debug)]
#[must_use]
pub struct OpenHop<'a> {
    metrics: &'a Metrics,
    hop: Hop,
    since: Instant,
}

impl OpenHop<'_> {
    /// The request has come to its end.
    pub fn done(self) {
        let hop = self.hop.label();
        self.metrics
            .hops
            .get_or_create(&HopLabel { hop })
            .observe(self.since.elapsed().as_secs_f64());
    }
}

/// 25 µs to 52 s, doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(25e-6, 2.0, 22))
}
