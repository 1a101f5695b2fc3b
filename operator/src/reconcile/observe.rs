//! The first step: everything that there is of a resource, from the watches' indexes and the proxies' last answers.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use carpool_crds::{BatchedModel, Model};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::Pod,
};
use kube::ResourceExt;

use super::{
    apply::Made,
    place::{self, Places},
    status,
};
use crate::{
    cluster::Cluster,
    index::ModelRef,
    live::{Live, Seen},
    memory::{BacklogSample, Remembered, Reported},
    names::{self, Component},
    rollout::{Bounds, Place, Revision, View},
    workers::{self, Problem, Workers},
};

/// A kind and a name.
pub type Key = (String, String);

/// Everything that there is of one resource.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// All objects that carry the model's label, ours or not.
    pub live: BTreeMap<Key, Arc<Live>>,
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
    /// The revisions, as the next plan looks at them.
    pub view: View,
    /// The places of the queue.
    pub places: Places,
    /// The Secret that was made for a managed Redis.
    pub made_secret: Option<String>,
    /// The hash of the configuration that is in force.
    pub config_hash: Option<String>,
    /// The queue, as proxies told it recently; `None` when nobody could say.
    pub backlog: Option<BacklogSample>,
    /// Whether proxies have been asked for the queue since the operator started.
    pub asked: bool,
    /// Workers' last reports of their models, by revision.
    pub reports: BTreeMap<String, Reported>,
    /// Whether everything of this very spec was applied before, by this operator or another.
    pub carried_out: bool,
    /// The children as this reconcile has left them.
    pub made: Made,
}

impl Observed {
    /// Requests waiting and in flight, of all revisions; `None` when nobody could say.
    #[must_use]
    pub fn queue_length(&self) -> Option<u64> {
        self.backlog.as_ref().map(BacklogSample::total)
    }
}

/// The Deployments and pods of one resource.
#[derive(Debug)]
pub struct Workloads {
    /// The proxies.
    pub proxy: Option<Arc<Deployment>>,
    /// The workers, by revision.
    pub workers: BTreeMap<String, Arc<Deployment>>,
    /// Pods of all components, and those with an injected sidecar.
    pub pods: Vec<Arc<Pod>>,
}

impl Workloads {
    /// Looks up what belongs to the resource with this UID.
    pub fn of(cluster: &Cluster, model: &ModelRef, uid: &str) -> Self {
        let (mut proxy, mut workers) = (None, BTreeMap::new());
        for seen in cluster.deployments.of(model) {
            if !seen.live.is_of(&model.name, uid) {
                continue;
            }
            let deployment = Arc::clone(&seen.typed);
            match deployment.labels().get(names::REVISION).cloned() {
                Some(revision) => {
                    workers.insert(revision, deployment);
                }
                None => proxy = Some(deployment),
            }
        }
        Self {
            proxy,
            workers,
            pods: cluster.pods.of(model),
        }
    }
}

/// Looks at everything that belongs to a resource. Writes down in `remembered` which revision is active since when,
/// which have loaded their model, and how long a candidate has waited for room.
pub fn observe(
    cluster: &Cluster,
    model: &BatchedModel,
    remembered: &mut Remembered,
    now: Instant,
) -> Observed {
    let namespace = model.namespace().unwrap_or_default();
    let model_ref = ModelRef::new(&model.name_any()).within(&namespace);
    let uid = model.uid().unwrap_or_default();
    let Workloads {
        proxy,
        workers,
        pods,
    } = Workloads::of(cluster, &model_ref, &uid);
    let mut observed = Observed {
        proxy,
        pods,
        carried_out: status::was_carried_out(model),
        ..Observed::default()
    };
    for (revision, deployment) in workers {
        let model = deployment.annotations().get(names::MODEL_SPEC);
        // A model that another version of the operator wrote and this one can't read has no part in a plan.
        if let Some(model) = model.and_then(|json| serde_json::from_str(json).ok()) {
            observed.models.insert(revision.clone(), model);
            observed.workers.insert(revision, deployment);
        }
    }

    let live = &mut observed.live;
    list(live, "Deployment", &cluster.deployments.of(&model_ref));
    list(live, "Service", &cluster.services.of(&model_ref));
    list(live, "ServiceAccount", &cluster.accounts.of(&model_ref));
    list(live, "NetworkPolicy", &cluster.policies.of(&model_ref));
    list(live, "PodDisruptionBudget", &cluster.budgets.of(&model_ref));
    let config_maps = cluster.config_maps.of(&model_ref);
    list(live, "ConfigMap", &config_maps);
    let stateful_sets = cluster.stateful_sets.of(&model_ref);
    list(live, "StatefulSet", &stateful_sets);

    observed.redis = stateful_sets
        .into_iter()
        .find(|set| set.live.is_of(&model_ref.name, &uid))
        .map(|set| Arc::clone(&set.typed));
    let config = config_maps
        .iter()
        .find(|config| config.live.is_of(&model_ref.name, &uid));
    let annotation = |key: &str| config?.live.annotation(key).map(str::to_owned);
    observed.config_hash = annotation(names::CONFIG_HASH);
    observed.made_secret = annotation(names::REDIS_SECRET);
    observed.places = places(model, annotation(names::PLACES), &observed);
    observed.backlog = remembered.fresh(now).cloned();
    observed.view = view(
        model,
        annotation(names::SERVING),
        &observed,
        remembered,
        now,
    );
    observed.asked = remembered.asked;
    observed.reports.clone_from(&remembered.reports);
    observed
}

/// The places of the queue, of which the configuration says what was fed.
fn places(model: &BatchedModel, before: Option<String>, observed: &Observed) -> Places {
    let live = observed.redis.as_deref().and_then(place::of);
    let (name, uid) = (model.name_any(), model.uid().unwrap_or_default());
    let mut places = Places {
        own_names: [
            names::redis_secret(&name),
            names::old_redis_secret(&name, &uid),
        ],
        managed: live.map_or_else(|| names::redis_secret(&name), str::to_owned),
        before: before
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default(),
        ..Places::default()
    };
    for (revision, deployment) in &observed.workers {
        if let Some(place) = place::of(&**deployment) {
            places.revisions.insert(revision.clone(), place.to_owned());
        }
    }
    places.look_at(observed.pods.iter().map(AsRef::as_ref));
    places
}

fn list<T>(live: &mut BTreeMap<Key, Arc<Live>>, kind: &str, objects: &[Arc<Seen<T>>]) {
    live.extend(objects.iter().map(|object| {
        let key = (kind.to_owned(), object.live.name.clone());
        (key, Arc::clone(&object.live))
    }));
}

/// Whether a worker of a revision was Ready once, as its Deployment says to a leader that has not seen it.
pub fn has_loaded(deployment: &Deployment) -> bool {
    deployment.annotations().contains_key(names::LOADED)
}

fn view(
    model: &BatchedModel,
    active: Option<String>,
    observed: &Observed,
    remembered: &mut Remembered,
    now: Instant,
) -> View {
    if remembered.active.as_ref().map(|(revision, _)| revision) != active.as_ref() {
        remembered.active = active.clone().map(|revision| (revision, now));
    }
    let backlog = observed.backlog.as_ref();
    let places = &observed.places;
    let place_of = |revision: &String| places.revisions.get(revision);
    let active_place = active.as_ref().and_then(place_of);
    let mut revisions = BTreeMap::new();
    for (name, deployment) in &observed.workers {
        let pods = observed.pods.iter().map(AsRef::as_ref);
        let workers = Workers::of(pods.filter(|pod| workers::is_worker(pod, name)));
        if workers.ready > 0 || has_loaded(deployment) {
            remembered.loaded.insert(name.clone());
        }
        let place = match place_of(name).zip(active_place) {
            Some((place, active)) if place != active => Place::Other {
                fed: places.fed.contains(place),
            },
            _ => Place::Active,
        };
        let revision = Revision {
            replicas: replicas(deployment),
            workers,
            loaded: remembered.loaded.contains(name),
            given_up: deployment
                .annotations()
                .get(names::GIVEN_UP)
                .and_then(|json| serde_json::from_str(json).ok()),
            updating: is_updating(deployment),
            stalled: stalled(deployment),
            length: match (backlog, place) {
                (Some(backlog), _) if place_of(name).is_none_or(|place| backlog.knows(place)) => {
                    Some(backlog.length(name))
                }
                // Whoever waited for an answer has gone.
                (_, Place::Other { fed: false }) => Some(0),
                _ => None,
            },
            decision: remembered.decisions.get(name).copied(),
            place,
        };
        revisions.insert(name.clone(), revision);
    }
    let mut view = View {
        switched: active.is_some()
            && backlog.is_some_and(|backlog| backlog.is_fed(active_place, active.as_ref())),
        latest: places.latest(&model.spec),
        active,
        revisions,
        bounds: Bounds::from(&model.spec.worker.rollout),
        ..View::default()
    };
    remembered.patience.look(&mut view, now);
    view
}

/// Workers asked for.
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

/// Whether Kubernetes has yet to look at a change of a Deployment.
pub fn is_unseen(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    status.and_then(|status| status.observed_generation) < deployment.metadata.generation
}

/// Whether pods of an older template are left. Pods that come and go with the queue are no update.
pub fn is_updating(deployment: &Deployment) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    let now = status.replicas.unwrap_or(0);
    // A change that Kubernetes has not looked at yet is another template, unless it is another number.
    let unseen = is_unseen(deployment) && now == replicas(deployment);
    unseen || status.updated_replicas.unwrap_or(0) < now
}

/// The problem for which a Deployment's pods won't get Ready by waiting, although none of them tells one.
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

/// The address of a pod's admin port, if it has one yet.
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
