//! The backlog of every revision.

use std::collections::BTreeMap;

use redis::Value;

use super::shared::Shared;
use crate::{
    Backlog, ConsumerBacklog, QueueError,
    call::Call,
    commands::evict,
    keys::{GROUP, is_reserved},
    lane,
    scripts::GONE_AFTER_MS,
    wire,
};

/// Reads the backlog: first the lanes, then the content of each. Where no workers are left to remove expired
/// requests, they are removed here, or they would count against the bounds for ever.
pub(super) async fn read(shared: &Shared) -> Result<Backlog, QueueError> {
    let mut command = redis::cmd("HGETALL");
    command.arg(shared.keys.bytes());
    let bytes = shared
        .connections
        .last(&Call::of(command), "HGETALL")
        .await?;
    let mut values = wire::list(bytes).into_iter();
    let mut lanes: Vec<(String, u64)> = Vec::new();
    while let (Some(lane), Some(bytes)) = (values.next(), values.next()) {
        let lane: String = wire::parse(lane).ok_or(QueueError::Answer {
            operation: "HGETALL",
        })?;
        if !is_reserved(&lane) {
            lanes.push((lane, wire::parse(bytes).unwrap_or_default()));
        }
    }
    if lanes.is_empty() {
        return Ok(Backlog::default());
    }
    let mut call = Call::new();
    for (lane, _) in &lanes {
        let lane = shared.keys.lane(lane);
        let jobs = lane.jobs();
        let mut length = redis::cmd("XLEN");
        length.arg(jobs);
        call.command(length);
        let mut consumers = redis::cmd("XINFO");
        consumers.arg("CONSUMERS").arg(jobs).arg(GROUP);
        call.command(consumers);
    }
    let mut replies = shared.connections.send(&call).await?.into_iter();
    let mut backlog = Backlog::default();
    let mut deserted = Vec::new();
    for (lane, bytes) in lanes {
        let (Some(length), Some(consumers)) = (replies.next(), replies.next()) else {
            return Err(QueueError::Answer {
                operation: "a backlog",
            });
        };
        let length: u64 = wire::parse(length.value("XLEN")?).unwrap_or_default();
        let consumers: Vec<_> = match consumers.value("XINFO CONSUMERS") {
            Ok(value) => wire::list(value).into_iter().filter_map(consumer).collect(),
            // No worker has been there yet, or the stream is empty and was taken away.
            Err(QueueError::Refused { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let unanswered: u64 = consumers.iter().map(|(consumer, _)| consumer.pending).sum();
        let workers = consumers
            .into_iter()
            .filter(|(consumer, _)| !is_reserved(&consumer.name));
        let (consumers, idle_ms): (Vec<ConsumerBacklog>, Vec<_>) = workers.unzip();
        if idle_ms.into_iter().all(|idle_ms| idle_ms > GONE_AFTER_MS) {
            deserted.push(lane.clone());
        }
        let revision = lane::revision(&lane).to_owned();
        let all = backlog.revisions.entry(revision).or_default();
        all.length += length.max(unanswered);
        all.pending += consumers
            .iter()
            .map(|consumer| consumer.pending)
            .sum::<u64>();
        all.bytes += bytes;
        for consumer in consumers {
            match all
                .consumers
                .iter_mut()
                .find(|one| one.name == consumer.name)
            {
                Some(one) => one.pending += consumer.pending,
                None => all.consumers.push(consumer),
            }
        }
    }
    if let Err(error) = clear(shared, &deserted).await {
        tracing::debug!(%error, "failed to clear up behind workers that are gone");
    }
    Ok(backlog)
}

async fn clear(shared: &Shared, deserted: &[String]) -> Result<(), QueueError> {
    for lane in deserted {
        let lane = shared.keys.lane(lane);
        shared
            .connections
            .last(&evict(&shared.keys, &lane), "an eviction")
            .await?;
    }
    Ok(())
}

/// Reads a consumer, and the milliseconds since it last spoke to Redis about requests.
fn consumer(info: Value) -> Option<(ConsumerBacklog, u64)> {
    let mut values = wire::list(info).into_iter();
    let mut fields = BTreeMap::new();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        fields.insert(wire::parse::<String>(name)?, value);
    }
    let consumer = ConsumerBacklog {
        name: wire::parse(fields.remove("name")?)?,
        pending: wire::parse(fields.remove("pending")?)?,
    };
    Some((consumer, wire::parse(fields.remove("idle")?)?))
}
