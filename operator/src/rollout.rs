//! From one revision of a model to the next. Pure: what was seen comes in, a plan goes out, and since everything it
//! needs stands on objects of the cluster, an operator that starts anew goes on where the one before stopped.
//!
//! - The *wanted* revision is the spec's. Until it serves it is a candidate with one worker.
//! - The *serving* revision is the one that proxies feed. It changes when a worker of the candidate is Ready.
//! - Any other is *retired*: it keeps its workers until nobody feeds it and its queue is empty, then it goes.
//!
//! Where the nodes are full, they take turns. A candidate that fits nowhere has the serving revision's workers leave
//! one by one, if need be all of them, while its queue holds requests; if the candidate then fails, it is given up and
//! the serving one comes back. A retired revision that still has requests and fits nowhere likewise has the serving
//! one step aside.

mod patience;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use carpool_crds::TerminationReason;

pub use self::patience::Patience;
use crate::workers::{Problem, Workers};

/// What is known of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revision {
    /// Workers asked for.
    pub replicas: i32,
    /// Workers seen.
    pub workers: Workers,
    /// A worker of it has been Ready, now or before.
    pub loaded: bool,
    /// Why it was given up in favour of the revision before.
    pub given_up: Option<Problem>,
    /// Why it won't get Ready by waiting, although no worker says so.
    pub stalled: Option<Problem>,
    /// Requests waiting and in flight; `None` when nobody could say.
    pub length: Option<u64>,
}

impl Revision {
    /// Why no worker of it gets Ready, if that is so.
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
    fn needs_room(&self) -> bool {
        let coming = self.workers.ready == 0 && self.failing().is_none();
        coming && self.workers.unschedulable.is_some()
    }

    /// One worker less than there are, or no change while one is still leaving.
    fn one_less(&self) -> i32 {
        // With one that fits nowhere, those beyond what is asked for are an update's, and wait for room themselves.
        let leaving = i32::try_from(self.workers.pods).is_ok_and(|pods| pods > self.replicas)
            && self.workers.unschedulable.is_none();
        (self.replicas - i32::from(!leaving)).max(0)
    }
}

/// What is known of a model's revisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The spec's revision.
    pub wanted: String,
    /// The revision that the configuration tells proxies to feed.
    pub serving: Option<String>,
    /// Revisions that have a Deployment.
    pub revisions: BTreeMap<String, Revision>,
    /// Whether every proxy and every injected sidecar feeds `serving`.
    pub switched: bool,
}

/// How many workers a revision is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replicas {
    /// As many as its queue needs.
    Scaled,
    /// This many.
    Exactly(i32),
    /// As many as there are.
    Keep,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The revision that proxies are to feed.
    pub serving: String,
    /// Whether the wanted revision is to have a Deployment already.
    pub start: bool,
    /// Why the wanted revision is given up, if it is.
    pub give_up: Option<Problem>,
    /// Workers of the revisions that stay.
    pub replicas: BTreeMap<String, Replicas>,
    /// Revisions that go.
    pub delete: Vec<String>,
}

/// What to do with a model's revisions.
#[must_use]
pub fn plan(view: &View) -> Plan {
    let serving = serving(view);
    let retired = |name: &str| name != serving && name != view.wanted;
    let (mut delete, mut replicas) = (Vec::new(), BTreeMap::new());
    let mut draining = Vec::new();
    for (name, revision) in view.revisions.iter().filter(|(name, _)| retired(name)) {
        // Proxies may still feed it unless they have switched to exactly what now serves.
        let fed = !(view.switched && view.serving.as_ref() == Some(&serving));
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

    let incumbent = view.revisions.get(&serving);
    let candidate = (view.wanted != serving)
        .then(|| view.revisions.get(&view.wanted))
        .flatten();
    let give_up = candidate.and_then(|candidate| give_up(candidate, incumbent));
    if let Some(candidate) = candidate {
        // Its pods are what shows that it fails, so they stay until that is written down.
        let asked = i32::from(candidate.given_up.is_none());
        replicas.insert(view.wanted.clone(), Replicas::Exactly(asked));
    }
    if let Some(incumbent) = incumbent {
        let aside = (give_up.is_none() && candidate.is_some_and(Revision::needs_room))
            || draining
                .iter()
                .any(|retired| retired.has_requests() && retired.needs_room());
        let asked = if aside {
            Replicas::Exactly(incumbent.one_less())
        } else {
            Replicas::Scaled
        };
        replicas.insert(serving.clone(), asked);
    }
    Plan {
        // One change at a time: a third revision waits until the first has left.
        start: view.wanted == serving || draining.is_empty(),
        serving,
        give_up,
        replicas,
        delete,
    }
}

fn serving(view: &View) -> String {
    let wanted_is_ready = view
        .revisions
        .get(&view.wanted)
        .is_some_and(|revision| revision.workers.ready > 0);
    match &view.serving {
        // There is nothing to keep in one that never had a worker.
        Some(now) if !wanted_is_ready && view.revisions.get(now).is_some_and(|now| now.loaded) => {
            now.clone()
        }
        _ => view.wanted.clone(),
    }
}

/// A candidate that fails is given up once it keeps the incumbent's workers from coming back; else it may go on trying.
fn give_up(candidate: &Revision, incumbent: Option<&Revision>) -> Option<Problem> {
    if candidate.given_up.is_some() {
        return candidate.given_up.clone();
    }
    let problem = candidate.failing()?;
    let incumbent = incumbent?;
    // One that has waited for room in vain would take what the incumbent needs to come back.
    let waits_in_vain = candidate.stalled.is_some() && candidate.workers.unschedulable.is_some();
    let comes_back =
        incumbent.workers.ready == 0 && (incumbent.replicas > 0 || incumbent.has_requests());
    let in_the_way = incumbent.workers.unschedulable.is_some() || (waits_in_vain && comes_back);
    in_the_way.then_some(problem)
}
