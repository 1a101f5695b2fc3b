//! The last step: what to tell the user. Pure, from the objects as they were last seen; writing it is `report`'s work.

#[cfg(test)]
mod tests;

use carpool_crds::{BatchedModel, BatchedModelStatus, condition};
use k8s_openapi::{
    api::apps::v1::Deployment,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{
    fetch::Observed,
    validate::{RedisPlace, Valid},
};
use crate::{
    names::{self, Component},
    rollout::{Plan, Replicas, Revision},
    workers::{self, Problem},
};

/// How a reconcile ended.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// The children are as they should be.
    Applied {
        /// The resource.
        valid: &'a Valid,
        /// What is going on with its revisions.
        plan: &'a Plan,
    },
    /// It was given up for a reason that the user can do something about.
    Rejected {
        /// A stable reason.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
}

/// A condition without its bookkeeping: status, reason, message.
struct Finding {
    type_: &'static str,
    status: Option<bool>,
    reason: String,
    message: String,
}

impl Finding {
    fn new(
        type_: &'static str,
        status: impl Into<Option<bool>>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            type_,
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
        }
    }

    fn holds(&self) -> bool {
        self.status == Some(true)
    }
}

/// The status that a resource should have.
pub fn status(model: &BatchedModel, observed: &Observed, outcome: &Outcome<'_>, now: Timestamp) -> BatchedModelStatus {
    let before = model.status.clone().unwrap_or_default();
    let generation = model.metadata.generation;
    let findings = match outcome {
        Outcome::Applied { valid, plan } => findings(valid, plan, observed),
        Outcome::Rejected { reason, message } => vec![
            Finding::new(condition::READY, false, *reason, message),
            Finding::new(condition::PROGRESSING, false, *reason, message),
        ],
    };
    let mut status = BatchedModelStatus {
        // What a reconcile that was given up could not look at stays as it was.
        conditions: before
            .conditions
            .iter()
            .filter(|old| !findings.iter().any(|new| new.type_ == old.type_))
            .cloned()
            .collect(),
        observed_generation: generation,
        ..before.clone()
    };
    for finding in findings {
        status.conditions.push(condition(finding, &before.conditions, generation, now));
    }
    status.conditions.sort_by_key(|condition| {
        [condition::READY, condition::PROGRESSING, condition::MODEL_LOADED, condition::PROXY_READY, condition::REDIS_READY, condition::SCALING_ACTIVE]
            .iter()
            .position(|type_| *type_ == condition.type_)
    });
    if let Outcome::Applied { valid, plan } = outcome {
        let count = |counts: fn(&Deployment) -> Option<i32>| {
            observed.workers.values().filter_map(|deployment| counts(deployment)).sum()
        };
        status.replicas = count(|deployment| deployment.status.as_ref()?.replicas);
        status.ready_replicas = count(|deployment| deployment.status.as_ref()?.ready_replicas);
        status.queue_length = observed
            .queue_length
            .and_then(|length| i64::try_from(length).ok())
            .unwrap_or(before.queue_length);
        status.sha256 = observed.sha256.get(&plan.serving).cloned().or_else(|| {
            // What a pod said before the operator started still holds for the same revision.
            before.sha256.filter(|_| before.revision.as_ref() == Some(&plan.serving))
        });
        status.revision = Some(plan.serving.clone());
        status.url = Some(format!("http://{}.{}", valid.name, valid.namespace));
        status.selector = Some(names::selector_text(&valid.name, Component::Worker));
    }
    status
}

fn condition(finding: Finding, before: &[Condition], generation: Option<i64>, now: Timestamp) -> Condition {
    let status = match finding.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let since = before
        .iter()
        .find(|old| old.type_ == finding.type_ && old.status == status)
        .map_or(Time(now), |old| old.last_transition_time.clone());
    Condition {
        type_: finding.type_.to_owned(),
        status: status.to_owned(),
        reason: finding.reason,
        message: finding.message,
        observed_generation: generation,
        last_transition_time: since,
    }
}

fn findings(valid: &Valid, plan: &Plan, observed: &Observed) -> Vec<Finding> {
    let proxy = proxy_ready(observed);
    let redis = redis_ready(valid, observed, &proxy);
    let loaded = model_loaded(valid, observed);
    let ready = ready(plan, observed, [&redis, &proxy]);
    let progressing = progressing(valid, plan, observed, &loaded);
    let mut findings = vec![ready, progressing, loaded, proxy, redis];
    findings.extend(scaling_active(observed));
    findings
}

fn ready_replicas(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

/// What keeps the pods of a component from running, in a sentence.
fn trouble(observed: &Observed, component: Component) -> Option<Problem> {
    let pods = observed.pods.iter().filter(|pod| workers::is(pod, component));
    pods.filter(|pod| !workers::is_ready(pod)).find_map(|pod| {
        let unschedulable = workers::unschedulable(pod).map(|message| Problem {
            reason: "Unschedulable".to_owned(),
            message,
        });
        unschedulable.or_else(|| workers::problem(pod))
    })
}

fn proxy_ready(observed: &Observed) -> Finding {
    let ready = observed.proxy.as_deref().map_or(0, ready_replicas);
    if ready > 0 {
        return Finding::new(condition::PROXY_READY, true, "Ready", "proxies take requests");
    }
    match trouble(observed, Component::Proxy) {
        Some(problem) => Finding::new(condition::PROXY_READY, false, problem.reason, problem.message),
        None => Finding::new(condition::PROXY_READY, false, "Starting", "no proxy is Ready yet"),
    }
}

fn redis_ready(valid: &Valid, observed: &Observed, proxy: &Finding) -> Finding {
    if let RedisPlace::External { secret } = &valid.redis {
        // A proxy is Ready only while it reaches Redis, and the operator itself has no way to.
        return if proxy.holds() {
            Finding::new(condition::REDIS_READY, true, "Reachable", "proxies reach the Redis of the Secret")
        } else {
            let message = format!("no proxy has reached the Redis of the Secret {secret} yet");
            Finding::new(condition::REDIS_READY, None, "NotReached", message)
        };
    }
    let status = observed.redis.as_deref().and_then(|set| set.status.as_ref());
    if status.and_then(|status| status.ready_replicas).unwrap_or(0) > 0 {
        return Finding::new(condition::REDIS_READY, true, "Ready", "Redis accepts connections");
    }
    match trouble(observed, Component::Redis) {
        Some(problem) => Finding::new(condition::REDIS_READY, false, problem.reason, problem.message),
        None => Finding::new(condition::REDIS_READY, false, "Starting", "Redis does not accept connections yet"),
    }
}

/// Of the wanted revision: whether its workers can load it.
fn model_loaded(valid: &Valid, observed: &Observed) -> Finding {
    let wanted = &valid.revision;
    let Some(revision) = observed.view.revisions.get(wanted) else {
        let message = format!("revision {wanted} has no worker yet");
        return Finding::new(condition::MODEL_LOADED, None, "Pending", message);
    };
    if let Some(problem) = revision.failing().filter(|_| !revision.loaded) {
        return Finding::new(condition::MODEL_LOADED, false, problem.reason, problem.message);
    }
    if revision.loaded {
        let message = format!("a worker has loaded revision {wanted}");
        return Finding::new(condition::MODEL_LOADED, true, "Loaded", message);
    }
    if let Some(message) = &revision.workers.unschedulable {
        return Finding::new(condition::MODEL_LOADED, None, "Unschedulable", message);
    }
    let message = format!("the first worker of revision {wanted} is starting");
    Finding::new(condition::MODEL_LOADED, None, "Loading", message)
}

/// Whether the model answers, or will as soon as a request wakes it.
fn ready(plan: &Plan, observed: &Observed, needed: [&Finding; 2]) -> Finding {
    if let Some(missing) = needed.into_iter().find(|finding| !finding.holds()) {
        let reason = match missing.type_ {
            condition::REDIS_READY => "RedisNotReady",
            _ => "ProxyNotReady",
        };
        return Finding::new(condition::READY, false, reason, &missing.message);
    }
    let Some(serving) = observed.view.revisions.get(&plan.serving).filter(|serving| serving.loaded) else {
        let problem = observed.view.revisions.get(&plan.serving).and_then(Revision::failing);
        return match problem {
            Some(problem) => Finding::new(condition::READY, false, problem.reason, problem.message),
            None => Finding::new(condition::READY, false, "ModelLoading", "no worker has loaded the model yet"),
        };
    };
    let ready = serving.workers.ready;
    if ready > 0 {
        let message = format!("revision {} is served", plan.serving);
        return Finding::new(condition::READY, true, "Serving", message);
    }
    if plan.replicas.get(&plan.serving) == Some(&Replicas::Exactly(0)) {
        let message = "workers of one revision make room for another's; the queue holds requests";
        return Finding::new(condition::READY, true, "MakingRoom", message);
    }
    if serving.replicas == 0 {
        let message = "no worker runs; the next request wakes one";
        return Finding::new(condition::READY, true, "ScaledToZero", message);
    }
    let unschedulable = serving.workers.unschedulable.clone().map(|message| Problem {
        reason: "Unschedulable".to_owned(),
        message,
    });
    match serving.failing().or(unschedulable) {
        Some(problem) => Finding::new(condition::READY, false, problem.reason, problem.message),
        None => Finding::new(condition::READY, true, "WorkersStarting", "workers are starting; the queue holds requests"),
    }
}

/// Whether something is on its way to what the spec asks for.
fn progressing(valid: &Valid, plan: &Plan, observed: &Observed, loaded: &Finding) -> Finding {
    let wanted = &valid.revision;
    if loaded.status == Some(false) {
        return Finding::new(condition::PROGRESSING, false, "Failed", &loaded.message);
    }
    if plan.serving != *wanted || !loaded.holds() {
        let message = format!("revision {wanted} is to take over");
        return Finding::new(condition::PROGRESSING, true, "RollingOut", message);
    }
    let retired: Vec<&str> = observed.view.revisions.keys().filter(|name| *name != wanted).map(String::as_str).collect();
    if !retired.is_empty() {
        let message = format!("revision {} finishes its requests", retired.join(", "));
        return Finding::new(condition::PROGRESSING, true, "Draining", message);
    }
    let deployments = observed.workers.values().chain(&observed.proxy);
    if deployments.into_iter().any(|deployment| is_updating(deployment)) {
        return Finding::new(condition::PROGRESSING, true, "Updating", "pods are being replaced by newer ones");
    }
    Finding::new(condition::PROGRESSING, false, "Complete", "everything is as the spec asks for")
}

/// Whether pods of an older template are left. Pods that come and go with the queue are no update.
fn is_updating(deployment: &Deployment) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    status.observed_generation < deployment.metadata.generation
        || status.updated_replicas.unwrap_or(0) < status.replicas.unwrap_or(0)
}

fn scaling_active(observed: &Observed) -> Option<Finding> {
    match (observed.queue_length, observed.asked) {
        (Some(_), _) => Some(Finding::new(
            condition::SCALING_ACTIVE,
            true,
            "FollowsQueue",
            "the number of workers follows the queue's length",
        )),
        (None, true) => Some(Finding::new(
            condition::SCALING_ACTIVE,
            false,
            "QueueUnknown",
            "no proxy tells the queue's length, so no worker is taken away",
        )),
        // An operator that has just started knows no better than the one before.
        (None, false) => None,
    }
}

/// Whether two statuses say the same, their times and the queue's length apart.
pub fn says_the_same(one: &BatchedModelStatus, other: &BatchedModelStatus) -> bool {
    let plain = |status: &BatchedModelStatus| BatchedModelStatus {
        queue_length: 0,
        ..status.clone()
    };
    plain(one) == plain(other)
}
