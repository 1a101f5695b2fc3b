//! Requests of workers that died. One of them may be what killed its worker, so they run one by one, and each turn is
//! counted before it begins: then only the guilty one is ever given up.

use redis::Value;

use super::{Inner, answer, fetch, millis};
use crate::{
    Failure, FailureKind, Job, JobId, Outcome, QueueError,
    call::Call,
    id::EntryId,
    scripts::{SUSPECT, TAKE_OVER},
    wire::{self, Read},
};

/// A request that was in the hands of a dead worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) entry: EntryId,
    /// How often it has been given to a worker.
    pub(super) deliveries: u32,
}

/// Pairs of entry and deliveries, as scripts give them.
pub(super) fn counted(mut values: impl Iterator<Item = Value>) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    while let (Some(entry), Some(deliveries)) = (values.next(), values.next()) {
        if let (Some(entry), Some(deliveries)) = (wire::parse(entry), wire::parse(deliveries)) {
            suspects.push(Suspect { entry, deliveries });
        }
    }
    suspects
}

/// Takes what has been handed back, up to `room`, and what dead workers held. The former is returned; the latter waits
/// for its turn.
pub(super) async fn take_over(inner: &Inner, room: usize) -> Result<Vec<EntryId>, QueueError> {
    let mut command = TAKE_OVER.call(&[&inner.jobs(), &inner.keys.artifacts()], 0);
    command
        .arg(&inner.name)
        .arg(millis(inner.settings().lease))
        .arg(room)
        .arg(&inner.revision);
    let reply = inner
        .commands
        .last(&Call::of_script(&TAKE_OVER, command), "a take-over")
        .await?;
    let mut values = wire::list(reply).into_iter();
    let released = wire::list(values.next().unwrap_or(Value::Nil))
        .into_iter()
        .filter_map(wire::parse)
        .collect();
    let suspects = counted(wire::list(values.next().unwrap_or(Value::Nil)).into_iter());
    if !suspects.is_empty() {
        tracing::warn!(
            count = suspects.len(),
            "took over requests of a worker that fell silent"
        );
        inner.held(|held| held.suspect(suspects));
    }
    // Redis may have lost the record while this worker lived on, and have taken down another one's since.
    let recorded: String = values.next().and_then(wire::parse).unwrap_or_default();
    if inner.artifact.as_ref().is_some_and(|own| *own != recorded) {
        inner.held(|held| held.unknown = true);
    }
    Ok(released)
}

/// Begins a suspect's turn; none if there is nothing to run.
pub(super) async fn start(inner: &Inner, suspect: Suspect) -> Result<Option<Job>, QueueError> {
    let started = try_start(inner, suspect).await;
    match &started {
        Ok(Some(_)) => {}
        Ok(None) => {
            inner.held(|held| held.settle(suspect.entry));
            inner.settled.notify_waiters();
        }
        Err(_) => inner.held(|held| held.put_back(suspect)),
    }
    started
}

async fn try_start(inner: &Inner, suspect: Suspect) -> Result<Option<Job>, QueueError> {
    let Suspect { entry, deliveries } = suspect;
    let live = inner.commands.get().await?;
    let most = inner.settings().max_deliveries;
    let mut count = SUSPECT.call(&[&inner.jobs()], 0);
    count
        .arg(&inner.name)
        .arg(entry.to_string())
        .arg(deliveries + 1)
        .arg(most);
    let mut call = Call::new();
    call.command(fetch::range(inner, entry));
    call.command(redis::cmd("TIME"));
    call.script(&SUSPECT, count);
    let mut replies = inner.commands.watch(&live, call.send(&live).await)?;
    let deliveries = match replies.pop() {
        Some(reply) => wire::parse::<u32>(reply.value("a count")?),
        None => None,
    }
    .ok_or(QueueError::Answer {
        operation: "a count",
    })?;
    let now = fetch::time(replies.pop())?;
    let found = match replies.pop() {
        Some(reply) => wire::entries(reply.value("XRANGE")?).pop(),
        None => None,
    };
    let Some(found) = found.filter(|_| deliveries > 0) else {
        return Ok(None);
    };
    match found.job(now) {
        Read::Job(job) if deliveries <= most => Ok(Some(Job {
            quarantine: Some(entry.sequence),
            ..job
        })),
        Read::Job(job) => {
            give_up(inner, job.id, deliveries - 1).await;
            Ok(None)
        }
        Read::Expired(id) => {
            fetch::discard(inner, vec![(id.entry, id.size)]).await;
            Ok(None)
        }
        Read::Unknown(Some(id)) => {
            answer::send(inner, vec![fetch::unreadable(id)]).await;
            Ok(None)
        }
        Read::Wake | Read::Unknown(None) => {
            fetch::discard(inner, vec![(entry, 0)]).await;
            Ok(None)
        }
    }
}

async fn give_up(inner: &Inner, id: JobId, deliveries: u32) {
    tracing::error!(request = %id, deliveries, "giving up a request: workers died each time they ran it");
    let failure = Failure {
        kind: FailureKind::TooManyDeliveries,
        message: format!("workers died each of the {deliveries} times they ran this request"),
    };
    answer::send(inner, vec![(id, Outcome::Failure(failure))]).await;
}
