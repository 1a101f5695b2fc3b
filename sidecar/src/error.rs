//! The errors that a request can end with, and the one place that gives each its status.

use std::time::Duration;

use carpool_crds::Task;
use carpool_protocol::cut;
use carpool_queue::{Failure, FailureKind, SubmitError};
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, RETRY_AFTER},
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{compression::CODINGS, payload::Payload, validate::Invalid};

/// The reason that a request gets no answer from the model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request can't be read.
    #[error("{0}")]
    Malformed(String),
    /// The request names another model.
    #[error("unknown model {}; this is {name}", cut(.given))]
    UnknownModel {
        /// The name asked for.
        given: String,
        /// The name of the model served.
        name: String,
    },
    /// The request names another version.
    #[error("unknown version {} of {name}; the one served is {serving}", cut(.given))]
    UnknownVersion {
        /// The version asked for.
        given: String,
        /// The model.
        name: String,
        /// The revision served.
        serving: String,
    },
    /// The request asks for the labels of a text, and the model takes tensors.
    #[error("{name} takes no text; POST its tensors to /v2/models/{name}/infer")]
    NoText {
        /// The model.
        name: String,
    },
    /// The request asks for what a model of another task gives.
    #[error("{name} is a model of the task {task}; POST to {}", path(*.task, .name))]
    OtherTask {
        /// The model.
        name: String,
        /// The model's task.
        task: Task,
    },
    /// The request's path is one at which nothing is served.
    #[error("nothing is served at {given}; there is {served}")]
    UnknownPath {
        /// The request's path.
        given: String,
        /// The paths served on its port.
        served: &'static str,
    },
    /// The request asks for an answer later where none can be had.
    #[error(
        "asynchronous requests are taken at /v2/models/NAME/infer alone: send it there, or without the header Prefer: respond-async"
    )]
    Asynchronous,
    /// The request asks for a job that is not there.
    #[error("unknown job {id}: {why}")]
    UnknownJob {
        /// The id given.
        id: String,
        /// The reason that it is not there.
        why: &'static str,
    },
    /// The request asks for the answer of a job that was cancelled.
    #[error("job {id} was cancelled")]
    Cancelled {
        /// The job's id.
        id: String,
    },
    /// The request has the name of another one.
    #[error("another request was sent with this Idempotency-Key; give each request its own")]
    NameTaken,
    /// The request has a parameter that would change the answer.
    #[error("{0}")]
    NotBuilt(String),
    /// The request's path takes other methods.
    #[error("method {given} is not allowed here; allowed are {allowed}")]
    Method {
        /// The method given.
        given: Method,
        /// The methods allowed.
        allowed: &'static str,
    },
    /// The request's body is larger than `queue.maxRequestBytes`.
    #[error("the body is larger than the {limit} bytes that a request may have")]
    TooLarge {
        /// The bytes allowed.
        limit: u64,
    },
    /// The request has more rows than `queue.maxRowsPerRequest`.
    #[error(
        "the request has {given} rows, queue.maxRowsPerRequest allows {limit}; send them in several requests"
    )]
    TooManyRows {
        /// The request's rows.
        given: u32,
        /// The rows allowed.
        limit: u32,
    },
    /// The request's body is of a type that this path doesn't read.
    #[error("the body must be {expected}, it is {given}")]
    MediaType {
        /// The types read here.
        expected: &'static str,
        /// The type given.
        given: String,
    },
    /// The request's body is compressed in another way.
    #[error("the body must be in one of {CODINGS} or in none; its content-encoding is {given}")]
    ContentEncoding {
        /// The codings given.
        given: String,
    },
    /// The request is not one that the model takes.
    #[error("{0}")]
    Invalid(String),
    /// A field of the request, in a form that is not the protocol's, is not what it may be.
    #[error("{field}: {message}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// The value that is expected, and what was given.
        message: String,
    },
    /// The queue is full.
    #[error("the queue is full; try again later")]
    Full {
        /// The time after which there is likely to be room.
        retry_after: Duration,
    },
    /// The proxy reads too many bytes of other requests.
    #[error("too many large requests at once; try again later")]
    Busy,
    /// The model failed on the request.
    #[error("{0}")]
    Model(String),
    /// The proxy itself failed.
    #[error("{0}")]
    Internal(String),
    /// The queue can't be reached.
    #[error("the queue can't be reached; try again later")]
    Unreachable {
        /// The time after which another try makes sense.
        retry_after: Duration,
    },
    /// The proxy is about to stop.
    #[error("this proxy is shutting down; try again")]
    Draining,
    /// The resource that the request was queued for is gone, and another one has its name.
    #[error("the model was deleted and made anew while the request waited; try again")]
    Replaced,
    /// The request's time is over.
    #[error("the deadline passed before an answer came")]
    Deadline,
}

/// The paths at which a model of this task answers, for a client that asked at another.
fn path(task: Task, name: &str) -> String {
    let path = match task {
        Task::Classify => "/predict",
        Task::Embed => "/v1/embeddings",
        Task::Rerank => "/rerank",
    };
    format!("{path} or /v2/models/{name}/infer")
}

/// The status that counts requests whose client went away; nobody is left to read it.
pub const CLIENT_LEFT: u16 = 499;

/// The time after which to try again where another proxy takes the next request at once, or this one will soon have
/// read what it is reading.
const RETRY_SOON: Duration = Duration::from_secs(1);

impl Error {
    /// The status of the answer, and the reason by which it is counted.
    #[must_use]
    pub fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "malformed"),
            Self::UnknownModel { .. } | Self::UnknownVersion { .. } => {
                (StatusCode::NOT_FOUND, "unknown_model")
            }
            Self::NoText { .. } | Self::OtherTask { .. } | Self::UnknownPath { .. } => {
                (StatusCode::NOT_FOUND, "unknown_path")
            }
            Self::UnknownJob { .. } => (StatusCode::NOT_FOUND, "unknown_job"),
            Self::Cancelled { .. } => (StatusCode::GONE, "cancelled"),
            Self::NameTaken => (StatusCode::UNPROCESSABLE_ENTITY, "name_taken"),
            Self::Asynchronous | Self::NotBuilt(_) => (StatusCode::NOT_IMPLEMENTED, "not_built"),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::TooManyRows { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_many_rows"),
            Self::MediaType { .. } | Self::ContentEncoding { .. } => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type")
            }
            Self::Invalid(_) | Self::Field { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Self::Full { .. } => (StatusCode::TOO_MANY_REQUESTS, "full"),
            Self::Busy => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            Self::Model(_) => (StatusCode::INTERNAL_SERVER_ERROR, "model"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::Unreachable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unreachable"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            Self::Replaced => (StatusCode::SERVICE_UNAVAILABLE, "replaced"),
            Self::Deadline => (StatusCode::GATEWAY_TIMEOUT, "deadline"),
        }
    }

    /// The code of the answer to a gRPC call. A call whose message is too large fails as gRPC's own libraries let it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed(_)
            | Self::MediaType { .. }
            | Self::ContentEncoding { .. }
            | Self::Invalid(_)
            | Self::NameTaken
            | Self::Field { .. }
            | Self::TooManyRows { .. } => Code::InvalidArgument,
            Self::UnknownModel { .. }
            | Self::UnknownVersion { .. }
            | Self::UnknownJob { .. }
            | Self::NoText { .. }
            | Self::OtherTask { .. } => Code::NotFound,
            Self::Cancelled { .. } => Code::Cancelled,
            Self::UnknownPath { .. }
            | Self::Method { .. }
            | Self::Asynchronous
            | Self::NotBuilt(_) => Code::Unimplemented,
            Self::TooLarge { .. } | Self::Full { .. } | Self::Busy => Code::ResourceExhausted,
            Self::Model(_) | Self::Internal(_) => Code::Internal,
            Self::Unreachable { .. } | Self::Draining | Self::Replaced => Code::Unavailable,
            Self::Deadline => Code::DeadlineExceeded,
        }
    }

    /// The time after which another try makes sense; `None` where the same request fails again.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Full { retry_after } | Self::Unreachable { retry_after } => Some(*retry_after),
            Self::Busy | Self::Draining | Self::Replaced => Some(RETRY_SOON),
            _ => None,
        }
    }

    /// The answer that tells the client of this error.
    #[must_use]
    pub fn response(&self) -> Response<Payload> {
        self.response_with(self.status().0, &json!({ "error": self.to_string() }))
    }

    /// The answer that tells the client of this error by a status and in a form of another protocol.
    #[must_use]
    pub fn response_with(&self, status: StatusCode, body: &Value) -> Response<Payload> {
        let mut response = Response::new(Payload::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::Method { allowed, .. } => {
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            // RFC 9110, section 15.5.16.
            Self::ContentEncoding { .. } => {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(CODINGS));
            }
            _ => {}
        }
        if let Some(retry_after) = self.retry_after() {
            headers.insert(RETRY_AFTER, whole_seconds(retry_after));
        }
        response
    }
}

/// The seconds of a `Retry-After` header, rounded up and at least one: a client that is told 0 comes back at once.
fn whole_seconds(duration: Duration) -> HeaderValue {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    HeaderValue::from(seconds.max(1))
}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        let (code, sentence) = (error.code(), error.to_string());
        match error.retry_after() {
            Some(retry_after) => {
                let details = ErrorDetails::with_retry_info(Some(retry_after));
                Self::with_error_details(code, sentence, details)
            }
            None => Self::new(code, sentence),
        }
    }
}

/// The HTTP status by which metrics count a gRPC code that is not of an [`Error`]: tonic's own, and answers.
#[must_use]
pub fn counted_as(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::OutOfRange => StatusCode::PAYLOAD_TOO_LARGE,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        match invalid {
            Invalid::NotBuilt { .. } => Self::NotBuilt(invalid.to_string()),
            _ => Self::Invalid(invalid.to_string()),
        }
    }
}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Full { retry_after } => Self::Full { retry_after },
            SubmitError::Unreachable { retry_after } => Self::Unreachable { retry_after },
            SubmitError::TooLarge { most } => Self::TooLarge { limit: most },
            error @ SubmitError::Breaks { .. } => Self::Internal(error.to_string()),
            SubmitError::NameTaken => Self::NameTaken,
            SubmitError::DeadlineExceeded => Self::Deadline,
            SubmitError::ShuttingDown => Self::Draining,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::Invalid => Self::Invalid(failure.message),
            FailureKind::Model | FailureKind::TooManyDeliveries => Self::Model(failure.message),
            FailureKind::Expired => Self::Deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        for (millis, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (90_000, "90")] {
            let error = Error::Full {
                retry_after: Duration::from_millis(millis),
            };
            assert_eq!(
                error.response().headers()[RETRY_AFTER],
                expected,
                "{millis} ms"
            );
        }
    }
}
