//! The heartbeat that tells Redis that this proxy is there, and the cleaning up behind proxies that are not.

use std::{sync::atomic::Ordering, time::Duration};

use super::shared::Shared;
use crate::{
    QueueError,
    call::Call,
    connection::{Connection, largest_value},
    scripts::{HEARTBEAT, REPLIES_LIVE, SWEEP},
    wire,
};

/// The time that a proxy may be cut off and still learn the results of its last enqueues.
const RECEIPTS_LIVE: Duration = Duration::from_mins(1);

/// Tells Redis that this proxy is there, without which nobody answers it.
pub(super) async fn beat(shared: &Shared, connection: &Connection) -> Result<(), QueueError> {
    let keys = &shared.keys;
    let names = [
        &*keys.replies(&shared.proxy),
        &keys.bytes(),
        &keys.unread(),
        &keys.pulse(),
        &keys.receipts(&shared.proxy),
        &keys.callers(),
        &keys.results(),
    ];
    let mut command = HEARTBEAT.call(&names, 0);
    command
        .arg(&shared.proxy)
        .arg(REPLIES_LIVE.as_millis())
        .arg(shared.limits().lease.as_millis())
        .arg(RECEIPTS_LIVE.as_millis())
        .arg(u8::from(shared.in_flight.len() > 0));
    let others = Call::of_script(&HEARTBEAT, command)
        .last("a sign of life", connection)
        .await?;
    let others = wire::parse::<u64>(others).unwrap_or_default();
    shared.in_flight.set_crowded(others > 0);
    Ok(())
}

/// Removes the large answers that proxies which are gone have not read, so that they do not count any more.
pub(super) async fn sweep(shared: &Shared, connection: &Connection) -> Result<(), QueueError> {
    let keys = &shared.keys;
    let mut command = redis::cmd("HKEYS");
    command.arg(keys.unread());
    let proxies = wire::list(Call::of(command).last("HKEYS", connection).await?);
    let proxies: Vec<String> = proxies.into_iter().filter_map(wire::parse).collect();
    if proxies.is_empty() {
        return Ok(());
    }
    let replies = proxies.iter().map(|proxy| keys.replies(proxy));
    let names: Vec<String> = [keys.bytes(), keys.unread()]
        .into_iter()
        .chain(replies)
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut command = SWEEP.call(&names, 0);
    command.arg(&proxies);
    Call::of_script(&SWEEP, command)
        .last("a sweep", connection)
        .await
        .map(drop)
}

/// Learns the largest body that Redis takes: a larger one would end the connection. A Redis that does not tell takes
/// any.
pub(super) async fn learn_max_body_bytes(shared: &Shared, connection: &Connection) {
    let most = largest_value(connection).await.unwrap_or(u64::MAX);
    let before = shared.max_body_bytes.swap(most, Ordering::Relaxed);
    let wanted = shared.limits().max_request_bytes;
    if most != before && wanted > most {
        tracing::error!(
            "queue.maxRequestBytes is {wanted}, but this Redis takes no more than its proto-max-bulk-len, {most} bytes: larger requests are refused"
        );
    }
}
