//! The queue between proxies and workers, in Redis. Nothing else of Carpool knows Redis.
//!
//! A proxy's [`Producer`] puts requests into a stream per revision and reads answers from a stream of its own. A
//! worker's [`Consumer`] takes requests in batches and answers them. Requests run at least once and are answered
//! exactly once, through the death of any part.

mod call;
mod connection;
mod consumer;
mod error;
mod id;
mod keys;
mod outcome;
mod producer;
mod scripts;
mod types;
mod wire;

pub use connection::Connection;
pub use consumer::{Consumer, ConsumerLimits, ConsumerOptions, Renewer};
pub use error::{QueueError, SubmitError};
pub use id::JobId;
pub use producer::Producer;
pub use types::{
    Backlog, ConsumerBacklog, Failure, FailureKind, Job, Limits, Outcome, RevisionBacklog, Submit,
};
