//! Reading of entries, and the notes that a failed read leaves.

use std::time::Duration;

use redis::{Cmd, Value};

use super::inner::{Inner, millis};
use crate::{
    QueueError,
    call::{Call, Reply},
    connection::Connection,
    id::EntryId,
    keys::GROUP,
    lane::Lane,
    manager::ConnectionManager,
    wire::{self, Entry},
};

/// Entries of a lane's stream.
pub(super) type Found = (Lane, Vec<Entry>);

/// Reads entries of a lane by their ids, and the time of Redis' clock in milliseconds.
pub(super) async fn range(
    inner: &Inner,
    lane: &Lane,
    entries: &[EntryId],
) -> Result<(Vec<Entry>, u64), QueueError> {
    let mut call = Call::new();
    for entry in entries {
        let entry = entry.to_string();
        let mut command = redis::cmd("XRANGE");
        command.arg(lane.jobs()).arg(&entry).arg(&entry);
        call.command(command);
    }
    call.command(redis::cmd("TIME"));
    let mut replies = inner.commands.send(&call).await?;
    let now = time(replies.pop())?;
    let mut found = Vec::new();
    for reply in replies {
        found.extend(wire::entries(reply.value("XRANGE")?));
    }
    Ok((found, now))
}

/// Reads the reply to TIME, in milliseconds.
pub(super) fn time(reply: Option<Reply>) -> Result<u64, QueueError> {
    let answer = QueueError::Answer { operation: "TIME" };
    wire::clock(reply.ok_or(answer.clone())?.value("TIME")?).ok_or(answer)
}

/// Passes on the outcome of a call that reads. If the connection broke, entries that are this consumer's in Redis may
/// be in nobody's hands here.
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

/// Makes the command that reads up to `count` new entries of each of these lanes, waiting up to `wait` for the first.
pub(super) fn read_command(inner: &Inner, lanes: &[Lane], count: usize, wait: Duration) -> Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command
        .arg("GROUP")
        .arg(GROUP)
        .arg(&inner.name)
        .arg("COUNT")
        .arg(count);
    if !wait.is_zero() {
        // Zero would block for ever.
        command.arg("BLOCK").arg(millis(wait).max(1));
    }
    command.arg("STREAMS");
    for lane in lanes {
        command.arg(lane.jobs());
    }
    for _ in lanes {
        command.arg(">");
    }
    command
}

/// Parses the reply to a read of some lanes.
pub(super) fn parse_read(lanes: &[Lane], value: Value) -> Vec<Found> {
    let streams = wire::read_streams(value).into_iter();
    let found = streams.filter_map(|(key, entries)| {
        let lane = lanes.iter().find(|lane| lane.jobs().as_bytes() == key)?;
        Some((lane.clone(), entries))
    });
    found.collect()
}

/// Parses the replies to a read of some lanes and to TIME: the entries, and the time in milliseconds; none if nothing
/// was read.
pub(super) fn parse(
    inner: &Inner,
    lanes: &[Lane],
    mut replies: Vec<Reply>,
) -> Result<(Vec<Found>, u64), QueueError> {
    if replies.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let now = time(replies.pop());
    let value = match replies.pop() {
        Some(reply) => reply.value("XREADGROUP")?,
        None => Value::Nil,
    };
    // Entries without the time are in nobody's hands.
    let now = now.inspect_err(|_| inner.leases(|leases| leases.stray = true))?;
    Ok((parse_read(lanes, value), now))
}
