//! From a `BatchedModel` to its children, in six steps: [`observe`] → [`validate`] → [`plan`](rollout::plan) →
//! [`build`] → [`apply`] → [`status`]. Only the ends touch the cluster; `validate`, `plan`, `build` and `status` are
//! pure. Nothing else writes to a resource's children, their numbers or its status.

pub mod apply;
pub mod build;
mod cidr;
#[cfg(test)]
pub mod fixtures;
#[cfg(test)]
pub mod mock;
pub mod observe;
pub mod place;
mod proxies;
pub mod report;
mod scale;
pub mod secret;
pub mod status;
mod strict;
#[cfg(test)]
mod tests;
mod turn;
mod unparsable;
pub mod validate;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use carpool_crds::{BatchedModel, Model};
use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client, Resource, ResourceExt,
    runtime::{controller::Action, events::Recorder},
};

use self::{
    apply::{Applier, ApplyError, Made},
    build::{BuildError, Images, RevisionState, RolloutInputs},
    observe::Observed,
    secret::Secret,
    status::Verdict,
    validate::Valid,
};
use crate::{
    api::CallError,
    cluster::Cluster,
    index::{ModelRef, Stored},
    memory::{Memory, Remembered, WorkerCounts, lock},
    metrics::Metrics,
    names,
    rollout::{self, Plan},
    turns::{self, Ahead, Stand, Turns},
};

/// A child that somebody changed is noticed by its watch; this is for what a watch may have missed.
const AGAIN: Duration = Duration::from_mins(5);
/// Failures in a row before one is told: most pass by themselves, and the model still answers.
const TELL_AFTER: u32 = 2;
/// An object that is in the way carries no label, so no watch tells when it goes.
const AGAIN_AFTER_CONFLICT: Duration = Duration::from_secs(5);

/// Everything that a reconcile needs beside its resource.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The view of its objects.
    pub cluster: Cluster,
    /// The memory of each resource.
    pub memory: Arc<Memory>,
    /// Images that pods run.
    pub images: Images,
    /// The namespaces from which admin ports may be asked: the operator's own, and those of Prometheus.
    pub scrape_namespaces: Vec<String>,
    /// Writes Events.
    pub recorder: Recorder,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The turns of an upgrade.
    pub turns: Mutex<Turns>,
    /// Asks for a reconcile.
    pub asks: UnboundedSender<ModelRef>,
}

impl Context {
    /// Writes down what a resource's update is at and, where it `wants` one, asks for its turn. Returns the models
    /// before it, where it has to wait.
    fn turn(&self, valid: &Valid, wants: bool, is_updating: bool) -> Option<Ahead> {
        let model = (valid.namespace.clone(), valid.name.clone());
        let mut turns = lock(&self.turns);
        let before = if wants {
            let all_seen = self.all_seen(&turns, Some(&model));
            turns.ask(&model, all_seen)
        } else {
            turns.settle(&model, is_updating);
            None
        };
        self.next(&mut turns);
        before
    }

    /// Writes down that a resource has no part in an upgrade: its spec is refused, or it is on its way out.
    fn no_turn(&self, stored: &Stored) {
        let model = (stored.namespace().unwrap_or_default(), stored.name_any());
        let mut turns = lock(&self.turns);
        // A model that waits, or is in its turn, keeps it while something else is wrong.
        if !turns.has(&model) {
            turns.settle(&model, false);
            self.next(&mut turns);
        }
    }

    /// Forgets a resource that is gone.
    pub fn forget(&self, model: &ModelRef) {
        let key = (
            model.namespace.clone().unwrap_or_default(),
            model.name.clone(),
        );
        let mut turns = lock(&self.turns);
        turns.forget(&key);
        self.next(&mut turns);
    }

    /// Whether every resource but `asking` has been seen since this operator leads.
    fn all_seen(&self, turns: &Turns, asking: Option<&turns::Key>) -> bool {
        self.cluster.models.state().iter().all(|stored| {
            let has_part = stored.0.is_ok() && stored.meta().deletion_timestamp.is_none();
            let key = (stored.namespace().unwrap_or_default(), stored.name_any());
            !has_part || turns.has(&key) || asking == Some(&key)
        })
    }

    /// Asks for a reconcile of the models whose turn has come, and of those that have to be told of it.
    fn next(&self, turns: &mut Turns) {
        let waiting = turns.count(Stand::Waiting);
        self.metrics
            .updates_waiting
            .set(waiting.try_into().unwrap_or(u64::MAX));
        let outdated = turns.outdated();
        if waiting == 0 {
            return;
        }
        let mut asked = turns.next(self.all_seen(turns, None));
        asked.extend(outdated);
        asked.sort_unstable();
        asked.dedup();
        for (namespace, name) in asked {
            // The send fails only where the controller has gone.
            let _ = self
                .asks
                .unbounded_send(ModelRef::new(&name).within(&namespace));
        }
    }
}

/// Reasons for which a reconcile failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The children can't be written down.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The API server did not do what it was asked.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl From<CallError> for ReconcileError {
    fn from(error: CallError) -> Self {
        Self::Apply(error.into())
    }
}

impl ReconcileError {
    /// A label for metrics: few and stable.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Build(_) => "build",
            Self::Apply(ApplyError::NameConflict(_) | ApplyError::SecretConflict(_)) => "conflict",
            Self::Apply(ApplyError::Json(_)) => "json",
            Self::Apply(ApplyError::Call(CallError::Refused { .. })) => "refused",
            Self::Apply(ApplyError::Call(CallError::NamespaceGoes)) => "namespace",
            Self::Apply(ApplyError::Call(_)) => "api",
        }
    }
}

/// Makes the cluster as one resource asks for.
pub async fn reconcile(
    stored: Arc<Stored>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let model = match &stored.0 {
        Ok(model) => model,
        Err(invalid) => {
            // An older operator alone meets these: the API server checks the same schema.
            tracing::warn!(
                error = invalid.error,
                name = stored.name_any(),
                "skipped a BatchedModel that does not parse"
            );
            unparsable::tell(&context.client, &stored).await?;
            return Ok(Action::await_change());
        }
    };
    if model.metadata.deletion_timestamp.is_some() {
        // Children are owned, so they go by themselves.
        return Ok(Action::await_change());
    }
    let remembered = context.memory.of(model);
    let mut observed = observe::observe(
        &context.cluster,
        model,
        &mut lock(&remembered),
        Instant::now(),
    );
    let valid = validate::validate(model).map(|valid| Valid {
        revision: observed.view.latest.clone(),
        ..valid
    });
    if let Ok(valid) = &valid {
        let secret = observed.places.wanted(valid.external_secret());
        let attempt = build::attempt(valid, &context.images, &secret).map_err(BuildError::from)?;
        observed.view.attempt(attempt);
    }
    let plan = rollout::plan(&observed.view);
    let made = match &valid {
        Ok(valid) => Box::pin(make(&context, valid, &plan, &observed, &remembered)).await,
        Err(_) => Ok(Made::default()),
    };
    context.no_turn(&stored);
    let made = made.map(|made| observed.made = made);
    // Workers follow their queue whatever keeps a child from being made.
    let scaled = scale::scale(&context.client, &observed, &plan).await;
    count(&plan, &observed, &mut lock(&remembered), scaled.is_err());
    let proxies = match &valid {
        Ok(valid) => proxies::scale(&context.client, valid, &observed).await,
        Err(_) => Ok(()),
    };
    let done = made.and(scaled.and(proxies).map_err(ReconcileError::from));

    let verdict = match (&valid, &done) {
        (Err(message), _) => Some(Verdict::Rejected {
            reason: "InvalidSpec",
            message: message.clone(),
        }),
        (Ok(valid), Ok(())) => Some(Verdict::Applied { valid, plan: &plan }),
        (Ok(_), Err(error)) => rejected(error, lock(&remembered).failures),
    };
    if let Some(verdict) = verdict {
        tell(&context, model, &observed, &verdict, &remembered).await?;
    }
    let again = match done {
        Err(ReconcileError::Apply(ApplyError::NameConflict(_) | ApplyError::SecretConflict(_))) => {
            AGAIN_AFTER_CONFLICT
        }
        Err(ReconcileError::Apply(ApplyError::Call(CallError::NamespaceGoes))) => {
            return Ok(Action::await_change());
        }
        Ok(()) | Err(ReconcileError::Apply(ApplyError::Call(CallError::Refused { .. }))) => AGAIN,
        Err(error) => return Err(error),
    };
    lock(&remembered).failures = 0;
    // A rollout that waits for room goes on by the clocks of `rollout::Patience`, which no watch rings.
    let rollout = observed.view.look_again.unwrap_or(again);
    let secret = secret::look_again(&observed).unwrap_or(again);
    // Nothing tells of a cluster that takes policies after all.
    let is_refused = matches!(observed.made.policies, Some(Err(_)));
    let policies = if is_refused {
        apply::REFUSED_FOR
    } else {
        again
    };
    Ok(Action::requeue(
        again.min(rollout).min(secret).min(policies),
    ))
}

/// Makes the children of a resource that is valid.
async fn make(
    context: &Context,
    valid: &Valid,
    plan: &Plan,
    observed: &Observed,
    remembered: &Mutex<Remembered>,
) -> Result<Made, ReconcileError> {
    let mut inputs = inputs(valid, plan, observed);
    let secret = Secret {
        client: &context.client,
        valid,
        remembered,
    };
    let is_lost = secret.is_lost(observed).await;
    if is_lost {
        inputs.renew_password(valid, observed);
    }
    let children = build::build(valid, &inputs, &context.images, &context.scrape_namespaces)?;
    let applier = Applier {
        context,
        valid,
        remembered,
        secret: &secret,
        lost_secret: is_lost.then_some(inputs.secret.as_str()),
    };
    let made = applier.apply(&children, observed, &plan.delete).await?;
    apply::nudge_kubelets(&context.client, valid, &children, observed).await;
    Ok(made)
}

/// Writes down what metrics show, and whether the number of workers is to be written again at the next tick.
fn count(plan: &Plan, observed: &Observed, remembered: &mut Remembered, scale_failed: bool) {
    let revisions = observed.view.revisions.values();
    remembered.scale_failed = scale_failed;
    remembered.workers = Some(WorkerCounts {
        wanted: plan.workers(&observed.view).map(|(_, wanted)| wanted).sum(),
        ready: revisions.map(|revision| revision.workers.ready).sum(),
    });
}

/// The verdict on children that could not be made, after so many failures in a row; `None` where none is told yet.
fn rejected(error: &ReconcileError, failures: u32) -> Option<Verdict<'static>> {
    let reason = match error {
        ReconcileError::Apply(ApplyError::NameConflict(_) | ApplyError::SecretConflict(_)) => {
            "NameConflict"
        }
        ReconcileError::Apply(ApplyError::Call(CallError::Refused { .. })) => "Refused",
        ReconcileError::Apply(ApplyError::Call(CallError::NamespaceGoes)) => return None,
        _ if failures < TELL_AFTER => return None,
        _ => "ApplyFailed",
    };
    Some(Verdict::Rejected {
        reason,
        message: error.to_string(),
    })
}

async fn tell(
    context: &Context,
    model: &BatchedModel,
    observed: &Observed,
    verdict: &Verdict<'_>,
    remembered: &Mutex<Remembered>,
) -> Result<(), CallError> {
    let status = status::status(model, observed, verdict, Timestamp::now());
    report::report(
        &context.client,
        &context.recorder,
        model,
        status,
        remembered,
    )
    .await
}

fn inputs(valid: &Valid, plan: &Plan, observed: &Observed) -> RolloutInputs {
    let mut models: BTreeMap<String, Model> = observed.models.clone();
    models.retain(|revision, _| !plan.delete.contains(revision));
    if plan.start {
        models.insert(valid.revision.clone(), valid.spec.model.clone());
    }
    let latest = observed.view.revisions.get(&valid.revision);
    let places = &observed.places;
    let redis = observed.redis.as_deref();
    RolloutInputs {
        active: plan.active.clone(),
        secret: places.wanted(valid.external_secret()),
        proxy_secret: places.of_proxies(&plan.active, valid),
        places: places.to_feed(&plan.active, valid, models.keys()),
        password: redis.and_then(|redis| redis.annotations().get(names::REDIS_PASSWORD).cloned()),
        // The Secret is made before this is written down.
        made_secret: match valid.external_secret() {
            Some(_) => observed.made_secret.clone(),
            None => Some(places.managed.clone()),
        },
        models,
        worker: plan.start.then(|| RevisionState {
            loaded: latest.is_some_and(|latest| latest.loaded),
            given_up: plan.give_up.clone(),
            trade: plan.trade,
        }),
    }
}
