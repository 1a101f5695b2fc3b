//! The way from entries to jobs: expired, damaged and too new ones are sorted out, large bodies are loaded.

use super::{
    bodies,
    inner::Inner,
    leases::Leases,
    read::{self, Found},
    release,
};
use crate::{
    Job, QueueError,
    call::Reply,
    commands::Removal,
    events,
    id::EntryId,
    keys::newer,
    lane::Lane,
    wire::{Entry, Read},
};

/// Makes jobs of a lane's entries that this consumer holds already in Redis.
pub(super) async fn load(
    inner: &Inner,
    lane: &Lane,
    entries: &[EntryId],
    quarantine: Option<u64>,
) -> Result<Vec<Job>, QueueError> {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let read = read::range(inner, lane, entries).await;
    let (found, now) = read.inspect_err(|_| inner.leases(|leases| leases.stray = true))?;
    let jobs = triage(inner, lane, found, now).await;
    hand_out(inner, jobs, quarantine).await
}

/// Makes jobs of the replies to a read of some lanes and to TIME; none if nothing was read.
pub(super) async fn of_replies(
    inner: &Inner,
    lanes: &[Lane],
    replies: Vec<Reply>,
) -> Result<Vec<Job>, QueueError> {
    let (found, now) = read::parse(inner, lanes, replies)?;
    of_new(inner, found, now).await
}

/// Makes jobs of new entries. `now` is the time of Redis' clock, in milliseconds.
pub(super) async fn of_new(
    inner: &Inner,
    found: Vec<Found>,
    now: u64,
) -> Result<Vec<Job>, QueueError> {
    let mut jobs = Vec::new();
    for (lane, entries) in found {
        jobs.append(&mut triage(inner, &lane, entries, now).await);
    }
    if jobs.is_empty() {
        return Ok(jobs);
    }
    hand_out(inner, jobs, None).await
}

/// Begins the leases of jobs and loads their bodies.
async fn hand_out(
    inner: &Inner,
    mut jobs: Vec<Job>,
    quarantine: Option<u64>,
) -> Result<Vec<Job>, QueueError> {
    inner.leases(|leases| {
        for job in &mut jobs {
            job.quarantine = quarantine;
            leases.hand_out(&job.id.lane, job.id.entry, quarantine);
        }
    });
    for job in &jobs {
        events::fetched(&inner.name, job);
    }
    bodies::load_bodies(inner, jobs).await
}

/// Sorts out the entries of a lane that are not to run and removes them or hands them on. Returns the rest as jobs.
pub(super) async fn triage(inner: &Inner, lane: &Lane, entries: Vec<Entry>, now: u64) -> Vec<Job> {
    let mut jobs = Vec::with_capacity(entries.len());
    let mut removals = Vec::new();
    let mut too_new = Vec::new();
    let nothing = |entry| Removal {
        entry,
        size: 0,
        large: None,
    };
    for entry in entries {
        let id = entry.id;
        match entry.job(lane, now) {
            Read::Job(job) => jobs.push(job),
            // The proxy's own timer tells the client; Redis' clock only saves the work.
            Read::Expired(id) => removals.push(Removal::from(&id)),
            Read::Wake => {
                inner.leases(Leases::look_soon);
                removals.push(nothing(id));
            }
            Read::Newer(format) => too_new.push((lane.clone(), id, newer(format), 0)),
            Read::Unknown => {
                tracing::warn!(entry = %id, "dropping an entry that is no request");
                removals.push(nothing(id));
            }
        }
    }
    if !too_new.is_empty() {
        tracing::warn!(
            count = too_new.len(),
            "handing back requests of a newer format, for newer workers"
        );
        if let Err(error) = release::hand_over(inner, too_new).await {
            tracing::warn!(%error, "failed to hand requests back");
        }
    }
    if !removals.is_empty() {
        release::discard(inner, lane, removals).await;
    }
    jobs
}
