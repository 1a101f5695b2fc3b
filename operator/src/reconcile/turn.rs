//! The pods of a resource that wait for its turn: those of a model that works, that a newer operator alone renders
//! otherwise. What the user changed is applied at once, and so is everything of a model that does not work.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    observe::{self, Observed},
    place,
    validate::Valid,
};
use crate::{
    live::Live,
    names::{self, Component},
};

/// The annotations by which a workload's next look tells who changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// Hash of its pod template.
    pub template: String,
    /// A hash of those parts of the spec that its pods may depend on, and one of their Redis.
    pub inputs: String,
}

impl Marks {
    /// The marks of a rendered workload; `None` for a child without pods.
    pub fn of(rendered: &Value, valid: &Valid) -> Option<Self> {
        let template = rendered.pointer("/spec/template")?;
        let component = &rendered["metadata"]["labels"][names::COMPONENT];
        // The number of pods is none of what they are.
        let others: &[&str] = if *component == Component::Proxy.as_str() {
            &["scaling", "worker", "model"]
        } else if *component == Component::Worker.as_str() {
            &["scaling", "proxy"]
        } else {
            &["scaling", "proxy", "worker", "model"]
        };
        let mut inputs = serde_json::to_value(&valid.spec).ok()?;
        if let Some(fields) = inputs.as_object_mut() {
            fields.retain(|field, _| !others.contains(&field.as_str()));
            if let Some(proxy) = fields.get_mut("proxy").and_then(Value::as_object_mut) {
                proxy.remove("replicas");
            }
        }
        // A queue that moves and a password that was lost come with no change of the spec, and are urgent.
        let volumes = Vec::deserialize(&template["spec"]["volumes"]).unwrap_or_default();
        let annotations = &template["metadata"]["annotations"];
        let urgent = json!([place::mounted(&volumes), annotations[names::REDIS_PASSWORD]]);
        Some(Self {
            template: hash(template),
            inputs: format!("{}.{}", hash(&inputs), hash(&urgent)),
        })
    }

    /// Whether the operator alone changed the pods of a workload. `carried_out` is whether an operator has applied all of
    /// the spec before: if it has, a spec of another hash has a field that only one of two versions knows.
    pub fn differ_by_operator(&self, live: &Live, rendered: &Value, carried_out: bool) -> bool {
        let template = live.annotation(names::TEMPLATE);
        let is_other = match template {
            Some(template) => template != self.template,
            None => !live.has_template(rendered),
        };
        // An operator that knew no turns left no marks.
        let Some(before) = live.annotation(names::INPUTS) else {
            return is_other;
        };
        let is_same = match (before.split_once('.'), self.inputs.split_once('.')) {
            (Some((spec, redis)), Some((spec_now, redis_now))) => {
                redis == redis_now && (spec == spec_now || carried_out)
            }
            _ => true,
        };
        is_other && is_same
    }

    /// Whether a workload has other pods than these marks are of.
    pub fn are_new_to(&self, live: &Live) -> bool {
        live.annotation(names::TEMPLATE) != Some(&self.template)
    }

    /// Whether a workload has got its pod template in a turn.
    pub fn were_in_turn(&self, live: &Live) -> bool {
        live.annotation(names::TURN) == Some(&self.template)
    }
}

fn hash(value: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Whether a resource serves, so that there is something to lose.
pub fn works(observed: &Observed) -> bool {
    let proxy = observed.proxy.as_deref();
    let redis = observed.redis.as_deref();
    let view = &observed.view;
    let active = view.active.as_ref();
    let active = active.and_then(|active| view.revisions.get(active));
    proxy.is_some_and(|proxy| ready_pods(proxy) > 0)
        && redis.is_none_or(|redis| ready_replicas(redis) > 0)
        && active.is_some_and(|active| active.replicas == 0 || active.workers.ready > 0)
}

/// Pods of a workload of this name that would be replaced.
pub fn pods(observed: &Observed, name: &str) -> i32 {
    match find(observed, name) {
        Some(Workload::Deployment(deployment)) => ready_pods(deployment),
        Some(Workload::StatefulSet(set)) => ready_replicas(set),
        None => 0,
    }
}

/// Whether a workload of this name has pods of an older template, or too few that are Ready.
pub fn is_updating(observed: &Observed, name: &str) -> bool {
    match find(observed, name) {
        Some(Workload::Deployment(deployment)) => {
            observe::is_updating(deployment)
                || observe::is_unseen(deployment)
                || ready_pods(deployment) < observe::replicas(deployment)
        }
        Some(Workload::StatefulSet(set)) => {
            let status = set.status.clone().unwrap_or_default();
            status.observed_generation < set.metadata.generation
                || status.current_revision != status.update_revision
                || ready_replicas(set) < set.spec.replicas.unwrap_or(1)
        }
        None => false,
    }
}

enum Workload<'a> {
    Deployment(&'a Deployment),
    StatefulSet(&'a StatefulSet),
}

fn find<'a>(observed: &'a Observed, name: &str) -> Option<Workload<'a>> {
    let is_it = |meta: &kube::api::ObjectMeta| meta.name.as_deref() == Some(name);
    let deployments = observed.workers.values().chain(&observed.proxy);
    let mut deployments = deployments.filter(|deployment| is_it(&deployment.metadata));
    if let Some(deployment) = deployments.next() {
        return Some(Workload::Deployment(deployment));
    }
    let redis = observed.redis.as_deref().filter(|set| is_it(&set.metadata));
    redis.map(Workload::StatefulSet)
}

fn ready_pods(deployment: &Deployment) -> i32 {
    let status = deployment.status.as_ref();
    status.and_then(|status| status.ready_replicas).unwrap_or(0)
}

fn ready_replicas(set: &StatefulSet) -> i32 {
    let status = set.status.as_ref();
    status.and_then(|status| status.ready_replicas).unwrap_or(0)
}
