//! Plans the way from one revision of a model to the next. Pure: observations come in, a plan goes out, and since all
//! it needs stands on objects of the cluster, an operator that starts anew goes on where the one before stopped.
//!
//! - The *latest* revision is the spec's. Until it is active it is a candidate with one worker.
//! - The *active* revision is the one that proxies feed. It changes when a worker of the candidate is Ready.
//! - Any other is *draining*: it keeps its workers until nobody feeds it and its queue is empty, then it goes.
//!
//! Where the nodes are full, they take turns. A candidate that fits nowhere has the active revision's workers leave
//! one by one, if need be all of them, while its queue holds requests; if the candidate then fails, it is given up and
//! the active one comes back. A draining revision that still has requests and fits nowhere likewise has the active
//! one step aside.

mod patience;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use carpool_crds::TerminationReason;
use carpool_scaling::Decision;

pub use self::patience::Patience;
use crate::workers::{Problem, Workers};

/// A revision as it was last observed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revision {
    /// Workers asked for.
    pub replicas: i32,
    /// Workers seen.
    pub workers: Workers,
    /// A worker of it has been Ready, now or before.
    pub loaded: bool,
    /// The problem for which it was given up in favour of the revision before.
    pub given_up: Option<Problem>,
    /// The problem for which it won't get Ready by waiting, although no worker tells one.
    pub stalled: Option<Problem>,
    /// Requests waiting and in flight; `None` when nobody could say.
    pub length: Option<u64>,
    /// The number of workers that its queue needs; `None` before the queue was first looked at.
    pub decision: Option<Decision>,
}

impl Revision {
    /// The problem that keeps every worker of it from getting Ready, if there is one.
    #[must_use]
    pub fn failing(&self) -> Option<Problem> {
        if self.workers.ready > 0 {
            return None;
        }
        if self.given_up.is_some() {
            return self.given_up.clone();
        }
        self.workers
            .problem
            .clone()
            .filter(|problem| problem.reason != TerminationReason::RedisUnreachable.name())
            .or_else(|| self.stalled.clone())
    }

    fn has_requests(&self) -> bool {
        self.length.is_some_and(|length| length > 0)
    }

    /// Whether it is on its way to its first worker and needs another to leave a node.
    #[must_use]
    pub fn needs_room(&self) -> bool {
        let coming = self.workers.ready == 0 && self.failing().is_none();
        coming && self.workers.unschedulable.is_some()
    }

    /// The number of workers with one less than there are, or as many while one is still leaving.
    fn one_less(&self) -> i32 {
        // Pods beyond what is asked for are an update's where one fits nowhere, and wait for room themselves.
        let leaving = i32::try_from(self.workers.pods).is_ok_and(|pods| pods > self.replicas)
            && self.workers.unschedulable.is_none();
        (self.replicas - i32::from(!leaving)).max(0)
    }
}

/// All revisions of a model as they were last observed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The spec's revision.
    pub latest: String,
    /// The revision that the configuration tells proxies to feed.
    pub active: Option<String>,
    /// Revisions that have a Deployment.
    pub revisions: BTreeMap<String, Revision>,
    /// Whether every proxy and every injected sidecar feeds `active`.
    pub switched: bool,
    /// Whether a worker has left so recently that the scheduler may not yet have placed another in its room.
    pub settling: bool,
}

/// The number of workers that a revision is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replicas {
    /// The number that its queue needs.
    Scaled,
    /// A number that the rollout fixes.
    Exactly(i32),
    /// The number that there is.
    Keep,
}

/// Everything that is to be done about a model's revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The revision that proxies are to feed.
    pub active: String,
    /// Whether the latest revision is to have a Deployment already.
    pub start: bool,
    /// The problem for which the latest revision is given up, if it is.
    pub give_up: Option<Problem>,
    /// Workers of the revisions that stay.
    pub replicas: BTreeMap<String, Replicas>,
    /// Revisions that go.
    pub delete: Vec<String>,
}

impl Plan {
    /// The number of workers of each revision that stays and has a Deployment.
    pub fn workers<'a>(&'a self, view: &'a View) -> impl Iterator<Item = (&'a String, i32)> {
        self.replicas.iter().filter_map(|(name, asked)| {
            let revision = view.revisions.get(name)?;
            let scaled = |decision: Decision| i32::try_from(decision.replicas).unwrap_or(i32::MAX);
            let wanted = match asked {
                Replicas::Keep => revision.replicas,
                Replicas::Exactly(count) => *count,
                Replicas::Scaled => revision.decision.map_or(revision.replicas, scaled),
            };
            Some((name, wanted))
        })
    }
}

/// Decides what is to be done about a model's revisions.
#[must_use]
pub fn plan(view: &View) -> Plan {
    let active = active(view);
    let is_draining = |name: &str| name != active && name != view.latest;
    let (mut delete, mut replicas) = (Vec::new(), BTreeMap::new());
    let mut draining = Vec::new();
    for (name, revision) in view.revisions.iter().filter(|(name, _)| is_draining(name)) {
        // Proxies may still feed it unless they have switched to exactly what now serves.
        let fed = !(view.switched && view.active.as_ref() == Some(&active));
        if !revision.loaded || (!fed && revision.length == Some(0)) {
            delete.push(name.clone());
            continue;
        }
        draining.push(revision);
        let asked = if revision.replicas == 0 && revision.has_requests() {
            Replicas::Exactly(1)
        } else {
            Replicas::Keep
        };
        replicas.insert(name.clone(), asked);
    }

    let incumbent = view.revisions.get(&active);
    let candidate = (view.latest != active)
        .then(|| view.revisions.get(&view.latest))
        .flatten();
    let give_up = candidate.and_then(|candidate| give_up(candidate, incumbent));
    if let Some(candidate) = candidate {
        // Pods of the candidate show that it fails, so they stay until that is written down.
        let asked = i32::from(candidate.given_up.is_none());
        replicas.insert(view.latest.clone(), Replicas::Exactly(asked));
    }
    if let Some(incumbent) = incumbent {
        let aside = (give_up.is_none() && candidate.is_some_and(Revision::needs_room))
            || draining
                .iter()
                .any(|draining| draining.has_requests() && draining.needs_room());
        let asked = if aside && view.settling {
            Replicas::Keep
        } else if aside {
            Replicas::Exactly(incumbent.one_less())
        } else {
            Replicas::Scaled
        };
        replicas.insert(active.clone(), asked);
    }
    Plan {
        // A third revision waits until the first has left: there is one change at a time.
        start: view.latest == active || draining.is_empty(),
        active,
        give_up,
        replicas,
        delete,
    }
}

fn active(view: &View) -> String {
    let latest_is_ready = view
        .revisions
        .get(&view.latest)
        .is_some_and(|revision| revision.workers.ready > 0);
    match &view.active {
        // There is nothing to keep in one that never had a worker.
        Some(now) if !latest_is_ready && view.revisions.get(now).is_some_and(|now| now.loaded) => {
            now.clone()
        }
        _ => view.latest.clone(),
    }
}

/// A candidate that fails is given up once it keeps the incumbent's workers from coming back; else it may go on trying.
fn give_up(candidate: &Revision, incumbent: Option<&Revision>) -> Option<Problem> {
    if candidate.given_up.is_some() {
        return candidate.given_up.clone();
    }
    let problem = candidate.failing()?;
    let incumbent = incumbent?;
    // A candidate that has waited for room in vain would take the room that the incumbent needs to come back.
    let waits_in_vain = candidate.stalled.is_some() && candidate.workers.unschedulable.is_some();
    let comes_back =
        incumbent.workers.ready == 0 && (incumbent.replicas > 0 || incumbent.has_requests());
    let in_the_way = incumbent.workers.unschedulable.is_some() || (waits_in_vain && comes_back);
    in_the_way.then_some(problem)
}
