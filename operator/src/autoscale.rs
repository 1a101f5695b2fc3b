//! Every second, for every resource: asks the proxies for the queue, and writes the number of workers when it
//! changes. It is the only writer of that number.

mod ask;
mod scale;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use carpool_crds::{BatchedModel, Loaded};
use carpool_scaling::{Scaler, backlog::AdminClient};
use futures::channel::mpsc::UnboundedSender;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    cluster::Stored,
    memory::{Remembered, Told, lock},
    metrics::{Metrics, ModelLabels},
    reconcile::{
        Context,
        fetch::{self, Observed},
        report::LENGTH_EVERY,
    },
    rollout::{self, Plan},
};

const TICK: Duration = Duration::from_secs(1);
/// By then a kubelet has read a changed `ConfigMap` even where nothing made it look at once.
const KUBELET_READS_AGAIN: Duration = Duration::from_mins(3);

/// Scales every resource until dropped. Resources that need a reconcile go to `reconcile`.
pub async fn run(context: Arc<Context>, reconcile: UnboundedSender<ObjectRef<Stored>>) {
    if !context.cluster.ready().await {
        return;
    }
    let asker = AdminClient::new();
    let mut scaled: HashMap<String, Arc<Mutex<Scaled>>> = HashMap::new();
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
            let state = scaled
                .entry(uid.clone())
                .or_insert_with(|| Arc::new(Mutex::new(Scaled::new(model))));
            present.insert(uid);
            // One that still waits for an answer from its last turn misses this one.
            if let Ok(state) = Arc::clone(state).try_lock_owned() {
                let turn = Turn {
                    context: Arc::clone(&context),
                    asker: asker.clone(),
                    model: model.clone(),
                    reconcile: reconcile.clone(),
                };
                running.spawn(async move {
                    let mut state = state;
                    turn.take(&mut state).await;
                });
            }
        }
        forget(&mut scaled, &present, &context.metrics);
        context.memory.retain(&present);
    }
}

/// Forgets resources that are gone, each once its last turn is over: until then it is measured.
fn forget(
    scaled: &mut HashMap<String, Arc<Mutex<Scaled>>>,
    present: &BTreeSet<String>,
    metrics: &Metrics,
) {
    scaled.retain(|uid, state| {
        if present.contains(uid) {
            return true;
        }
        let Ok(state) = state.try_lock() else {
            return true;
        };
        metrics.forget(&state.labels);
        false
    });
}

/// What is kept between the turns of one resource.
struct Scaled {
    labels: ModelLabels,
    scalers: BTreeMap<String, Scaler>,
    notified: Option<Notified>,
}

/// What the last reconcile was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Notified {
    plan: Plan,
    known: bool,
    report: Option<Loaded>,
}

impl Scaled {
    fn new(model: &BatchedModel) -> Self {
        Self {
            labels: ModelLabels {
                namespace: model.namespace().unwrap_or_default(),
                name: model.name_any(),
            },
            scalers: BTreeMap::new(),
            notified: None,
        }
    }
}

/// One resource's turn.
struct Turn {
    context: Arc<Context>,
    asker: AdminClient,
    model: BatchedModel,
    reconcile: UnboundedSender<ObjectRef<Stored>>,
}

impl Turn {
    async fn take(&self, state: &mut Scaled) {
        let remembered = self
            .context
            .memory
            .of(&self.model.uid().unwrap_or_default());
        let look = || {
            fetch::fetch(
                &self.context.cluster,
                &self.model,
                &mut lock(&remembered),
                Instant::now(),
            )
        };
        let observed = look();
        let all = observed.workers.len() > 1;
        let heard = ask::queue(&self.asker, &observed, all).await;
        {
            let mut remembered = lock(&remembered);
            remembered.asked |= observed.proxy.is_some();
            if let Some(heard) = &heard {
                let lengths = heard.queue.iter();
                let now = Instant::now();
                // An app's own NetworkPolicy may keep its sidecar from answering for ever.
                let complete = !heard.silence || remembered.served_for(now) >= KUBELET_READS_AGAIN;
                remembered.told = Some(Told {
                    at: now,
                    lengths: lengths
                        .map(|(revision, queued)| (revision.clone(), queued.length))
                        .collect(),
                    serving: heard.serving.clone().filter(|_| complete),
                });
            }
        }
        // What the proxies said is part of what the plan looks at.
        let observed = look();
        let plan = rollout::plan(&observed.view);
        let queued = heard.map(|heard| heard.queue).unwrap_or_default();
        let wanted = self.scale(state, &observed, &plan, &queued).await;
        self.measure(state, &observed, wanted);

        let serving = &plan.serving;
        let report = ask::report(&self.asker, &observed, serving, Instant::now()).await;
        let report = {
            let mut remembered = lock(&remembered);
            if let Some(report) = report {
                remembered.reports.insert(serving.clone(), report);
            }
            let known = |revision: &String| observed.view.revisions.contains_key(revision);
            remembered.reports.retain(|revision, _| known(revision));
            let report = remembered.reports.get(serving);
            report.map(|report| report.model.clone())
        };
        let length_is_due = self.length_is_due(&observed, &remembered);
        let news = Notified {
            known: observed.queue_length.is_some(),
            report,
            plan,
        };
        if length_is_due || state.notified.as_ref() != Some(&news) {
            // The controller has gone when this fails, and so will this task.
            let labels = &state.labels;
            let model = ObjectRef::new(&labels.name).within(&labels.namespace);
            let _ = self.reconcile.unbounded_send(model);
            state.notified = Some(news);
        }
    }

    /// Whether the status shows a length that is no longer so, and may be written again.
    fn length_is_due(
        &self,
        observed: &Observed,
        remembered: &std::sync::Mutex<Remembered>,
    ) -> bool {
        let shown = self
            .model
            .status
            .as_ref()
            .map_or(0, |status| status.queue_length);
        let differs = observed
            .queue_length
            .is_some_and(|length| i64::try_from(length) != Ok(shown));
        differs
            && lock(remembered)
                .length_written
                .is_none_or(|written| written.elapsed() >= LENGTH_EVERY)
    }

    fn measure(&self, state: &Scaled, observed: &Observed, wanted: i32) {
        let metrics = &self.context.metrics;
        let ready: usize = observed
            .view
            .revisions
            .values()
            .map(|revision| revision.workers.ready)
            .sum();
        metrics
            .wanted
            .get_or_create(&state.labels)
            .set(wanted.into());
        metrics
            .ready
            .get_or_create(&state.labels)
            .set(i64::try_from(ready).unwrap_or(i64::MAX));
        if let Some(length) = observed.queue_length {
            let length = i64::try_from(length).unwrap_or(i64::MAX);
            metrics
                .queue_length
                .get_or_create(&state.labels)
                .set(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_that_goes_during_its_turn_leaves_no_metrics() {
        let metrics = Metrics::new();
        let labels = ModelLabels {
            namespace: "nlp".into(),
            name: "sentiment".into(),
        };
        let state = Arc::new(Mutex::new(Scaled {
            labels: labels.clone(),
            scalers: BTreeMap::new(),
            notified: None,
        }));
        let mut scaled = HashMap::from([("uid".to_owned(), Arc::clone(&state))]);
        let turn = state.try_lock().unwrap();
        forget(&mut scaled, &BTreeSet::new(), &metrics);
        metrics.wanted.get_or_create(&labels).set(1);
        drop(turn);
        forget(&mut scaled, &BTreeSet::new(), &metrics);
        assert!(scaled.is_empty());
        assert!(!metrics.encode().unwrap().contains("sentiment"));
    }
}
