//! What proxies and workers say to each other about one request.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;
use tracing::Span;

use crate::id::JobId;

/// What a worker says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The model's answer: an encoded `ModelInferResponse`.
    Answer(Bytes),
    /// Why there is none.
    Failure(Failure),
}

/// A failure of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// A sentence for the client.
    pub message: String,
}

/// The kinds of failure, each with the HTTP status a client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Well-formed, but not what the model takes: 422.
    Invalid,
    /// The model failed on this input: 500.
    Model,
    /// Workers died each time they ran it: 500.
    TooManyDeliveries,
    /// Its deadline passed before it ran: 504.
    Expired,
}

/// The queue's bounds, as the resource states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests waiting and in flight: in Redis per revision, in one proxy of all revisions together.
    pub max_length: u64,
    /// Bytes of request bodies of all revisions together and of large answers that are not read yet, in Redis; of request
    /// bodies likewise in one proxy.
    pub max_bytes: u64,
    /// The largest request body.
    pub max_request_bytes: u64,
    /// How long a worker may be silent before others take its requests.
    pub lease: Duration,
}

/// A request to run.
#[derive(Debug, Clone)]
pub struct Submit {
    /// The revision whose workers are to run it.
    pub revision: Arc<str>,
    /// An encoded `ModelInferRequest`.
    pub body: Bytes,
    /// The batch rows it holds.
    pub rows: u32,
    /// W3C `traceparent` of the caller.
    pub trace: Option<String>,
    /// Who sent it, for logs and dead letters.
    pub client: Option<Arc<str>>,
    /// When the client stops waiting.
    pub deadline: Instant,
    /// The caller's span, to which events about the request belong.
    pub span: Span,
}

impl Submit {
    /// Makes a request of the current span, without a trace and a client's name.
    #[must_use]
    pub fn new(revision: Arc<str>, body: Bytes, rows: u32, deadline: Instant) -> Self {
        Self {
            revision,
            body,
            rows,
            trace: None,
            client: None,
            deadline,
            span: Span::current(),
        }
    }
}

/// A request in a worker's hands.
#[derive(Debug, Clone)]
pub struct Job {
    /// What to answer, renew or release it by.
    pub id: JobId,
    /// An encoded `ModelInferRequest`.
    pub body: Bytes,
    /// The batch rows it holds.
    pub rows: u32,
    /// W3C `traceparent` of the caller.
    pub trace: Option<String>,
    /// Who sent it.
    pub client: Option<String>,
    /// Time since it was enqueued.
    pub age: Duration,
    /// Time until its client stops waiting.
    pub deadline: Duration,
    /// It was in the hands of a worker that died, and may be why. Requests of the same number run together, and with
    /// nobody else; `None` for the ordinary ones.
    pub quarantine: Option<u64>,
}

/// What the queue holds, per revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    /// By revision; one without requests and workers may be missing.
    pub revisions: BTreeMap<String, RevisionBacklog>,
}

/// What one revision's stream holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevisionBacklog {
    /// Requests waiting and in flight: the number to scale on.
    pub length: u64,
    /// Requests that workers hold.
    pub pending: u64,
    /// Bytes of request bodies.
    pub bytes: u64,
    /// The workers that Redis knows.
    pub consumers: Vec<ConsumerBacklog>,
}

/// What one worker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerBacklog {
    /// The worker's name.
    pub name: String,
    /// Requests in its hands.
    pub pending: u64,
}
