//! The settings that may change while the process runs.

use std::{path::PathBuf, time::Duration};

use carpool_crds::{Config, ConfigError};
use carpool_process::follow_file;
use carpool_queue::ConsumerLimits;
use tokio::sync::watch;

/// The settings of batches and of the queue, which may change while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveSettings {
    /// The most rows that run together.
    pub max_batch_size: usize,
    /// The time that a batch that is not full waits for more, counted from its oldest request's arrival.
    pub max_delay: Duration,
    /// The queue's bounds.
    pub queue: ConsumerLimits,
    /// The longest that one forward pass may take; without it, as long as the passes so far suggest.
    pub run_timeout: Option<Duration>,
}

impl From<&Config> for LiveSettings {
    fn from(config: &Config) -> Self {
        Self {
            max_batch_size: config.batching.max_batch_size.max(1) as usize,
            max_delay: config.batching.max_delay.0,
            queue: ConsumerLimits {
                lease: config.queue.lease.0,
                max_deliveries: config.queue.max_deliveries,
                max_bytes: config.queue.max_bytes.0,
                result_ttl: config.queue.result_ttl().0,
                default_priority: config.queue.priorities.map_or(1, |these| these.default),
            },
            run_timeout: config.queue.run_timeout.map(|timeout| timeout.0),
        }
    }
}

/// Applies each change of the configuration file, for as long as somebody listens. A file that can't be used is logged and
/// the last good settings kept.
pub async fn follow(path: PathBuf, settings: watch::Sender<LiveSettings>) {
    let apply = |read: Result<Config, ConfigError>| match read {
        Ok(config) => {
            let new = LiveSettings::from(&config);
            if settings.send_if_modified(|old| std::mem::replace(old, new) != new) {
                tracing::info!(?new, "the configuration has changed");
            }
        }
        Err(error) => {
            tracing::warn!(%error, "the configuration has become unusable; the last good one stays");
        }
    };
    tokio::select! {
        () = follow_file(path, Config::read, apply) => {}
        () = settings.closed() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
name: m
namespace: ns
uid: u
serving: r
models: {r: {uri: file://m, inputs: [{name: x, datatype: FP32, shape: []}], outputs: [{name: y, datatype: FP32, shape: []}]}}
batching: {maxBatchSize: SIZE}
queue: {}
device: cpu
";

    #[tokio::test]
    async fn a_change_arrives_and_a_bad_file_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, CONFIG.replace("SIZE", "4")).unwrap();
        let (sender, mut settings) =
            watch::channel(LiveSettings::from(&Config::read(&path).unwrap()));
        assert_eq!(settings.borrow().max_batch_size, 4);
        let task = tokio::spawn(follow(path.clone(), sender));

        std::fs::write(&path, CONFIG.replace("SIZE", "none")).unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(1500), settings.changed())
                .await
                .is_err()
        );
        assert_eq!(settings.borrow().max_batch_size, 4);

        std::fs::write(&path, CONFIG.replace("SIZE", "8")).unwrap();
        settings.changed().await.unwrap();
        assert_eq!(settings.borrow().max_batch_size, 8);
        drop(settings);
        task.await.unwrap();
    }
}
