//! The check of requests that nothing was heard of. FLUSHALL, an expired replies stream, a lost AOF tail and a failover
//! all look the same to a proxy: the entry is gone and there is no reply. Then it is enqueued again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use uuid::Uuid;

use super::{
    Shared,
    open::{Stage, Suspicion},
    replies,
};
use crate::{
    QueueError,
    call::Call,
    connection::Live,
    id::{EntryId, mark},
    scripts::{CHECK, LOCATE, groups},
    wire,
};

/// Looks for requests that nothing was heard of for `patience` and returns those that are neither in their stream nor
/// among the replies, oldest first.
pub(super) async fn run(
    shared: &Shared,
    live: &Live,
    patience: Duration,
) -> Result<Vec<Uuid>, QueueError> {
    let suspicions = shared.open.suspicions(patience);
    if suspicions.is_empty() {
        // A connection that breaks while nothing is sent is noticed all the same.
        Call::of(redis::cmd("PING")).last("PING", live).await?;
        return Ok(Vec::new());
    }
    let order: Vec<Uuid> = suspicions.iter().map(|suspicion| suspicion.uuid).collect();
    let mut revisions: BTreeMap<Arc<str>, Vec<Suspicion>> = BTreeMap::new();
    for suspicion in suspicions {
        revisions
            .entry(suspicion.revision.clone())
            .or_default()
            .push(suspicion);
    }
    let mut missing = HashSet::new();
    for (revision, suspicions) in revisions {
        let jobs = shared.keys.jobs(&revision);
        let mut queued = Vec::new();
        let mut unsure = Vec::new();
        for Suspicion {
            uuid, size, stage, ..
        } in suspicions
        {
            match stage {
                Stage::Queued(entry) => queued.push((uuid, entry, size)),
                Stage::Unsure => unsure.push(uuid),
                Stage::Waiting | Stage::Sent | Stage::Lost => {
                    missing.insert(uuid);
                }
            }
        }
        for uuid in gone(live, &jobs, queued).await? {
            missing.insert(uuid);
        }
        let found = locate(live, &jobs, &unsure).await?;
        for uuid in unsure {
            match found.get(&mark(uuid)) {
                Some(entry) => shared.open.locate(uuid, *entry),
                None => {
                    missing.insert(uuid);
                }
            }
        }
    }
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    // An answered entry is gone, too. Whatever is answered here leaves the map of open requests.
    replies::read_all(shared, live).await?;
    Ok(order
        .into_iter()
        .filter(|uuid| missing.contains(uuid))
        .collect())
}

/// Those of the entries that are not in the stream.
async fn gone(
    live: &Live,
    jobs: &str,
    queued: Vec<(Uuid, EntryId, usize)>,
) -> Result<Vec<Uuid>, QueueError> {
    let mut gone = Vec::new();
    for group in groups(queued, |(.., size)| *size) {
        let mut command = CHECK.call(&[jobs], 0);
        for (_, entry, _) in &group {
            command.arg(entry.to_string());
        }
        let reply = Call::of_script(&CHECK, command)
            .last("a check", live)
            .await?;
        for ((uuid, ..), found) in group.into_iter().zip(wire::list(reply)) {
            if wire::parse::<u8>(found) == Some(0) {
                gone.push(uuid);
            }
        }
    }
    Ok(gone)
}

/// Goes through the stream for requests whose entry id was never learned. Only a connection that broke in the middle of
/// an enqueue leaves such.
async fn locate(
    live: &Live,
    jobs: &str,
    unsure: &[Uuid],
) -> Result<HashMap<String, EntryId>, QueueError> {
    let mut found = HashMap::new();
    if unsure.is_empty() {
        return Ok(found);
    }
    let marks: Vec<String> = unsure.iter().copied().map(mark).collect();
    let mut from = "-".to_owned();
    while !from.is_empty() {
        let mut command = LOCATE.call(&[jobs], 0);
        command.arg(&from).arg(&marks);
        let reply = Call::of_script(&LOCATE, command)
            .last("a search", live)
            .await?;
        let mut values = wire::list(reply).into_iter();
        from = values.next().and_then(wire::parse).unwrap_or_default();
        while let (Some(mark), Some(entry)) = (values.next(), values.next()) {
            if let (Some(mark), Some(entry)) = (wire::parse(mark), wire::parse(entry)) {
                found.insert(mark, entry);
            }
        }
    }
    Ok(found)
}
