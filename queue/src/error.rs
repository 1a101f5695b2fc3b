//! Errors of the queue.

use std::{path::PathBuf, time::Duration};

/// An error between this process and Redis.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// The file with the URL of Redis can't be read.
    #[error("failed to read the Redis URL from {path}: {message}")]
    UrlFile {
        /// The path of the file.
        path: PathBuf,
        /// The operating system's message.
        message: String,
    },
    /// The URL is not one of Redis. The message leaves the URL out, as it may hold a password.
    #[error("failed to parse the Redis URL: {0}")]
    Url(String),
    /// The file with the certificate authorities can't be read, or holds none.
    #[error("failed to read the certificate authorities of Redis from {path}: {message}")]
    CaFile {
        /// The path of the file.
        path: PathBuf,
        /// The reason why the file can't be used.
        message: String,
    },
    /// The resource's UID can't be part of a key.
    #[error("failed to make keys of the UID {0:?}: it is empty or holds braces")]
    Uid(String),
    /// Redis did not answer, or the connection broke.
    #[error("failed to reach Redis: {0}")]
    Unreachable(String),
    /// Redis is there but can't serve now: its disk or its replicas fail it, or a script keeps it busy.
    #[error("Redis can't serve {operation} now: {message}")]
    Unready {
        /// The operation that Redis was asked for.
        operation: &'static str,
        /// The error message of Redis.
        message: String,
    },
    /// Redis answered with an error.
    #[error("Redis refused {operation}: {message}")]
    Refused {
        /// The operation that Redis was asked for.
        operation: &'static str,
        /// The error message of Redis.
        message: String,
    },
    /// The revision's first worker loaded another artifact: two models must not answer under one version.
    #[error(
        "revision {revision} is the model whose artifact has sha256 {recorded}, but this worker has loaded one with sha256 {given}"
    )]
    ArtifactChanged {
        /// The revision that both workers serve.
        revision: String,
        /// The SHA-256 that the revision's first worker recorded.
        recorded: String,
        /// The SHA-256 of the artifact that this worker has loaded.
        given: String,
    },
    /// Redis answered with something that this version does not understand.
    #[error("failed to understand Redis' answer to {operation}")]
    Answer {
        /// The operation that Redis was asked for.
        operation: &'static str,
    },
}

impl QueueError {
    /// Whether the same operation may succeed a little later.
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unready { .. })
    }
}

/// The reason why a request got no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue holds as much as it may, in requests or in bytes.
    #[error("the queue is full")]
    Full {
        /// Time until there should be room, from the rate at which answers come back.
        retry_after: Duration,
    },
    /// Redis can't be reached, so the request was not accepted.
    #[error("the queue is unreachable")]
    Unreachable {
        /// Time after which the client should try again.
        retry_after: Duration,
    },
    /// The body is larger than what Redis takes (`proto-max-bulk-len`): it would end the connection.
    #[error("Redis takes no body of more than {most} bytes")]
    TooLarge {
        /// The largest body that Redis takes, in bytes.
        most: u64,
    },
    /// The connection to Redis broke each time the request was written, alone in the end.
    #[error("the connection to Redis broke each of the {times} times that the request was written")]
    Breaks {
        /// The number of times that the request was written.
        times: u32,
    },
    /// The client has given the name of this job to another request.
    #[error("another request has this name")]
    NameTaken,
    /// The request's own deadline passed before an answer came.
    #[error("no answer came before the deadline")]
    DeadlineExceeded,
    /// This proxy is shutting down.
    #[error("the proxy is shutting down")]
    ShuttingDown,
}
