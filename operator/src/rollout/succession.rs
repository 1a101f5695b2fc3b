//! A candidate beside the incumbent that it is to succeed: how many workers it gets, and when it is fed.

use super::{Replicas, Revision, View};

/// The latest revision, not fed yet, and the one that proxies feed.
pub(super) struct Succession<'a> {
    pub view: &'a View,
    pub candidate: &'a Revision,
    pub incumbent: &'a Revision,
}

impl Succession<'_> {
    /// Workers that the candidate needs before proxies switch: as many as the incumbent's queue needs now.
    fn needed(&self) -> i32 {
        self.incumbent.needed().max(1)
    }

    /// Workers that the candidate is to have next: one proves it first.
    fn goal(&self) -> i32 {
        if self.candidate.loaded {
            self.needed()
        } else {
            1
        }
    }

    /// Workers that the candidate gets. Those that have come stay, although the queue has become shorter.
    pub fn asked(&self) -> i32 {
        self.goal().min(self.surge()).max(self.candidate.replicas)
    }

    /// Workers that `maxSurge` leaves for the candidate, beside the incumbent's pods.
    fn surge(&self) -> i32 {
        let pods = count(self.incumbent.workers.pods).max(self.incumbent.replicas);
        let surge = self.view.bounds.max_surge;
        surge.map_or(i32::MAX, |surge| {
            self.needed()
                .saturating_add(surge)
                .saturating_sub(pods)
                .max(0)
        })
    }

    /// Workers of the incumbent, within what `maxSurge` allows beside the candidate's.
    pub fn incumbents(&self) -> Replicas {
        self.incumbent
            .scaled_beside(self.asked(), self.view.bounds.max_surge)
    }

    /// Whether the candidate's workers keep the incumbent's from coming back.
    pub fn is_in_the_way(&self) -> bool {
        let (candidate, incumbent) = (self.candidate, self.incumbent);
        // A candidate that has waited for room in vain would take the room that the incumbent needs to come back.
        let waits_in_vain =
            candidate.stalled.is_some() && candidate.workers.unschedulable.is_some();
        let comes_back =
            incumbent.workers.ready == 0 && (incumbent.replicas > 0 || incumbent.has_requests());
        let is_held_back = matches!(self.incumbents(), Replicas::Exactly(_));
        incumbent.workers.unschedulable.is_some() || (waits_in_vain && comes_back) || is_held_back
    }

    /// Whether `maxSurge`, which no node that comes will change, keeps workers from the candidate.
    fn is_at_its_bound(&self) -> bool {
        self.asked() < self.goal()
    }

    /// Whether workers of the candidate have to wait until others leave.
    fn is_short(&self) -> bool {
        // Where no worker may be missing, a node is waited for as long as it takes.
        let gives_up_waiting = self.view.waited && self.view.bounds.max_unavailable > 0;
        let waits_for_node = self.candidate.workers.unschedulable.is_some() && gives_up_waiting;
        (waits_for_node || self.is_at_its_bound()) && self.candidate.given_up.is_none()
    }

    /// Workers of the candidate that have a node and are not Ready yet.
    fn starting(&self) -> usize {
        let workers = &self.candidate.workers;
        workers
            .pods
            .saturating_sub(workers.ready + workers.waiting + workers.leaving)
    }

    /// Ready workers of the incumbent once one has left. Kubernetes takes those first that are not Ready.
    fn left(&self) -> i32 {
        count(self.incumbent.workers.ready)
            .min(self.incumbent.replicas - 1)
            .max(0)
    }

    /// Whether room that the incumbent makes, or has just made, is not in use yet.
    fn is_moving(&self) -> bool {
        let incumbent = self.incumbent;
        incumbent.is_leaving() || incumbent.workers.leaving > 0 || self.view.settling
    }

    /// Whether one more trade brings the two nearer to as many Ready workers. As long as the candidate has none, the
    /// last of the incumbent goes, too.
    fn is_uneven(&self) -> bool {
        let ready = count(self.candidate.workers.ready);
        ready == 0 || self.left() > ready
    }

    /// Whether the incumbent's Ready workers and the candidate's stay within `maxUnavailable` when one leaves.
    fn is_within_bounds(&self) -> bool {
        let ready = count(self.incumbent.workers.ready);
        let both = self.left() + count(self.candidate.workers.ready);
        self.left() == ready || both >= self.needed() - self.view.bounds.max_unavailable
    }

    /// Whether a worker of the incumbent makes room for one of the candidate: one for one, so the room that was made
    /// before is in use.
    pub fn trades(&self) -> bool {
        self.is_short()
            && self.candidate.failing().is_none()
            && self.starting() == 0
            && self.is_uneven()
            && self.is_within_bounds()
    }

    /// Whether the room that the incumbent has made is not to be taken by the incumbent again.
    pub fn holds_room(&self) -> bool {
        self.is_short() && self.candidate.failing().is_none()
    }

    /// Whether proxies are to feed the candidate: it has the workers that are needed, or as many as it gets.
    pub fn is_due(&self) -> bool {
        let ready = count(self.candidate.workers.ready);
        let serves_nobody = self.incumbent.workers.ready == 0;
        let has_all_it_gets =
            self.is_short() && self.starting() == 0 && !self.is_moving() && !self.is_uneven();
        ready > 0 && (ready >= self.needed() || serves_nobody || has_all_it_gets)
    }
}

pub(super) fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}
