//! Release of requests to other workers, and removal of those that nobody waits for.

use tokio::time::Instant;

use super::{
    answer,
    inner::{Inner, RESPONSE_TIMEOUT},
};
use crate::{
    QueueError,
    call::{Call, lost_group},
    commands::{Removal, drop_entries, evict, groups},
    id::EntryId,
    keys::{RELEASED, SUSPECTS},
    scripts::{LEAVE, MAX_REQUESTS, RELEASE},
};

/// An entry to hand back, the consumer that holds it until another worker takes it, and the deliveries to take back.
pub(super) type Handover = (EntryId, String, u32);

pub(super) async fn release(inner: &Inner, entries: Vec<EntryId>) -> Result<(), QueueError> {
    let handovers = inner.leases(|leases| {
        entries
            .into_iter()
            .map(|entry| {
                if leases.is_quarantined(entry) {
                    // The request's turn was counted, but did not take place.
                    (entry, SUSPECTS.to_owned(), 1)
                } else {
                    (entry, RELEASED.to_owned(), 0)
                }
            })
            .collect()
    });
    hand_over(inner, handovers).await
}

pub(super) async fn leave(inner: &Inner) -> Result<(), QueueError> {
    answer::send_unsent(inner).await;
    release(inner, inner.leases(|leases| leases.all())).await?;
    let mut command = LEAVE.call(&[&inner.lane.jobs], 0);
    command.arg(&inner.name);
    patiently(inner, &Call::of_script(&LEAVE, command)).await?;
    // The last worker to leave an empty stream takes it along.
    patiently(inner, &evict(&inner.keys, &inner.revision)).await
}

pub(super) async fn hand_over(inner: &Inner, handovers: Vec<Handover>) -> Result<(), QueueError> {
    let mut outcome = Ok(());
    for group in handovers.chunks(MAX_REQUESTS) {
        let mut command = RELEASE.call(&[&inner.lane.jobs], 0);
        command.arg(&inner.name);
        for (entry, holder, fewer) in group {
            command.arg(entry.to_string()).arg(holder).arg(fewer);
        }
        outcome = outcome.and(patiently(inner, &Call::of_script(&RELEASE, command)).await);
    }
    inner.leases(|leases| {
        for (entry, ..) in handovers {
            leases.settle(entry);
        }
    });
    inner.settled.notify_waiters();
    outcome
}

/// Sends a call, waiting a little for Redis. Requests that are not handed back are taken over when their lease is over.
async fn patiently(inner: &Inner, call: &Call) -> Result<(), QueueError> {
    let give_up = Instant::now() + RESPONSE_TIMEOUT;
    loop {
        match inner.commands.last(call, "a release").await {
            Ok(_) => return Ok(()),
            // Nothing is left to hand back or to leave.
            Err(error) if lost_group(&error) => return Ok(()),
            Err(error) if error.passes() && Instant::now() < give_up => inner.pause().await,
            Err(error) => return Err(error),
        }
    }
}

/// Removes entries. Those that can't be removed now come back when their lease is over.
pub(super) async fn discard(inner: &Inner, entries: Vec<Removal>) {
    for group in groups(entries, |_| 0) {
        let call = drop_entries(&inner.keys, &inner.revision, &group);
        if let Err(error) = inner.commands.last(&call, "a drop").await {
            tracing::warn!(%error, "failed to drop entries");
        }
    }
}
