//! The operator's memory of each resource, which lasts as long as the operator leads. Most of it only spares questions
//! and writes. Three clocks decide: how long a queue has been short or long, how long a candidate has waited for room,
//! and for how long a revision has been named to proxies. After a restart all begin anew, so workers leave and a
//! rollout goes on later, never wrongly.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use carpool_crds::Loaded;
use carpool_scaling::{Decision, Scaler, backlog::RevisionBacklog};
use kube::ResourceExt;
use prometheus_client::encoding::EncodeLabelSet;

use crate::{reconcile::secret, rollout::Patience};

/// A backlog older than this is unknown again.
const FRESH: Duration = Duration::from_secs(5);

/// A child as it was last applied, and what the API server made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Hash of the rendered child.
    pub hash: u64,
    /// UID of the object.
    pub uid: Option<String>,
    /// [`Live::digest`](crate::live::Live::digest) of the object. Another one means that somebody else wrote.
    pub digest: u64,
}

/// A child that the cluster refused.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Hash of the rendered child.
    pub hash: u64,
    /// The time of the refusal.
    pub at: Instant,
    /// The API server's message.
    pub why: String,
}

/// The queue of a model, as its proxies and injected sidecars told it at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BacklogSample {
    /// The moment at which they told it.
    pub at: Instant,
    /// Requests and their workers, by revision. A queue that nothing was ever put into is not listed.
    pub revisions: BTreeMap<String, RevisionBacklog>,
    /// The revision that all who take requests feed at each place of the queue, in the order of places; `None` where they
    /// differ or one does not answer. A pod of no known place stands under "".
    pub feeding: BTreeMap<String, Option<String>>,
}

impl BacklogSample {
    /// Requests of a revision that wait or are in flight.
    #[must_use]
    pub fn length(&self, revision: &str) -> u64 {
        self.revisions
            .get(revision)
            .map_or(0, |queued| queued.length)
    }

    /// Whether somebody told of the queue at this place.
    #[must_use]
    pub fn knows(&self, place: &str) -> bool {
        self.feeding.contains_key(place) || self.feeding.contains_key("")
    }

    /// Whether all who told of the queue at this place, or at every one for `None`, feed this revision, and somebody did.
    #[must_use]
    pub fn is_fed(&self, place: Option<&String>, revision: Option<&String>) -> bool {
        let mut told = self
            .feeding
            .iter()
            .filter(|(at, _)| at.is_empty() || place.is_none_or(|place| place == *at))
            .map(|(_, fed)| fed.as_ref() == revision)
            .peekable();
        told.peek().is_some() && told.all(|feeds| feeds)
    }

    /// Requests of all revisions that wait or are in flight.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.revisions.values().map(|queued| queued.length).sum()
    }
}

/// A report of a revision's workers on their model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// The time of the report.
    pub at: Instant,
    /// The workers that were asked, by name.
    pub workers: BTreeSet<String>,
    /// The answer of the one that serves it in the poorest way.
    pub model: Loaded,
}

/// A resource, as metrics name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModelLabels {
    /// Namespace of the resource.
    pub namespace: String,
    /// Name of the resource.
    pub name: String,
}

impl ModelLabels {
    fn of(model: &impl ResourceExt) -> Self {
        Self {
            namespace: model.namespace().unwrap_or_default(),
            name: model.name_any(),
        }
    }
}

/// Workers of all revisions of one resource, as metrics show them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerCounts {
    /// Workers asked for.
    pub wanted: i32,
    /// Workers that are Ready.
    pub ready: usize,
}

/// The memory of one resource.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Children as they were last applied, by kind and name.
    pub applied: HashMap<(String, String), Applied>,
    /// Children that the cluster refused, by kind and name.
    pub refused: HashMap<(String, String), Refused>,
    /// The last answer of the proxies about the queue.
    pub backlog: Option<BacklogSample>,
    /// Whether proxies have been asked about the queue.
    pub asked: bool,
    /// The length of each revision's queue over time.
    pub scalers: BTreeMap<String, Scaler>,
    /// The number of workers that each revision's queue needs.
    pub decisions: BTreeMap<String, Decision>,
    /// Whether the last attempt to write a number of workers failed.
    pub scale_failed: bool,
    /// The revision that the configuration says to feed, and since when.
    pub active: Option<(String, Instant)>,
    /// Revisions of which a worker has been seen Ready.
    pub loaded: BTreeSet<String>,
    /// Workers' reports of their models, by revision.
    pub reports: BTreeMap<String, Reported>,
    /// The clock of a candidate that waits for room.
    pub patience: Patience,
    /// Workers as a reconcile last counted them.
    pub workers: Option<WorkerCounts>,
    /// The time at which the queue's length was last written into the status.
    pub length_written: Option<Instant>,
    /// The Secret of a managed Redis.
    pub secret: secret::Memory,
    /// Reconciles that failed in a row.
    pub failures: u32,
}

impl Remembered {
    /// The time for which the configuration has named the revision that it names.
    #[must_use]
    pub fn active_for(&self, now: Instant) -> Duration {
        self.active.as_ref().map_or(Duration::ZERO, |(_, since)| {
            now.saturating_duration_since(*since)
        })
    }

    /// The last answer about the queue, if it is recent.
    #[must_use]
    pub fn fresh(&self, now: Instant) -> Option<&BacklogSample> {
        self.backlog
            .as_ref()
            .filter(|sample| now.saturating_duration_since(sample.at) < FRESH)
    }
}

/// The memory of one resource, shared.
pub type Entry = Arc<Mutex<Remembered>>;

/// The memory of all resources, by UID.
#[derive(Debug, Default)]
pub struct Memory {
    resources: Mutex<HashMap<String, (ModelLabels, Entry)>>,
}

impl Memory {
    /// The memory of a resource.
    pub fn of(&self, model: &impl ResourceExt) -> Entry {
        let mut resources = lock(&self.resources);
        let (_, entry) = resources
            .entry(model.uid().unwrap_or_default())
            .or_insert_with(|| (ModelLabels::of(model), Entry::default()));
        Arc::clone(entry)
    }

    /// Forgets all resources but these.
    pub fn retain(&self, uids: &BTreeSet<String>) {
        lock(&self.resources).retain(|uid, _| uids.contains(uid));
    }

    /// Every resource with its memory.
    pub fn all(&self) -> Vec<(ModelLabels, Entry)> {
        lock(&self.resources).values().cloned().collect()
    }
}

/// Locks what no panic can leave half-written: every change is a single assignment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
