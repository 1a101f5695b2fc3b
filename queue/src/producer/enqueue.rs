//! The call that enqueues requests.

use std::time::Duration;

use tokio::time::Instant;

use super::{in_flight::Outgoing, shared::Shared};
use crate::{
    Limits, Submit,
    call::Call,
    lane,
    scripts::ENQUEUE,
    wire::{self, is_large},
};

/// The time that a large body outlives its request's deadline: an entry must not be there without it.
const BODIES_OUTLIVE: Duration = Duration::from_secs(5);

/// The part of the queue's length that the requests of one lane may take, so that no caller fills it alone.
const SHARE: (u64, u64) = (9, 10);

/// Returns the most requests of one lane.
pub(super) fn most_in_lane(limits: &Limits) -> u64 {
    (limits.max_length * SHARE.0).div_ceil(SHARE.1)
}

/// Makes the call that enqueues requests of one lane. `number` is the call's in the receipts.
pub(super) fn enqueue(shared: &Shared, lane: &str, number: u64, group: &[Outgoing]) -> Call {
    let limits = shared.limits();
    let keys = &shared.keys;
    let common = keys.lane(lane::revision(lane));
    let lane = keys.lane(lane);
    let mut names = vec![
        lane.jobs().to_owned(),
        lane.index().to_owned(),
        keys.bytes(),
        keys.lengths(),
        keys.receipts(&shared.proxy),
        common.jobs().to_owned(),
    ];
    let mut call = Call::new();
    let mut size = 0;
    for Outgoing { uuid, request, .. } in group {
        size += 128;
        if is_large(request.body.len()) {
            let key = keys.body(*uuid);
            call.command(store(&key, request));
            names.push(key);
        } else {
            size += request.body.len();
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut command = ENQUEUE.call(&names, size);
    command
        .arg(lane.name())
        .arg(limits.max_length)
        .arg(limits.max_bytes)
        .arg(number)
        .arg(most_in_lane(&limits));
    let now = Instant::now();
    for Outgoing { uuid, request, .. } in group {
        let ttl = request.deadline.saturating_duration_since(now);
        wire::enqueue_arguments(&mut command, *uuid, Some(&shared.proxy), ttl, request);
    }
    call.script(&ENQUEUE, command);
    call
}

/// Makes the command that puts a large body into a key of its own, which expires when nobody waits any more.
pub(super) fn store(key: &str, request: &Submit) -> redis::Cmd {
    let left = request.deadline.saturating_duration_since(Instant::now());
    let mut command = redis::Cmd::with_capacity(5, request.body.len() + 256);
    command
        .arg("SET")
        .arg(key)
        .arg(&*request.body)
        .arg("PX")
        .arg((left + BODIES_OUTLIVE).as_millis());
    command
}
