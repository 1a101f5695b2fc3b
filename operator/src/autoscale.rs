//! The sampling of queues: every second, for every resource, asks the proxies for the queue's length, decides how many
//! workers it needs and, where a decision changes, asks for a reconcile. Writes nothing to the cluster itself.

mod ask;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use carpool_crds::{BatchedModel, Loaded};
use carpool_scaling::{Observation, Scaler, backlog::AdminClient};
use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    index::ModelRef,
    memory::{Remembered, lock},
    reconcile::{
        Context,
        observe::{self, Workloads},
        report::LENGTH_EVERY,
    },
};

/// The time between two samples of a queue.
const TICK: Duration = Duration::from_secs(1);
/// The time within which a kubelet has read a changed `ConfigMap` even where nothing made it look at once.
const KUBELET_READS_AGAIN: Duration = Duration::from_mins(3);

/// Samples every resource until dropped. Resources that need a reconcile go to `reconcile`.
pub async fn run(context: Arc<Context>, reconcile: UnboundedSender<ModelRef>) {
    context.cluster.ready().await;
    let asker = AdminClient::new();
    let mut last_news: HashMap<String, Arc<Mutex<Option<News>>>> = HashMap::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running = JoinSet::new();
    loop {
        ticks.tick().await;
        while running.try_join_next().is_some() {}
        let models = context.cluster.models.state();
        let models = models.iter().filter_map(|stored| stored.0.as_ref().ok());
        let mut present = BTreeSet::new();
        for model in models.filter(|model| model.metadata.deletion_timestamp.is_none()) {
            let Some(uid) = model.uid() else { continue };
            let last = Arc::clone(last_news.entry(uid.clone()).or_default());
            present.insert(uid);
            // A resource that still waits for an answer from its last turn misses this one.
            if let Ok(mut last) = last.try_lock_owned() {
                let turn = Turn {
                    context: Arc::clone(&context),
                    asker: asker.clone(),
                    model: model.clone(),
                };
                let reconcile = reconcile.clone();
                running.spawn(async move {
                    let news = turn.take().await;
                    if news.is_urgent || last.as_ref() != Some(&news) {
                        // The send fails only where the controller has gone, and so will this task.
                        let _ = reconcile.unbounded_send(turn.model_ref());
                        *last = Some(news);
                    }
                });
            }
        }
        last_news.retain(|uid, _| present.contains(uid));
        context.memory.retain(&present);
    }
}

/// Everything that a turn finds out and a plan depends on: news is what differs from the turn before.
#[derive(Debug, PartialEq, Eq)]
struct News {
    /// Whether a reconcile is due even where all else is as before.
    is_urgent: bool,
    /// Whether the queue's length is known.
    known: bool,
    /// The revision that all proxies feed.
    feeding: Option<String>,
    /// Revisions whose queue holds a request, where there is more than one revision.
    waiting: BTreeSet<String>,
    /// Workers that each revision's queue needs.
    decisions: BTreeMap<String, u32>,
    /// The report of the active revision's workers on their model.
    report: Option<Loaded>,
}

/// A resource's turn within one tick.
struct Turn {
    context: Arc<Context>,
    asker: AdminClient,
    model: BatchedModel,
}

impl Turn {
    fn model_ref(&self) -> ModelRef {
        ObjectRef::new(&self.model.name_any()).within(&self.model.namespace().unwrap_or_default())
    }

    async fn take(&self) -> News {
        let remembered = self.context.memory.of(&self.model);
        let uid = self.model.uid().unwrap_or_default();
        let model = self.model_ref();
        let workloads = Workloads::of(&self.context.cluster, &model, &uid);
        let all = workloads.workers.len() > 1;
        let heard = ask::backlog(&self.asker, &workloads.pods, all).await;
        {
            let mut remembered = lock(&remembered);
            let now = Instant::now();
            remembered.asked |= workloads.proxy.is_some();
            if let Some((mut sample, silence)) = heard {
                // An app's own NetworkPolicy may keep its sidecar from answering for ever.
                if silence && remembered.active_for(now) < KUBELET_READS_AGAIN {
                    sample.feeding = None;
                }
                remembered.backlog = Some(sample);
            }
            self.decide(&mut remembered, &workloads.workers, now);
        }

        let (active, known) = {
            let remembered = lock(&remembered);
            let active = remembered.active.clone().map(|(revision, _)| revision);
            let known = active
                .as_ref()
                .and_then(|active| remembered.reports.get(active).cloned());
            (active, known)
        };
        let report = match &active {
            Some(active) => {
                ask::report(
                    &self.asker,
                    &workloads.pods,
                    active,
                    known.as_ref(),
                    Instant::now(),
                )
                .await
            }
            None => None,
        };
        let mut remembered = lock(&remembered);
        if let Some((active, report)) = active.clone().zip(report) {
            remembered.reports.insert(active, report);
        }
        remembered
            .reports
            .retain(|revision, _| workloads.workers.contains_key(revision));
        self.news(&remembered, active.as_deref(), Instant::now())
    }

    /// Decides for each revision how many workers its queue needs.
    fn decide(
        &self,
        remembered: &mut Remembered,
        workers: &BTreeMap<String, Arc<Deployment>>,
        now: Instant,
    ) {
        let scaling = &self.model.spec.scaling;
        remembered
            .scalers
            .retain(|revision, _| workers.contains_key(revision));
        remembered
            .decisions
            .retain(|revision, _| workers.contains_key(revision));
        for (revision, deployment) in workers {
            let seen = Observation {
                length: remembered.fresh(now).map(|sample| sample.length(revision)),
                current: u32::try_from(observe::replicas(deployment)).unwrap_or(0),
                proven: remembered.loaded.contains(revision),
            };
            let scaler = remembered
                .scalers
                .entry(revision.clone())
                .or_insert_with(|| Scaler::new(scaling.clone()));
            scaler.set(scaling.clone());
            let decision = scaler.decide(now, seen);
            remembered.decisions.insert(revision.clone(), decision);
        }
    }

    fn news(&self, remembered: &Remembered, active: Option<&str>, now: Instant) -> News {
        let sample = remembered.fresh(now);
        let several = remembered.decisions.len() > 1;
        let waiting = sample.filter(|_| several).into_iter();
        let waiting = waiting.flat_map(|sample| &sample.revisions);
        let decisions = remembered.decisions.iter();
        let report = active.and_then(|active| remembered.reports.get(active));
        News {
            is_urgent: remembered.scale_failed || self.length_is_due(remembered, now),
            known: sample.is_some(),
            feeding: sample.and_then(|sample| sample.feeding.clone()),
            waiting: waiting
                .filter(|(_, queued)| queued.length > 0)
                .map(|(revision, _)| revision.clone())
                .collect(),
            decisions: decisions
                .map(|(revision, decision)| (revision.clone(), decision.replicas))
                .collect(),
            report: report.map(|report| report.model.clone()),
        }
    }

    /// Whether the status shows a length that is no longer so, and may be written again.
    fn length_is_due(&self, remembered: &Remembered, now: Instant) -> bool {
        let shown = self.model.status.as_ref();
        let shown = shown.map_or(0, |status| status.queue_length);
        let differs = remembered
            .fresh(now)
            .is_some_and(|sample| i64::try_from(sample.total()) != Ok(shown));
        let may_be_written =
            |written: Instant| now.saturating_duration_since(written) >= LENGTH_EVERY;
        differs && remembered.length_written.is_none_or(may_be_written)
    }
}
