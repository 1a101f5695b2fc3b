//! Taking requests.

use std::time::Duration;

use redis::{Cmd, Value};
use tokio::time::{Instant, timeout_at};

use super::{BLOCK, Inner, answer, held::Turn, millis, suspects};
use crate::{
    Failure, FailureKind, Job, JobId, Outcome, QueueError,
    call::{Call, Reply, lost_group},
    connection::{Link, Live},
    id::EntryId,
    keys::GROUP,
    scripts::{drop_entries, groups},
    wire::{self, Entry, Read},
};

pub(super) async fn fetch(
    inner: &Inner,
    room: usize,
    wait: Duration,
) -> Result<Vec<Job>, QueueError> {
    if room == 0 {
        return Ok(Vec::new());
    }
    match next(inner, room, wait.min(BLOCK)).await {
        Ok(jobs) => {
            inner.reached();
            Ok(jobs)
        }
        Err(error) if lost_group(&error) => {
            // FLUSHALL, or a Redis that came back empty.
            inner.held(|held| held.unknown = true);
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
    room: usize,
    wait: Duration,
) -> Result<Vec<Job>, QueueError> {
    let jobs = recover(inner, room).await?;
    if !jobs.is_empty() {
        return Ok(jobs);
    }
    let until = Instant::now() + wait;
    loop {
        let settled = inner.settled.notified();
        match inner.held(super::held::Held::turn) {
            Turn::Anyone => return read(inner, room, wait).await,
            Turn::Suspect(suspect) => {
                if let Some(job) = suspects::start(inner, suspect).await? {
                    return Ok(vec![job]);
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
async fn recover(inner: &Inner, room: usize) -> Result<Vec<Job>, QueueError> {
    if inner.held(|held| held.unknown) {
        inner.join().await?;
        inner.held(|held| held.unknown = false);
    }
    // Requests that are no suspects must not come beside one: they would die with it.
    let room = if inner.held(|held| held.ordinary()) {
        room
    } else {
        0
    };
    if room > 0 && inner.held(|held| held.stray) {
        let stray = find_stray(inner, room).await?;
        let jobs = load(inner, &stray).await?;
        // If there was no room for more, there may be more of them.
        if stray.len() < room {
            inner.held(|held| held.stray = false);
        }
        if !jobs.is_empty() {
            return Ok(jobs);
        }
    }
    if inner.held(|held| held.look_due()) {
        let released = suspects::take_over(inner, room).await?;
        if room == 0 || released.len() < room {
            inner.held(super::held::Held::looked);
        }
        return load(inner, &released).await;
    }
    Ok(Vec::new())
}

/// Entries that a cut-off read was given, up to `room`. They never ran, so they are like new.
async fn find_stray(inner: &Inner, room: usize) -> Result<Vec<EntryId>, QueueError> {
    let held = inner.held(|held| held.all().len());
    let mut command = redis::cmd("XPENDING");
    command
        .arg(inner.jobs())
        .arg(GROUP)
        .arg("-")
        .arg("+")
        .arg(held + room)
        .arg(&inner.name);
    let pending = inner.commands.last(&Call::of(command), "XPENDING").await?;
    Ok(wire::list(pending)
        .into_iter()
        .filter_map(|pending| wire::parse(wire::list(pending).into_iter().next()?))
        .filter(|entry| !inner.held(|held| held.holds(*entry)))
        .take(room)
        .collect())
}

/// Reads entries that this consumer holds already.
async fn load(inner: &Inner, entries: &[EntryId]) -> Result<Vec<Job>, QueueError> {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let live = inner.commands.get().await?;
    let mut call = Call::new();
    for entry in entries {
        call.command(range(inner, *entry));
    }
    call.command(redis::cmd("TIME"));
    let mut replies = sent(inner, &inner.commands, &live, call.send(&live).await)?;
    let now = time(replies.pop())?;
    let mut found = Vec::new();
    for reply in replies {
        found.extend(wire::entries(reply.value("XRANGE")?));
    }
    sort_out(inner, found, now).await
}

/// The command that reads one entry.
pub(super) fn range(inner: &Inner, entry: EntryId) -> Cmd {
    let entry = entry.to_string();
    let mut command = redis::cmd("XRANGE");
    command.arg(inner.jobs()).arg(&entry).arg(&entry);
    command
}

pub(super) fn time(reply: Option<Reply>) -> Result<u64, QueueError> {
    let answer = QueueError::Answer { operation: "TIME" };
    wire::clock(reply.ok_or(answer.clone())?.value("TIME")?).ok_or(answer)
}

/// Takes new requests, waiting for the first.
async fn read(inner: &Inner, room: usize, wait: Duration) -> Result<Vec<Job>, QueueError> {
    let link = if wait.is_zero() {
        &inner.commands
    } else {
        &inner.reads
    };
    let live = link.get().await?;
    let mut call = Call::new();
    call.command(read_command(inner, room, wait));
    call.command(redis::cmd("TIME"));
    let replies = sent(inner, link, &live, call.send(&live).await)?;
    read_replies(inner, replies).await
}

/// Passes on what a call that reads has led to. If the connection broke, entries that are this consumer's in Redis may be
/// in nobody's hands here.
pub(super) fn sent(
    inner: &Inner,
    link: &Link,
    live: &Live,
    outcome: Result<Vec<Reply>, QueueError>,
) -> Result<Vec<Reply>, QueueError> {
    if outcome.is_err() {
        inner.held(|held| held.stray = true);
    }
    link.watch(live, outcome)
}

pub(super) fn read_command(inner: &Inner, room: usize, wait: Duration) -> Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command
        .arg("GROUP")
        .arg(GROUP)
        .arg(&inner.name)
        .arg("COUNT")
        .arg(room);
    if !wait.is_zero() {
        // 0 would block for ever.
        command.arg("BLOCK").arg(millis(wait).max(1));
    }
    command.arg("STREAMS").arg(inner.jobs()).arg(">");
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
    let now = now.inspect_err(|_| inner.held(|held| held.stray = true))?;
    sort_out(inner, wire::read_entries(value), now).await
}

/// Hands out what is to run and clears away the rest.
async fn sort_out(inner: &Inner, entries: Vec<Entry>, now: u64) -> Result<Vec<Job>, QueueError> {
    let mut jobs = Vec::with_capacity(entries.len());
    let mut useless = Vec::new();
    let mut strange = Vec::new();
    for entry in entries {
        let id = entry.id;
        match entry.job(now) {
            Read::Job(job) => jobs.push(job),
            // Its proxy tells the client; Redis' clock only saves the work.
            Read::Expired(id) => useless.push((id.entry, id.size)),
            Read::Wake => {
                inner.held(super::held::Held::look_soon);
                useless.push((id, 0));
            }
            Read::Unknown(Some(id)) => strange.push(id),
            Read::Unknown(None) => {
                tracing::warn!(entry = %id, "dropping an entry that is no request");
                useless.push((id, 0));
            }
        }
    }
    inner.held(|held| {
        for job in &jobs {
            held.hand_out(job.id.entry);
        }
    });
    if !useless.is_empty() {
        discard(inner, useless).await;
    }
    if !strange.is_empty() {
        answer::send(inner, strange.into_iter().map(unreadable).collect()).await;
    }
    Ok(jobs)
}

/// The answer to a request that this worker can't read.
pub(super) fn unreadable(id: JobId) -> (JobId, Outcome) {
    let failure = Failure {
        kind: FailureKind::Model,
        message: "the worker does not know this version of the queue's format".to_owned(),
    };
    (id, Outcome::Failure(failure))
}

/// Forgets entries. Those that can't be forgotten now come back when their lease is over.
pub(super) async fn discard(inner: &Inner, entries: Vec<(EntryId, usize)>) {
    for group in groups(entries, |_| 0) {
        let call = drop_entries(&inner.keys, &inner.revision, group);
        if let Err(error) = inner.commands.last(&call, "a drop").await {
            tracing::warn!(%error, "failed to drop entries");
        }
    }
}
