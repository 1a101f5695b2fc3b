//! The report of a worker on its model, which its admin port gives at `/model`.

use serde::{Deserialize, Serialize};

/// The model that a worker serves, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loaded {
    /// The model's revision.
    pub revision: String,
    /// The checksum of the model's artifact.
    pub sha256: String,
    /// The way the model is served: stable, for programs.
    #[serde(default)]
    pub reason: LoadedReason,
    /// The reason in a sentence for people; empty where all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The ways in which a worker serves its model, the poorer ones first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LoadedReason {
    /// Served one row at a time, for the company in a batch changes the model's answers.
    Unbatched,
    /// Served with less in a batch than the resource asks for, for it could not be proved that this leaves answers as
    /// they are.
    Unproven,
    /// Served in batches of equal shapes only, for padding changes the model's answers.
    Unpadded,
    /// Served as the resource asks for. A reason that only a newer worker knows is read as this one: the model is
    /// loaded in any case, and the message says the rest.
    #[default]
    #[serde(other)]
    Loaded,
}

impl LoadedReason {
    /// The reason's name, as programs read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loaded => "Loaded",
            Self::Unproven => "Unproven",
            Self::Unpadded => "Unpadded",
            Self::Unbatched => "Unbatched",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_an_older_or_newer_worker_is_understood() {
        let read = |json: &str| serde_json::from_str::<Loaded>(json).unwrap();
        let older = read(r#"{"revision": "r1", "sha256": "abc"}"#);
        assert_eq!((older.reason, &*older.message), (LoadedReason::Loaded, ""));
        let newer = read(
            r#"{"revision": "r1", "sha256": "abc", "reason": "Sharded", "message": "on two GPUs", "gpus": 2}"#,
        );
        assert_eq!(
            (newer.reason, &*newer.message),
            (LoadedReason::Loaded, "on two GPUs")
        );
    }

    #[test]
    fn each_reason_is_written_by_its_name() {
        for reason in [
            LoadedReason::Loaded,
            LoadedReason::Unproven,
            LoadedReason::Unpadded,
            LoadedReason::Unbatched,
        ] {
            let json = serde_json::to_value(reason).unwrap();
            assert_eq!(json, reason.name());
            assert_eq!(
                serde_json::from_value::<LoadedReason>(json).unwrap(),
                reason
            );
        }
    }
}
