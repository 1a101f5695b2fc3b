//! Answering requests.

use std::time::Duration;

use tokio::time::Instant;

use super::{Inner, REPLIES_LIVE, fetch, millis};
use crate::{
    FailureKind, Job, JobId, Outcome, QueueError,
    call::{Call, Reply, lost_group},
    scripts::{ANSWER, groups},
};

type Answers = Vec<(JobId, Outcome)>;

pub(super) async fn answer(
    inner: &Inner,
    answers: Answers,
    room: usize,
) -> Result<Vec<Job>, QueueError> {
    let entries: Vec<_> = answers.iter().map(|(id, _)| id.entry).collect();
    // Under a lasting backlog each read finds all that there is room for, so what is due must not wait for one that
    // does not.
    let read =
        room > 0 && inner.held(|held| !held.recovery_due() && held.ordinary_after(entries.iter()));
    let result = patiently(inner, answers, if read { room } else { 0 }).await;
    inner.held(|held| {
        for entry in entries {
            held.settle(entry);
        }
    });
    inner.settled.notify_waiters();
    let replies = result?;
    let next = if room > 0 && !read {
        fetch::next(inner, room, Duration::ZERO).await
    } else {
        fetch::read_replies(inner, replies).await
    };
    Ok(next.unwrap_or_else(|error| {
        // The answers are out; the next fetch meets the same trouble and sees to it.
        tracing::debug!(%error, "failed to fetch beside an answer");
        if lost_group(&error) {
            inner.held(|held| held.unknown = true);
        }
        Vec::new()
    }))
}

/// Answers without taking anything new.
pub(super) async fn send(inner: &Inner, answers: Answers) {
    if let Err(error) = patiently(inner, answers, 0).await {
        tracing::warn!(%error, "failed to answer");
    }
}

/// Tries until Redis has it, and gives the replies to the read that went along. Answering twice is harmless: the second
/// time finds nothing to answer.
async fn patiently(
    inner: &Inner,
    answers: Answers,
    mut room: usize,
) -> Result<Vec<Reply>, QueueError> {
    let groups = groups(answers, |(_, outcome)| outcome.size());
    let give_up = Instant::now() + inner.patience;
    loop {
        match once(inner, &groups, room).await {
            Err(error) if error.passes() && Instant::now() < give_up => {
                tracing::debug!(%error, "waiting for Redis to answer requests");
                room = 0;
                inner.pause().await;
            }
            outcome => return outcome,
        }
    }
}

async fn once(inner: &Inner, groups: &[Answers], room: usize) -> Result<Vec<Reply>, QueueError> {
    // Nothing to answer, and a suspect waits its turn, so that nothing may be read either.
    if groups.is_empty() && room == 0 {
        return Ok(Vec::new());
    }
    let live = inner.commands.get().await?;
    let mut call = Call::new();
    for group in groups {
        call.script(&ANSWER, command(inner, group));
    }
    if room > 0 {
        call.command(fetch::read_command(inner, room, Duration::ZERO));
        call.command(redis::cmd("TIME"));
    }
    let sent = call.send(&live).await;
    let mut replies = if room > 0 {
        fetch::sent(inner, &inner.commands, &live, sent)?
    } else {
        inner.commands.watch(&live, sent)?
    };
    let reads = replies.split_off(groups.len());
    for reply in replies {
        match inner.commands.watch(&live, reply.value("an answer")) {
            Ok(_) => {}
            Err(error) if lost_group(&error) => {
                // The requests are gone; their proxies find out and enqueue them again.
                inner.held(|held| held.unknown = true);
            }
            Err(error) if error.passes() => {
                // What the read beside it was given is in nobody's hands.
                inner.held(|held| held.stray |= room > 0);
                return Err(error);
            }
            Err(error) => tracing::warn!(%error, "failed to answer"),
        }
    }
    Ok(reads)
}

fn command(inner: &Inner, group: &[(JobId, Outcome)]) -> redis::Cmd {
    let mut streams: Vec<String> = Vec::new();
    let places: Vec<usize> = group
        .iter()
        .map(|(id, _)| {
            let stream = inner.keys.replies(&id.proxy);
            streams
                .iter()
                .position(|known| *known == stream)
                .unwrap_or_else(|| {
                    streams.push(stream);
                    streams.len() - 1
                })
        })
        .collect();
    let jobs = inner.jobs();
    let bytes = inner.keys.bytes();
    let dead = inner.keys.dead();
    let mut keys = vec![&*jobs, &*bytes, &*dead];
    keys.extend(streams.iter().map(String::as_str));
    let size = group.iter().map(|(_, outcome)| outcome.size() + 128).sum();
    let mut command = ANSWER.call(&keys, size);
    command
        .arg(&inner.revision)
        .arg(&inner.name)
        .arg(millis(REPLIES_LIVE));
    for ((id, outcome), place) in group.iter().zip(places) {
        command
            .arg(id.entry.to_string())
            .arg(place + 1)
            .arg(id.uuid.hyphenated().to_string())
            .arg(id.size)
            .arg(kind(outcome))
            .arg(&*outcome.encode());
    }
    command
}

/// How the script is to treat an outcome.
fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Answer(_) => "s",
        Outcome::Failure(failure) if failure.kind == FailureKind::TooManyDeliveries => "d",
        Outcome::Failure(_) => "f",
    }
}
