//! Clocks of a rollout that waits for room, which may never come.

use std::time::{Duration, Instant};

use super::View;
use crate::workers::Problem;

/// The time for which a candidate may fit nowhere, with nothing of ours in its way, before its turn is over; and for
/// which a problem that is none of a start may last.
const PATIENCE: Duration = Duration::from_secs(30);
/// The time that the scheduler has to place a pod after a worker has left its node, before another has to leave. It tries
/// a pod that has fitted nowhere again after up to ten seconds (`podMaxBackoffSeconds`).
const SETTLES: Duration = Duration::from_secs(10);

/// Clocks of the room on the nodes, of one rollout.
#[derive(Debug, Default)]
pub struct Patience {
    /// The revision that the clocks are of.
    latest: String,
    /// The time from which on a worker of it has fitted nowhere.
    short: Option<Instant>,
    /// Whether it has waited for a node for the whole `roomTimeout`, which it does once in a rollout.
    waited: bool,
    /// The time from which on it has fitted nowhere although no other worker of its model was left.
    alone: Option<Instant>,
    /// The time from which on it has had a problem without a start that failed.
    failing: Option<Instant>,
    /// Pods of all revisions, as they were last seen.
    pods: usize,
    /// The time at which the last worker left.
    left: Option<Instant>,
}

impl Patience {
    /// Writes down in a view what its clocks say. A candidate that has had all the room that can be made, for long
    /// enough, is stalled, and stays so when others come back, until it is placed or replaced.
    pub fn look(&mut self, view: &mut View, now: Instant) {
        let since = |since: Instant| now.saturating_duration_since(since);
        let pods = view
            .revisions
            .values()
            .map(|revision| revision.workers.pods)
            .sum();
        if pods < self.pods {
            self.left = Some(now);
        }
        let (pods_before, left) = (pods, self.left);
        if self.latest != view.latest {
            *self = Self {
                latest: view.latest.clone(),
                ..Self::default()
            };
        }
        (self.pods, self.left) = (pods_before, left);
        view.settling = self.left.is_some_and(|left| since(left) < SETTLES);

        let is_alone = view
            .revisions
            .iter()
            .all(|(name, other)| *name == view.latest || other.workers.pods == 0);
        let is_candidate = view.active.as_ref() != Some(&view.latest);
        let settles = self.left.map(|left| SETTLES.saturating_sub(since(left)));
        let mut next = settles
            .filter(|left| !left.is_zero())
            .into_iter()
            .collect::<Vec<_>>();
        if let Some(latest) = view.revisions.get_mut(&view.latest) {
            let underway = is_candidate || latest.updating;
            let is_short = underway && latest.workers.unschedulable.is_some();
            start(&mut self.short, is_short, now);
            let waits = self
                .short
                .map(|short| view.bounds.room_timeout.saturating_sub(since(short)));
            self.waited = underway && (self.waited || waits.is_some_and(|left| left.is_zero()));
            next.extend(waits.filter(|_| !self.waited));

            let unplaced = is_candidate && latest.workers.unschedulable.is_some();
            // Others that come back do not begin the wait anew.
            let begins = is_alone || self.alone.is_some();
            start(&mut self.alone, unplaced && begins, now);
            let message = latest.workers.unschedulable.clone();
            let in_vain = message.map(Problem::unschedulable).zip(self.alone);
            let problem = latest.workers.problem.clone();
            let lasts = problem.filter(|_| latest.workers.failed_starts == 0 && is_candidate);
            start(&mut self.failing, lasts.is_some(), now);
            for (problem, begin) in [in_vain, lasts.zip(self.failing)].into_iter().flatten() {
                match PATIENCE
                    .checked_sub(since(begin))
                    .filter(|left| !left.is_zero())
                {
                    Some(left) => next.push(left),
                    None => latest.stalled = Some(problem),
                }
            }
        }
        view.waited = self.waited;
        view.look_again = next.into_iter().min();
    }
}

/// Starts a clock where it does not run yet, or stops it.
fn start(clock: &mut Option<Instant>, runs: bool, now: Instant) {
    *clock = runs.then(|| clock.unwrap_or(now));
}
