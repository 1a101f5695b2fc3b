//! Exchanges: answers and a fetch in one write.

use std::time::Duration;

use super::{
    answer::{send, with_unsent},
    fetch,
    inner::Inner,
    intake,
    leases::{Leases, Turn},
};
use crate::{Job, JobId, Outcome, QueueError, call::lost_group, id::EntryId};

/// Sends answers and takes up to `capacity` new requests in one write.
pub(super) async fn exchange(
    inner: &Inner,
    answers: Vec<(JobId, Outcome)>,
    capacity: usize,
) -> Result<Vec<Job>, QueueError> {
    let due = with_unsent(inner, answers);
    let entries: Vec<EntryId> = due.iter().map(|due| due.id.entry).collect();
    // A recovery that is due comes before the read, which under a lasting backlog always finds as many requests as it
    // may take.
    let read = capacity > 0
        && inner.leases(|leases| {
            !leases.recovery_due() && leases.turn_after(&entries) == Turn::Ordinary
        })
        // Several lanes take more than one read.
        && !inner.lanes(|lanes| lanes.any());
    let replies = send(inner, due, if read { capacity } else { 0 }).await?;
    if read {
        inner.leases(Leases::read_ordinary);
    }
    let next = if capacity > 0 && !read {
        fetch::next(inner, capacity, Duration::ZERO).await
    } else {
        intake::of_replies(inner, std::slice::from_ref(&inner.common), replies).await
    };
    Ok(next.unwrap_or_else(|error| {
        // The answers are out; the next fetch meets the same trouble and recovers from it.
        tracing::debug!(%error, "failed to fetch beside an answer");
        if lost_group(&error) {
            inner.leases(|leases| leases.must_join = true);
        }
        Vec::new()
    }))
}
