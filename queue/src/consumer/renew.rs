//! Renewal of leases.

use std::sync::{Arc, Weak};

use super::inner::Inner;
use crate::{
    QueueError,
    call::Call,
    id::EntryId,
    lane::Lane,
    scripts::{MAX_REQUESTS, RENEW},
};

/// The task that renews the leases of a consumer's requests.
pub struct Renewer {
    inner: Weak<Inner>,
}

impl Renewer {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self {
            inner: Arc::downgrade(inner),
        }
    }

    /// Renews, three times per lease, all leases that the consumer still owns, until the consumer is gone. A lease says
    /// that the process lives, however long it takes over a request.
    pub async fn run(self) {
        loop {
            let Some(lease) = self.inner.upgrade().map(|inner| inner.limits().lease) else {
                return;
            };
            tokio::time::sleep(lease / 3).await;
            let Some(inner) = self.inner.upgrade() else {
                return;
            };
            for (lane, leased) in inner.leases(|leases| leases.all()) {
                for group in leased.chunks(MAX_REQUESTS) {
                    if let Err(error) = renew(&inner, &lane, group).await {
                        tracing::warn!(%error, "failed to renew leases");
                    }
                }
            }
        }
    }
}

async fn renew(inner: &Inner, lane: &Lane, entries: &[EntryId]) -> Result<(), QueueError> {
    let mut command = RENEW.call(&[lane.jobs()], 0);
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
