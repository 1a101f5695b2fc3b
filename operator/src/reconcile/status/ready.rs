//! The conditions that speak of the latest spec, as Knative's `Ready` does: whether its revision serves with the wanted
//! number of workers, and whether it can get there by itself.

use carpool_crds::{BatchedModelStatus, condition};

use super::findings::Finding;
use crate::{
    names,
    reconcile::{
        observe::{self, Observed},
        validate::Valid,
    },
    rollout::{GivenUp, Plan, Revision},
    workers::Problem,
};

/// The spec's revision, and everything that its conditions depend on.
pub struct Latest<'a> {
    /// The resource.
    pub valid: &'a Valid,
    /// The plan for all revisions.
    pub plan: &'a Plan,
    /// Everything that there is of the resource.
    pub observed: &'a Observed,
    /// The status that is written.
    pub before: &'a BatchedModelStatus,
    /// The condition `Progressing`.
    pub progressing: &'a Finding,
}

impl Latest<'_> {
    fn name(&self) -> &str {
        &self.observed.view.latest
    }

    fn revision(&self) -> Option<&Revision> {
        self.observed.view.revisions.get(self.name())
    }

    fn is_active(&self) -> bool {
        self.plan.active == self.name()
    }

    /// Whether the latest revision serves with the wanted number of workers, or will as soon as a request wakes it.
    pub fn ready(&self, needed: [&Finding; 2]) -> Finding {
        let is = |status: bool, reason: &str, message: String| {
            Finding::new(condition::READY, status, reason, message)
        };
        if let Some(missing) = needed.into_iter().find(|finding| !finding.holds()) {
            let reason = match missing.type_ {
                condition::REDIS_READY => "RedisNotReady",
                _ => "ProxyNotReady",
            };
            return is(false, reason, missing.message.clone());
        }
        if let Some(waits) = self.waits_for_its_turn() {
            return waits;
        }
        let name = self.name();
        let revision = self.revision();
        let ready = revision.map_or(0, |revision| revision.workers.ready);
        let wanted = self.wanted();
        let proven = revision.filter(|revision| revision.loaded);
        let Some(revision) = proven else {
            let problem = revision.and_then(Revision::failing);
            return match problem.or_else(|| self.unplaced()) {
                Some(Problem { reason, message }) => is(false, &reason, message),
                None => is(
                    false,
                    "ModelLoading",
                    "no worker has loaded the model yet".to_owned(),
                ),
            };
        };
        let view = &self.observed.view;
        // The reconcile that tells proxies to switch has seen them feed the revision before.
        let switched = view.switched && view.active.as_ref() == Some(&self.plan.active);
        if view.revisions.len() > 1 && !switched {
            let message = format!(
                "proxies are switching to revision {name}; {ready} workers of it are Ready"
            );
            return is(false, "RollingOut", message);
        }
        if let Some(updating) = self.replaces_pods(revision, ready) {
            return updating;
        }
        if wanted == 0 {
            if self.makes_room() {
                let message =
                    "workers of one revision make room for another's; the queue holds requests";
                return is(false, "MakingRoom", message.to_owned());
            }
            if self.wanted_first() == 0 {
                let message = "no worker runs; the next request wakes one";
                return is(true, "ScaledToZero", message.to_owned());
            }
        }
        let wanted = wanted.max(self.wanted_first());
        if ready >= wanted {
            return is(
                true,
                "Serving",
                format!("revision {name} is served by {ready} workers"),
            );
        }
        let of = format!("{ready} of {wanted} workers are Ready");
        let problem = revision
            .failing()
            .or_else(|| revision.workers.problem.clone());
        match problem.or_else(|| self.unplaced()) {
            Some(Problem { reason, message }) if ready == 0 => is(false, &reason, message),
            Some(Problem { reason, message }) => is(false, &reason, format!("{of}: {message}")),
            None => {
                let message = format!("{of}, the others are starting; the queue holds requests");
                is(self.only_grows(ready), "WorkersStarting", message)
            }
        }
    }

    /// The state of a latest revision that proxies do not feed yet.
    fn waits_for_its_turn(&self) -> Option<Finding> {
        if self.is_active() {
            return None;
        }
        let name = self.name();
        let still = still_answers_by(self.observed, &self.plan.active);
        let (reason, message) = match self.revision() {
            None => (
                "RollingOut".to_owned(),
                format!("revision {name} waits for another to leave"),
            ),
            Some(revision) => {
                let ready = revision.workers.ready;
                if let Some(GivenUp { problem, .. }) = &revision.given_up {
                    let message = given_up(&self.valid.name, &problem.message);
                    (
                        problem.reason.clone(),
                        format!("revision {name}: {message}"),
                    )
                } else if let Some(problem) = revision.failing() {
                    (
                        problem.reason,
                        format!("revision {name} does not start: {}", problem.message),
                    )
                } else if let Some(message) = &revision.workers.unschedulable {
                    let bounds = &self.observed.view.bounds;
                    let (reason, waits) = match (self.observed.view.waited, bounds.max_unavailable)
                    {
                        (false, _) => (
                            "WaitingForRoom",
                            format!("waits {:?} for a node", bounds.room_timeout),
                        ),
                        (true, 0) => (
                            "WaitingForRoom",
                            "waits for a node, for maxUnavailable is 0".to_owned(),
                        ),
                        (true, _) => (
                            "MakingRoom",
                            "gets the room of the revision before, worker by worker".to_owned(),
                        ),
                    };
                    (
                        reason.to_owned(),
                        format!(
                            "revision {name}, {ready} workers of which are Ready, {waits}: {message}"
                        ),
                    )
                } else {
                    let asked = revision.replicas;
                    let loading =
                        format!("{ready} of {asked} workers of revision {name} are Ready");
                    let problem = revision.workers.problem.as_ref();
                    let trouble = problem
                        .map_or_else(String::new, |problem| format!(": {}", problem.message));
                    ("RollingOut".to_owned(), format!("{loading}{trouble}"))
                }
            }
        };
        Some(Finding::new(
            condition::READY,
            false,
            reason,
            format!("{message}{still}"),
        ))
    }

    /// Whether only a change of the spec or of the cluster brings the latest revision on; `None` where it may get there.
    pub fn stalled(&self, ready: &Finding) -> Option<Finding> {
        let failed = self
            .revision()
            .filter(|revision| revision.workers.ready == 0);
        let failed =
            failed.is_some_and(|revision| revision.failing().is_some() && revision.has_failed());
        let update_failed = ready.reason == "UpdateFailed";
        let given_up = self.plan.give_up.is_some();
        (!ready.holds() && (failed || update_failed || given_up)).then(|| {
            Finding::new(
                condition::STALLED,
                true,
                ready.reason.clone(),
                ready.message.clone(),
            )
        })
    }

    /// Workers that the plan asks for.
    fn wanted(&self) -> usize {
        let mut workers = self.plan.workers(&self.observed.view);
        let wanted = workers.find(|(name, _)| *name == self.name());
        wanted.map_or(0, |(_, wanted)| usize::try_from(wanted).unwrap_or(0))
    }

    fn unplaced(&self) -> Option<Problem> {
        let message = self.revision()?.workers.unschedulable.clone();
        message.map(Problem::unschedulable)
    }

    /// Whether workers of another revision, which finishes its requests, have the room of this one's.
    fn makes_room(&self) -> bool {
        let mut others = self.observed.view.revisions.iter();
        others.any(|(name, other)| name != self.name() && other.needs_room())
    }

    /// The finding of pods that are being replaced. Those that a newer operator replaces leave a resource Ready that was:
    /// its spec is served as before. Those of a spec that was changed are what its user waits for.
    fn replaces_pods(&self, revision: &Revision, ready: usize) -> Option<Finding> {
        let of_proxies = self.observed.proxy.as_deref();
        let of_workers = self.observed.workers.get(self.name()).map(AsRef::as_ref);
        let progressing = self.progressing;
        let is_failed = progressing.reason == "Failed";
        let is_updating = self.observed.made.changed
            || revision.updating
            || of_proxies.is_some_and(observe::is_updating);
        let is_unseen = || {
            of_proxies
                .into_iter()
                .chain(of_workers)
                .any(observe::is_unseen)
        };
        if is_failed && is_updating {
            let message = format!("{}; {ready} workers are Ready", progressing.message);
            return Some(Finding::new(
                condition::READY,
                false,
                "UpdateFailed",
                message,
            ));
        }
        (!self.was_ready() && (is_updating || is_unseen())).then(|| {
            let message =
                format!("pods are being replaced by newer ones; {ready} workers are Ready");
            Finding::new(condition::READY, false, "Updating", message)
        })
    }

    /// Whether the resource was Ready with this very spec.
    fn was_ready(&self) -> bool {
        let conditions = &self.before.conditions;
        let was = conditions.iter().find(|old| old.type_ == condition::READY);
        was.is_some_and(|was| {
            was.status == "True" && was.observed_generation == Some(self.valid.generation)
        })
    }

    /// Workers without which a spec is not served that was not served before: the queue has not yet been asked for it.
    fn wanted_first(&self) -> usize {
        let least = self.valid.spec.scaling.min_replicas;
        let least = usize::try_from(least).unwrap_or(usize::MAX);
        if self.was_ready() { 0 } else { least }
    }

    /// Whether workers are missing only because the queue asks for more of them: it was Ready, and has lost none.
    fn only_grows(&self, ready: usize) -> bool {
        let lost = i32::try_from(ready).is_ok_and(|ready| ready < self.before.ready_replicas);
        self.was_ready() && !lost
    }
}

/// The sentence on a revision that was given up, with the way to have it tried again.
pub fn given_up(model: &str, problem: &str) -> String {
    format!(
        "{problem}; given up so that the revision before can run: change the model or its workers, or try again with \
         `kubectl annotate --overwrite bm {model} {}=$(date +%s)`",
        names::RETRY
    )
}

/// The end of a sentence on a spec that is not served: what answers instead, if anything does.
pub fn still_answers(observed: &Observed) -> String {
    let active = observed.view.active.as_ref();
    active.map_or_else(String::new, |active| still_answers_by(observed, active))
}

fn still_answers_by(observed: &Observed, active: &str) -> String {
    let Some(revision) = observed
        .view
        .revisions
        .get(active)
        .filter(|revision| revision.loaded)
    else {
        return String::new();
    };
    match (revision.workers.ready, revision.replicas) {
        (0, 0) => format!("; the queue holds requests for revision {active}"),
        (0, _) => format!("; workers of revision {active} are starting"),
        (1, _) => format!("; revision {active} still answers with 1 worker"),
        (ready, _) => format!("; revision {active} still answers with {ready} workers"),
    }
}
