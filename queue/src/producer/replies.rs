//! The task that reads replies, on a connection of its own because it blocks.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::shared::Shared;
use crate::{
    Endpoint, Outcome, QueueError,
    backoff::Backoff,
    call::Call,
    connection::Connection,
    id::EntryId,
    manager::ConnectionManager,
    outcome::{self, Reply},
    scripts::FORGET,
    wire::{self, Entry},
};

/// Milliseconds that one read waits in Redis, and the longer time that this side waits for it: over a half-open
/// connection no answer ever comes.
const BLOCK_MS: u64 = 2_000;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Entries per read. One entry holds the answers of a worker's batch.
const COUNT: usize = 64;

/// Bytes of large answers asked for in one write, or one answer.
const LARGE: usize = 16 << 20;

/// An entry whose outcomes have been delivered.
struct Delivered {
    entry: EntryId,
    large: Vec<Large>,
    /// Bytes of the entry's large answers, wherever they were kept.
    counted: usize,
}

/// An answer that is kept in a key of its own.
struct Large {
    uuid: Uuid,
    key: String,
    size: usize,
}

/// Reads replies until the producer stops.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint) {
    let connections = ConnectionManager::new(endpoint, RESPONSE_TIMEOUT);
    let mut backoff = Backoff::new();
    let mut delivered = Vec::new();
    let reading = async {
        loop {
            match read(&shared, &connections, &mut delivered).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::debug!(%error, "failed to read replies");
                    shared.reader_broke.notify_one();
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    };
    // A read changes nothing, so it may be cut off.
    shared.stop.run_until_cancelled(reading).await;
}

/// Deletes entries that have been delivered and reads the next ones, in one write.
async fn read(
    shared: &Shared,
    connections: &ConnectionManager,
    delivered: &mut Vec<Delivered>,
) -> Result<(), QueueError> {
    let mut call = Call::new();
    delete(shared, &mut call, delivered);
    let mut command = redis::cmd("XREAD");
    command
        .arg("COUNT")
        .arg(COUNT)
        .arg("BLOCK")
        .arg(BLOCK_MS)
        .arg("STREAMS")
        .arg(shared.keys.replies(&shared.proxy))
        .arg(shared.cursor().to_string());
    call.command(command);
    let connection = connections.get().await?;
    let outcome = async {
        let reply = call.last("XREAD", &connection).await?;
        deliver(shared, &connection, wire::read_entries(reply)).await
    };
    *delivered = connections.watch(&connection, outcome.await)?;
    if let Some(last) = delivered.last() {
        shared.set_cursor(last.entry);
    }
    Ok(())
}

/// Delivers all entries of the stream, also those that the reading task never comes to: its cursor is ahead if the
/// clock was set back while the stream was away. The cursor is then set back, too.
pub(super) async fn read_all(shared: &Shared, connection: &Connection) -> Result<(), QueueError> {
    let key = shared.keys.replies(&shared.proxy);
    let mut from = EntryId::default();
    loop {
        let mut command = redis::cmd("XRANGE");
        command
            .arg(&key)
            .arg(from.to_string())
            .arg("+")
            .arg("COUNT")
            .arg(COUNT);
        let reply = Call::of(command).last("XRANGE", connection).await?;
        let delivered = deliver(shared, connection, wire::entries(reply)).await?;
        let Some(last) = delivered.last().map(|delivered| delivered.entry) else {
            return Ok(());
        };
        let mut call = Call::new();
        delete(shared, &mut call, &delivered);
        call.send(connection).await?;
        if last < shared.cursor() {
            shared.set_cursor(last);
        }
        from = last.next();
    }
}

/// Adds the deletion of delivered entries to a call. They are deleted by id: trimming up to the cursor would take
/// unread ones when the clock was set back.
fn delete(shared: &Shared, call: &mut Call, delivered: &[Delivered]) {
    let keys = &shared.keys;
    let replies = keys.replies(&shared.proxy);
    let mut small = redis::cmd("XDEL");
    small.arg(&replies);
    let mut any_small = false;
    for delivered in delivered {
        if delivered.counted == 0 {
            any_small = true;
            small.arg(delivered.entry.to_string());
            continue;
        }
        let (bytes, unread) = (keys.bytes(), keys.unread());
        let large = delivered.large.iter().map(|large| &*large.key);
        let names: Vec<&str> = [&*replies, &bytes, &unread]
            .into_iter()
            .chain(large)
            .collect();
        let mut command = FORGET.call(&names, 0);
        command
            .arg(&shared.proxy)
            .arg(delivered.entry.to_string())
            .arg(delivered.counted);
        call.script(&FORGET, command);
    }
    if any_small {
        call.command(small);
    }
}

/// Delivers the outcomes in entries to the clients that wait for them.
async fn deliver(
    shared: &Shared,
    connection: &Connection,
    entries: Vec<Entry>,
) -> Result<Vec<Delivered>, QueueError> {
    let mut all = Vec::with_capacity(entries.len());
    for entry in entries {
        let mut delivered = Delivered {
            entry: entry.id,
            large: Vec::new(),
            counted: 0,
        };
        for (name, value) in entry.fields {
            match outcome::reply(&name, value) {
                Some((uuid, Reply::Outcome(outcome))) => {
                    if outcome.is_large() {
                        delivered.counted += outcome.size();
                    }
                    shared.in_flight.deliver(uuid, outcome);
                }
                Some((uuid, Reply::Elsewhere { worker, size })) => {
                    delivered.counted = delivered.counted.saturating_add(size);
                    delivered.large.push(Large {
                        uuid,
                        key: shared.keys.reply(&shared.proxy, uuid, &worker),
                        size,
                    });
                }
                None => {}
            }
        }
        all.push(delivered);
    }
    let large = all.iter().flat_map(|delivered| &delivered.large);
    let mut wanted: Vec<&Large> = large
        .filter(|large| shared.in_flight.contains(large.uuid))
        .collect();
    while !wanted.is_empty() {
        let mut bytes = 0usize;
        let count = wanted
            .iter()
            .take_while(|large| {
                let first = bytes == 0;
                bytes = bytes.saturating_add(large.size);
                first || bytes <= LARGE
            })
            .count();
        let rest = wanted.split_off(count);
        let mut call = Call::new();
        for large in &wanted {
            let mut get = redis::cmd("GET");
            get.arg(&large.key);
            call.command(get);
        }
        for (large, reply) in wanted.into_iter().zip(call.send(connection).await?) {
            // An answer that is lost is found missing by the check, and its request is enqueued again.
            if let Some(body) = wire::bytes(reply.value("GET")?) {
                shared.in_flight.deliver(large.uuid, Outcome::Answer(body));
            }
        }
        wanted = rest;
    }
    Ok(all)
}
