//! The one file that the operator writes and that sidecar and worker read.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{Batching, Device, Model, Queue};

/// What proxies and workers of one `BatchedModel` must know. It is read again when it changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The resource's name, which is the model's name to clients.
    pub name: String,
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's UID. It is part of every Redis key: a recreated resource never replays old jobs.
    pub uid: String,
    /// The revision that proxies feed.
    pub serving: String,
    /// Every revision that has, or is to have, workers.
    pub models: BTreeMap<String, Model>,
    /// How requests become batches.
    pub batching: Batching,
    /// The queue's bounds and times.
    pub queue: Queue,
    /// Where workers run the model.
    pub device: Device,
}

/// Why a configuration file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("failed to read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It isn't a configuration.
    #[error("failed to parse the configuration {path}: {message}")]
    Parse {
        /// The file.
        path: String,
        /// What is wrong, and where.
        message: String,
    },
    /// It names a revision that it doesn't hold.
    #[error("the configuration holds no model of revision {revision}; it holds {held}")]
    NoRevision {
        /// The one asked for.
        revision: String,
        /// Those there are.
        held: String,
    },
}

impl Config {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.display().to_string(),
            source,
        })?;
        let config: Self = serde_yaml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.display().to_string(),
            message: error.to_string(),
        })?;
        config.model(&config.serving)?;
        Ok(config)
    }

    /// The model of one revision.
    pub fn model(&self, revision: &str) -> Result<&Model, ConfigError> {
        self.models
            .get(revision)
            .ok_or_else(|| ConfigError::NoRevision {
                revision: revision.to_owned(),
                held: self.models.keys().cloned().collect::<Vec<_>>().join(", "),
            })
    }
}
