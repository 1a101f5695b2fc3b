//! Plans the way from one revision of a model to the next. Pure: observations come in, a plan goes out, and since all
//! it needs stands on objects of the cluster, an operator that starts anew goes on where the one before stopped.
//!
//! - The *latest* revision is the spec's. Until it is active it is a candidate: one worker proves it, then it grows to
//!   as many as the active one needs.
//! - The *active* revision is the one that proxies feed. It changes when as many workers of the candidate are Ready.
//! - Any other is *draining*: it keeps its workers until nobody feeds it and its queue is empty, then it goes.
//!
//! Where the nodes are full, the candidate first waits for another node (`roomTimeout`). Then workers are traded one for
//! one, the active revision's for the candidate's, until both have as many; the queue holds requests where that is none.
//! A candidate that fails meanwhile is given up and the active one comes back. A draining revision that still has
//! requests and fits nowhere likewise has the active one step aside.

mod patience;
mod succession;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use carpool_crds::{Rollout, TerminationReason};
use carpool_scaling::Decision;

use serde::{Deserialize, Serialize};

pub use self::patience::Patience;
use self::succession::Succession;
use crate::workers::{Problem, Workers};

/// Failed starts of a candidate's worker after which it may be given up: the first may have a cause that passes.
const STARTS: u32 = 2;

/// A revision as it was last observed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revision {
    /// Workers asked for.
    pub replicas: i32,
    /// Workers seen.
    pub workers: Workers,
    /// A worker of it has been Ready, now or before.
    pub loaded: bool,
    /// The attempt that was given up in favour of the revision before.
    pub given_up: Option<GivenUp>,
    /// The problem for which it won't get Ready by waiting, although no worker tells one.
    pub stalled: Option<Problem>,
    /// Requests waiting and in flight; `None` when nobody could say.
    pub length: Option<u64>,
    /// The number of workers that its queue needs; `None` before the queue was first looked at.
    pub decision: Option<Decision>,
    /// Whether pods of an older template are left.
    pub updating: bool,
    /// The Redis that its workers read.
    pub place: Place,
}

/// The Redis that a revision's workers read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// That of the active revision.
    #[default]
    Active,
    /// Another one, for the queue moves or has moved.
    Other {
        /// Whether a proxy or a sidecar is left that feeds it there.
        fed: bool,
    },
}

/// An attempt to start a revision that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The problem for which it was.
    #[serde(flatten)]
    pub problem: Problem,
    /// The attempt: see [`View::attempt`].
    #[serde(default)]
    pub attempt: String,
}

impl Revision {
    /// The problem that keeps every worker of it from getting Ready, if there is one.
    #[must_use]
    pub fn failing(&self) -> Option<Problem> {
        if self.workers.ready > 0 {
            return None;
        }
        if let Some(given_up) = &self.given_up {
            return Some(given_up.problem.clone());
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

    /// The number of workers that its queue needs now.
    fn needed(&self) -> i32 {
        let decided = self
            .decision
            .map(|decision| i32::try_from(decision.replicas));
        decided.map_or(self.replicas, |decided| decided.unwrap_or(i32::MAX))
    }

    /// The number of workers that its queue needs, within what `max_surge` allows beside those of another revision. None
    /// is taken away for it.
    fn scaled_beside(&self, others: i32, max_surge: Option<i32>) -> Replicas {
        let Some(surge) = max_surge else {
            return Replicas::Scaled;
        };
        let most = self
            .needed()
            .max(1)
            .saturating_add(surge)
            .saturating_sub(others);
        match most.max(self.replicas) {
            most if most < self.needed() => Replicas::Exactly(most),
            _ => Replicas::Scaled,
        }
    }

    /// The number of workers with one less than there are, or as many while one is still leaving.
    fn one_less(&self) -> i32 {
        (self.replicas - i32::from(!self.is_leaving())).max(0)
    }

    /// Whether a worker is still leaving. Pods beyond what is asked for are an update's where one fits nowhere, and wait
    /// for room themselves.
    fn is_leaving(&self) -> bool {
        let pods = i32::try_from(self.workers.pods).unwrap_or(i32::MAX);
        pods > self.replicas && self.workers.unschedulable.is_none()
    }

    /// Whether it has failed to start often enough to be given up. A problem that is none of a start, such as an image
    /// that can't be pulled, has to last instead: see [`Patience`].
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.workers.failed_starts >= STARTS || self.stalled.is_some()
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
    /// Whether every proxy and every injected sidecar with the active revision's Redis feeds `active`.
    pub switched: bool,
    /// Whether a worker has left so recently that the scheduler may not yet have placed another in its room.
    pub settling: bool,
    /// The bounds of a rollout, which the spec gives.
    pub bounds: Bounds,
    /// Whether the time is over for which a worker that fits nowhere waits for another node.
    pub waited: bool,
    /// The attempt at the latest revision: a hash of the pods that it is to have and of the annotation that asks for
    /// another attempt. One that was given up is void when this changes. Empty for a spec that is not valid.
    pub attempt: String,
    /// The time after which a clock of the rollout has run out, so that another plan may differ.
    pub look_again: Option<Duration>,
}

/// The bounds of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The most workers above the wanted number; `None` is as many as the nodes hold.
    pub max_surge: Option<i32>,
    /// The most workers below the wanted number.
    pub max_unavailable: i32,
    /// The time for which a worker that fits nowhere waits for another node before others make room for it.
    pub room_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self::from(&Rollout::default())
    }
}

impl From<&Rollout> for Bounds {
    fn from(rollout: &Rollout) -> Self {
        let count = |count| i32::try_from(count).unwrap_or(i32::MAX);
        Self {
            max_surge: rollout.max_surge.map(count),
            max_unavailable: count(rollout.max_unavailable),
            room_timeout: rollout.room_timeout.0,
        }
    }
}

impl View {
    /// Takes the attempt at the latest revision in, which makes one void that was given up before it.
    pub fn attempt(&mut self, attempt: String) {
        if let Some(latest) = self.revisions.get_mut(&self.latest) {
            latest
                .given_up
                .take_if(|given_up| given_up.attempt != attempt);
        }
        self.attempt = attempt;
    }
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
    /// The attempt at the latest revision that is given up, if it is.
    pub give_up: Option<GivenUp>,
    /// Whether pods of the latest revision that are replaced leave before their successors have come: these fit nowhere.
    pub trade: bool,
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
    let wants_room = |name: &String| {
        let revision = view.revisions.get(name);
        revision.is_some_and(|revision| revision.workers.unschedulable.is_some())
    };
    let room_is_wanted = wants_room(&active) || wants_room(&view.latest);
    for (name, revision) in view.revisions.iter().filter(|(name, _)| is_draining(name)) {
        let fed = match revision.place {
            // Proxies may still feed it unless they have switched to exactly what now serves.
            Place::Active => !(view.switched && view.active.as_ref() == Some(&active)),
            // Proxies feed what is in their own Redis for as long as they live.
            Place::Other { fed } => fed,
        };
        if !revision.loaded || (!fed && revision.length == Some(0)) {
            delete.push(name.clone());
            continue;
        }
        draining.push(revision);
        let is_idle = revision.place != Place::Active && revision.length == Some(0);
        let asked = if revision.replicas == 0 && revision.has_requests() {
            Replicas::Exactly(1)
        } else if is_idle && room_is_wanted {
            // One that a sidecar still feeds takes turns with the one that all others feed.
            Replicas::Exactly(0)
        } else {
            Replicas::Keep
        };
        replicas.insert(name.clone(), asked);
    }

    // A sidecar of the Redis before may live for ever, and holds no rollout up.
    let is_drained = !draining
        .iter()
        .any(|revision| revision.place == Place::Active);
    let incumbent = view.revisions.get(&active);
    let candidate = view
        .revisions
        .get(&view.latest)
        .filter(|_| view.latest != active);
    let fresh = Revision::default();
    let succession = (view.latest != active)
        .then_some(())
        .and(incumbent)
        .map(|incumbent| Succession {
            view,
            candidate: candidate.unwrap_or(&fresh),
            incumbent,
        });
    let give_up = succession.as_ref().and_then(give_up);
    if let Some(candidate) = candidate {
        let asked = succession.as_ref().map_or(1, Succession::asked);
        // Pods of the candidate show that it fails, so they stay until that is written down.
        let asked = if candidate.given_up.is_some() {
            0
        } else {
            asked
        };
        replicas.insert(view.latest.clone(), Replicas::Exactly(asked));
    }
    if let Some(incumbent) = incumbent {
        // Nobody makes room for a third revision before it is its turn.
        let has_its_turn = give_up.is_none() && (candidate.is_some() || is_drained);
        let going_on = succession.as_ref().filter(|_| has_its_turn);
        let aside = going_on.is_some_and(Succession::trades)
            || draining
                .iter()
                .any(|draining| draining.has_requests() && draining.needs_room());
        let asked = match (aside, going_on) {
            (true, _) if view.settling => Replicas::Keep,
            (true, _) => Replicas::Exactly(incumbent.one_less()),
            (false, Some(succession)) if succession.holds_room() => Replicas::Keep,
            (false, Some(succession)) => succession.incumbents(),
            (false, None) => {
                let pods: usize = draining.iter().map(|draining| draining.workers.pods).sum();
                incumbent.scaled_beside(succession::count(pods), view.bounds.max_surge)
            }
        };
        replicas.insert(active.clone(), asked);
    }
    Plan {
        // A third revision waits until the first has left: there is one change at a time.
        start: view.latest == active
            || (is_drained
                && (candidate.is_some() || succession.is_none_or(|new| new.asked() > 0))),
        active,
        give_up,
        trade: view.bounds.max_surge == Some(0) || (view.waited && view.bounds.max_unavailable > 0),
        replicas,
        delete,
    }
}

fn active(view: &View) -> String {
    let latest = view.revisions.get(&view.latest);
    let stays = |now: &&String| {
        // There is nothing to keep in one that never had a worker.
        let incumbent = view.revisions.get(*now).filter(|now| now.loaded);
        **now != view.latest
            && incumbent.is_some_and(|incumbent| {
                !latest.is_some_and(|candidate| {
                    Succession {
                        view,
                        candidate,
                        incumbent,
                    }
                    .is_due()
                })
            })
    };
    view.active
        .as_ref()
        .filter(stays)
        .unwrap_or(&view.latest)
        .clone()
}

/// A candidate that fails is given up once it keeps the incumbent's workers from coming back; else it may go on trying.
fn give_up(succession: &Succession<'_>) -> Option<GivenUp> {
    let candidate = succession.candidate;
    if candidate.given_up.is_some() {
        return candidate.given_up.clone();
    }
    let problem = candidate.failing()?;
    (candidate.has_failed() && succession.is_in_the_way()).then(|| GivenUp {
        problem,
        attempt: succession.view.attempt.clone(),
    })
}
