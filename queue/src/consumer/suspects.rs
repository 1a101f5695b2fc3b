//! Suspects: requests of workers that died. One of them may be what killed its worker, so they run with nothing beside
//! them: in halves first, for most are innocent, and one by one before any is given up. Each turn is counted before it
//! begins.
//!
//! Suspects are set aside in Redis, for any worker to take some, and take turns with ordinary requests.

use redis::Value;

use super::{
    answer,
    inner::{Inner, millis},
    intake,
    leases::Leases,
    read,
};
use crate::{
    Failure, FailureKind, Job, JobId, Outcome, QueueError,
    call::Call,
    id::EntryId,
    keys::{RELEASED, newer},
    lane::Lane,
    scripts::{MAX_REQUESTS, QUARANTINE, TAKE_OVER},
    wire::{self, FORMAT},
};

/// Takes requests of a lane that were handed back, up to `capacity`, and sets aside those that dead workers held.
pub(super) async fn take_over(
    inner: &Inner,
    lane: &Lane,
    capacity: usize,
) -> Result<Vec<EntryId>, QueueError> {
    let keys = [lane.jobs(), &inner.keys.artifacts(), &inner.keys.pulse()];
    let mut command = TAKE_OVER.call(&keys, 0);
    command
        .arg(&inner.name)
        .arg(millis(inner.limits().lease))
        .arg(capacity)
        .arg(&inner.revision)
        .arg(RELEASED)
        // Requests that older workers could not read.
        .arg(newer(FORMAT));
    let reply = inner
        .commands
        .last(&Call::of_script(&TAKE_OVER, command), "a take-over")
        .await?;
    let mut values = wire::list(reply).into_iter();
    let released = entries(wire::list(values.next().unwrap_or(Value::Nil)));
    let aside = values.next().and_then(wire::parse::<u32>) != Some(0);
    // Redis may have lost the record while this worker lived on, and have recorded another one's since.
    let recorded: String = values.next().and_then(wire::parse).unwrap_or_default();
    inner.leases(|leases| {
        leases.set_aside(lane, aside);
        if inner.artifact.as_ref().is_some_and(|own| *own != recorded) {
            leases.must_join = true;
        }
    });
    Ok(released)
}

fn entries(values: impl IntoIterator<Item = Value>) -> Vec<EntryId> {
    values.into_iter().filter_map(wire::parse).collect()
}

/// Takes some of the suspects of a lane for their turn, up to `capacity`; none if there are none to run.
pub(super) async fn take(
    inner: &Inner,
    lane: &Lane,
    capacity: usize,
) -> Result<Vec<Job>, QueueError> {
    let most = inner.limits().max_deliveries;
    let mut command = QUARANTINE.call(&[lane.jobs()], 0);
    command
        .arg(&inner.name)
        .arg(capacity.clamp(1, MAX_REQUESTS))
        .arg(most);
    let operation = "a turn";
    let outcome = inner
        .commands
        .last(&Call::of_script(&QUARANTINE, command), operation)
        .await;
    // Some are this worker's and in nobody's hands if the reply is lost.
    let reply = outcome.inspect_err(|_| inner.leases(|leases| leases.stray = true))?;
    let mut values = wire::list(reply).into_iter();
    let parse = |value: Option<Value>| value.and_then(wire::parse::<u32>);
    let (Some(more), Some(deliveries)) = (parse(values.next()), parse(values.next())) else {
        return Err(QueueError::Answer { operation });
    };
    let entries = entries(values);
    inner.leases(|leases| leases.set_aside(lane, more > 0));
    if deliveries > most {
        give_up(inner, lane, &entries, most).await?;
        return Ok(Vec::new());
    }
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    tracing::warn!(
        count = entries.len(),
        deliveries,
        "running requests of a worker that fell silent, by themselves"
    );
    let group = inner.leases(Leases::group);
    intake::load(inner, lane, &entries, Some(group)).await
}

/// Answers requests that have been given to workers as often as they may with a failure.
async fn give_up(
    inner: &Inner,
    lane: &Lane,
    entries: &[EntryId],
    deliveries: u32,
) -> Result<(), QueueError> {
    let read = read::range(inner, lane, entries).await;
    let (found, now) = read.inspect_err(|_| inner.leases(|leases| leases.stray = true))?;
    let jobs = intake::triage(inner, lane, found, now).await;
    let answers = jobs.into_iter().map(|job| letter(job.id, deliveries));
    answer::answer_only(inner, answers.collect()).await;
    Ok(())
}

fn letter(id: JobId, deliveries: u32) -> (JobId, Outcome) {
    tracing::error!(request = %id, client = &*id.client, deliveries, "giving up a request: workers died each time they ran it");
    let failure = Failure {
        kind: FailureKind::TooManyDeliveries,
        message: format!("workers died each of the {deliveries} times they ran this request"),
    };
    (id, Outcome::Failure(failure))
}
