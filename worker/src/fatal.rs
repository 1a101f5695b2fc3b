//! The reasons that the process can't go on, as the resource's status will tell them.

use std::path::Path;

use carpool_crds::Termination;
pub use carpool_crds::TerminationReason;
use carpool_queue::QueueError;

/// An error that ends the process: a reason for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fatal {
    /// The reason.
    pub reason: TerminationReason,
    /// The sentence.
    pub message: String,
}

impl Fatal {
    /// Makes an error that ends the process.
    pub fn new(reason: TerminationReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// Makes the error that ends a process which can't get on with its queue.
    #[must_use]
    pub fn of_queue(error: &QueueError) -> Self {
        match error {
            QueueError::ArtifactChanged { given, .. } => Self::new(
                TerminationReason::ArtifactChanged,
                format!(
                    "the artifact has changed: {error}; publish the new one under another path, or set \
                     spec.model.sha256 to {given}: either makes a new revision"
                ),
            ),
            _ => Self::new(TerminationReason::RedisUnreachable, error.to_string()),
        }
    }

    /// Writes `{"reason": …, "message": …}` to the file that Kubernetes shows as the termination message. A failure to
    /// do so is only logged: the process is ending already.
    pub fn write(&self, termination_log: &Path) {
        let termination = Termination {
            reason: self.reason.name().to_owned(),
            message: self.message.clone(),
        };
        let written = serde_json::to_vec(&termination)
            .map_err(std::io::Error::from)
            .and_then(|json| std::fs::write(termination_log, json));
        if let Err(error) = written {
            tracing::warn!(path = %termination_log.display(), %error, "failed to write the termination message");
        }
    }
}
