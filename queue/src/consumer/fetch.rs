//! Fetches: new requests, and those that need recovery.

use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    answer,
    inner::Inner,
    intake, lanes,
    leases::{Leases, Turn},
    read::{read_command, sent},
    release, suspects,
};
use crate::{
    Job, QueueError,
    call::{Call, lost_group},
    id::EntryId,
    keys::{GROUP, SUSPECTS},
    lane::Lane,
    wire,
};

/// The longest time that a read waits in Redis. Once a second, between two reads, the entries of dead workers are
/// looked for.
pub(super) const BLOCK: Duration = Duration::from_secs(1);

/// The longest time that a read waits while answers wait for room in Redis.
const UNSENT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn fetch(
    inner: &Inner,
    capacity: usize,
    wait: Duration,
) -> Result<Vec<Job>, QueueError> {
    if capacity == 0 {
        return Ok(Vec::new());
    }
    let mut wait = wait.min(BLOCK);
    if answer::send_unsent(inner).await {
        wait = wait.min(UNSENT_PAUSE);
    }
    match next(inner, capacity, wait).await {
        Ok(jobs) => {
            inner.reached();
            Ok(jobs)
        }
        Err(error) if lost_group(&error) => {
            // Redis was flushed, or came back empty.
            inner.leases(|leases| leases.must_join = true);
            Ok(Vec::new())
        }
        Err(error) => {
            inner.pause().await;
            Err(error)
        }
    }
}

/// Takes the requests whose turn it is, waiting up to `wait` for the first.
pub(super) async fn next(
    inner: &Inner,
    capacity: usize,
    wait: Duration,
) -> Result<Vec<Job>, QueueError> {
    let jobs = recover(inner, capacity).await?;
    if !jobs.is_empty() {
        return Ok(jobs);
    }
    let until = Instant::now() + wait;
    loop {
        let settled = inner.settled.notified();
        match inner.leases(|leases| leases.turn()) {
            Turn::Ordinary => {
                let aside = inner.leases(Leases::read_ordinary);
                let left = until.saturating_duration_since(Instant::now());
                let wait = if aside { Duration::ZERO } else { left };
                let jobs = read(inner, capacity, wait).await?;
                if !aside || !jobs.is_empty() {
                    return Ok(jobs);
                }
            }
            Turn::Quarantine => {
                if let Some(lane) = inner.leases(|leases| leases.set_aside_in()) {
                    let jobs = suspects::take(inner, &lane, capacity).await?;
                    if !jobs.is_empty() {
                        return Ok(jobs);
                    }
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

/// Takes requests that reading new entries never returns: those that a cut-off read was given, those that others handed
/// back, and those that dead workers held.
async fn recover(inner: &Inner, capacity: usize) -> Result<Vec<Job>, QueueError> {
    if inner.leases(|leases| leases.must_join) {
        inner.join(false).await?;
        inner.leases(|leases| leases.must_join = false);
    }
    // Ordinary requests must not run beside those of dead workers: they would die with them.
    let capacity = if inner.leases(|leases| leases.turn()) == Turn::Ordinary {
        capacity
    } else {
        0
    };
    if inner.leases(|leases| leases.stray) {
        let mut jobs = Vec::new();
        let mut count = 0;
        for lane in inner.all_lanes() {
            let stray = find_stray(inner, &lane, capacity - count).await?;
            count += stray.len();
            jobs.append(&mut intake::load(inner, &lane, &stray, None).await?);
        }
        // A full answer may have left some out.
        if count < capacity {
            inner.leases(|leases| leases.stray = false);
        }
        if !jobs.is_empty() {
            return Ok(jobs);
        }
    }
    if inner.leases(|leases| leases.look_due()) {
        return look(inner, capacity).await;
    }
    Ok(Vec::new())
}

/// Looks for requests that others handed back, up to `capacity`, and for those that dead workers held, in every lane.
async fn look(inner: &Inner, capacity: usize) -> Result<Vec<Job>, QueueError> {
    lanes::look(inner).await?;
    let mut lanes = vec![inner.common.clone()];
    lanes.extend(inner.lanes(|lanes| lanes.active()));
    let mut jobs = Vec::new();
    let mut count = 0;
    for lane in lanes {
        let released = match suspects::take_over(inner, &lane, capacity - count).await {
            Ok(released) => released,
            // The lane's last entry has gone meanwhile.
            Err(error) if lost_group(&error) && lane != inner.common => continue,
            Err(error) => return Err(error),
        };
        count += released.len();
        jobs.append(&mut intake::load(inner, &lane, &released, None).await?);
    }
    if capacity == 0 || count < capacity {
        inner.leases(Leases::looked);
    }
    Ok(jobs)
}

/// Finds entries of a lane that a cut-off read was given, up to `capacity`. They never ran, so they are like new. Those of dead
/// workers, which were counted for a turn that did not take place, are set aside again.
async fn find_stray(
    inner: &Inner,
    lane: &Lane,
    capacity: usize,
) -> Result<Vec<EntryId>, QueueError> {
    let held = inner.leases(|leases| leases.count());
    let mut command = redis::cmd("XPENDING");
    command
        .arg(lane.jobs())
        .arg(GROUP)
        .arg("-")
        .arg("+")
        .arg(held + capacity.max(1))
        .arg(&inner.name);
    let pending = match inner.commands.last(&Call::of(command), "XPENDING").await {
        // The lane's last entry has gone.
        Err(error) if lost_group(&error) && *lane != inner.common => Value::Nil,
        pending => pending?,
    };
    let mut stray = Vec::new();
    let mut suspects = Vec::new();
    for pending in wire::list(pending) {
        let mut values = wire::list(pending).into_iter();
        let (Some(entry), Some(deliveries)) = (
            values.next().and_then(wire::parse),
            values.nth(2).and_then(wire::parse::<u32>),
        ) else {
            continue;
        };
        if inner.leases(|leases| leases.holds(entry)) {
            continue;
        }
        if deliveries > 1 {
            suspects.push((lane.clone(), entry, SUSPECTS.to_owned(), 1));
        } else {
            stray.push(entry);
        }
    }
    if !suspects.is_empty() {
        release::hand_over(inner, suspects).await?;
        inner.leases(|leases| leases.set_aside(lane, true));
    }
    stray.truncate(capacity);
    Ok(stray)
}

/// Reads new entries, waiting up to `wait` for the first.
async fn read(inner: &Inner, capacity: usize, wait: Duration) -> Result<Vec<Job>, QueueError> {
    if inner.lanes(|lanes| lanes.any()) {
        return lanes::read(inner, capacity, wait).await;
    }
    let common = std::slice::from_ref(&inner.common);
    let connections = if wait.is_zero() {
        &inner.commands
    } else {
        &inner.reads
    };
    let connection = connections.get().await?;
    let mut call = Call::new();
    call.command(read_command(inner, common, capacity, wait));
    call.command(redis::cmd("TIME"));
    let replies = sent(
        inner,
        connections,
        &connection,
        call.send(&connection).await,
    )?;
    intake::of_replies(inner, common, replies).await
}
