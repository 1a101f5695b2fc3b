//! The check of requests that nothing was heard of. FLUSHALL, an expired replies stream, a lost AOF tail and a failover
//! all look the same to a proxy: the entry is gone and there is no reply. Then it is enqueued again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
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

/// About how many bytes of bodies Redis reads in a check of what nothing was heard of for a while. The rest waits for the
/// next one, unless something is missing.
const BUDGET: usize = 16 << 20;

/// Looks for requests that nothing was heard of for `patience` and returns those that are neither in their stream nor
/// among the replies, oldest first. Without patience it looks for all.
pub(super) async fn run(
    shared: &Shared,
    live: &Live,
    patience: Duration,
) -> Result<Vec<Uuid>, QueueError> {
    let budget = if patience.is_zero() {
        usize::MAX
    } else {
        BUDGET
    };
    let mut missing = look(shared, live, patience, budget).await?;
    if missing.is_empty() {
        // A connection that breaks while nothing is sent is noticed all the same.
        Call::of(redis::cmd("PING")).last("PING", live).await?;
        return Ok(Vec::new());
    }
    if budget < usize::MAX {
        // Where one is lost, all may be.
        missing.append(&mut look(shared, live, patience, usize::MAX).await?);
    }
    // An answered entry is gone, too. Whatever is answered here leaves the map of open requests.
    replies::read_all(shared, live).await?;
    Ok(missing.into_iter().map(|(_, uuid)| uuid).collect())
}

/// Looks for requests that hold about `budget` bytes. Those that are not in their stream are returned with when they came.
async fn look(
    shared: &Shared,
    live: &Live,
    patience: Duration,
    budget: usize,
) -> Result<BTreeSet<(Instant, Uuid)>, QueueError> {
    let mut revisions: BTreeMap<Arc<str>, Vec<Suspicion>> = BTreeMap::new();
    for suspicion in shared.open.suspicions(patience, budget) {
        revisions
            .entry(suspicion.revision.clone())
            .or_default()
            .push(suspicion);
    }
    let mut missing = BTreeSet::new();
    for (revision, suspicions) in revisions {
        let jobs = shared.keys.jobs(&revision);
        let mut queued = Vec::new();
        let mut unsure = Vec::new();
        for suspicion in suspicions {
            match suspicion.stage {
                Stage::Queued(entry) => queued.push((suspicion, entry)),
                Stage::Unsure => unsure.push(suspicion),
                Stage::Waiting | Stage::Sent | Stage::Lost => {
                    missing.insert((suspicion.opened, suspicion.uuid));
                }
            }
        }
        for suspicion in gone(live, &jobs, queued).await? {
            missing.insert((suspicion.opened, suspicion.uuid));
        }
        let marks: Vec<String> = unsure.iter().map(|unsure| mark(unsure.uuid)).collect();
        let found = locate(live, &jobs, &marks).await?;
        for (suspicion, mark) in unsure.into_iter().zip(marks) {
            match found.get(&mark) {
                Some(entry) => shared.open.locate(suspicion.uuid, *entry),
                None => {
                    missing.insert((suspicion.opened, suspicion.uuid));
                }
            }
        }
    }
    Ok(missing)
}

/// Those whose entries are not in the stream.
async fn gone(
    live: &Live,
    jobs: &str,
    queued: Vec<(Suspicion, EntryId)>,
) -> Result<Vec<Suspicion>, QueueError> {
    let mut gone = Vec::new();
    for group in groups(queued, |(suspicion, _)| suspicion.size) {
        let mut command = CHECK.call(&[jobs], 0);
        for (_, entry) in &group {
            command.arg(entry.to_string());
        }
        let reply = Call::of_script(&CHECK, command)
            .last("a check", live)
            .await?;
        for ((suspicion, _), found) in group.into_iter().zip(wire::list(reply)) {
            if wire::parse::<u8>(found) == Some(0) {
                gone.push(suspicion);
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
    marks: &[String],
) -> Result<HashMap<String, EntryId>, QueueError> {
    let mut found = HashMap::new();
    if marks.is_empty() {
        return Ok(found);
    }
    let mut from = "-".to_owned();
    while !from.is_empty() {
        let mut command = LOCATE.call(&[jobs], 0);
        command.arg(&from).arg(marks);
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
