//! Taking requests.

use std::time::Duration;

use redis::{Cmd, Value};
use tokio::time::{Instant, timeout_at};

use super::{BLOCK, Inner, answer, bodies, leases::Turn, millis, quarantine, release};
use crate::{
    Job, QueueError,
    call::{Call, Reply, lost_group},
    connection::{Connection, ConnectionManager},
    id::EntryId,
    keys::{GROUP, SUSPECTS, newer},
    scripts::{Removal, drop_entries, groups},
    wire::{self, Entry, Read},
};

/// How long a read waits while answers wait for room in Redis.
const UNSENT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn fetch(
    inner: &Inner,
    capacity: usize,
    wait: Duration,
) -> Result<Vec<Job>, QueueError> {
    if capacity == 0 {
        return Ok(Vec::new());
    }
    let mut wait = wait.min(BLOCK);
    if answer::send_unsent(inner).await {
        wait = wait.min(UNSENT_PAUSE);
    }
    match next(inner, capacity, wait).await {
        Ok(jobs) => {
            inner.reached();
            Ok(jobs)
        }
        Err(error) if lost_group(&error) => {
            // FLUSHALL, or a Redis that came back empty.
            inner.leases(|leases| leases.must_join = true);
            Ok(Vec::new())
        }
        Err(error) => {
            inner.pause().await;
            Err(error)
        }
    }
}

/// Takes what may be taken now, waiting so long for it.
pub(super) async fn next(
    inner: &Inner,
    capacity: usize,
    wait: Duration,
) -> Result<Vec<Job>, QueueError> {
    let jobs = recover(inner, capacity).await?;
    if !jobs.is_empty() {
        return Ok(jobs);
    }
    let until = Instant::now() + wait;
    loop {
        let settled = inner.settled.notified();
        match inner.leases(|leases| leases.turn()) {
            Turn::Ordinary => {
                let aside = inner.leases(super::leases::Leases::read_ordinary);
                let left = until.saturating_duration_since(Instant::now());
                let wait = if aside { Duration::ZERO } else { left };
                let jobs = read(inner, capacity, wait).await?;
                if !aside || !jobs.is_empty() {
                    return Ok(jobs);
                }
            }
            Turn::Quarantine => {
                let jobs = quarantine::take(inner, capacity).await?;
                if !jobs.is_empty() {
                    return Ok(jobs);
                }
            }
            Turn::Nobody => {
                if timeout_at(until, settled).await.is_err() {
                    return Ok(Vec::new());
                }
            }
        }
    }
}

/// Sees to what reading alone never returns: what a cut-off read was given, what others handed back, and what dead
/// workers held.
async fn recover(inner: &Inner, capacity: usize) -> Result<Vec<Job>, QueueError> {
    if inner.leases(|leases| leases.must_join) {
        inner.join(false).await?;
        inner.leases(|leases| leases.must_join = false);
    }
    // Ordinary requests must not come beside those of dead workers: they would die with them.
    let capacity = if inner.leases(|leases| leases.turn()) == Turn::Ordinary {
        capacity
    } else {
        0
    };
    if inner.leases(|leases| leases.stray) {
        let stray = find_stray(inner, capacity).await?;
        let jobs = load(inner, &stray, None).await?;
        // If there was no room for more, there may be more of them.
        if stray.len() < capacity {
            inner.leases(|leases| leases.stray = false);
        }
        if !jobs.is_empty() {
            return Ok(jobs);
        }
    }
    if inner.leases(|leases| leases.look_due()) {
        let released = quarantine::take_over(inner, capacity).await?;
        if capacity == 0 || released.len() < capacity {
            inner.leases(super::leases::Leases::looked);
        }
        return load(inner, &released, None).await;
    }
    Ok(Vec::new())
}

/// Entries that a cut-off read was given, up to `capacity`. They never ran, so they are like new. Those of dead workers, which
/// were counted for a turn that did not take place, are set aside again.
async fn find_stray(inner: &Inner, capacity: usize) -> Result<Vec<EntryId>, QueueError> {
    let held = inner.leases(|leases| leases.all().len());
    let mut command = redis::cmd("XPENDING");
    command
        .arg(&inner.lane.jobs)
        .arg(GROUP)
        .arg("-")
        .arg("+")
        .arg(held + capacity.max(1))
        .arg(&inner.name);
    let pending = inner.commands.last(&Call::of(command), "XPENDING").await?;
    let mut stray = Vec::new();
    let mut suspects = Vec::new();
    for pending in wire::list(pending) {
        let mut values = wire::list(pending).into_iter();
        let (Some(entry), Some(deliveries)) = (
            values.next().and_then(wire::parse),
            values.nth(2).and_then(wire::parse::<u32>),
        ) else {
            continue;
        };
        if inner.leases(|leases| leases.holds(entry)) {
            continue;
        }
        if deliveries > 1 {
            suspects.push((entry, SUSPECTS.to_owned(), 1));
        } else {
            stray.push(entry);
        }
    }
    if !suspects.is_empty() {
        release::hand_over(inner, suspects).await?;
        inner.leases(|leases| leases.set_aside(true));
    }
    stray.truncate(capacity);
    Ok(stray)
}

/// Reads entries that this consumer holds already.
pub(super) async fn load(
    inner: &Inner,
    entries: &[EntryId],
    quarantine: Option<u64>,
) -> Result<Vec<Job>, QueueError> {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let read = range(inner, entries).await;
    let (found, now) = read.inspect_err(|_| inner.leases(|leases| leases.stray = true))?;
    let jobs = triage(inner, found, now).await;
    hand_out(inner, jobs, quarantine).await
}

/// Entries by name, and the time of Redis' clock.
pub(super) async fn range(
    inner: &Inner,
    entries: &[EntryId],
) -> Result<(Vec<Entry>, u64), QueueError> {
    let mut call = Call::new();
    for entry in entries {
        let entry = entry.to_string();
        let mut command = redis::cmd("XRANGE");
        command.arg(&inner.lane.jobs).arg(&entry).arg(&entry);
        call.command(command);
    }
    call.command(redis::cmd("TIME"));
    let mut replies = call.over(&inner.commands).await?;
    let now = time(replies.pop())?;
    let mut found = Vec::new();
    for reply in replies {
        found.extend(wire::entries(reply.value("XRANGE")?));
    }
    Ok((found, now))
}

fn time(reply: Option<Reply>) -> Result<u64, QueueError> {
    let answer = QueueError::Answer { operation: "TIME" };
    wire::clock(reply.ok_or(answer.clone())?.value("TIME")?).ok_or(answer)
}

/// Takes new requests, waiting for the first.
async fn read(inner: &Inner, capacity: usize, wait: Duration) -> Result<Vec<Job>, QueueError> {
    let connections = if wait.is_zero() {
        &inner.commands
    } else {
        &inner.reads
    };
    let connection = connections.get().await?;
    let mut call = Call::new();
    call.command(read_command(inner, capacity, wait));
    call.command(redis::cmd("TIME"));
    let replies = sent(
        inner,
        connections,
        &connection,
        call.send(&connection).await,
    )?;
    read_replies(inner, replies).await
}

/// Passes on what a call that reads has led to. If the connection broke, entries that are this consumer's in Redis may be
/// in nobody's hands here.
pub(super) fn sent(
    inner: &Inner,
    connections: &ConnectionManager,
    connection: &Connection,
    outcome: Result<Vec<Reply>, QueueError>,
) -> Result<Vec<Reply>, QueueError> {
    if outcome.is_err() {
        inner.leases(|leases| leases.stray = true);
    }
    connections.watch(connection, outcome)
}

pub(super) fn read_command(inner: &Inner, capacity: usize, wait: Duration) -> Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command
        .arg("GROUP")
        .arg(GROUP)
        .arg(&inner.name)
        .arg("COUNT")
        .arg(capacity);
    if !wait.is_zero() {
        // 0 would block for ever.
        command.arg("BLOCK").arg(millis(wait).max(1));
    }
    command.arg("STREAMS").arg(&inner.lane.jobs).arg(">");
    command
}

/// Makes jobs of the replies to a read and to TIME; none if nothing was read.
pub(super) async fn read_replies(
    inner: &Inner,
    mut replies: Vec<Reply>,
) -> Result<Vec<Job>, QueueError> {
    if replies.is_empty() {
        return Ok(Vec::new());
    }
    let now = time(replies.pop());
    let value = match replies.pop() {
        Some(reply) => reply.value("XREADGROUP")?,
        None => Value::Nil,
    };
    // Without the time, what was read is in nobody's hands.
    let now = now.inspect_err(|_| inner.leases(|leases| leases.stray = true))?;
    let jobs = triage(inner, wire::read_entries(value), now).await;
    hand_out(inner, jobs, None).await
}

/// Hands requests out, whole.
async fn hand_out(
    inner: &Inner,
    mut jobs: Vec<Job>,
    quarantine: Option<u64>,
) -> Result<Vec<Job>, QueueError> {
    inner.leases(|leases| {
        for job in &mut jobs {
            job.quarantine = quarantine;
            leases.hand_out(job.id.entry, quarantine);
        }
    });
    bodies::load_bodies(inner, jobs).await
}

/// Gives what is to run, and clears away the rest.
pub(super) async fn triage(inner: &Inner, entries: Vec<Entry>, now: u64) -> Vec<Job> {
    let mut jobs = Vec::with_capacity(entries.len());
    let mut removals = Vec::new();
    let mut too_new = Vec::new();
    let nothing = |entry| Removal {
        entry,
        size: 0,
        large: None,
    };
    for entry in entries {
        let id = entry.id;
        match entry.job(now) {
            Read::Job(job) => jobs.push(job),
            // Its proxy tells the client; Redis' clock only saves the work.
            Read::Expired(id) => removals.push(Removal::from(&id)),
            Read::Wake => {
                inner.leases(super::leases::Leases::look_soon);
                removals.push(nothing(id));
            }
            Read::Newer(format) => too_new.push((id, newer(format), 0)),
            Read::Unknown => {
                tracing::warn!(entry = %id, "dropping an entry that is no request");
                removals.push(nothing(id));
            }
        }
    }
    if !too_new.is_empty() {
        tracing::warn!(
            count = too_new.len(),
            "handing back requests of a newer format, for newer workers"
        );
        if let Err(error) = release::hand_over(inner, too_new).await {
            tracing::warn!(%error, "failed to hand requests back");
        }
    }
    if !removals.is_empty() {
        discard(inner, removals).await;
    }
    jobs
}

/// Forgets entries. Those that can't be forgotten now come back when their lease is over.
pub(super) async fn discard(inner: &Inner, entries: Vec<Removal>) {
    for group in groups(entries, |_| 0) {
        let call = drop_entries(&inner.keys, &inner.revision, &group);
        if let Err(error) = inner.commands.last(&call, "a drop").await {
            tracing::warn!(%error, "failed to drop entries");
        }
    }
}
