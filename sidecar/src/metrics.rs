//! The proxy's metrics, for Prometheus. A drop guard counts requests, so no way out is forgotten.

use std::{sync::OnceLock, time::Instant};

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

/// The kind of a request, by what it asks for.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A request for words about the server or the model.
    Metadata,
    /// A request for whether the server or the model lives or is ready.
    Health,
    /// A request to the model in the protocol's form.
    Infer,
    /// A request to the model in the article's form: a text.
    Predict,
    /// A request about a job.
    Job,
    /// A request for the embeddings of texts.
    Embeddings,
    /// A request for the scores of documents.
    Rerank,
    /// A request for a path at which nothing is served.
    Unknown,
}

impl Kind {
    const COUNT: usize = 8;

    const fn label(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Health => "health",
            Self::Infer => "infer",
            Self::Job => "job",
            Self::Predict => "predict",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
            Self::Unknown => "unknown",
        }
    }
}

/// A part of an inference request's way through the proxy.
#[derive(Debug, Clone, Copy)]
pub enum Hop {
    /// The part from the last byte of the body to an encoded, validated request.
    Parse,
    /// The part from a validated request to the worker's answer: the queue, the batch, the way back.
    Queue,
    /// The part from the worker's answer to the answer's bytes.
    Respond,
}

impl Hop {
    const ALL: [Self; 3] = [Self::Parse, Self::Queue, Self::Respond];

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

impl ResultLabel {
    fn of(applied: bool) -> Self {
        let result = if applied { "applied" } else { "refused" };
        Self { result }
    }
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The metrics of the requests of one kind that end with one status.
#[derive(Debug, Clone)]
struct Series {
    requests: Counter,
    duration: Histogram,
}

/// The proxy's metrics, all prefixed `carpool_proxy_`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    duration: Histograms<RequestLabels>,
    /// The series of requests that were answered with 200, by kind, once there was one: finding them by their labels takes
    /// longer than counting.
    answered: [OnceLock<Series>; Kind::COUNT],
    hops: [Histogram; Hop::ALL.len()],
    open: Gauge,
    /// The bytes of answers that clients have not taken.
    pub unread: Gauge,
    reloads: Family<ResultLabel, Counter>,
    renewals: Family<ResultLabel, Counter>,
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
        let hops = Histograms::<HopLabel>::new_with_constructor(seconds);
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
        let unread = Gauge::default();
        registry.register_with_unit(
            "unread_answers",
            "What the answers hold that clients have not taken",
            Unit::Bytes,
            unread.clone(),
        );
        let reloads = Family::default();
        registry.register(
            "config_reloads",
            "Changes of the configuration file, applied or refused",
            reloads.clone(),
        );
        let renewals = Family::default();
        registry.register(
            "certificate_reloads",
            "Changes of the files of the TLS certificate and its key, applied or refused",
            renewals.clone(),
        );
        Self {
            registry,
            requests,
            refusals,
            duration,
            answered: Default::default(),
            hops: Hop::ALL.map(|hop| {
                let hop = hop.label();
                hops.get_or_create_owned(&HopLabel { hop })
            }),
            open,
            unread,
            reloads,
            renewals,
        }
    }
}

impl Metrics {
    /// Counts a request that has come in.
    #[must_use]
    pub fn open(&self, kind: Kind) -> OpenRequest<'_> {
        self.open.inc();
        OpenRequest {
            metrics: self,
            kind,
            since: Instant::now(),
            code: CLIENT_LEFT,
        }
    }

    /// Starts to time an inference request whose body is there.
    pub fn hop_timer(&self) -> HopTimer<'_> {
        HopTimer {
            metrics: self,
            since: Instant::now(),
        }
    }

    /// Counts an inference request that is refused.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a change of the configuration file.
    pub fn reloaded(&self, applied: bool) {
        let result = ResultLabel::of(applied);
        self.reloads.get_or_create(&result).inc();
    }

    /// Counts a change of the TLS certificate.
    pub fn renewed(&self, applied: bool) {
        let result = ResultLabel::of(applied);
        self.renewals.get_or_create(&result).inc();
    }

    /// The series that count requests of this kind that end with this status.
    fn series(&self, kind: Kind, code: u16) -> Series {
        let find = || {
            let route = kind.label();
            let labels = RequestLabels { route, code };
            Series {
                requests: self.requests.get_or_create_owned(&labels),
                duration: self.duration.get_or_create_owned(&labels),
            }
        };
        if code == StatusCode::OK {
            self.answered[kind as usize].get_or_init(find).clone()
        } else {
            find()
        }
    }

    /// Writes all metrics as Prometheus reads them.
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
    kind: Kind,
    since: Instant,
    code: u16,
}

impl OpenRequest<'_> {
    /// Notes the status of the answer, be it that of an error.
    pub fn answered(&mut self, status: StatusCode) {
        self.code = status.as_u16();
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        self.metrics.open.dec();
        let series = self.metrics.series(self.kind, self.code);
        series.requests.inc();
        series.duration.observe(self.since.elapsed().as_secs_f64());
    }
}

/// A timer of the parts of an inference request's way. Dropped on the way, it has counted only the parts before:
/// refusals take no time.
#[derive(Debug)]
pub struct HopTimer<'a> {
    metrics: &'a Metrics,
    since: Instant,
}

impl HopTimer<'_> {
    /// Counts the time of a part that is over, and begins to time the next.
    pub fn passed(&mut self, hop: Hop) {
        let now = Instant::now();
        let took = now.duration_since(self.since);
        self.metrics.hops[hop as usize].observe(took.as_secs_f64());
        self.since = now;
    }
}

/// A histogram from 25 µs to 52 s, doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(25e-6, 2.0, 22))
}
