//! Renewing leases.

use std::sync::{Arc, Weak};

use super::Inner;
use crate::{
    QueueError,
    call::Call,
    id::EntryId,
    scripts::{MOST_REQUESTS, RENEW},
};

/// Renews the leases of what a consumer holds.
pub struct Renewer {
    inner: Weak<Inner>,
}

/// Why a renewer stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenewalEnd {
    /// The run thread makes no progress. The process should exit, as others take its requests.
    Stalled,
    /// The consumer is gone.
    Left,
}

impl Renewer {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self {
            inner: Arc::downgrade(inner),
        }
    }

    /// Renews every third of the lease whatever the consumer still owns, for as long as `progress` says that the run
    /// thread moves.
    pub async fn run(self, progress: impl Fn() -> bool + Send) -> RenewalEnd {
        loop {
            let Some(lease) = self.inner.upgrade().map(|inner| inner.settings().lease) else {
                return RenewalEnd::Left;
            };
            tokio::time::sleep(lease / 3).await;
            if !progress() {
                return RenewalEnd::Stalled;
            }
            let Some(inner) = self.inner.upgrade() else {
                return RenewalEnd::Left;
            };
            let held = inner.held(|held| held.all());
            for group in held.chunks(MOST_REQUESTS) {
                if let Err(error) = renew(&inner, group).await {
                    tracing::warn!(%error, "failed to renew leases");
                }
            }
        }
    }
}

async fn renew(inner: &Inner, entries: &[EntryId]) -> Result<(), QueueError> {
    let mut command = RENEW.call(&[&inner.jobs()], 0);
    command.arg(&inner.name);
    for entry in entries {
        command.arg(entry.to_string());
    }
    inner
        .commands
        .last(&Call::of_script(&RENEW, command), "a renewal")
        .await
        .map(drop)
}
