//! The check for requests that Redis has lost. FLUSHALL, an expired replies stream, a lost AOF tail and a failover all
//! look the same to a proxy: the entry is gone and there is no reply. The request is then enqueued again.
//!
//! The index of a stream answers for thousands of entries at once, and no entry is read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    in_flight::{Overdue, Stage},
    replies,
    shared::Shared,
};
use crate::{QueueError, call::Call, connection::Connection, id::EntryId, wire};

/// The most entries asked for in one command, so that others do not wait long for Redis.
const MAX_ENTRIES: usize = 1024;

/// The result of each enqueue by its number: the entry of each of its requests, `None` where there was no room.
type Receipts = HashMap<u64, Vec<Option<EntryId>>>;

/// Looks for requests that nothing was heard of for `patience` and returns those that are neither in their stream nor
/// among the replies, oldest first. With a patience of zero it looks for all.
pub(super) async fn run(
    shared: &Shared,
    connection: &Connection,
    patience: Duration,
) -> Result<Vec<Uuid>, QueueError> {
    let missing = look(shared, connection, patience).await?;
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    // An answered entry is gone, too. Answers that are read here take their requests out of the map.
    replies::read_all(shared, connection).await?;
    Ok(missing.into_iter().map(|(_, uuid)| uuid).collect())
}

/// Looks for requests in their streams. Returns those that are not there, with the time of their submission.
async fn look(
    shared: &Shared,
    connection: &Connection,
    patience: Duration,
) -> Result<BTreeSet<(Instant, Uuid)>, QueueError> {
    let mut queued: BTreeMap<Arc<str>, Vec<(Overdue, EntryId)>> = BTreeMap::new();
    let mut missing = BTreeSet::new();
    let mut receipts = None;
    for overdue in shared.in_flight.overdue(patience) {
        let entry = match overdue.stage {
            Stage::Queued(entry) => Some(entry),
            Stage::Unsure(place) => {
                if receipts.is_none() {
                    receipts = Some(read_receipts(shared, connection).await?);
                }
                let entries = receipts
                    .as_ref()
                    .and_then(|receipts| receipts.get(&place.call));
                let entry = entries.and_then(|entries| *entries.get(place.position)?);
                if let Some(entry) = entry {
                    shared.in_flight.locate(overdue.uuid, entry);
                }
                entry
            }
            Stage::Waiting | Stage::Sent(_) | Stage::Lost => None,
        };
        match entry {
            Some(entry) => queued
                .entry(overdue.lane.clone())
                .or_default()
                .push((overdue, entry)),
            None => {
                missing.insert((overdue.submitted, overdue.uuid));
            }
        }
    }
    for (lane, queued) in queued {
        for overdue in gone(shared, connection, &lane, queued).await? {
            missing.insert((overdue.submitted, overdue.uuid));
        }
    }
    Ok(missing)
}

/// Returns the requests whose entries are not in the stream of their lane.
async fn gone(
    shared: &Shared,
    connection: &Connection,
    lane: &str,
    queued: Vec<(Overdue, EntryId)>,
) -> Result<Vec<Overdue>, QueueError> {
    let lane = shared.keys.lane(lane);
    let mut scores = Vec::with_capacity(queued.len());
    for some in queued.chunks(MAX_ENTRIES) {
        let mut command = redis::cmd("ZMSCORE");
        command.arg(lane.index());
        for (_, entry) in some {
            command.arg(entry.to_string());
        }
        scores.extend(wire::list(
            Call::of(command).last("ZMSCORE", connection).await?,
        ));
    }
    let gone = queued
        .into_iter()
        .zip(scores)
        .filter(|(_, score)| *score == redis::Value::Nil)
        .map(|((overdue, _), _)| overdue);
    Ok(gone.collect())
}

/// Reads the receipts of this proxy's last enqueues. They are needed only when a connection broke in the middle of one.
async fn read_receipts(shared: &Shared, connection: &Connection) -> Result<Receipts, QueueError> {
    let mut command = redis::cmd("HVALS");
    command.arg(shared.keys.receipts(&shared.proxy));
    let values = wire::list(Call::of(command).last("HVALS", connection).await?);
    let receipts = values.into_iter().filter_map(|value| {
        let text: String = wire::parse(value)?;
        let mut words = text.split(' ');
        let call = words.next()?.parse().ok()?;
        Some((call, words.map(|entry| entry.parse().ok()).collect()))
    });
    Ok(receipts.collect())
}
