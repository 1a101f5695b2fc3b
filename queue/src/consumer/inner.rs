//! The state that all parts of a consumer share.

use std::{
    sync::{Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    lanes::{self, Lanes},
    leases::Leases,
    options::{ConsumerLimits, ConsumerOptions},
    unsent::Unsent,
};
use crate::{
    Endpoint, QueueError,
    backoff::Backoff,
    call::Call,
    keys::Keys,
    lane::Lane,
    manager::ConnectionManager,
    scripts::{CONNECT, GONE_AFTER_MS},
    wire,
};

/// The longest time that Redis may take to answer a command that does not block.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time that this side waits for a read that blocks: over a half-open connection no answer ever comes.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Inner {
    pub(super) keys: Keys,
    /// The lane of the revision's ordinary requests.
    pub(super) common: Lane,
    pub(super) revision: String,
    pub(super) name: String,
    pub(super) artifact: Option<String>,
    pub(super) limits: RwLock<ConsumerLimits>,
    /// The connection for reads that block.
    pub(super) reads: ConnectionManager,
    /// The connection for everything else.
    pub(super) commands: ConnectionManager,
    pub(super) leases: Mutex<Leases>,
    /// The revision's other lanes.
    pub(super) lanes: Mutex<Lanes>,
    pub(super) unsent: Mutex<Unsent>,
    /// A signal that some request was answered or handed back.
    pub(super) settled: Notify,
    pub(super) backoff: Mutex<Backoff>,
}

impl Inner {
    pub(super) fn new(endpoint: Endpoint, options: ConsumerOptions) -> Result<Self, QueueError> {
        let ConsumerOptions {
            uid,
            revision,
            name,
            artifact,
            limits,
        } = options;
        let keys = Keys::new(&uid)?;
        Ok(Self {
            common: keys.lane(&revision),
            lanes: Mutex::default(),
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
        })
    }

    pub(super) fn limits(&self) -> ConsumerLimits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn leases<T>(&self, change: impl FnOnce(&mut Leases) -> T) -> T {
        change(&mut self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn lanes<T>(&self, change: impl FnOnce(&mut Lanes) -> T) -> T {
        change(&mut self.lanes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns every lane in which this worker may hold requests, the common one first.
    pub(super) fn all_lanes(&self) -> Vec<Lane> {
        let mut all = vec![self.common.clone()];
        all.extend(self.lanes(|lanes| lanes.known()));
        all
    }

    /// Waits before Redis is tried again.
    pub(super) async fn pause(&self) {
        let pause = self
            .backoff
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next();
        tokio::time::sleep(pause).await;
    }

    pub(super) fn reached(&self) {
        self.backoff
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reset();
    }

    /// Makes sure that stream and group are there and that the revision's artifact is the one loaded here. A `fresh`
    /// process sets aside the requests that another one of its name held.
    pub(super) async fn join(&self, fresh: bool) -> Result<(), QueueError> {
        let given = self.artifact.as_deref().unwrap_or_default();
        self.join_lane(&self.common, given, fresh).await?;
        if fresh {
            lanes::look(self).await?;
            for lane in self.lanes(|lanes| lanes.known()) {
                self.join_lane(&lane, "", fresh).await?;
            }
        }
        Ok(())
    }

    /// Joins the workers of one lane. `given` is the checksum of the artifact loaded here; it may be empty.
    async fn join_lane(&self, lane: &Lane, given: &str, fresh: bool) -> Result<(), QueueError> {
        let keys = [lane.jobs(), &self.keys.bytes(), &self.keys.artifacts()];
        let mut command = CONNECT.call(&keys, 0);
        command
            .arg(lane.name())
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

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
