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
    lane::{Lane, by_lane},
    scripts::{LEAVE, MAX_REQUESTS, RELEASE},
};

/// An entry of a lane to hand back, the consumer that holds it until another worker takes it, and the deliveries to take
/// back.
pub(super) type Handover = (Lane, EntryId, String, u32);

pub(super) async fn release(
    inner: &Inner,
    entries: Vec<(Lane, EntryId)>,
) -> Result<(), QueueError> {
    let handovers = inner.leases(|leases| {
        entries
            .into_iter()
            .map(|(lane, entry)| {
                if leases.is_quarantined(entry) {
                    // The request's turn was counted, but did not take place.
                    (lane, entry, SUSPECTS.to_owned(), 1)
                } else {
                    (lane, entry, RELEASED.to_owned(), 0)
                }
            })
            .collect()
    });
    hand_over(inner, handovers).await
}

pub(super) async fn leave(inner: &Inner) -> Result<(), QueueError> {
    answer::send_unsent(inner).await;
    let held = inner.leases(|leases| leases.all()).into_iter();
    let held = held.flat_map(|(lane, entries)| {
        let entries = entries.into_iter();
        entries.map(move |entry| (lane.clone(), entry))
    });
    release(inner, held.collect()).await?;
    for lane in inner.all_lanes() {
        let mut command = LEAVE.call(&[lane.jobs()], 0);
        command.arg(&inner.name);
        patiently(inner, &Call::of_script(&LEAVE, command)).await?;
        // The last worker to leave an empty stream takes it along.
        patiently(inner, &evict(&inner.keys, &lane)).await?;
    }
    Ok(())
}

pub(super) async fn hand_over(inner: &Inner, handovers: Vec<Handover>) -> Result<(), QueueError> {
    let entries: Vec<EntryId> = handovers.iter().map(|(_, entry, ..)| *entry).collect();
    let handovers = handovers
        .into_iter()
        .map(|(lane, entry, holder, fewer)| (lane, (entry, holder, fewer)));
    let mut outcome = Ok(());
    for (lane, handovers) in by_lane(handovers) {
        for group in handovers.chunks(MAX_REQUESTS) {
            let mut command = RELEASE.call(&[lane.jobs(), inner.common.jobs()], 0);
            command.arg(&inner.name);
            for (entry, holder, fewer) in group {
                command.arg(entry.to_string()).arg(holder).arg(fewer);
            }
            outcome = outcome.and(patiently(inner, &Call::of_script(&RELEASE, command)).await);
        }
    }
    inner.leases(|leases| {
        for entry in entries {
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

/// Removes entries of a lane. Those that can't be removed now come back when their lease is over.
pub(super) async fn discard(inner: &Inner, lane: &Lane, entries: Vec<Removal>) {
    for group in groups(entries, |_| 0) {
        let call = drop_entries(&inner.keys, lane, Some(&inner.name), &group);
        if let Err(error) = inner.commands.last(&call, "a drop").await {
            tracing::warn!(%error, "failed to drop entries");
        }
    }
}
