//! From a `BatchedModel` to its children, in five steps: [`observe`] → [`validate`] → [`build`] → [`apply`] →
//! [`status`]. Only the ends touch the cluster; `validate`, `build` and `status` are pure.

pub mod apply;
pub mod build;
#[cfg(test)]
pub mod fixtures;
pub mod observe;
pub mod report;
pub mod status;
mod strict;
pub mod validate;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use carpool_crds::{BatchedModel, Model};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client, ResourceExt,
    runtime::{controller::Action, events::Recorder},
};

use self::{
    apply::ApplyError,
    build::{BuildError, Images, RevisionState, RolloutInputs},
    observe::Observed,
    status::Verdict,
    validate::Valid,
};
use crate::{
    api::CallError,
    cluster::{Cluster, Stored},
    memory::{Memory, Remembered, lock},
    metrics::Metrics,
    rollout::{self, Plan},
};

/// A child that somebody changed is noticed by its watch; this is for what a watch may have missed.
const AGAIN: Duration = Duration::from_mins(5);
/// Failures in a row before one is told: most pass by themselves, and the model still answers.
const TELL_AFTER: u32 = 2;
/// What is in the way carries no label, so no watch tells when it goes.
const AGAIN_AFTER_CONFLICT: Duration = Duration::from_secs(5);

/// What reconciling needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What is seen of it.
    pub cluster: Cluster,
    /// What is remembered.
    pub memory: Memory,
    /// What pods run.
    pub images: Images,
    /// The namespaces from which admin ports may be asked: the operator's own, and those of Prometheus.
    pub scrape_namespaces: Vec<String>,
    /// Writes Events.
    pub recorder: Recorder,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Why a reconcile failed; it is tried again.
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
            Self::Apply(ApplyError::NameConflict(_)) => "conflict",
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
            // Only an older operator meets these: the API server checks the same schema.
            tracing::warn!(
                error = invalid.error,
                name = stored.name_any(),
                "skipped a BatchedModel that does not parse"
            );
            return Ok(Action::await_change());
        }
    };
    if model.metadata.deletion_timestamp.is_some() {
        // Its children are owned, so they go by themselves.
        return Ok(Action::await_change());
    }
    let remembered = context.memory.of(&model.uid().unwrap_or_default());
    let observed = observe::observe(
        &context.cluster,
        model,
        &mut lock(&remembered),
        Instant::now(),
    );
    let valid = match validate::validate(model) {
        Ok(valid) => valid,
        Err(message) => {
            let verdict = Verdict::Rejected {
                reason: "InvalidSpec",
                message,
            };
            tell(&context, model, &observed, &verdict, &remembered).await?;
            return Ok(Action::await_change());
        }
    };
    let plan = rollout::plan(&observed.view);
    let inputs = inputs(&valid, &plan, &observed);
    let children = build::build(&valid, &inputs, &context.images, &context.scrape_namespaces)?;
    let applied = apply::apply(
        &context.client,
        &valid,
        &children,
        &observed,
        &plan.delete,
        &remembered,
    )
    .await;
    let verdict = match &applied {
        Ok(()) => {
            apply::nudge_kubelets(&context.client, &valid, &children, &observed).await;
            Some(Verdict::Applied {
                valid: &valid,
                plan: &plan,
            })
        }
        Err(error) => rejected(error, lock(&remembered).failures),
    };
    if let Some(verdict) = verdict {
        tell(&context, model, &observed, &verdict, &remembered).await?;
    }
    let again = match applied {
        Ok(()) | Err(ApplyError::Call(CallError::Refused { .. })) => AGAIN,
        Err(ApplyError::NameConflict(_)) => AGAIN_AFTER_CONFLICT,
        Err(ApplyError::Call(CallError::NamespaceGoes)) => return Ok(Action::await_change()),
        Err(error) => return Err(error.into()),
    };
    lock(&remembered).failures = 0;
    Ok(Action::requeue(again))
}

/// What to tell of children that could not be made so, after so many failures in a row.
fn rejected(error: &ApplyError, failures: u32) -> Option<Verdict<'static>> {
    let reason = match error {
        ApplyError::NameConflict(_) => "NameConflict",
        ApplyError::Call(CallError::Refused { .. }) => "Refused",
        ApplyError::Call(CallError::NamespaceGoes) => return None,
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
    RolloutInputs {
        active: plan.active.clone(),
        models,
        worker: plan.start.then(|| RevisionState {
            loaded: latest.is_some_and(|latest| latest.loaded),
            given_up: plan.give_up.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_children_from_being_made_is_told_in_the_end() {
        let reason = |error: &ApplyError, failures| {
            rejected(error, failures).map(|verdict| match verdict {
                Verdict::Rejected { reason, message } => (reason, message),
                Verdict::Applied { .. } => panic!("nothing was applied"),
            })
        };
        let denied = ApplyError::Call(CallError::Api {
            verb: "apply",
            kind: "Deployment".into(),
            name: "sentiment-proxy".into(),
            source: Box::new(kube::Error::Api(Box::new(kube::core::Status {
                code: 403,
                message: "admission webhook \"policy\" denied the request".into(),
                ..kube::core::Status::default()
            }))),
        });
        assert_eq!(reason(&denied, TELL_AFTER - 1), None);
        let (short, message) = reason(&denied, TELL_AFTER).unwrap();
        assert_eq!(short, "ApplyFailed");
        assert!(message.ends_with("denied the request"), "{message}");
        let conflict = ApplyError::NameConflict(vec!["Service sentiment".into()]);
        assert_eq!(reason(&conflict, 0).unwrap().0, "NameConflict");
        let going = ApplyError::Call(CallError::NamespaceGoes);
        assert_eq!(reason(&going, u32::MAX), None);
    }
}
