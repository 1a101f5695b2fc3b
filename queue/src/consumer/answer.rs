//! Answers: writing them until Redis has them or nobody waits for them.

mod command;

use std::{
    collections::HashSet,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use command::{command, store};
use tokio::time::Instant;

use super::{
    inner::Inner,
    read,
    unsent::{PendingAnswer, Unsent},
};
use crate::{
    JobId, Outcome, QueueError,
    call::{Call, Reply, lost_group, out_of_memory},
    commands::groups,
    events,
    lane::{Lane, by_lane},
    scripts::ANSWER,
    wire,
};

/// Bytes of large answers that may wait here for room in Redis while other requests are served.
const MAX_UNSENT: usize = 64 << 20;

/// Sends answers, and those that had no room before, without taking new requests.
pub(super) async fn answer(
    inner: &Inner,
    answers: Vec<(JobId, Outcome)>,
) -> Result<(), QueueError> {
    let due = with_unsent(inner, answers);
    send(inner, due, 0).await.map(drop)
}

/// Sends answers alone: without those that had no room before, and without taking new requests.
pub(super) async fn answer_only(inner: &Inner, answers: Vec<(JobId, Outcome)>) {
    let due = answers.into_iter().map(PendingAnswer::from).collect();
    if let Err(error) = send(inner, due, 0).await {
        tracing::warn!(%error, "failed to answer");
    }
}

/// Tries again to send answers that had no room. Returns whether some still have none.
pub(super) async fn send_unsent(inner: &Inner) -> bool {
    let due = std::mem::take(&mut *unsent(inner));
    if due.is_empty() {
        return false;
    }
    if let Err(error) = send(inner, due, 0).await {
        tracing::warn!(%error, "failed to answer");
    }
    !unsent(inner).is_empty()
}

/// Puts new answers behind those that had no room.
pub(super) fn with_unsent(inner: &Inner, answers: Vec<(JobId, Outcome)>) -> Vec<PendingAnswer> {
    let mut due = std::mem::take(&mut *unsent(inner));
    due.extend(answers.into_iter().map(PendingAnswer::from));
    due
}

fn unsent(inner: &Inner) -> MutexGuard<'_, Unsent> {
    inner.unsent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends answers until Redis has them or nobody waits for them any more, and returns the replies to the read of up to
/// `capacity` requests that went along. Answering twice is harmless: the second time finds nothing to answer. Answers
/// that have no room are kept for later.
pub(super) async fn send(
    inner: &Inner,
    mut due: Vec<PendingAnswer>,
    mut capacity: usize,
) -> Result<Vec<Reply>, QueueError> {
    let mut replies = Vec::new();
    loop {
        drop_expired(inner, &mut due);
        // Nothing is to be answered, and nothing may be read.
        if due.is_empty() && capacity == 0 {
            return Ok(replies);
        }
        match send_once(inner, &due, capacity).await {
            Ok(Sent { reads, waiting }) => {
                if capacity > 0 {
                    replies = reads;
                    capacity = 0;
                }
                if events::are_wanted() {
                    let is_waiting = |place| waiting.iter().any(|waiting| waiting.place == place);
                    for (_, due) in due
                        .iter()
                        .enumerate()
                        .filter(|(place, _)| !is_waiting(*place))
                    {
                        events::answered(&inner.name, due.id.uuid);
                    }
                }
                due = settle(inner, due, &waiting);
                let bytes: usize = due.iter().map(|due| due.outcome.size()).sum();
                if bytes <= MAX_UNSENT {
                    unsent(inner).append(&mut due);
                    return Ok(replies);
                }
                inner.pause().await;
            }
            // The read failed alone; the next fetch recovers it.
            Err(error) if due.is_empty() => return Err(error),
            Err(error) if error.passes() => {
                tracing::debug!(%error, "waiting for Redis to answer requests");
                capacity = 0;
                inner.pause().await;
            }
            Err(error) => {
                settle(inner, due, &[]);
                return Err(error);
            }
        }
    }
}

/// Gives up answers that nobody waits for any more.
fn drop_expired(inner: &Inner, due: &mut Vec<PendingAnswer>) {
    let now = Instant::now();
    let before = due.len();
    due.retain(|due| {
        let is_wanted = due.id.expires > now;
        if !is_wanted {
            inner.leases(|leases| leases.settle(due.id.entry));
        }
        is_wanted
    });
    if due.len() < before {
        let count = before - due.len();
        tracing::warn!(count, "dropping answers that nobody waits for any more");
        inner.settled.notify_waiters();
    }
}

/// Ends the leases of requests that are answered. Returns the answers that had no room.
fn settle(inner: &Inner, due: Vec<PendingAnswer>, waiting: &[Waiting]) -> Vec<PendingAnswer> {
    let mut left = Vec::with_capacity(waiting.len());
    inner.leases(|leases| {
        for (place, mut due) in due.into_iter().enumerate() {
            match waiting.iter().find(|waiting| waiting.place == place) {
                Some(waiting) => {
                    due.inline |= waiting.no_memory;
                    left.push(due);
                }
                None => leases.settle(due.id.entry),
            }
        }
    });
    inner.settled.notify_waiters();
    left
}

/// The result of one write of answers.
struct Sent {
    reads: Vec<Reply>,
    waiting: Vec<Waiting>,
}

/// An answer that had no room in Redis.
struct Waiting {
    place: usize,
    /// Whether Redis lacked the memory for a key of the answer's own.
    no_memory: bool,
}

async fn send_once(
    inner: &Inner,
    due: &[PendingAnswer],
    capacity: usize,
) -> Result<Sent, QueueError> {
    let connection = inner.commands.get().await?;
    let mut call = Call::new();
    let large: Vec<usize> = (0..due.len())
        .filter(|place| due[*place].is_large())
        .collect();
    for place in &large {
        call.command(store(inner, &due[*place]));
    }
    let places = (0..due.len()).map(|place| (due[place].id.lane.clone(), place));
    let groups: Vec<(Lane, Vec<usize>)> = by_lane(places)
        .into_iter()
        .flat_map(|(lane, places)| {
            let groups = groups(places, |place| due[*place].size()).into_iter();
            groups.map(move |group| (lane.clone(), group))
        })
        .collect();
    for (lane, group) in &groups {
        call.script(&ANSWER, command(inner, lane, group, due));
    }
    if capacity > 0 {
        let common = std::slice::from_ref(&inner.common);
        call.command(read::read_command(inner, common, capacity, Duration::ZERO));
        call.command(redis::cmd("TIME"));
    }
    let sent = call.send(&connection).await;
    let mut replies = if capacity > 0 {
        read::sent(inner, &inner.commands, &connection, sent)?
    } else {
        inner.commands.watch(&connection, sent)?
    }
    .into_iter();
    let mut no_memory = HashSet::new();
    for (place, reply) in large.into_iter().zip(&mut replies) {
        match reply.value("an answer") {
            Ok(_) => {}
            Err(error) if out_of_memory(&error) => {
                no_memory.insert(place);
            }
            Err(error) => return Err(stray(inner, capacity, error)),
        }
    }
    let mut waiting = Vec::new();
    for ((_, group), reply) in groups.iter().zip(&mut replies) {
        match reply.value("an answer") {
            Ok(value) => {
                let mut values = wire::list(value).into_iter().map(wire::list);
                let without_room = values.next().unwrap_or_default().into_iter();
                waiting.extend(without_room.filter_map(|request| {
                    let request: usize = wire::parse(request)?;
                    let place = *group.get(request.checked_sub(1)?)?;
                    Some(Waiting {
                        place,
                        no_memory: no_memory.contains(&place),
                    })
                }));
                let abandoned = values.next().unwrap_or_default().into_iter();
                inner.leases(|leases| leases.abandon(abandoned.filter_map(wire::parse)));
            }
            Err(error) if lost_group(&error) => {
                // The requests are gone; their proxies find out and enqueue them again.
                inner.leases(|leases| leases.must_join = true);
            }
            Err(error) if error.passes() => return Err(stray(inner, capacity, error)),
            Err(error) => tracing::warn!(%error, "failed to answer"),
        }
    }
    Ok(Sent {
        reads: replies.collect(),
        waiting,
    })
}

/// Notes that requests which the read beside a failed answer was given are in nobody's hands.
fn stray(inner: &Inner, capacity: usize, error: QueueError) -> QueueError {
    inner.leases(|leases| leases.stray |= capacity > 0);
    error
}
