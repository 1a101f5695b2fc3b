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
    manager::ConnectionManager,
    wire::{self, Entry},
};

/// Reads entries by their ids, and the time of Redis' clock in milliseconds.
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
    let mut replies = inner.commands.send(&call).await?;
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

pub(super) fn read_command(inner: &Inner, capacity: usize, wait: Duration) -> Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command
        .arg("GROUP")
        .arg(GROUP)
        .arg(&inner.name)
        .arg("COUNT")
        .arg(capacity);
    if !wait.is_zero() {
        // Zero would block for ever.
        command.arg("BLOCK").arg(millis(wait).max(1));
    }
    command.arg("STREAMS").arg(&inner.lane.jobs).arg(">");
    command
}

/// Parses the replies to a read and to TIME: the entries, and the time in milliseconds; none if nothing was read.
pub(super) fn parse(
    inner: &Inner,
    mut replies: Vec<Reply>,
) -> Result<(Vec<Entry>, u64), QueueError> {
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
    Ok((wire::read_entries(value), now))
}
