//! The sampling of queues: every second, for every resource, asks the proxies for the queue's length, decides how many
//! workers it needs and, where a decision changes, asks for a reconcile. Writes nothing to the cluster itself.

mod ask;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use carpool_crds::{Loaded, Scaling};
use carpool_scaling::{Observation, Scaler, backlog::AdminClient};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    index::ModelRef,
    memory::{Entry, Remembered, lock},
    reconcile::{
        Context,
        observe::{self, Workloads},
        place,
        report::LENGTH_EVERY,
    },
};

/// The time between two samples of a queue.
const TICK: Duration = Duration::from_secs(1);
/// The time within which a kubelet has read a changed `ConfigMap` even where nothing made it look at once.
const KUBELET_READS_AGAIN: Duration = Duration::from_mins(3);

/// Ticks between two times at which what is remembered of resources that were made anew is forgotten.
const FORGET_EVERY: u32 = 30;

/// Samples every resource until dropped, and asks for a reconcile of those that need one.
pub async fn run(context: Arc<Context>) {
    context.cluster.ready().await;
    let asker = AdminClient::new();
    let mut models: HashMap<ModelRef, Sampled> = HashMap::new();
    let mut awake: HashSet<ModelRef> = HashSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running = JoinSet::new();
    let mut until_forget = FORGET_EVERY;
    loop {
        ticks.tick().await;
        while running.try_join_next().is_some() {}
        until_forget = until_forget.saturating_sub(1);
        for model in context.cluster.news.take() {
            let sampled = models.entry(model.clone()).or_default();
            sampled.news = true;
            awake.insert(model);
        }
        awake.retain(|model| {
            let Some(sampled) = models.get_mut(model) else {
                return false;
            };
            // A resource that still waits for an answer from its last turn misses this one.
            let Ok(mut last) = Arc::clone(&sampled.last).try_lock_owned() else {
                return true;
            };
            if last.sleeps && !sampled.news {
                return false;
            }
            sampled.news = false;
            let Some(turn) = Turn::of(&context, &asker, model) else {
                models.remove(model);
                context.forget(model);
                until_forget = 0;
                return false;
            };
            running.spawn(async move { turn.take(&mut last).await });
            true
        });
        if until_forget == 0 {
            until_forget = FORGET_EVERY;
            let models = context.cluster.models.state();
            context
                .memory
                .retain(&models.iter().filter_map(|model| model.uid()).collect());
        }
    }
}

/// A resource between its turns.
#[derive(Debug, Default)]
struct Sampled {
    /// Whether something has happened to it since its last turn.
    news: bool,
    /// The end of its last turn.
    last: Arc<Mutex<Last>>,
}

/// The end of a turn.
#[derive(Debug, Default)]
struct Last {
    /// UID of the resource.
    uid: String,
    /// The news of which a reconcile was asked for.
    told: Option<News>,
    /// Whether there is nobody to ask and nothing to wait for, so that turns are spared until something happens.
    sleeps: bool,
}

/// Everything that a turn finds out and a plan depends on: news is what differs from the turn before.
#[derive(Debug, PartialEq, Eq)]
struct News {
    /// Whether the queue's length is known.
    known: bool,
    /// The revision that all proxies feed at each place of the queue.
    feeding: BTreeMap<String, Option<String>>,
    /// Revisions whose queue holds a request, where there is more than one revision.
    waiting: BTreeSet<String>,
    /// Workers that each revision's queue needs.
    decisions: BTreeMap<String, u32>,
    /// The report of the active revision's workers on their model.
    report: Option<Loaded>,
}

impl News {
    fn of(remembered: &Remembered, now: Instant) -> Self {
        let sample = remembered.fresh(now);
        let several = remembered.decisions.len() > 1;
        let waiting = sample.filter(|_| several).into_iter();
        let waiting = waiting.flat_map(|sample| &sample.revisions);
        let decisions = remembered.decisions.iter();
        let active = remembered.active.as_ref();
        let report = active.and_then(|(active, _)| remembered.reports.get(active));
        Self {
            known: sample.is_some(),
            feeding: sample.map_or_else(BTreeMap::new, |sample| sample.feeding.clone()),
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
}

/// A resource's turn within one tick.
struct Turn {
    context: Arc<Context>,
    asker: AdminClient,
    model: ModelRef,
    uid: String,
    scaling: Scaling,
    /// The queue's length that the status shows.
    shown: i64,
    remembered: Entry,
}

impl Turn {
    /// The turn of a resource; `None` where it is gone or going.
    fn of(context: &Arc<Context>, asker: &AdminClient, model: &ModelRef) -> Option<Self> {
        let stored = context.cluster.models.get(model)?;
        let resource = stored.0.as_ref().ok()?;
        if resource.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let status = resource.status.as_ref();
        Some(Self {
            context: Arc::clone(context),
            asker: asker.clone(),
            model: model.clone(),
            uid: resource.uid()?,
            scaling: resource.spec.scaling.clone(),
            shown: status.map_or(0, |status| status.queue_length),
            remembered: context.memory.of(resource),
        })
    }

    async fn take(&self, last: &mut Last) {
        let remembered = &self.remembered;
        if last.uid != self.uid {
            *last = Last {
                uid: self.uid.clone(),
                ..Last::default()
            };
        }
        let workloads = Workloads::of(&self.context.cluster, &self.model, &self.uid);
        self.sample(&workloads, remembered).await;
        // Workers that do not answer for their model keep no decision waiting.
        self.tell(remembered, &mut last.told);
        if self.report(&workloads, remembered).await {
            self.tell(remembered, &mut last.told);
        }
        last.sleeps = workloads.pods.is_empty() && {
            let remembered = lock(remembered);
            !remembered.scale_failed && remembered.fresh(Instant::now()).is_none()
        };
    }

    /// Asks proxies for the queue, and decides.
    async fn sample(&self, workloads: &Workloads, remembered: &std::sync::Mutex<Remembered>) {
        let all = workloads.workers.len() > 1;
        let heard = ask::backlog(&self.asker, &workloads.pods, all).await;
        let mut remembered = lock(remembered);
        let now = Instant::now();
        remembered.asked |= workloads.proxy.is_some();
        if let Some((mut sample, silence)) = heard {
            // An app's own NetworkPolicy may keep its sidecar from answering for ever.
            if silence && remembered.active_for(now) < KUBELET_READS_AGAIN {
                sample.feeding.values_mut().for_each(|fed| *fed = None);
            }
            remembered.backlog = Some(sample);
        }
        self.decide(&mut remembered, &workloads.workers, now);
    }

    /// Asks the active revision's workers for their model, where that is due. Returns whether they said anything.
    async fn report(
        &self,
        workloads: &Workloads,
        remembered: &std::sync::Mutex<Remembered>,
    ) -> bool {
        let (active, known) = {
            let mut remembered = lock(remembered);
            remembered
                .reports
                .retain(|revision, _| workloads.workers.contains_key(revision));
            let Some((active, _)) = remembered.active.clone() else {
                return false;
            };
            let known = remembered.reports.get(&active).cloned();
            (active, known)
        };
        let (pods, now) = (&workloads.pods, Instant::now());
        let report = ask::report(&self.asker, pods, &active, known.as_ref(), now).await;
        let said = report.is_some();
        if let Some(report) = report {
            lock(remembered).reports.insert(active, report);
        }
        said
    }

    /// Asks for a reconcile where something differs from what the last one was asked for, or a write is due.
    fn tell(&self, remembered: &std::sync::Mutex<Remembered>, last: &mut Option<News>) {
        let now = Instant::now();
        let (news, is_due) = {
            let remembered = lock(remembered);
            let is_due = remembered.scale_failed || self.length_is_due(&remembered, now);
            (News::of(&remembered, now), is_due)
        };
        if is_due || last.as_ref() != Some(&news) {
            // The send fails only where the controller has gone, and so will this task.
            let _ = self.context.asks.unbounded_send(self.model.clone());
            *last = Some(news);
        }
    }

    /// Decides for each revision how many workers its queue needs.
    fn decide(
        &self,
        remembered: &mut Remembered,
        workers: &BTreeMap<String, Arc<Deployment>>,
        now: Instant,
    ) {
        let scaling = &self.scaling;
        remembered
            .scalers
            .retain(|revision, _| workers.contains_key(revision));
        remembered
            .decisions
            .retain(|revision, _| workers.contains_key(revision));
        for (revision, deployment) in workers {
            let seen = Observation {
                length: remembered
                    .fresh(now)
                    .filter(|sample| {
                        place::of(&**deployment).is_none_or(|place| sample.knows(place))
                    })
                    .map(|sample| sample.length(revision)),
                current: u32::try_from(observe::replicas(deployment)).unwrap_or(0),
                // A leader may decide before its first reconcile, which is what fills its memory.
                proven: remembered.loaded.contains(revision) || observe::has_loaded(deployment),
            };
            // A queue that is not fed yet, or no more, tells nothing of the workers that it will need: a revision that
            // becomes active keeps those that it has for a whole cooldown.
            let is_active = remembered
                .active
                .as_ref()
                .is_none_or(|(active, _)| active == revision);
            if !is_active {
                remembered.scalers.remove(revision);
            }
            let scaler = remembered
                .scalers
                .entry(revision.clone())
                .or_insert_with(|| Scaler::new(scaling.clone()));
            scaler.set(scaling.clone());
            let decision = scaler.decide(now, seen);
            remembered.decisions.insert(revision.clone(), decision);
        }
    }

    /// Whether the status shows a length that is no longer so, and may be written again.
    fn length_is_due(&self, remembered: &Remembered, now: Instant) -> bool {
        let shown = self.shown;
        let differs = remembered
            .fresh(now)
            .is_some_and(|sample| i64::try_from(sample.total()) != Ok(shown));
        let may_be_written =
            |written: Instant| now.saturating_duration_since(written) >= LENGTH_EVERY;
        differs && remembered.length_written.is_none_or(may_be_written)
    }
}

#[cfg(test)]
mod tests {
    use carpool_scaling::{Decision, Reason};
    use futures::channel::mpsc;
    use kube::runtime::reflector::ObjectRef;
    use serde_json::json;

    use super::*;
    use crate::{
        names,
        reconcile::{fixtures, mock},
    };

    #[tokio::test]
    async fn a_reconcile_is_asked_for_once_for_each_change_and_at_every_tick_while_a_write_is_due()
    {
        let (client, _) = mock::api_server(|_| None);
        let (reconcile, mut asked) = mpsc::unbounded();
        let mut context = mock::context(client);
        context.asks = reconcile;
        let context = Arc::new(context);
        let model = fixtures::sentiment();
        let turn = Turn {
            asker: AdminClient::new(),
            model: ObjectRef::new("sentiment").within("nlp"),
            uid: model.uid().unwrap(),
            scaling: model.spec.scaling.clone(),
            shown: 0,
            remembered: context.memory.of(&model),
            context,
        };
        let remembered = &turn.remembered;
        let mut last = None;
        let mut tell = |change: fn(&mut Remembered)| {
            change(&mut lock(remembered));
            turn.tell(remembered, &mut last);
            asked.try_recv().is_ok()
        };
        assert!(tell(|_| ()), "the first turn has news");
        assert!(!tell(|_| ()));
        let wants_three: fn(&mut Remembered) = |remembered| {
            let decision = Decision {
                replicas: 3,
                reason: Reason::LongQueue,
            };
            remembered.decisions.insert("r".into(), decision);
        };
        assert!(tell(wants_three));
        assert!(!tell(wants_three));
        assert!(tell(|remembered| remembered.scale_failed = true));
        assert!(tell(|_| ()), "a failed write is tried again at each tick");
        assert!(!tell(|remembered| remembered.scale_failed = false));
    }

    #[tokio::test]
    async fn a_leader_that_has_reconciled_nothing_yet_wakes_no_model_that_is_scaled_to_zero() {
        let (client, _) = mock::api_server(|_| None);
        let context = Arc::new(mock::context(client));
        let model = fixtures::sentiment();
        let revision = model.spec.model.revision();
        let uid = model.uid().unwrap();
        let labels = names::component_labels("sentiment", names::Component::Worker);
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": names::worker("sentiment", &revision), "namespace": "nlp", "uid": "d", "resourceVersion": "1",
                "labels": names::of_revision(labels, &revision), "annotations": {names::LOADED: "true"},
                "ownerReferences": [{
                    "apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "name": "sentiment", "uid": uid,
                    "controller": true
                }]
            },
            "spec": {"replicas": 0}
        });
        mock::see(&context, deployment);
        let turn = Turn {
            asker: AdminClient::new(),
            model: ObjectRef::new("sentiment").within("nlp"),
            uid,
            scaling: model.spec.scaling.clone(),
            shown: 0,
            remembered: context.memory.of(&model),
            context,
        };
        turn.take(&mut Last::default()).await;
        let decided = lock(&turn.remembered).decisions.get(&revision).copied();
        assert_eq!(
            decided.map(|decision| decision.replicas),
            Some(0),
            "{decided:?}"
        );
    }
}
