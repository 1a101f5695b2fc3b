//! Large bodies, which are kept beside the stream so that nothing copies them but the worker that runs them.

use super::{inner::Inner, release};
use crate::{Job, QueueError, call::Call, commands::Removal, keys::RELEASED, lane::by_lane, wire};

/// Bytes of bodies that one fetch brings, or one body. Requests beyond are handed back, for others to take.
const FETCH: usize = 64 << 20;

/// Bytes of bodies asked for in one write.
const CALL: usize = 16 << 20;

/// Loads the bodies of jobs that are kept in keys of their own. Where that fails, the requests are in nobody's hands.
pub(super) async fn load_bodies(inner: &Inner, jobs: Vec<Job>) -> Result<Vec<Job>, QueueError> {
    if jobs.iter().all(|job| !job.id.is_large) {
        return Ok(jobs);
    }
    let (jobs, beyond) = within(jobs);
    let entries: Vec<_> = jobs.iter().map(|job| job.id.entry).collect();
    if !beyond.is_empty() {
        let beyond = beyond
            .into_iter()
            .map(|job| (job.id.lane, job.id.entry, RELEASED.to_owned(), 0));
        release::hand_over(inner, beyond.collect()).await?;
    }
    let brought = try_load(inner, jobs).await;
    if brought.is_err() {
        inner.leases(|leases| {
            for entry in entries {
                leases.settle(entry);
            }
            leases.stray = true;
        });
    }
    brought
}

/// Splits jobs into those whose bodies one fetch brings and the rest.
pub(crate) fn within(jobs: Vec<Job>) -> (Vec<Job>, Vec<Job>) {
    let mut bytes = 0usize;
    let mut within = Vec::with_capacity(jobs.len());
    let mut beyond = Vec::new();
    for job in jobs {
        // A size is what an entry says that it is.
        bytes = bytes.saturating_add(job.id.size);
        // A group that must run together stays together.
        if bytes <= FETCH || within.is_empty() || job.quarantine.is_some() {
            within.push(job);
        } else {
            beyond.push(job);
        }
    }
    (within, beyond)
}

async fn try_load(inner: &Inner, mut jobs: Vec<Job>) -> Result<Vec<Job>, QueueError> {
    let mut large: Vec<&mut Job> = jobs.iter_mut().filter(|job| job.id.is_large).collect();
    let mut lost = Vec::new();
    while !large.is_empty() {
        let mut bytes = 0usize;
        let count = large
            .iter()
            .take_while(|job| {
                let first = bytes == 0;
                bytes = bytes.saturating_add(job.id.size);
                first || bytes <= CALL
            })
            .count();
        let rest = large.split_off(count);
        let mut call = Call::new();
        for job in &large {
            let mut get = redis::cmd("GET");
            get.arg(inner.keys.body(job.id.uuid));
            call.command(get);
        }
        let replies = inner.commands.send(&call).await?;
        for (job, reply) in large.into_iter().zip(replies) {
            match wire::bytes(reply.value("GET")?) {
                Some(body) if body.len() == job.id.size => job.body = body,
                // Redis has lost the body. Without the entry, its proxy finds out and enqueues the request again.
                _ => lost.push((job.id.lane.clone(), Removal::from(&job.id))),
            }
        }
        large = rest;
    }
    if !lost.is_empty() {
        tracing::warn!(
            count = lost.len(),
            "Redis has lost bodies; their requests are enqueued again"
        );
        jobs.retain(|job| {
            lost.iter()
                .all(|(_, removal)| removal.entry != job.id.entry)
        });
        inner.leases(|leases| {
            for (_, removal) in &lost {
                leases.settle(removal.entry);
            }
        });
        for (lane, lost) in by_lane(lost) {
            release::discard(inner, &lane, lost).await;
        }
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::time::Instant;
    use uuid::Uuid;

    use super::*;
    use crate::{JobId, id::EntryId, lane::Lane};

    fn job(size: usize) -> Job {
        Job {
            id: JobId {
                lane: Lane::new("", "r1"),
                entry: EntryId::default(),
                uuid: Uuid::nil(),
                proxy: Some("proxy".into()),
                size,
                is_large: true,
                client: "".into(),
                expires: Instant::now(),
            },
            body: Bytes::new(),
            rows: 1,
            trace: None,
            client: None,
            age: Duration::ZERO,
            deadline: Duration::ZERO,
            quarantine: None,
        }
    }

    #[test]
    fn one_fetch_brings_one_body_or_as_many_as_there_is_room_for() {
        let split = |sizes: &[usize]| {
            let (within, beyond) = within(sizes.iter().copied().map(job).collect());
            (within.len(), beyond.len())
        };
        assert_eq!(split(&[FETCH / 2, FETCH / 2, 1]), (2, 1));
        assert_eq!(split(&[FETCH + 1, 1]), (1, 1));
        // An entry may say anything of its body: no sum of sizes is a small number.
        assert_eq!(split(&[usize::MAX, 2]), (1, 1));
    }
}
