//! How long to wait for room that may never come.

use std::time::{Duration, Instant};

use super::View;
use crate::workers::Problem;

/// How long a candidate may fit nowhere, with nothing of ours in its way, before its turn is over.
const PATIENCE: Duration = Duration::from_secs(30);

/// Since when a candidate has fitted nowhere although no other worker of its model was left.
#[derive(Debug, Default)]
pub struct Patience {
    alone: Option<(String, Instant)>,
}

impl Patience {
    /// Marks a candidate as stalled once it has had all the room that can be made, for long enough. It stays so when
    /// others come back, until it is placed or replaced.
    pub fn look(&mut self, view: &mut View, now: Instant) {
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
        let is_over = |since: &Instant| now.saturating_duration_since(*since) >= PATIENCE;
        if self.alone.as_ref().is_some_and(|(_, since)| is_over(since)) {
            candidate.stalled = Some(Problem::unschedulable(message.clone()));
        }
    }
}
