//! What a worker says of its model, on its admin port at `/model`.

use serde::{Deserialize, Serialize};

/// The model that a worker serves, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loaded {
    /// Its revision.
    pub revision: String,
    /// Its artifact's checksum.
    pub sha256: String,
    /// How it is served: stable, for programs.
    #[serde(default)]
    pub reason: LoadedReason,
    /// The same in a sentence for people; empty where all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How a worker serves its model, the poorer ways first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LoadedReason {
    /// One row at a time, for the company in a batch changes its answers.
    Unbatched,
    /// With less in a batch than the resource asks for, for it could not be proved that this leaves answers as they are.
    Unproven,
    /// In batches of equal shapes only, for padding changes its answers.
    Unpadded,
    /// As the resource asks for. A reason that only a newer worker knows is read as this: the model is loaded in any
    /// case, and the message says the rest.
    #[default]
    #[serde(other)]
    Loaded,
}

impl LoadedReason {
    /// Its name, as programs read it.
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
