//! Clocks of a rollout that waits for room, which may never come.

use std::time::{Duration, Instant};

use super::View;
use crate::workers::Problem;

/// The time for which a candidate may fit nowhere, with nothing of ours in its way, before its turn is over.
const PATIENCE: Duration = Duration::from_secs(30);
/// The time that the scheduler has to place a pod after a worker has left its node, before another has to leave.
const SETTLES: Duration = Duration::from_secs(1);

/// Clocks of the room on the nodes: since when a candidate has fitted nowhere although no other worker of its model was
/// left, and when the last worker left.
#[derive(Debug, Default)]
pub struct Patience {
    alone: Option<(String, Instant)>,
    /// Pods of all revisions, as they were last seen.
    pods: usize,
    left: Option<Instant>,
}

impl Patience {
    /// Marks a candidate as stalled once it has had all the room that can be made, for long enough, and the view as
    /// settling while a worker has only just left. A candidate stays stalled when others come back, until it is placed
    /// or replaced.
    pub fn look(&mut self, view: &mut View, now: Instant) {
        let pods = view
            .revisions
            .values()
            .map(|revision| revision.workers.pods)
            .sum();
        if pods < self.pods {
            self.left = Some(now);
        }
        self.pods = pods;
        let since = |since: Instant| now.saturating_duration_since(since);
        view.settling = self.left.is_some_and(|left| since(left) < SETTLES);

        let latest = &view.latest;
        let mut others = view.revisions.iter().filter(|(name, _)| *name != latest);
        let alone = others.all(|(_, other)| other.workers.pods == 0);
        self.alone = self.alone.take().filter(|(name, _)| name == latest);
        let Some(candidate) = view.revisions.get_mut(latest) else {
            return;
        };
        let Some(message) = &candidate.workers.unschedulable else {
            self.alone = None;
            return;
        };
        if alone && self.alone.is_none() {
            self.alone = Some((latest.clone(), now));
        }
        if self
            .alone
            .as_ref()
            .is_some_and(|(_, begin)| since(*begin) >= PATIENCE)
        {
            candidate.stalled = Some(Problem::unschedulable(message.clone()));
        }
    }
}
