//! Why the process can't go on, as the resource's status will tell it.

use std::path::Path;

use carpool_queue::QueueError;
use serde::Serialize;

/// The reasons that a worker's termination message gives. They are stable: the operator shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Reason {
    /// The artifact isn't the one that `sha256` pins.
    ChecksumMismatch,
    /// The artifact isn't the one that the revision's first worker loaded.
    ArtifactChanged,
    /// The artifact, or a file that it must hold, isn't there.
    ArtifactMissing,
    /// The artifact can't be loaded, or the model's answers aren't what the resource declares.
    ModelInvalid,
    /// The model doesn't fit into memory, not even for one row.
    OutOfMemory,
    /// The device isn't there, or no longer works.
    DeviceUnavailable,
    /// Redis can't be reached.
    RedisUnreachable,
}

/// What ends the process: a reason for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Fatal {
    /// The reason.
    pub reason: Reason,
    /// The sentence.
    pub message: String,
}

impl Fatal {
    /// What ends the process.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// What ends a process that can't get on with its queue.
    #[must_use]
    pub fn of_queue(error: &QueueError) -> Self {
        match error {
            QueueError::ArtifactChanged { given, .. } => Self::new(
                Reason::ArtifactChanged,
                format!(
                    "the artifact has changed: {error}; publish the new one under another path, or set \
                     spec.model.sha256 to {given}: either makes a new revision"
                ),
            ),
            _ => Self::new(Reason::RedisUnreachable, error.to_string()),
        }
    }

    /// Writes `{"reason": …, "message": …}` to the file that Kubernetes shows as the termination message.
    /// A failure to do so is only logged: the process is ending already.
    pub fn write(&self, termination_log: &Path) {
        let written = serde_json::to_vec(self)
            .map_err(std::io::Error::from)
            .and_then(|json| std::fs::write(termination_log, json));
        if let Err(error) = written {
            tracing::warn!(path = %termination_log.display(), %error, "failed to write the termination message");
        }
    }
}
