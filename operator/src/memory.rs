//! What the operator remembers of each resource while it runs. Most of it only spares questions and writes. Two
//! clocks decide: how long a candidate has waited for room, and for how long a revision has been named to proxies.
//! After a restart both begin anew, so a rollout goes on later, never wrongly.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use carpool_crds::Loaded;

use crate::rollout::Patience;

/// A backlog older than this is unknown again.
const FRESH: Duration = Duration::from_secs(5);

/// What was applied, and what the API server made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Of what was rendered.
    pub hash: u64,
    /// Of the object.
    pub uid: Option<String>,
    /// The object's generation or, where the kind has none, its resource version. Another one means that somebody
    /// else wrote.
    pub version: Option<String>,
}

/// The queue as proxies last told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// When.
    pub at: Instant,
    /// Requests waiting and in flight, by revision.
    pub lengths: BTreeMap<String, u64>,
    /// The revision that all proxies and injected sidecars feed; `None` where they differ or one does not answer.
    pub serving: Option<String>,
}

/// What the workers of a revision said of their model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// When.
    pub at: Instant,
    /// The workers that were asked, by name.
    pub workers: BTreeSet<String>,
    /// The answer of the one that serves it in the poorest way.
    pub model: Loaded,
}

/// One resource.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Children, by kind and name.
    pub applied: HashMap<(String, String), Applied>,
    /// The queue.
    pub told: Option<Told>,
    /// Whether proxies have been asked for it.
    pub asked: bool,
    /// The revision that the configuration says to feed, and since when.
    pub serving: Option<(String, Instant)>,
    /// Revisions of which a worker has been seen Ready.
    pub loaded: BTreeSet<String>,
    /// What workers said of their models, by revision.
    pub reports: BTreeMap<String, Reported>,
    /// For how long a candidate may wait for room.
    pub patience: Patience,
    /// When the queue's length was last written into the status.
    pub length_written: Option<Instant>,
    /// Reconciles that failed in a row.
    pub failures: u32,
}

impl Remembered {
    /// For how long the configuration has named the revision that it names.
    #[must_use]
    pub fn served_for(&self, now: Instant) -> Duration {
        self.serving.as_ref().map_or(Duration::ZERO, |(_, since)| {
            now.saturating_duration_since(*since)
        })
    }

    /// The queue, if what was told is recent.
    #[must_use]
    pub fn fresh(&self, now: Instant) -> Option<&Told> {
        self.told
            .as_ref()
            .filter(|told| now.saturating_duration_since(told.at) < FRESH)
    }
}

/// All resources, by UID.
#[derive(Debug, Default)]
pub struct Memory {
    resources: Mutex<HashMap<String, Arc<Mutex<Remembered>>>>,
}

impl Memory {
    /// What is remembered of a resource.
    pub fn of(&self, uid: &str) -> Arc<Mutex<Remembered>> {
        let mut resources = lock(&self.resources);
        Arc::clone(resources.entry(uid.to_owned()).or_default())
    }

    /// Forgets all resources but these.
    pub fn retain(&self, uids: &BTreeSet<String>) {
        lock(&self.resources).retain(|uid, _| uids.contains(uid));
    }
}

/// Locks what no panic can leave half-written: every change is a single assignment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
