//! The call of the script that sends answers.

use std::collections::BTreeMap;

use super::super::{
    inner::{Inner, millis},
    unsent::PendingAnswer,
};
use crate::{
    FailureKind, JobId, Outcome,
    lane::Lane,
    outcome,
    scripts::{ANSWER, REPLIES_LIVE},
};

/// Makes the command that puts a large answer into a key of its own, which the script lets live as long as its proxy or its job.
pub(super) fn store(inner: &Inner, due: &PendingAnswer) -> redis::Cmd {
    let lives = match due.id.proxy {
        Some(_) => REPLIES_LIVE,
        None => inner.limits().result_ttl,
    };
    let mut command = redis::Cmd::with_capacity(5, due.outcome.size() + 256);
    command
        .arg("SET")
        .arg(key_of(inner, &due.id))
        .arg(due.outcome.payload())
        .arg("PX")
        .arg(millis(lives));
    command
}

/// Returns the key of a large answer.
fn key_of(inner: &Inner, id: &JobId) -> String {
    match &id.proxy {
        Some(proxy) => inner.keys.reply(proxy, id.uuid, &inner.name),
        None => inner.keys.answer(id.uuid, &inner.name),
    }
}

/// Makes the call of the script that sends the answers at the places `group` of `due`, which are of one lane.
pub(super) fn command(
    inner: &Inner,
    lane: &Lane,
    group: &[usize],
    due: &[PendingAnswer],
) -> redis::Cmd {
    let mut streams: BTreeMap<&str, usize> = BTreeMap::new();
    for place in group {
        if let Some(proxy) = &due[*place].id.proxy {
            let next = streams.len() + 1;
            streams.entry(proxy).or_insert(next);
        }
    }
    let mut names: Vec<(usize, String)> = streams
        .iter()
        .map(|(proxy, stream)| (*stream, inner.keys.replies(proxy)))
        .collect();
    names.sort_unstable();
    let bytes = inner.keys.bytes();
    let (dead, unread) = (inner.keys.dead(), inner.keys.unread());
    let (lengths, left) = (inner.keys.lengths(), inner.keys.left());
    let (results, done) = (inner.keys.results(), inner.keys.done());
    let mut large = Vec::new();
    let mut extras = Vec::new();
    let mut keys = vec![
        lane.jobs(),
        lane.index(),
        &bytes,
        &dead,
        &unread,
        &lengths,
        &left,
        &results,
        &done,
    ];
    keys.extend(names.iter().map(|(_, name)| name.as_str()));
    let first_large = keys.len() + 1;
    for (request, place) in group.iter().enumerate() {
        let PendingAnswer { id, outcome, .. } = &due[*place];
        let mut key = |wanted: bool, name: &dyn Fn() -> String| {
            if !wanted {
                return 0;
            }
            large.push(name());
            first_large + large.len() - 1
        };
        let body = key(id.is_large, &|| inner.keys.body(id.uuid));
        let is_large = due[*place].is_large();
        let answer = key(is_large, &|| key_of(inner, id));
        let job = key(id.proxy.is_none(), &|| inner.keys.job(id.uuid));
        let size = if outcome.is_large() {
            outcome.size()
        } else {
            0
        };
        if body > 0 || size > 0 || job > 0 || kind(outcome) == DEAD {
            extras.push((request + 1, body, answer, id, size, job));
        }
    }
    keys.extend(large.iter().map(String::as_str));
    let size = group.iter().map(|place| due[*place].size() + 128).sum();
    let mut command = ANSWER.call(&keys, size);
    command
        .arg(lane.name())
        .arg(&inner.name)
        .arg(inner.limits().max_bytes)
        .arg(names.len())
        .arg(group.len())
        .arg(millis(inner.limits().result_ttl));
    for place in group {
        let PendingAnswer {
            id,
            outcome,
            inline,
        } = &due[*place];
        command
            .arg(id.entry.to_string())
            .arg(id.proxy.as_ref().map_or(0, |proxy| streams[&**proxy]))
            .arg(id.size)
            .arg(kind(outcome))
            .arg(&outcome.field(id.uuid, *inline));
        if due[*place].is_large() {
            command.arg(outcome::elsewhere(outcome.size(), &inner.name));
        } else {
            command.arg(outcome.payload());
        }
    }
    for (request, body, answer, id, size, job) in extras {
        command
            .arg(request)
            .arg(body)
            .arg(answer)
            .arg(size)
            .arg(id.uuid.to_string())
            .arg(&*id.client)
            .arg(job);
    }
    command
}

/// The kind of a failure that the dead-letter stream is told of.
const DEAD: &str = "d";

/// Returns the kind by which the script treats an outcome.
fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Answer(_) => "s",
        Outcome::Failure(failure) if failure.kind == FailureKind::TooManyDeliveries => DEAD,
        Outcome::Failure(_) => "f",
    }
}
