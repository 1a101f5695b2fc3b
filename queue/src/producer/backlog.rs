//! What the queue holds.

use std::collections::BTreeMap;

use redis::Value;

use super::Shared;
use crate::{
    Backlog, ConsumerBacklog, QueueError, RevisionBacklog,
    call::Call,
    keys::{GROUP, RELEASED, SUSPECTS},
    wire,
};

/// Asks for every revision: first which there are, then what each holds.
pub(super) async fn read(shared: &Shared) -> Result<Backlog, QueueError> {
    let live = shared.link.get().await?;
    let mut command = redis::cmd("HGETALL");
    command.arg(shared.keys.bytes());
    let bytes = Call::of(command).last("HGETALL", &live).await?;
    let mut values = wire::list(bytes).into_iter();
    let mut held: Vec<(String, u64)> = Vec::new();
    while let (Some(revision), Some(bytes)) = (values.next(), values.next()) {
        let revision = wire::parse(revision).ok_or(QueueError::Answer {
            operation: "HGETALL",
        })?;
        held.push((revision, wire::parse(bytes).unwrap_or_default()));
    }
    if held.is_empty() {
        return Ok(Backlog::default());
    }
    let mut call = Call::new();
    for (revision, _) in &held {
        let jobs = shared.keys.jobs(revision);
        let mut length = redis::cmd("XLEN");
        length.arg(&jobs);
        call.command(length);
        let mut consumers = redis::cmd("XINFO");
        consumers.arg("CONSUMERS").arg(&jobs).arg(GROUP);
        call.command(consumers);
    }
    let mut replies = call.send(&live).await?.into_iter();
    let mut backlog = Backlog::default();
    for (revision, bytes) in held {
        let (Some(length), Some(consumers)) = (replies.next(), replies.next()) else {
            return Err(QueueError::Answer {
                operation: "a backlog",
            });
        };
        let length = wire::parse(length.value("XLEN")?).unwrap_or_default();
        let consumers = match consumers.value("XINFO CONSUMERS") {
            Ok(value) => wire::list(value).into_iter().filter_map(consumer).collect(),
            // No worker has been there yet, or the stream is empty and was taken away.
            Err(QueueError::Refused { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        backlog
            .revisions
            .insert(revision, summarise(length, bytes, consumers));
    }
    Ok(backlog)
}

fn summarise(length: u64, bytes: u64, consumers: Vec<ConsumerBacklog>) -> RevisionBacklog {
    let pending = consumers.iter().map(|consumer| consumer.pending).sum();
    RevisionBacklog {
        length: length.max(pending),
        pending,
        bytes,
        consumers: consumers
            .into_iter()
            .filter(|consumer| consumer.name != RELEASED && consumer.name != SUSPECTS)
            .collect(),
    }
}

fn consumer(info: Value) -> Option<ConsumerBacklog> {
    let mut values = wire::list(info).into_iter();
    let mut fields = BTreeMap::new();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        fields.insert(wire::parse::<String>(name)?, value);
    }
    Some(ConsumerBacklog {
        name: wire::parse(fields.remove("name")?)?,
        pending: wire::parse(fields.remove("pending")?)?,
        idle_ms: wire::parse(fields.remove("idle")?)?,
    })
}
