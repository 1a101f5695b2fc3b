//! The configuration file, watched: limits, model and revision change without a restart.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use carpool_crds::{Config, ConfigError};
use tokio::{
    task::JoinError,
    time::{MissedTickBehavior, interval},
};

use crate::proxy::Proxy;

/// How often the file is looked at. Kubernetes swaps a symbolic link above it, which file events miss.
const PERIOD: Duration = Duration::from_secs(1);

/// Applies what changes in the file, for ever. A file that can't be used is logged and the last good one kept.
pub async fn watch(proxy: Arc<Proxy>, path: PathBuf, mut current: Config) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Nothing is known of the file that `current` was read from, so the first look reads it again.
    let mut seen = None;
    loop {
        ticks.tick().await;
        let now = Some(Stamp::of(&path));
        if now == seen {
            continue;
        }
        seen = now;
        match next(&path, &current).await {
            Ok(next) if next == current => continue,
            Ok(next) => match proxy.reload(&next) {
                Ok(()) => {
                    tracing::info!(serving = next.serving, "the configuration changed");
                    proxy.metrics.reloaded(true);
                    current = next;
                    continue;
                }
                Err(error) => tracing::error!(%error, "the last configuration stays"),
            },
            Err(error) => tracing::error!(%error, "the last configuration stays"),
        }
        proxy.metrics.reloaded(false);
    }
}

/// Why a changed file can't be used.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("failed to read the configuration: {0}")]
    Task(#[from] JoinError),
    #[error("the configuration is of another resource")]
    Foreign,
}

async fn next(path: &Path, current: &Config) -> Result<Config, ReloadError> {
    let path = path.to_owned();
    let next = tokio::task::spawn_blocking(move || Config::read(&path)).await??;
    if identity(&next) == identity(current) {
        Ok(next)
    } else {
        Err(ReloadError::Foreign)
    }
}

/// What names the Redis keys and the model, and so can't change while the process lives.
fn identity(config: &Config) -> (&str, &str, &str) {
    (&config.namespace, &config.name, &config.uid)
}

/// What changes when a file is written or replaced; `None` where there is no file.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, u64, i64, i64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|file| {
            (
                file.dev(),
                file.ino(),
                file.len(),
                file.mtime(),
                file.mtime_nsec(),
            )
        }))
    }
}
