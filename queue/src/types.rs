//! The messages of proxies and workers about one request.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;
use tracing::Span;
use uuid::Uuid;

use crate::{
    id::JobId,
    lane::{Caller, Class},
};

/// The outcome of one request, as a worker reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The model's answer: an encoded `ModelInferResponse`.
    Answer(Bytes),
    /// The reason why there is no answer.
    Failure(Failure),
}

/// A failure of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The cause, which decides the HTTP status.
    pub kind: FailureKind,
    /// A sentence for the client.
    pub message: String,
}

/// The kinds of failure, each with the HTTP status that a client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The input is well-formed, but not one that the model takes: 422.
    Invalid,
    /// The model failed on this input: 500.
    Model,
    /// Workers died each time they ran the request: 500.
    TooManyDeliveries,
    /// The deadline passed before the request ran: 504.
    Expired,
}

/// The queue's bounds, as the resource states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most requests that may wait or be in flight: in Redis per revision, in one proxy of all revisions together.
    pub max_length: u64,
    /// The most bytes in Redis of request bodies of all revisions together and of large answers that are not read yet;
    /// in one proxy, of request bodies alone.
    pub max_bytes: u64,
    /// The largest request body, in bytes.
    pub max_request_bytes: u64,
    /// The time that a worker may be silent before others take its requests.
    pub lease: Duration,
    /// The time that the outcome of a request that nobody waits for is kept.
    pub result_ttl: Duration,
    /// The requests that one caller may have in the common lane while others have some, too; further ones go into a lane
    /// of their own. About as many as fit into a batch.
    pub window: usize,
}

/// A request to run.
#[derive(Debug, Clone)]
pub struct Submit {
    /// The revision whose workers are to run the request.
    pub revision: Arc<str>,
    /// An encoded `ModelInferRequest`.
    pub body: Bytes,
    /// The number of batch rows in the body.
    pub rows: u32,
    /// The class of the request, which says how soon workers come to it where many wait.
    pub class: Class,
    /// The caller, whose many requests are not to hold up those of others; `None` for this proxy itself.
    pub caller: Option<Caller>,
    /// The `traceparent` (W3C) of the caller.
    pub trace: Option<String>,
    /// The client that sent the request, for logs and dead letters.
    pub client: Option<Arc<str>>,
    /// The time at which the client stops waiting.
    pub deadline: Instant,
    /// The caller's span, to which events about the request belong.
    pub span: Span,
}

impl Submit {
    /// Makes a request of this proxy and of the current span, of the default class, without a trace and a client's name.
    #[must_use]
    pub fn new(revision: Arc<str>, body: Bytes, rows: u32, deadline: Instant) -> Self {
        Self {
            revision,
            body,
            rows,
            class: Class::Default,
            caller: None,
            trace: None,
            client: None,
            deadline,
            span: Span::current(),
        }
    }
}

/// The name that a client gave a request, so that it may send it again without a second job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobName {
    /// The name.
    pub name: String,
    /// A digest of the request: another request of the same name is refused. Not empty.
    pub digest: String,
}

/// A job that Redis has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// The job's id, which cannot be guessed.
    pub uuid: Uuid,
    /// Whether the job is new, rather than one of the same name.
    pub is_new: bool,
}

/// The state of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// The job waits.
    Queued {
        /// The number of jobs of its lane before it.
        ahead: u64,
        /// The time that these and it are likely to take, by the last jobs; `None` before there were any.
        wait: Option<Duration>,
    },
    /// A worker has the job.
    Running,
    /// The job has an outcome, which may be a failure.
    Done(Outcome),
    /// The job was taken out before it had an outcome.
    Cancelled,
    /// Redis has lost the job or its answer.
    Lost,
    /// There never was such a job, or its result has expired.
    Unknown,
}

impl JobState {
    /// Whether the job may yet get an outcome.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Queued { .. } | Self::Running)
    }
}

/// A job as its client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// The state.
    pub state: JobState,
    /// The note that the job was submitted with.
    pub note: Bytes,
}

/// A request in a worker's hands.
#[derive(Debug, Clone)]
pub struct Job {
    /// The identity by which the request is answered or released.
    pub id: JobId,
    /// An encoded `ModelInferRequest`.
    pub body: Bytes,
    /// The number of batch rows in the body.
    pub rows: u32,
    /// The `traceparent` (W3C) of the caller.
    pub trace: Option<String>,
    /// The client that sent the request.
    pub client: Option<String>,
    /// Time since the request was enqueued.
    pub age: Duration,
    /// Time until the request's client stops waiting.
    pub deadline: Duration,
    /// The quarantine group of a request that may be why its last worker died. Requests of the same number run
    /// together, and with no others; `None` for the ordinary ones.
    pub quarantine: Option<u64>,
}

/// The content of the queue, per revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    /// The content by revision; one without requests and workers may be missing.
    pub revisions: BTreeMap<String, RevisionBacklog>,
}

/// The content of one revision's stream.
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

/// The requests that one worker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerBacklog {
    /// The worker's name.
    pub name: String,
    /// The number of requests in the worker's hands.
    pub pending: u64,
}
