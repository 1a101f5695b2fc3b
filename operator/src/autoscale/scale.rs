//! Writes the number of workers, and before there are fewer, which of them to spare.

use std::{collections::BTreeMap, time::Instant};

use carpool_scaling::{Observation, Scaler, backlog::RevisionBacklog};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, ResourceExt, api::Patch};
use serde_json::json;

use super::{Scaled, Turn};
use crate::{
    api::{CallError, call, patch_params},
    reconcile::fetch::{Observed, replicas},
    rollout::{Plan, Replicas},
    workers,
};

/// Kubernetes removes the pods with the lowest cost first, once all else is equal.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const BUSY: &str = "100";
const IDLE: &str = "0";

impl Turn {
    /// Brings every revision to its number of workers. Returns how many are asked for in all.
    pub(super) async fn scale(
        &self,
        state: &mut Scaled,
        observed: &Observed,
        plan: &Plan,
        queued: &BTreeMap<String, RevisionBacklog>,
    ) -> i32 {
        state
            .scalers
            .retain(|revision, _| plan.replicas.contains_key(revision));
        let mut sum = 0;
        for (revision, asked) in &plan.replicas {
            let Some(deployment) = observed.workers.get(revision) else {
                continue;
            };
            let now = replicas(deployment);
            let wanted = match asked {
                Replicas::Keep => now,
                Replicas::Exactly(count) => *count,
                Replicas::Scaled => self.decide(state, observed, revision, now),
            };
            sum += wanted;
            if wanted == now {
                continue;
            }
            let queued = queued.get(revision);
            let is_idle = |pod: &str| queued.is_none_or(|queued| queued.is_idle(pod));
            if let Err(error) = self
                .write(deployment, observed, revision, now, wanted, is_idle)
                .await
            {
                tracing::warn!(%error, revision, wanted, "failed to scale");
            }
        }
        sum
    }

    fn decide(&self, state: &mut Scaled, observed: &Observed, revision: &str, now: i32) -> i32 {
        let scaling = &self.model.spec.scaling;
        let scaler = state
            .scalers
            .entry(revision.to_owned())
            .or_insert_with(|| Scaler::new(scaling.clone()));
        scaler.set(scaling.clone());
        let seen = observed.view.revisions.get(revision);
        let decision = scaler.decide(
            Instant::now(),
            Observation {
                length: seen.and_then(|seen| seen.length),
                current: u32::try_from(now).unwrap_or(0),
                proven: seen.is_some_and(|seen| seen.loaded),
            },
        );
        let wanted = i32::try_from(decision.replicas).unwrap_or(i32::MAX);
        if wanted != now {
            let length = seen.and_then(|seen| seen.length);
            tracing::info!(model = self.model.name_any(), namespace = self.model.namespace(), revision, from = now, to = wanted, length, reason = %decision.reason, "scaling");
        }
        wanted
    }

    async fn write(
        &self,
        deployment: &Deployment,
        observed: &Observed,
        revision: &str,
        now: i32,
        wanted: i32,
        is_idle: impl Fn(&str) -> bool,
    ) -> Result<(), CallError> {
        if wanted < now {
            let pods = observed.pods.iter().map(AsRef::as_ref);
            for pod in pods.filter(|pod| workers::is_worker(pod, revision)) {
                self.price(pod, if is_idle(&pod.name_any()) { IDLE } else { BUSY })
                    .await;
            }
        }
        let name = deployment.name_any();
        let namespace = deployment.namespace().unwrap_or_default();
        let api: Api<Deployment> = Api::namespaced(self.context.client.clone(), &namespace);
        let patch = Patch::Merge(json!({"spec": {"replicas": wanted}}));
        call(
            "scale",
            "Deployment",
            &name,
            api.patch_scale(&name, &patch_params(), &patch),
        )
        .await?;
        Ok(())
    }

    /// Which pod goes is only a matter of politeness: one that is busy hands back what it has not begun.
    async fn price(&self, pod: &Pod, cost: &str) {
        if pod.metadata.deletion_timestamp.is_some()
            || pod
                .annotations()
                .get(DELETION_COST)
                .is_some_and(|now| now == cost)
        {
            return;
        }
        let name = pod.name_any();
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let patch = Patch::Merge(json!({"metadata": {"annotations": {(DELETION_COST): cost}}}));
        match call(
            "patch",
            "Pod",
            &name,
            api.patch_metadata(&name, &patch_params(), &patch),
        )
        .await
        {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(%error, "failed to say which worker to spare");
            }
            // Done, or it has gone meanwhile.
            _ => {}
        }
    }
}
