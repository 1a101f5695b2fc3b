//! Jobs: requests that nobody waits for. A job is in Redis alone, so that any proxy tells of it and no proxy's death loses
//! it.

mod watch;

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use redis::Value;
use tokio::time::Instant;
use uuid::Uuid;

use self::watch::Watch;
use super::{
    Shared,
    enqueue::{most_in_lane, store},
};
use crate::{
    Class, Endpoint, Failure, FailureKind, JobState, JobView, Outcome, QueueError, Submit,
    SubmitError, Submitted,
    call::Call,
    commands::{Removal, drop_entries, evict},
    id::EntryId,
    keys::{GROUP, is_reserved},
    lane::{self, Lane},
    outcome::{self, Reply},
    scripts::SUBMIT,
    types::{JobName, Limits},
    wire::{self, is_large},
};

/// The part of the queue's bytes that requests which nobody waits for may take together with their results, so that
/// they leave room for others.
const SHARE: u64 = 2;

/// The time after which a client should try again where there is no room for its job. Jobs are many and slow.
const RETRY_FULL: Duration = Duration::from_secs(5);
const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);

/// The jobs of a proxy's model.
pub(super) struct Jobs {
    watch: Watch,
}

impl Jobs {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            watch: Watch::new(endpoint),
        }
    }

    /// Waits until a job has an outcome or `until`, and returns its state then.
    pub(super) async fn wait(
        &self,
        shared: &Shared,
        uuid: Uuid,
        until: Instant,
    ) -> Result<JobView, QueueError> {
        let view = look(shared, uuid).await?;
        if !view.state.is_open() || until <= Instant::now() {
            return Ok(view);
        }
        let mut done = self.watch.follow(shared).await?;
        loop {
            // The first look was before anybody followed.
            let view = look(shared, uuid).await?;
            if !view.state.is_open() || !done.of(uuid, until).await {
                return Ok(view);
            }
        }
    }
}

/// Puts a request into the queue that nobody waits for. Once this returns, Redis has it.
pub(super) async fn submit(
    shared: &Shared,
    mut request: Submit,
    note: &[u8],
    name: Option<JobName>,
) -> Result<Submitted, SubmitError> {
    let most = shared.max_body_bytes.load(Ordering::Relaxed);
    if request.body.len() as u64 > most {
        return Err(SubmitError::TooLarge { most });
    }
    request.class = Class::Background;
    request.caller.get_or_insert(shared.caller);
    let lane = lane::name(&request.revision, request.class, request.caller);
    let lane = shared.keys.lane(&lane);
    let job = NewJob {
        uuid: uuid::Builder::from_random_bytes(rand::random()).into_uuid(),
        note,
        name,
    };
    let call = call(shared, &lane, &request, &job);
    let unreachable = |error: &QueueError| {
        tracing::debug!(%error, "failed to submit a job");
        SubmitError::Unreachable {
            retry_after: RETRY_UNREACHABLE,
        }
    };
    for is_last in [false, true] {
        let reply = shared.connections.last(&call, "a submission").await;
        let mut reply = wire::list(reply.map_err(|error| unreachable(&error))?).into_iter();
        let verdict: Option<String> = reply.next().and_then(wire::parse);
        match verdict.as_deref() {
            Some("new") => {
                return Ok(Submitted {
                    uuid: job.uuid,
                    is_new: true,
                });
            }
            Some("again") => {
                let known: Option<String> = reply.next().and_then(wire::parse);
                let uuid = known.and_then(|known| known.parse().ok());
                let uuid = uuid.ok_or_else(|| {
                    unreachable(&QueueError::Answer {
                        operation: "a submission",
                    })
                })?;
                return Ok(Submitted {
                    uuid,
                    is_new: false,
                });
            }
            Some("differs") => return Err(SubmitError::NameTaken),
            _ if is_last => break,
            _ => {}
        }
        // Expired requests may be in the way.
        let eviction = evict(&shared.keys, &lane);
        if let Err(error) = shared.connections.last(&eviction, "an eviction").await {
            return Err(unreachable(&error));
        }
    }
    Err(SubmitError::Full {
        retry_after: RETRY_FULL,
    })
}

/// A job that is about to be submitted.
struct NewJob<'a> {
    uuid: Uuid,
    note: &'a [u8],
    name: Option<JobName>,
}

/// Makes the call that adds a job.
fn call(shared: &Shared, lane: &Lane, request: &Submit, job: &NewJob<'_>) -> Call {
    let keys = &shared.keys;
    let limits: Limits = shared.limits();
    let common = keys.lane(lane::revision(lane.name()));
    let mut names = vec![
        lane.jobs().to_owned(),
        lane.index().to_owned(),
        keys.bytes(),
        keys.lengths(),
        common.jobs().to_owned(),
        keys.job(job.uuid),
        keys.results(),
    ];
    let mut call = Call::new();
    if is_large(request.body.len()) {
        let key = keys.body(job.uuid);
        call.command(store(&key, request));
        names.push(key);
    }
    names.extend(job.name.as_ref().map(|name| keys.name(&name.name)));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut command = SUBMIT.call(&names, request.body.len() + 512);
    command
        .arg(lane.name())
        .arg(limits.max_length)
        .arg(limits.max_bytes)
        .arg(most_in_lane(&limits))
        .arg(limits.max_bytes / SHARE);
    let ttl = request.deadline.saturating_duration_since(Instant::now());
    command
        .arg(job.uuid.to_string())
        .arg((ttl + limits.result_ttl).as_millis())
        .arg(job.note)
        .arg(job.name.as_ref().map_or("", |name| &name.digest));
    wire::enqueue_arguments(&mut command, job.uuid, None, ttl, request);
    call.script(&SUBMIT, command);
    call
}

/// A job as Redis has it.
struct Kept {
    lane: Lane,
    entry: EntryId,
    size: usize,
    is_large: bool,
    expires: u64,
    note: Bytes,
    is_cancelled: bool,
    outcome: Option<(Bytes, Bytes)>,
}

async fn read(shared: &Shared, uuid: Uuid) -> Result<Option<(Kept, u64)>, QueueError> {
    let mut command = redis::cmd("HGETALL");
    command.arg(shared.keys.job(uuid));
    let mut call = Call::of(command);
    call.command(redis::cmd("TIME"));
    let mut replies = shared.connections.send(&call).await?.into_iter();
    let (Some(job), Some(time)) = (replies.next(), replies.next()) else {
        return Err(QueueError::Answer {
            operation: "HGETALL",
        });
    };
    let now = wire::clock(time.value("TIME")?).unwrap_or_default();
    let mut values = wire::list(job.value("HGETALL")?).into_iter();
    let mut fields = HashMap::new();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        if let (Some(name), Some(value)) = (wire::parse::<String>(name), wire::bytes(value)) {
            fields.insert(name, value);
        }
    }
    Ok(kept(shared, &mut fields).map(|kept| (kept, now)))
}

fn kept(shared: &Shared, fields: &mut HashMap<String, Bytes>) -> Option<Kept> {
    let mut text = |name: &str| String::from_utf8(fields.remove(name)?.to_vec()).ok();
    let lane = shared.keys.lane(&text("lane")?);
    let entry = text("entry")?.parse().ok()?;
    let size = text("size")?.parse().ok()?;
    let is_large = text("large")? == "1";
    let expires = text("expires")?.parse().ok()?;
    Some(Kept {
        lane,
        entry,
        size,
        is_large,
        expires,
        note: fields.remove("note")?,
        is_cancelled: fields.contains_key("cancelled"),
        outcome: fields.remove("field").zip(fields.remove("outcome")),
    })
}

/// Reads the state of a job.
pub(super) async fn look(shared: &Shared, uuid: Uuid) -> Result<JobView, QueueError> {
    let Some((kept, now)) = read(shared, uuid).await? else {
        return Ok(JobView {
            state: JobState::Unknown,
            note: Bytes::new(),
        });
    };
    let state = if let Some((field, value)) = kept.outcome {
        done(shared, &field, value).await?
    } else if kept.is_cancelled {
        JobState::Cancelled
    } else {
        open(shared, &kept.lane, kept.entry, now, kept.expires).await?
    };
    Ok(JobView {
        state,
        note: kept.note,
    })
}

/// Reads the outcome of a job, whose answer may be in a key of its own.
async fn done(shared: &Shared, field: &[u8], value: Bytes) -> Result<JobState, QueueError> {
    Ok(match outcome::reply(field, value) {
        Some((_, Reply::Outcome(outcome))) => JobState::Done(outcome),
        Some((uuid, Reply::Elsewhere { worker, .. })) => {
            let mut command = redis::cmd("GET");
            command.arg(shared.keys.answer(uuid, &worker));
            let answer = shared.connections.last(&Call::of(command), "GET").await?;
            wire::bytes(answer).map_or(JobState::Lost, |body| JobState::Done(Outcome::Answer(body)))
        }
        None => JobState::Lost,
    })
}

/// Finds out what becomes of a job that has no outcome.
async fn open(
    shared: &Shared,
    lane: &Lane,
    entry: EntryId,
    now: u64,
    expires: u64,
) -> Result<JobState, QueueError> {
    let id = entry.to_string();
    let mut rank = redis::cmd("ZRANK");
    rank.arg(lane.index()).arg(&id);
    let mut pending = redis::cmd("XPENDING");
    pending.arg(lane.jobs()).arg(GROUP).arg(&id).arg(&id).arg(1);
    let mut done = redis::cmd("XREVRANGE");
    done.arg(shared.keys.done())
        .arg("+")
        .arg("-")
        .arg("COUNT")
        .arg(RATE_OVER);
    let mut call = Call::of(rank);
    call.command(pending);
    call.command(done);
    let mut replies = shared.connections.send(&call).await?.into_iter();
    let (Some(rank), Some(pending), Some(done)) = (replies.next(), replies.next(), replies.next())
    else {
        return Err(QueueError::Answer { operation: "ZRANK" });
    };
    let Some(ahead) = wire::parse::<u64>(rank.value("ZRANK")?) else {
        // The entry is gone without an outcome.
        return Ok(if now >= expires {
            JobState::Done(Outcome::Failure(Failure {
                kind: FailureKind::Expired,
                message: "the job's time passed before it ran".to_owned(),
            }))
        } else {
            JobState::Lost
        });
    };
    // An error says that there is no group, so that no worker has come yet.
    let pending = pending.value("XPENDING").unwrap_or(Value::Nil);
    let holder = wire::list(pending).pop().and_then(|pending| {
        let holder = wire::list(pending).into_iter().nth(1)?;
        wire::parse::<String>(holder)
    });
    if holder.is_some_and(|holder| !is_reserved(&holder)) {
        return Ok(JobState::Running);
    }
    let done = wire::entries(done.value("XREVRANGE").unwrap_or(Value::Nil));
    let wait = done.last().and_then(|oldest| {
        let took = now.checked_sub(oldest.id.millis)?.max(1);
        Some(Duration::from_millis(
            took * (ahead + 1) / done.len() as u64,
        ))
    });
    Ok(JobState::Queued { ahead, wait })
}

/// The number of the last jobs over which their rate is taken.
const RATE_OVER: usize = 100;

/// Takes a job out of the queue. Returns its state then, which is another than cancelled where it came too late.
pub(super) async fn cancel(shared: &Shared, uuid: Uuid) -> Result<JobView, QueueError> {
    let before = read(shared, uuid).await?;
    let Some((kept, _)) = before else {
        return look(shared, uuid).await;
    };
    if kept.outcome.is_none() && !kept.is_cancelled {
        // The mark comes first: whoever answers now finds it.
        let mut mark = redis::cmd("HSET");
        mark.arg(shared.keys.job(uuid)).arg("cancelled").arg(1);
        shared.connections.last(&Call::of(mark), "HSET").await?;
        let removal = Removal {
            entry: kept.entry,
            size: kept.size,
            large: kept.is_large.then_some(uuid),
        };
        let call = drop_entries(&shared.keys, &kept.lane, None, [&removal]);
        shared.connections.last(&call, "a cancellation").await?;
    }
    look(shared, uuid).await
}
