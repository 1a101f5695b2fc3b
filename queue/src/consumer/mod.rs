//! The worker's side: requests come out, outcomes go back.
//!
//! Reading blocks, so it has a connection of its own; all else goes over a second one. What this worker holds is known
//! here (`leases`), so that leases are renewed for it (`renew`) and requests that may have killed another worker run with
//! nothing beside them (`quarantine`). Large bodies are kept beside the stream (`bodies`).

mod answer;
mod bodies;
mod fetch;
mod leases;
mod quarantine;
mod release;
mod renew;

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    Endpoint, Job, JobId, Outcome, QueueError,
    call::Call,
    connection::{Backoff, ConnectionManager},
    keys::{Class, Keys, Lane},
    scripts::{CONNECT, GONE_AFTER_MS},
    wire,
};
use answer::Unsent;
use leases::Leases;
pub use renew::Renewer;

/// How long Redis may take to answer what does not block.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a read waits in Redis: looking for the entries of dead workers comes between two reads, once a second.
const BLOCK: Duration = Duration::from_secs(1);

/// How long this side waits for a read: a half-open connection answers never.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the entries of dead workers are looked for.
const TAKE_OVER_EVERY: Duration = Duration::from_secs(1);

/// The worker's side of the queue. A fetch may wait while a batch is answered, so all methods take `&self`.
pub struct Consumer {
    inner: Arc<Inner>,
}

/// How a worker joins the queue.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// The resource's UID.
    pub uid: String,
    /// The revision that it serves.
    pub revision: String,
    /// Its process's own name. The next process of this name takes back what this one held.
    pub name: String,
    /// The SHA-256 of the artifact that it has loaded. The first one is recorded as the revision's; a worker with another
    /// one is refused. Without it nothing is recorded or compared.
    pub artifact: Option<String>,
    /// What may change while it serves.
    pub limits: ConsumerLimits,
}

/// A worker's bounds, as the resource states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerLimits {
    /// How long it may be silent before others take its requests.
    pub lease: Duration,
    /// How often a request may be given to a worker, the first time included.
    pub max_deliveries: u32,
    /// Bytes of request bodies and unread large answers that Redis may hold.
    pub max_bytes: u64,
}

struct Inner {
    keys: Keys,
    lane: Lane,
    revision: String,
    name: String,
    artifact: Option<String>,
    limits: RwLock<ConsumerLimits>,
    /// For reads that block.
    reads: ConnectionManager,
    /// For everything else.
    commands: ConnectionManager,
    leases: Mutex<Leases>,
    unsent: Mutex<Unsent>,
    /// Something was answered or handed back.
    settled: Notify,
    backoff: Mutex<Backoff>,
}

impl Consumer {
    /// Joins the workers of a revision; what an earlier process of this name held is set aside, as it may be why that ended.
    /// Waits for a Redis that is absent or can't serve now for as long as it takes: drop the future to give up.
    pub async fn connect(endpoint: Endpoint, options: ConsumerOptions) -> Result<Self, QueueError> {
        let ConsumerOptions {
            uid,
            revision,
            name,
            artifact,
            limits,
        } = options;
        let keys = Keys::new(&uid)?;
        let inner = Arc::new(Inner {
            lane: keys.lane(&revision, Class::Interactive),
            keys,
            revision,
            name,
            artifact,
            limits: RwLock::new(limits),
            reads: ConnectionManager::new(endpoint.clone(), READ_TIMEOUT),
            commands: ConnectionManager::new(endpoint, RESPONSE_TIMEOUT),
            leases: Mutex::default(),
            unsent: Mutex::default(),
            settled: Notify::new(),
            backoff: Mutex::new(Backoff::new()),
        });
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
    /// Jobs in `quarantine` come by themselves, and only once everything handed out before has been answered or released;
    /// until they are, nothing else comes.
    ///
    /// An error means that Redis can't be reached or can't serve now. The pause before the next try is inside, so just
    /// call again: all but [`QueueError::ArtifactChanged`], which lasts.
    /// The future must be driven to its end: what a dropped one has read is run only when its lease is over.
    pub async fn fetch(&self, capacity: usize) -> Result<Vec<Job>, QueueError> {
        self.fetch_within(capacity, BLOCK).await
    }

    /// The same, waiting for the first request no longer than `wait`, which counts in milliseconds; zero does not wait.
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
    /// Waits for Redis until nobody waits for any of the answers any more. Large answers that have no room in Redis now are
    /// kept, and sent with later calls.
    pub async fn answer(&self, answers: Vec<(JobId, Outcome)>) -> Result<(), QueueError> {
        answer::answer(&self.inner, answers).await
    }

    /// Answers requests as [`Self::answer`] does, and takes up to `capacity` new ones that are there already, in one write.
    pub async fn exchange(
        &self,
        answers: Vec<(JobId, Outcome)>,
        capacity: usize,
    ) -> Result<Vec<Job>, QueueError> {
        answer::exchange(&self.inner, answers, capacity).await
    }

    /// What renews leases. To be run in a task of its own as long as the consumer lives.
    #[must_use]
    pub fn renewer(&self) -> Renewer {
        Renewer::new(&self.inner)
    }

    /// Hands back requests that have not started. Other workers get them at once, and their deliveries do not count.
    pub async fn release(&self, jobs: Vec<JobId>) -> Result<(), QueueError> {
        release::release(&self.inner, jobs.into_iter().map(|job| job.entry).collect()).await
    }

    /// Hands back what is still held and signs off.
    pub async fn leave(self) -> Result<(), QueueError> {
        release::leave(&self.inner).await
    }
}

impl Inner {
    fn limits(&self) -> ConsumerLimits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases<T>(&self, change: impl FnOnce(&mut Leases) -> T) -> T {
        change(&mut self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits before Redis is tried again.
    async fn pause(&self) {
        let pause = self
            .backoff
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next();
        tokio::time::sleep(pause).await;
    }

    fn reached(&self) {
        self.backoff
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reset();
    }

    /// Makes sure that stream and group are there and that the revision is the artifact loaded here. A `fresh` process sets
    /// aside what another one of its name held.
    async fn join(&self, fresh: bool) -> Result<(), QueueError> {
        let keys = [&*self.lane.jobs, &self.keys.bytes(), &self.keys.artifacts()];
        let mut command = CONNECT.call(&keys, 0);
        let given = self.artifact.as_deref().unwrap_or_default();
        command
            .arg(&self.revision)
            .arg(&self.name)
            .arg(GONE_AFTER_MS)
            .arg(given)
            .arg(u8::from(fresh));
        let call = Call::of_script(&CONNECT, command);
        let operation = "a worker's start";
        let recorded: String = wire::parse(self.commands.last(&call, operation).await?)
            .ok_or(QueueError::Answer { operation })?;
        if recorded != given {
            return Err(QueueError::ArtifactChanged {
                revision: self.revision.clone(),
                recorded,
                given: given.to_owned(),
            });
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
