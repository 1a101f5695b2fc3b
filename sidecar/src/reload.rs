//! The configuration file, followed: limits, model and revision change without a restart.

use std::{path::PathBuf, sync::Arc};

use carpool_crds::{Config, ConfigError};
use carpool_process::follow_file;

use crate::proxy::{Proxy, ServeError};

/// Applies each change of the file, for ever. A file that can't be used is logged and the last good one kept.
pub async fn watch(proxy: Arc<Proxy>, path: PathBuf, mut current: Config) {
    let apply = |read: Result<Config, ConfigError>| {
        let applied = match read.map_err(ReloadError::from) {
            Ok(next) if next == current => return,
            Ok(next) => reload(&proxy, &mut current, next),
            Err(error) => Err(error),
        };
        if let Err(error) = &applied {
            tracing::error!(%error, "the last configuration stays");
        }
        proxy.metrics.reloaded(applied.is_ok());
    };
    follow_file(path, Config::read, apply).await;
}

/// The reason that a changed file can't be used.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the configuration is of another model")]
    Foreign,
}

fn reload(proxy: &Proxy, current: &mut Config, next: Config) -> Result<(), ReloadError> {
    if identity(&next) != identity(current) {
        return Err(ReloadError::Foreign);
    }
    proxy.reload(&next)?;
    tracing::info!(serving = next.serving, "the configuration changed");
    *current = next;
    Ok(())
}

/// The fields that name the model, and so can't change while the process lives. Its UID may: a model that was deleted and
/// made anew is followed.
fn identity(config: &Config) -> (&str, &str) {
    (&config.namespace, &config.name)
}
