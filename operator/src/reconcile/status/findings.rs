//! The conditions, one function each.

use carpool_crds::{BatchedModelStatus, condition};
use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::Condition};

use super::{
    children,
    ready::{self, Latest},
};
use crate::{
    names::Component,
    reconcile::{
        observe::{self, Observed},
        validate::Valid,
    },
    rollout::Plan,
    workers::{self, Problem, Workers},
};

/// A condition without its bookkeeping: status, reason, message.
pub struct Finding {
    /// The condition's type.
    pub type_: &'static str,
    /// `None` is Unknown.
    pub status: Option<bool>,
    /// A stable word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

impl Finding {
    /// A finding. No status is Unknown.
    pub fn new(
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

    /// Whether its status is True.
    pub fn holds(&self) -> bool {
        self.status == Some(true)
    }
}

/// All conditions of a resource whose children are as they should be.
pub fn findings(
    valid: &Valid,
    plan: &Plan,
    observed: &Observed,
    before: &BatchedModelStatus,
) -> Vec<Finding> {
    let proxy = proxy_ready(observed, valid.spec.proxy.tls.is_some());
    let mut redis = redis_ready(external_redis(valid, plan, observed), observed, &proxy);
    if let Some(held) = held_place(valid, plan, observed) {
        let note = format!(
            "; sidecars in pods of apps still use the Redis of the Secret {held}, which stays for them until they are injected anew"
        );
        redis.message.push_str(&note);
    }
    let loaded = model_loaded(valid, observed, &before.conditions);
    let progressing = progressing(valid, plan, observed, &loaded);
    let latest = Latest {
        valid,
        plan,
        observed,
        before,
        progressing: &progressing,
    };
    let ready = latest.ready([&redis, &proxy]);
    let stalled = latest.stalled(&ready);
    let mut findings = vec![ready, progressing, loaded, proxy, redis];
    findings.extend(stalled);
    findings.extend(scaling_active(observed));
    findings.extend(children::network_policies(observed));
    findings
}

/// The conditions of a resource whose children could not be made as it asks for: what is there may well run.
pub fn rejected(observed: &Observed, reason: &str, message: &str) -> Vec<Finding> {
    let proxy = proxy_ready(observed, false);
    // A spec that was refused does not say where Redis is.
    let external = observed.redis.is_none().then(|| "Redis".to_owned());
    let redis = redis_ready(external, observed, &proxy);
    let ready = format!("{message}{}", ready::still_answers(observed));
    let mut findings = vec![
        Finding::new(condition::READY, false, reason, ready),
        Finding::new(condition::PROGRESSING, false, reason, message),
        Finding::new(condition::STALLED, true, reason, message),
        proxy,
        redis,
    ];
    findings.extend(scaling_active(observed));
    findings
}

fn ready_replicas(deployment: &Deployment) -> i32 {
    deployment
        .status
        .as_ref()
        .and_then(|status| status.ready_replicas)
        .unwrap_or(0)
}

/// Whether pods of an older template are left.
fn is_replaced(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    status.is_some_and(|status| status.updated_replicas < status.replicas)
}

/// The problem that keeps the pods of a component from running.
fn trouble(observed: &Observed, component: Component) -> Option<Problem> {
    let pods = observed
        .pods
        .iter()
        .filter(|pod| workers::is(pod, component));
    pods.filter(|pod| !workers::is_ready(pod))
        .find_map(|pod| workers::problem(pod))
}

fn proxy_ready(observed: &Observed, tls: bool) -> Finding {
    let ready = observed.proxy.as_deref().map_or(0, ready_replicas);
    // Proxies that are replaced may be without TLS: then the Service does not lead to them.
    let replaced = tls && observed.proxy.as_deref().is_some_and(is_replaced);
    let stuck = trouble(observed, Component::Proxy).filter(|_| replaced);
    if ready > 0 && stuck.is_none() {
        return Finding::new(
            condition::PROXY_READY,
            true,
            "Ready",
            "proxies take requests",
        );
    }
    let refused = || observed.proxy.as_deref().and_then(observe::stalled);
    match trouble(observed, Component::Proxy).or_else(refused) {
        Some(problem) => Finding::new(
            condition::PROXY_READY,
            false,
            problem.reason,
            problem.message,
        ),
        None => Finding::new(
            condition::PROXY_READY,
            false,
            "Starting",
            "no proxy is Ready yet",
        ),
    }
}

/// The words for the Redis that proxies use, unless the operator runs it. Until a queue has moved to one of the user's, they
/// use the one before.
fn external_redis(valid: &Valid, plan: &Plan, observed: &Observed) -> Option<String> {
    valid.external_secret()?;
    let place = observed.places.of_proxies(&plan.active, valid);
    let is_managed = observed.redis.is_some() && place == observed.places.managed;
    (!is_managed).then(|| format!("the Redis of the Secret {place}"))
}

/// A place that the queue has moved from and that sidecars hold.
fn held_place<'a>(valid: &Valid, plan: &Plan, observed: &'a Observed) -> Option<&'a String> {
    let is_moved =
        plan.active == valid.revision && observed.view.active.as_ref() == Some(&plan.active);
    let now = observed.places.of_proxies(&plan.active, valid);
    let mut held = observed.places.fed_by_sidecars.iter().filter(|_| is_moved);
    held.find(|place| **place != now)
}

/// Whether Redis is ready. `external` is one that the operator does not run, in words.
fn redis_ready(external: Option<String>, observed: &Observed, proxy: &Finding) -> Finding {
    if let Some(redis) = external {
        // The operator has no way to it. A proxy gets Ready once it has reached it and stays so while it is away, but
        // then tells no length of the queue.
        let lost = observed.asked && observed.queue_length().is_none();
        let (status, reason, message) = match (proxy.holds(), lost) {
            (false, _) => (
                None,
                "NotReached",
                format!("no proxy has reached {redis} yet"),
            ),
            (true, true) => (
                Some(false),
                "NotReached",
                format!("proxies don't reach {redis}, or can't be asked for the queue's length"),
            ),
            (true, false) => (Some(true), "Reachable", format!("proxies reach {redis}")),
        };
        return Finding::new(condition::REDIS_READY, status, reason, message);
    }
    let status = observed
        .redis
        .as_deref()
        .and_then(|set| set.status.as_ref());
    if status.and_then(|status| status.ready_replicas).unwrap_or(0) > 0 {
        return Finding::new(
            condition::REDIS_READY,
            true,
            "Ready",
            "Redis accepts connections",
        );
    }
    match trouble(observed, Component::Redis) {
        Some(problem) => Finding::new(
            condition::REDIS_READY,
            false,
            problem.reason,
            problem.message,
        ),
        None => Finding::new(
            condition::REDIS_READY,
            false,
            "Starting",
            "Redis does not accept connections yet",
        ),
    }
}

/// Whether workers of the latest revision can load it.
fn model_loaded(valid: &Valid, observed: &Observed, before: &[Condition]) -> Finding {
    let latest = &valid.revision;
    let Some(revision) = observed.view.revisions.get(latest) else {
        let message = format!("revision {latest} has no worker yet");
        return Finding::new(condition::MODEL_LOADED, None, "Pending", message);
    };
    if let Some(Problem { reason, message }) = revision.failing().filter(|_| !revision.loaded) {
        let message = match &revision.given_up {
            Some(_) => ready::given_up(&valid.name, &message),
            None => message,
        };
        return Finding::new(condition::MODEL_LOADED, false, reason, message);
    }
    // Workers that run serve on, but none joins them any more.
    let changed = revision.workers.problem.as_ref();
    if let Some(changed) = changed.filter(|problem| problem.is_changed_artifact()) {
        return Finding::new(
            condition::MODEL_LOADED,
            false,
            &changed.reason,
            &changed.message,
        );
    }
    if revision.loaded {
        return served_as(latest, observed, before);
    }
    if let Some(message) = &revision.workers.unschedulable {
        return Finding::new(condition::MODEL_LOADED, None, "Unschedulable", message);
    }
    let message = format!("the first worker of revision {latest} is starting");
    Finding::new(condition::MODEL_LOADED, None, "Loading", message)
}

/// The way in which workers serve a revision that they have loaded.
fn served_as(latest: &str, observed: &Observed, before: &[Condition]) -> Finding {
    let loaded = format!("a worker has loaded revision {latest}");
    let (reason, message) = match observed.reports.get(latest).map(|report| &report.model) {
        Some(model) if model.message.is_empty() => (model.reason.name().to_owned(), loaded),
        Some(model) => {
            let message = format!("{loaded}; {}", model.message);
            (model.reason.name().to_owned(), message)
        }
        // A report from before the operator started still holds for the same revision.
        None => before
            .iter()
            .find(|old| {
                let told = old.type_ == condition::MODEL_LOADED && old.status == "True";
                told && old.message.starts_with(&loaded)
            })
            .map_or(("Loaded".to_owned(), loaded), |old| {
                (old.reason.clone(), old.message.clone())
            }),
    };
    Finding::new(condition::MODEL_LOADED, true, reason, message)
}

/// Whether something is on its way to what the spec asks for.
fn progressing(valid: &Valid, plan: &Plan, observed: &Observed, loaded: &Finding) -> Finding {
    let latest = &valid.revision;
    if loaded.status == Some(false) {
        return Finding::new(condition::PROGRESSING, false, "Failed", &loaded.message);
    }
    if plan.active != *latest || !loaded.holds() {
        let message = format!("revision {latest} is to take over");
        return Finding::new(condition::PROGRESSING, true, "RollingOut", message);
    }
    let draining: Vec<&str> = observed
        .view
        .revisions
        .keys()
        .filter(|name| *name != latest)
        .map(String::as_str)
        .collect();
    if !draining.is_empty() {
        let message = format!("revision {} finishes its requests", draining.join(", "));
        return Finding::new(condition::PROGRESSING, true, "Draining", message);
    }
    let proxies = observed.pods.iter().map(AsRef::as_ref);
    let proxies = Workers::of(proxies.filter(|pod| workers::is(pod, Component::Proxy)));
    let revision = observed.view.revisions.get(latest);
    let of_workers = observed
        .workers
        .get(latest)
        .zip(revision.map(|revision| &revision.workers));
    let of_proxies = observed.proxy.as_ref().map(|proxy| (proxy, &proxies));
    let updating: Vec<_> = [of_workers, of_proxies]
        .into_iter()
        .flatten()
        .filter(|(deployment, _)| observe::is_updating(deployment))
        .collect();
    let failure = updating
        .iter()
        .find_map(|(deployment, pods)| update_failure(deployment, pods));
    if let Some(Problem { message, .. }) = failure {
        return Finding::new(condition::PROGRESSING, false, "Failed", message);
    }
    if !updating.is_empty() || observed.made.changed {
        return Finding::new(
            condition::PROGRESSING,
            true,
            "Updating",
            "pods are being replaced by newer ones",
        );
    }
    if let Some(queued) = children::queued(observed) {
        return queued;
    }
    Finding::new(
        condition::PROGRESSING,
        false,
        "Complete",
        "everything is as the spec asks for",
    )
}

/// The problem that keeps an update from going on. One whose pod fits nowhere goes on once an older pod has left, until
/// Kubernetes itself calls it stalled.
fn update_failure(deployment: &Deployment, pods: &Workers) -> Option<Problem> {
    let unplaced = || pods.unschedulable.clone().map(Problem::unschedulable);
    let stalled = || observe::stalled(deployment).map(|stalled| unplaced().unwrap_or(stalled));
    pods.problem.clone().or_else(stalled)
}

fn scaling_active(observed: &Observed) -> Option<Finding> {
    match (observed.queue_length(), observed.asked) {
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
