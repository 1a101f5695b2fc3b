//! The task that reads replies, on a connection of its own because it blocks.

use std::{str::FromStr, sync::Arc, time::Duration};

use uuid::Uuid;

use super::Shared;
use crate::{
    Connection, Outcome, QueueError,
    call::Call,
    connection::{Backoff, Link, Live},
    id::EntryId,
    wire::{self, Entry},
};

/// How long one read waits in Redis, and how long this side waits for it: a half-open connection answers never.
const BLOCK_MS: u64 = 2_000;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Entries per read. One holds what a worker answered in one batch.
const COUNT: usize = 64;

/// Reads until the producer stops.
pub(super) async fn run(shared: Arc<Shared>, connection: Connection) {
    let link = Link::new(connection, RESPONSE_TIMEOUT);
    let mut backoff = Backoff::new();
    let mut delivered = Vec::new();
    let reading = async {
        loop {
            match read(&shared, &link, &mut delivered).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::debug!(%error, "failed to read replies");
                    shared.doubt.notify_one();
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    };
    // A read changes nothing, so it may be cut off.
    shared.stop.run_until_cancelled(reading).await;
}

/// Deletes what has been delivered and reads what comes next, in one write.
async fn read(
    shared: &Shared,
    link: &Link,
    delivered: &mut Vec<EntryId>,
) -> Result<(), QueueError> {
    let key = shared.keys.replies(&shared.proxy);
    let mut call = Call::new();
    if !delivered.is_empty() {
        call.command(delete(&key, delivered));
    }
    let mut command = redis::cmd("XREAD");
    command
        .arg("COUNT")
        .arg(COUNT)
        .arg("BLOCK")
        .arg(BLOCK_MS)
        .arg("STREAMS")
        .arg(&key)
        .arg(shared.cursor().to_string());
    call.command(command);
    let reply = link.last(&call, "XREAD").await?;
    *delivered = deliver(shared, wire::read_entries(reply));
    if let Some(last) = delivered.last() {
        shared.set_cursor(*last);
    }
    Ok(())
}

/// Delivers everything in the stream, also what the reading task never comes to: its cursor is ahead if the clock was
/// set back while the stream was away. Then it is set back, too.
pub(super) async fn read_all(shared: &Shared, live: &Live) -> Result<(), QueueError> {
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
        let reply = Call::of(command).last("XRANGE", live).await?;
        let delivered = deliver(shared, wire::entries(reply));
        let Some(last) = delivered.last() else {
            return Ok(());
        };
        Call::of(delete(&key, &delivered))
            .last("XDEL", live)
            .await?;
        if *last < shared.cursor() {
            shared.set_cursor(*last);
        }
        from = last.next();
    }
}

/// Entries are deleted by name. Trimming up to the cursor would take unread ones when the clock was set back.
fn delete(key: &str, entries: &[EntryId]) -> redis::Cmd {
    let mut command = redis::cmd("XDEL");
    command.arg(key);
    for entry in entries {
        command.arg(entry.to_string());
    }
    command
}

fn deliver(shared: &Shared, entries: Vec<Entry>) -> Vec<EntryId> {
    entries
        .into_iter()
        .map(|entry| {
            for (uuid, outcome) in entry.fields {
                let uuid = std::str::from_utf8(&uuid)
                    .ok()
                    .and_then(|uuid| Uuid::from_str(uuid).ok());
                if let Some(uuid) = uuid {
                    shared.open.deliver(uuid, Outcome::decode(outcome));
                }
            }
            entry.id
        })
        .collect()
}
