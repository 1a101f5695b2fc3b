//! The worker's side: requests come out, outcomes go back.
//!
//! Reading blocks, so it has a connection of its own; all else goes over a second one. The files are layers, each of
//! which uses those before it:
//!
//! - `leases`: the requests that this worker holds, which `renew` keeps alive, and `unsent`, the answers on their way,
//! - `inner`: the state that all share,
//! - `read`: reading entries,
//! - `answer`, and `release`, which hands requests back,
//! - `intake`: from entries to jobs, with their large bodies (`bodies`),
//! - `suspects`: requests that may have killed another worker, which run with nothing beside them,
//! - `lanes`: the lanes of other requests than ordinary ones, and the turns in which all are read,
//! - `fetch`, and `exchange`, which answers and fetches in one write.

mod answer;
pub(crate) mod bodies;
mod exchange;
mod fetch;
mod inner;
mod intake;
mod lanes;
mod leases;
mod options;
mod read;
mod release;
mod renew;
mod suspects;
mod unsent;

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use crate::{Endpoint, Job, JobId, Outcome, QueueError, id::EntryId};
use inner::Inner;
use leases::Leases;
pub use options::{ConsumerLimits, ConsumerOptions};
pub use renew::Renewer;

/// Requests whose clients have left while a worker held them.
#[derive(Debug)]
pub struct Abandoned(HashSet<EntryId>);

impl Abandoned {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request is one of them.
    #[must_use]
    pub fn contains(&self, id: &JobId) -> bool {
        self.0.contains(&id.entry)
    }
}

/// The worker's side of the queue. A fetch may wait while a batch is answered, so all methods take `&self`.
pub struct Consumer {
    inner: Arc<Inner>,
}

impl Consumer {
    /// Joins the workers of a revision. Requests that an earlier process of this name held are set aside, as one of
    /// them may be why it ended. Waits for a Redis that is absent or can't serve now for as long as it takes: drop the
    /// future to give up.
    pub async fn connect(endpoint: Endpoint, options: ConsumerOptions) -> Result<Self, QueueError> {
        let inner = Arc::new(Inner::new(endpoint, options)?);
        let mut told = false;
        loop {
            match inner.join(true).await {
                Ok(()) => return Ok(Self { inner }),
                Err(error) if error.passes() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "waiting for Redis");
                    }
                    inner.pause().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Applies changed bounds.
    pub fn set_limits(&self, limits: ConsumerLimits) {
        *self
            .inner
            .limits
            .write()
            .unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Takes up to `capacity` requests, waiting about a second for the first; none if none came.
    ///
    /// Jobs in `quarantine` come by themselves, and only once everything handed out before has been answered or
    /// released; until they are, nothing else comes.
    ///
    /// An error means that Redis can't be reached or can't serve now. The pause before the next attempt is inside, so
    /// just call again: after all but [`QueueError::ArtifactChanged`], which lasts.
    /// The future must be driven to its end: requests that a dropped one has read are run only when its lease is over.
    pub async fn fetch(&self, capacity: usize) -> Result<Vec<Job>, QueueError> {
        self.fetch_within(capacity, fetch::BLOCK).await
    }

    /// Takes requests as [`Self::fetch`] does, waiting for the first no longer than `wait`, which counts in
    /// milliseconds; zero does not wait.
    pub async fn fetch_within(
        &self,
        capacity: usize,
        wait: Duration,
    ) -> Result<Vec<Job>, QueueError> {
        fetch::fetch(&self.inner, capacity, wait).await
    }

    /// Answers requests.
    ///
    /// The first success wins, whoever holds the request by now; a failure counts only while this worker holds it.
    /// Waits for Redis until nobody waits for any of the answers any more. Large answers that have no room in Redis now
    /// are kept, and sent with later calls.
    pub async fn answer(&self, answers: Vec<(JobId, Outcome)>) -> Result<(), QueueError> {
        answer::answer(&self.inner, answers).await
    }

    /// Answers requests as [`Self::answer`] does, and takes up to `capacity` new ones that are there already, in one
    /// write.
    pub async fn exchange(
        &self,
        answers: Vec<(JobId, Outcome)>,
        capacity: usize,
    ) -> Result<Vec<Job>, QueueError> {
        exchange::exchange(&self.inner, answers, capacity).await
    }

    /// Returns the requests that this worker was given whose clients have left since the last time it asked, as answers
    /// brought it up. They are in the queue no more.
    #[must_use]
    pub fn abandoned(&self) -> Abandoned {
        Abandoned(self.inner.leases(Leases::take_abandoned))
    }

    /// Returns the renewer of leases, to be run in a task of its own as long as the consumer lives.
    #[must_use]
    pub fn renewer(&self) -> Renewer {
        Renewer::new(&self.inner)
    }

    /// Hands back requests that have not started. Other workers get them at once, and their deliveries do not count.
    pub async fn release(&self, jobs: Vec<JobId>) -> Result<(), QueueError> {
        let entries = jobs.into_iter().map(|job| (job.lane, job.entry));
        release::release(&self.inner, entries.collect()).await
    }

    /// Hands back all requests that are still held and signs off.
    pub async fn leave(self) -> Result<(), QueueError> {
        release::leave(&self.inner).await
    }
}
