//! The last step: what to tell the user. Pure, from the objects as they were last seen; writing it is `report`'s work.

mod children;
mod findings;
mod ready;
#[cfg(test)]
mod tests;

use carpool_crds::{BatchedModel, BatchedModelStatus, condition};
use k8s_openapi::{
    api::apps::v1::Deployment,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use self::findings::{Finding, findings, rejected};
use super::{build, observe::Observed, validate::Valid};
use crate::{
    names::{self, Component},
    rollout::Plan,
};

/// The end of a reconcile, as the status tells it.
#[derive(Debug)]
pub enum Verdict<'a> {
    /// The children are as they should be.
    Applied {
        /// The resource.
        valid: &'a Valid,
        /// The plan for its revisions.
        plan: &'a Plan,
    },
    /// The reconcile was given up for a reason that the user can do something about.
    Rejected {
        /// A stable reason.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
}

/// Whether the status tells of a reconcile that applied everything of the resource's spec as it is.
pub fn was_carried_out(model: &BatchedModel) -> bool {
    let Some(status) = &model.status else {
        return false;
    };
    let mut conditions = status.conditions.iter();
    let progressing = conditions.find(|condition| condition.type_ == condition::PROGRESSING);
    status.observed_generation == model.metadata.generation
        && progressing.is_some_and(|progressing| APPLIED.contains(&&*progressing.reason))
}

/// The reasons of `Progressing` that a reconcile tells which was not given up.
const APPLIED: [&str; 6] = [
    "Complete",
    "Draining",
    "Failed",
    "RollingOut",
    "UpdateQueued",
    "Updating",
];

/// The status that a resource should have.
pub fn status(
    model: &BatchedModel,
    observed: &Observed,
    verdict: &Verdict<'_>,
    now: Timestamp,
) -> BatchedModelStatus {
    let before = model.status.clone().unwrap_or_default();
    let generation = model.metadata.generation;
    let findings = match verdict {
        Verdict::Applied { valid, plan } => findings(valid, plan, observed, &before),
        Verdict::Rejected { reason, message } => rejected(observed, reason, message),
    };
    let mut status = BatchedModelStatus {
        // A condition that a reconcile that was given up could not look at stays as it was.
        conditions: before
            .conditions
            .iter()
            .filter(|old| old.type_ != condition::STALLED)
            .filter(|old| {
                // Absent where the spec leaves the policies to the user.
                old.type_ != condition::NETWORK_POLICIES_READY
                    || matches!(verdict, Verdict::Rejected { .. })
            })
            .filter(|old| !findings.iter().any(|new| new.type_ == old.type_))
            .cloned()
            .collect(),
        observed_generation: generation,
        queue_length: observed
            .queue_length()
            .and_then(|length| i64::try_from(length).ok())
            .unwrap_or(before.queue_length),
        ..before.clone()
    };
    for finding in findings {
        status
            .conditions
            .push(condition(finding, &before.conditions, generation, now));
    }
    status.conditions.sort_by_key(|condition| {
        [
            condition::READY,
            condition::PROGRESSING,
            condition::STALLED,
            condition::MODEL_LOADED,
            condition::PROXY_READY,
            condition::REDIS_READY,
            condition::SCALING_ACTIVE,
            condition::NETWORK_POLICIES_READY,
        ]
        .iter()
        .position(|type_| *type_ == condition.type_)
    });
    let count = |counts: fn(&Deployment) -> Option<i32>| {
        observed
            .workers
            .values()
            .filter_map(|deployment| counts(deployment))
            .sum()
    };
    status.latest = Some(observed.view.latest.clone());
    status.replicas = count(|deployment| deployment.status.as_ref()?.replicas);
    status.ready_replicas = count(|deployment| deployment.status.as_ref()?.ready_replicas);
    if let Verdict::Applied { valid, plan } = verdict {
        let report = observed.reports.get(&plan.active);
        status.sha256 = report
            .map(|report| report.model.sha256.clone())
            .or_else(|| {
                // A report from before the operator started still holds for the same revision.
                before
                    .sha256
                    .filter(|_| before.serving.as_ref() == Some(&plan.active))
            });
        status.serving = Some(plan.active.clone());
        status.url = Some(build::url(valid));
        status.selector = Some(names::selector_text(&valid.name, Component::Worker));
    }
    status
}

fn condition(
    finding: Finding,
    before: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
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

/// Whether two statuses say the same, their times and the queue's length apart.
pub fn says_the_same(one: &BatchedModelStatus, other: &BatchedModelStatus) -> bool {
    let plain = |status: &BatchedModelStatus| BatchedModelStatus {
        queue_length: 0,
        ..status.clone()
    };
    plain(one) == plain(other)
}
