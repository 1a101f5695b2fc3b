//! The worker's side: requests come out, outcomes go back.
//!
//! Reading blocks, so it has a connection of its own; all else goes over a second one. What this worker holds is known
//! here (`held`), so that leases are renewed for it (`renew`) and requests that may have killed another worker are
//! handed out one by one, with nothing beside them (`suspects`).

mod answer;
mod fetch;
mod held;
mod release;
mod renew;
mod suspects;

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    Connection, Job, JobId, Outcome, QueueError,
    call::Call,
    connection::{Backoff, Link},
    keys::Keys,
    scripts::{CONNECT, GONE_AFTER_MS},
    wire,
};
use held::Held;
pub use renew::{RenewalEnd, Renewer};
use suspects::Suspect;

/// How long Redis may take to answer what does not block.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a read waits in Redis: looking for the entries of dead workers comes between two reads, once a second.
const BLOCK: Duration = Duration::from_secs(1);

/// How long this side waits for a read: a half-open connection answers never.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the entries of dead workers are looked for.
const TAKE_OVER_EVERY: Duration = Duration::from_secs(1);

/// How long replies live without their proxy.
const REPLIES_LIVE: Duration = Duration::from_mins(1);

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
    /// How long it may be silent before others take its requests.
    pub lease: Duration,
    /// How often a request may be given to a worker, the first time included.
    pub max_deliveries: u32,
    /// How long a Redis that is absent or can't serve now is waited for.
    pub patience: Duration,
}

struct Inner {
    keys: Keys,
    revision: String,
    name: String,
    artifact: Option<String>,
    settings: RwLock<Settings>,
    /// How long an absent Redis is waited for.
    patience: Duration,
    /// For reads that block.
    reads: Link,
    /// For everything else.
    commands: Link,
    held: Mutex<Held>,
    /// Something was answered or handed back.
    settled: Notify,
    backoff: Mutex<Backoff>,
}

#[derive(Clone, Copy)]
struct Settings {
    lease: Duration,
    max_deliveries: u32,
}

impl Consumer {
    /// Joins the workers of a revision and takes back what an earlier process of this name held. Waits for Redis up to
    /// [`ConsumerOptions::patience`], as each [`Self::answer`] will.
    pub async fn connect(
        connection: Connection,
        options: ConsumerOptions,
    ) -> Result<Self, QueueError> {
        let ConsumerOptions {
            uid,
            revision,
            name,
            artifact,
            lease,
            max_deliveries,
            patience,
        } = options;
        let inner = Arc::new(Inner {
            keys: Keys::new(&uid)?,
            revision,
            name,
            artifact,
            settings: RwLock::new(Settings {
                lease,
                max_deliveries,
            }),
            patience,
            reads: Link::new(connection.clone(), READ_TIMEOUT),
            commands: Link::new(connection, RESPONSE_TIMEOUT),
            held: Mutex::default(),
            settled: Notify::new(),
            backoff: Mutex::new(Backoff::new()),
        });
        let give_up = Instant::now() + patience;
        loop {
            match inner.join().await {
                Ok(before) => {
                    // They were there when the process of this name ended, so they may be why.
                    inner.held(|held| held.suspect(before));
                    return Ok(Self { inner });
                }
                Err(error) if error.passes() && Instant::now() < give_up => {
                    tracing::debug!(%error, "waiting for Redis");
                    inner.pause().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Applies a changed lease and number of deliveries.
    pub fn set_limits(&self, lease: Duration, max_deliveries: u32) {
        *self
            .inner
            .settings
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Settings {
            lease,
            max_deliveries,
        };
    }

    /// Takes up to `room` requests, waiting about a second for the first; none if none came.
    ///
    /// A job with `alone` comes by itself, and only once everything handed out before has been answered or released;
    /// until it is, nothing else comes.
    ///
    /// An error means that Redis can't be reached or can't serve now. The pause before the next try is inside, so just
    /// call again: all but [`QueueError::ArtifactChanged`], which lasts.
    /// The future must be driven to its end: what a dropped one has read is run only when its lease is over.
    pub async fn fetch(&self, room: usize) -> Result<Vec<Job>, QueueError> {
        self.fetch_within(room, BLOCK).await
    }

    /// The same, waiting for the first request no longer than `wait`, which counts in milliseconds; zero does not wait.
    pub async fn fetch_within(&self, room: usize, wait: Duration) -> Result<Vec<Job>, QueueError> {
        fetch::fetch(&self.inner, room, wait).await
    }

    /// Answers requests, and takes up to `room` new ones that are there already, in one write.
    ///
    /// The first success wins, whoever holds the request by now; a failure counts only while this worker holds it.
    /// Waits for Redis as long as the connect did; after that the requests are given up here, and run again when their
    /// lease is over.
    pub async fn answer(
        &self,
        answers: Vec<(JobId, Outcome)>,
        room: usize,
    ) -> Result<Vec<Job>, QueueError> {
        answer::answer(&self.inner, answers, room).await
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
    fn jobs(&self) -> String {
        self.keys.jobs(&self.revision)
    }

    fn settings(&self) -> Settings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
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

    /// Makes sure that stream and group are there and that the revision is the artifact loaded here; says what this
    /// consumer holds.
    async fn join(&self) -> Result<Vec<Suspect>, QueueError> {
        let keys = [self.jobs(), self.keys.bytes(), self.keys.artifacts()];
        let mut command = CONNECT.call(&keys.each_ref().map(String::as_str), 0);
        let given = self.artifact.as_deref().unwrap_or_default();
        command
            .arg(&self.revision)
            .arg(&self.name)
            .arg(GONE_AFTER_MS)
            .arg(given);
        let call = Call::of_script(&CONNECT, command);
        let operation = "a worker's start";
        let mut values = wire::list(self.commands.last(&call, operation).await?).into_iter();
        let recorded: String = values
            .next()
            .and_then(wire::parse)
            .ok_or(QueueError::Answer { operation })?;
        if recorded != given {
            return Err(QueueError::ArtifactChanged {
                revision: self.revision.clone(),
                recorded,
                given: given.to_owned(),
            });
        }
        Ok(suspects::counted(values))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
