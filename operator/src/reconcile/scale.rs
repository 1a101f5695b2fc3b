//! The part of the fifth step that writes the number of workers and, before there are fewer, which of them to spare.

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, Client, ResourceExt, api::Patch};
use serde_json::json;

use super::observe::Observed;
use crate::{
    api::{CallError, call, patch_params},
    names,
    rollout::{Plan, Replicas},
    workers,
};

/// Kubernetes removes the pods with the lowest cost first, once all else is equal.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const BUSY: &str = "100";
const IDLE: &str = "0";

/// Brings every revision to its number of workers. One whose number can't be written does not keep the others from
/// theirs; the first error is returned.
pub async fn scale(client: &Client, observed: &Observed, plan: &Plan) -> Result<(), CallError> {
    let mut result = Ok(());
    for (revision, wanted) in plan.workers(&observed.view) {
        let Some(deployment) = observed.workers.get(revision) else {
            continue;
        };
        let change = Change {
            client,
            observed,
            revision,
            deployment,
            wanted,
        };
        if change.from() == wanted {
            continue;
        }
        change.log(plan.replicas.get(revision));
        result = result.and(change.write().await);
    }
    result
}

/// A number of workers that is to change.
struct Change<'a> {
    client: &'a Client,
    observed: &'a Observed,
    revision: &'a str,
    deployment: &'a Deployment,
    wanted: i32,
}

impl Change<'_> {
    fn from(&self) -> i32 {
        let revision = self.observed.view.revisions.get(self.revision);
        revision.map_or(0, |revision| revision.replicas)
    }

    fn log(&self, asked: Option<&Replicas>) {
        let revision = self.observed.view.revisions.get(self.revision);
        let reason = match (asked, revision.and_then(|revision| revision.decision)) {
            (Some(Replicas::Scaled), Some(decision)) => decision.reason.to_string(),
            _ => "a rollout".to_owned(),
        };
        let length = revision.and_then(|revision| revision.length);
        let model = self.deployment.labels().get(names::MODEL);
        tracing::info!(
            model,
            namespace = self.deployment.namespace(),
            revision = self.revision,
            from = self.from(),
            to = self.wanted,
            length,
            reason,
            "scaling"
        );
    }

    async fn write(&self) -> Result<(), CallError> {
        if self.wanted < self.from() {
            let pods = self.observed.pods.iter().map(AsRef::as_ref);
            for pod in pods.filter(|pod| workers::is_worker(pod, self.revision)) {
                self.set_deletion_cost(pod).await;
            }
        }
        let name = self.deployment.name_any();
        let namespace = self.deployment.namespace().unwrap_or_default();
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        let patch = Patch::Merge(json!({"spec": {"replicas": self.wanted}}));
        let params = patch_params();
        let scaled = api.patch_scale(&name, &params, &patch);
        call("scale", "Deployment", &name, scaled).await.map(drop)
    }

    /// Has Kubernetes remove idle pods first. It is a matter of politeness only, so a failure is none of scaling: a
    /// busy worker that goes hands back what it has not begun.
    async fn set_deletion_cost(&self, pod: &Pod) {
        let name = pod.name_any();
        let queued = self.observed.backlog.as_ref();
        let queued = queued.and_then(|backlog| backlog.revisions.get(self.revision));
        let is_idle = queued.is_none_or(|queued| queued.is_idle(&name));
        let cost = if is_idle { IDLE } else { BUSY };
        let before = pod.annotations().get(DELETION_COST);
        if pod.metadata.deletion_timestamp.is_some() || before.is_some_and(|now| now == cost) {
            return;
        }
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let patch = Patch::Merge(json!({"metadata": {"annotations": {(DELETION_COST): cost}}}));
        let params = patch_params();
        let patched = api.patch_metadata(&name, &params, &patch);
        match call("patch", "Pod", &name, patched).await {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(%error, "failed to say which worker to spare");
            }
            // Done, or it has gone meanwhile.
            _ => {}
        }
    }
}
