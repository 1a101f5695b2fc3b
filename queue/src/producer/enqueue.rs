//! The call that enqueues requests.

use std::time::Duration;

use tokio::time::Instant;

use super::{in_flight::Outgoing, shared::Shared};
use crate::{
    Submit,
    call::Call,
    keys::Class,
    scripts::ENQUEUE,
    wire::{self, is_large},
};

/// The time that a large body outlives its request's deadline: an entry must not be there without it.
const BODIES_OUTLIVE: Duration = Duration::from_secs(5);

/// Makes the call that enqueues requests of one revision. `number` is the call's in the receipts.
pub(super) fn enqueue(shared: &Shared, revision: &str, number: u64, group: &[Outgoing]) -> Call {
    let limits = shared.limits();
    let keys = &shared.keys;
    let lane = keys.lane(revision, Class::Interactive);
    let mut names = vec![
        lane.jobs,
        lane.index,
        keys.bytes(),
        keys.receipts(&shared.proxy),
    ];
    let mut call = Call::new();
    let mut size = 0;
    for Outgoing { uuid, request } in group {
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
        .arg(revision)
        .arg(limits.max_length)
        .arg(limits.max_bytes)
        .arg(number);
    let now = Instant::now();
    for Outgoing { uuid, request } in group {
        let ttl = request.deadline.saturating_duration_since(now);
        wire::enqueue_arguments(&mut command, *uuid, &shared.proxy, ttl, request);
    }
    call.script(&ENQUEUE, command);
    call
}

/// Makes the command that puts a large body into a key of its own, which expires when nobody waits any more.
fn store(key: &str, request: &Submit) -> redis::Cmd {
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
