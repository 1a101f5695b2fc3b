//! The termination message of a worker: why its process ended, as the operator and `carpool local` read it.

use serde::{Deserialize, Serialize};

/// The reasons that a worker gives for its end. They are stable: the operator shows them as the reasons of conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminationReason {
    /// The artifact isn't the one that `spec.model.sha256` pins.
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
    /// Redis can't be reached. This says nothing of the model.
    RedisUnreachable,
}

impl TerminationReason {
    const ALL: [Self; 7] = [
        Self::ChecksumMismatch,
        Self::ArtifactChanged,
        Self::ArtifactMissing,
        Self::ModelInvalid,
        Self::OutOfMemory,
        Self::DeviceUnavailable,
        Self::RedisUnreachable,
    ];

    /// The reason's name in termination messages and conditions.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChecksumMismatch => "ChecksumMismatch",
            Self::ArtifactChanged => "ArtifactChanged",
            Self::ArtifactMissing => "ArtifactMissing",
            Self::ModelInvalid => "ModelInvalid",
            Self::OutOfMemory => "OutOfMemory",
            Self::DeviceUnavailable => "DeviceUnavailable",
            Self::RedisUnreachable => "RedisUnreachable",
        }
    }

    /// The reason of this name; `None` for one of Kubernetes' own, or one that only a newer worker gives.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// A termination message: a reason for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// The name of a [`TerminationReason`], or of one that only a newer worker gives.
    pub reason: String,
    /// The sentence.
    pub message: String,
}

impl Termination {
    /// The reason; `None` where only a newer worker gives it.
    #[must_use]
    pub fn reason(&self) -> Option<TerminationReason> {
        TerminationReason::of_name(&self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_found_by_its_name() {
        for reason in TerminationReason::ALL {
            assert_eq!(TerminationReason::of_name(reason.name()), Some(reason));
        }
        assert_eq!(TerminationReason::of_name("OOMKilled"), None);
    }

    #[test]
    fn a_message_of_a_newer_worker_is_read() {
        let message = r#"{"reason": "ModelTooOld", "message": "export it again", "since": "2"}"#;
        let Termination { reason, message } = serde_json::from_str(message).unwrap();
        assert_eq!((&*reason, &*message), ("ModelTooOld", "export it again"));
    }
}
