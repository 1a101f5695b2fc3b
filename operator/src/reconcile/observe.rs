//! The first step: what there is of a resource, from the watches' stores and the proxies' last answers.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use carpool_crds::{BatchedModel, Model};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::Pod,
};
use kube::{Resource, ResourceExt, api::ObjectMeta};

use crate::{
    cluster::{Cluster, is_controlled_by},
    memory::{Remembered, Reported},
    names::{self, Component},
    rollout::{Revision, View},
    workers::{self, Problem, Workers},
};

/// A kind and a name.
pub type Key = (String, String);

/// What there is of one resource.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Metadata of all objects that carry the model's label, ours or not.
    pub live: BTreeMap<Key, ObjectMeta>,
    /// The proxies.
    pub proxy: Option<Arc<Deployment>>,
    /// A managed Redis.
    pub redis: Option<Arc<StatefulSet>>,
    /// The workers' Deployments, by revision.
    pub workers: BTreeMap<String, Arc<Deployment>>,
    /// Models, by revision, as their Deployments keep them.
    pub models: BTreeMap<String, Model>,
    /// Pods of all components, and those with an injected sidecar.
    pub pods: Vec<Arc<Pod>>,
    /// What the next plan is made from.
    pub view: View,
    /// The hash of the configuration that is in force.
    pub config_hash: Option<String>,
    /// Requests waiting and in flight, of all revisions; `None` when nobody could say.
    pub queue_length: Option<u64>,
    /// Whether proxies have been asked for it since the operator started.
    pub asked: bool,
    /// What workers last said of their models, by revision.
    pub reports: BTreeMap<String, Reported>,
}

/// Looks at everything that belongs to a resource.
pub fn observe(
    cluster: &Cluster,
    model: &BatchedModel,
    remembered: &mut Remembered,
    now: Instant,
) -> Observed {
    let (name, namespace) = (model.name_any(), model.namespace().unwrap_or_default());
    let uid = model.uid().unwrap_or_default();
    let ours = |meta: &ObjectMeta| {
        meta.namespace.as_ref() == Some(&namespace)
            && meta
                .labels
                .as_ref()
                .and_then(|labels| labels.get(names::MODEL))
                == Some(&name)
    };
    let mut observed = Observed::default();

    macro_rules! live {
        ($kind:literal, $store:expr) => {{
            let objects = $store.state_filter(|object| ours(object.meta()));
            for object in &objects {
                let key = ($kind.to_owned(), object.name_any());
                observed.live.insert(key, object.meta().clone());
            }
            objects
        }};
    }
    live!("ServiceAccount", cluster.accounts);
    live!("Service", cluster.services);
    live!("NetworkPolicy", cluster.policies);
    live!("PodDisruptionBudget", cluster.budgets);
    let config_maps = live!("ConfigMap", cluster.config_maps);
    let stateful_sets = live!("StatefulSet", cluster.stateful_sets);
    let deployments = live!("Deployment", cluster.deployments);

    observed.pods = cluster.pods.state_filter(|pod| ours(&pod.metadata));
    observed.redis = stateful_sets
        .into_iter()
        .find(|set| is_controlled_by(&set.metadata, &uid));
    for deployment in deployments {
        if !is_controlled_by(&deployment.metadata, &uid) {
            continue;
        }
        match deployment.labels().get(names::REVISION) {
            Some(revision) => {
                let model = deployment.annotations().get(names::MODEL_SPEC);
                // One that another version of the operator wrote and this one can't read has no part in a plan.
                if let Some(model) = model.and_then(|json| serde_json::from_str(json).ok()) {
                    observed.models.insert(revision.clone(), model);
                    observed.workers.insert(revision.clone(), deployment);
                }
            }
            None => observed.proxy = Some(deployment),
        }
    }
    let config = config_maps
        .iter()
        .find(|config| is_controlled_by(&config.metadata, &uid));
    let annotation = |key: &str| config.and_then(|config| config.annotations().get(key).cloned());
    observed.config_hash = annotation(names::CONFIG_HASH);
    observed.view = view(
        model.spec.model.revision(),
        annotation(names::SERVING),
        &observed,
        remembered,
        now,
    );
    observed.queue_length = remembered
        .fresh(now)
        .map(|told| told.lengths.values().sum());
    observed.asked = remembered.asked;
    observed.reports.clone_from(&remembered.reports);
    observed
}

fn view(
    latest: String,
    active: Option<String>,
    observed: &Observed,
    remembered: &mut Remembered,
    now: Instant,
) -> View {
    if remembered.serving.as_ref().map(|(revision, _)| revision) != active.as_ref() {
        remembered.serving = active.clone().map(|revision| (revision, now));
    }
    let mut revisions = BTreeMap::new();
    for (name, deployment) in &observed.workers {
        let pods = observed.pods.iter().map(AsRef::as_ref);
        let workers = Workers::of(pods.filter(|pod| workers::is_worker(pod, name)));
        if workers.ready > 0 || deployment.annotations().contains_key(names::LOADED) {
            remembered.loaded.insert(name.clone());
        }
        let told = remembered.fresh(now);
        let revision = Revision {
            replicas: replicas(deployment),
            workers,
            loaded: remembered.loaded.contains(name),
            given_up: deployment
                .annotations()
                .get(names::GIVEN_UP)
                .and_then(|json| serde_json::from_str(json).ok()),
            stalled: stalled(deployment),
            // A queue that nothing was ever put into is not listed.
            length: told.map(|told| told.lengths.get(name).copied().unwrap_or(0)),
        };
        revisions.insert(name.clone(), revision);
    }
    let switched = remembered
        .fresh(now)
        .is_some_and(|told| told.serving.is_some() && told.serving == active);
    let mut view = View {
        latest,
        active,
        revisions,
        switched,
    };
    remembered.patience.look(&mut view, now);
    view
}

/// Workers asked for.
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

/// Why a Deployment's pods won't get Ready by waiting, although none of them says so.
pub fn stalled(deployment: &Deployment) -> Option<Problem> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let stalled = conditions.iter().find(|condition| {
        // Pods are refused: by a quota, a missing account, a Pod Security Standard.
        (condition.type_.as_deref() == Some("ReplicaFailure")
            && condition.status.as_deref() == Some("True"))
            || condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    })?;
    Some(Problem {
        reason: stalled.reason.clone().unwrap_or_default(),
        message: stalled.message.clone().unwrap_or_default(),
    })
}

/// Where a pod's admin port is, if it has an address yet.
pub fn admin_address(pod: &Pod) -> Option<(std::net::IpAddr, u16)> {
    let ip = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    let port = if workers::is(pod, Component::Proxy) || workers::is(pod, Component::Worker) {
        names::ADMIN_PORT
    } else {
        names::INJECTED_ADMIN_PORT
    };
    Some((ip, port))
}

/// Whether a pod feeds the queue: a proxy, or an app with an injected sidecar.
pub fn feeds(pod: &Pod) -> bool {
    !workers::is(pod, Component::Worker) && !workers::is(pod, Component::Redis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_that_gets_no_pods_says_why() {
        let why = |conditions: &str| {
            let conditions: serde_json::Value = serde_yaml::from_str(conditions).unwrap();
            let deployment = serde_json::json!({
                "metadata": {},
                "spec": {"selector": {}, "template": {}},
                "status": {"conditions": conditions}
            });
            stalled(&serde_json::from_value(deployment).unwrap()).map(|problem| problem.reason)
        };
        let progressing = "{type: Progressing, status: 'True', reason: ReplicaSetUpdated}";
        assert_eq!(why(&format!("[{progressing}]")), None);
        assert_eq!(
            why(&format!(
                "[{progressing}, {{type: ReplicaFailure, status: 'True', reason: FailedCreate}}]"
            ))
            .as_deref(),
            Some("FailedCreate")
        );
        assert_eq!(
            why("[{type: ReplicaFailure, status: 'False', reason: FailedCreate}]"),
            None
        );
        assert_eq!(
            why("[{type: Progressing, status: 'False', reason: ProgressDeadlineExceeded}]")
                .as_deref(),
            Some("ProgressDeadlineExceeded")
        );
    }
}
