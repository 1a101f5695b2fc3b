//! Handing requests back.

use tokio::time::Instant;

use super::{Inner, RESPONSE_TIMEOUT, answer};
use crate::{
    QueueError,
    call::{Call, lost_group},
    id::EntryId,
    keys::{RELEASED, SUSPECTS},
    scripts::{LEAVE, MAX_REQUESTS, RELEASE, evict},
};

/// Who holds a request until another worker takes it, and how many deliveries are taken back.
pub(super) type Handover = (EntryId, String, u32);

pub(super) async fn release(inner: &Inner, entries: Vec<EntryId>) -> Result<(), QueueError> {
    let handovers = inner.leases(|leases| {
        entries
            .into_iter()
            .map(|entry| {
                if leases.is_quarantined(entry) {
                    // Its turn was counted, but did not take place.
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
    // The last one to leave an empty stream takes it along.
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

/// Waits a little for Redis. What is not handed back is taken over when its lease is over.
async fn patiently(inner: &Inner, call: &Call) -> Result<(), QueueError> {
    let give_up = Instant::now() + RESPONSE_TIMEOUT;
    loop {
        match inner.commands.last(call, "a release").await {
            Ok(_) => return Ok(()),
            // There is nothing left to hand back or to leave.
            Err(error) if lost_group(&error) => return Ok(()),
            Err(error) if error.passes() && Instant::now() < give_up => inner.pause().await,
            Err(error) => return Err(error),
        }
    }
}
