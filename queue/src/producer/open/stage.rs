//! Where open requests are, from the line of those to be written to the stream, and whether they are still there.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use super::{Cancelled, OpenRequests};
use crate::{
    Submit, SubmitError,
    id::EntryId,
    scripts::{MOST_BYTES, MOST_REQUESTS},
};

/// Where a request is, as far as this proxy knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nowhere yet, or no longer, but in line to be written.
    Waiting,
    /// Written, not confirmed yet.
    Sent,
    /// Written, but the connection broke before the confirmation.
    Unsure,
    /// In the stream.
    Queued(EntryId),
    /// Nowhere: Redis has lost it, and there was no room when it was to be written again.
    Lost,
}

/// A request about to be written.
pub(crate) struct Outgoing {
    pub(crate) uuid: Uuid,
    pub(crate) request: Submit,
}

/// A request to look for in Redis.
pub(crate) struct Suspicion {
    pub(crate) uuid: Uuid,
    pub(crate) revision: Arc<str>,
    pub(crate) size: usize,
    pub(crate) stage: Stage,
    pub(crate) opened: Instant,
}

impl OpenRequests {
    /// Notes that requests that are not in the stream are in line to be written.
    pub(crate) fn wait(&self, uuids: &[Uuid]) {
        self.with(|state| {
            for uuid in uuids {
                state.abandoned.remove(uuid);
                if let Some(open) = state.requests.get_mut(uuid) {
                    open.stage = Stage::Waiting;
                }
            }
        });
    }

    /// Takes from the front of those that wait what one call writes: requests of one revision, as many as a call may carry.
    /// Those given up meanwhile are left out.
    pub(crate) fn send(&self, waiting: &mut VecDeque<Uuid>) -> Vec<Outgoing> {
        self.with(|state| {
            let mut group: Vec<Outgoing> = Vec::new();
            let mut bytes = 0;
            while let Some(uuid) = waiting.front().copied()
                && group.len() < MOST_REQUESTS
            {
                if let Some(open) = state.requests.get_mut(&uuid) {
                    bytes += open.request.body.len();
                    let fits = group.first().is_none_or(|first| {
                        bytes <= MOST_BYTES && first.request.revision == open.request.revision
                    });
                    if !fits {
                        break;
                    }
                    open.stage = Stage::Sent;
                    group.push(Outgoing {
                        uuid,
                        request: open.request.clone(),
                    });
                }
                waiting.pop_front();
            }
            group
        })
    }

    /// Notes where a request is. One that was given up meanwhile is returned.
    pub(crate) fn confirm(
        &self,
        uuid: Uuid,
        revision: &Arc<str>,
        size: usize,
        entry: EntryId,
    ) -> Option<Cancelled> {
        self.with(|state| {
            if let Some(open) = state.requests.get_mut(&uuid) {
                open.stage = Stage::Queued(entry);
                open.accepted = true;
                open.checked = Instant::now();
            } else if state.abandoned.remove(&uuid) {
                return Some(Cancelled {
                    revision: revision.clone(),
                    entry,
                    size,
                });
            }
            None
        })
    }

    /// Refuses requests that are not in the stream. Those that were are kept, to be tried again.
    pub(crate) fn refuse(
        &self,
        uuids: impl IntoIterator<Item = Uuid>,
        why: impl Fn(Duration) -> SubmitError,
    ) {
        self.with(|state| {
            let retry_after = state.retry_after();
            for uuid in uuids {
                state.abandoned.remove(&uuid);
                match state.requests.get_mut(&uuid) {
                    Some(open) if open.accepted => open.stage = Stage::Lost,
                    _ => {
                        state.settle(uuid, Err(why(retry_after)));
                    }
                }
            }
        });
        self.tell_if_drained();
    }

    /// The connection broke: nothing is known of what was not confirmed.
    pub(crate) fn lose_track(&self) {
        self.with(|state| {
            state.abandoned.clear();
            for open in state.requests.values_mut() {
                if open.stage == Stage::Sent {
                    open.stage = Stage::Unsure;
                }
            }
        });
    }

    /// Requests to look for: those that nothing was heard of for `patience`, and those that are nowhere for sure. Those
    /// come first that were not looked for the longest, until they hold `budget` bytes. They are not due again for as
    /// long as `patience`.
    pub(crate) fn suspicions(&self, patience: Duration, budget: usize) -> Vec<Suspicion> {
        let now = Instant::now();
        self.with(|state| {
            let mut due: Vec<_> = state
                .requests
                .iter_mut()
                .filter(|(_, open)| match open.stage {
                    Stage::Waiting | Stage::Sent => false,
                    Stage::Queued(_) => now - open.checked >= patience,
                    Stage::Unsure | Stage::Lost => true,
                })
                .collect();
            due.sort_by_key(|(_, open)| open.checked);
            let mut bytes = 0;
            due.into_iter()
                .take_while(|(_, open)| {
                    let within = bytes < budget;
                    bytes += open.request.body.len();
                    within
                })
                .map(|(uuid, open)| {
                    open.checked = now;
                    Suspicion {
                        uuid: *uuid,
                        revision: open.request.revision.clone(),
                        size: open.request.body.len(),
                        stage: open.stage,
                        opened: open.opened,
                    }
                })
                .collect()
        })
    }

    /// Notes where an uncertain request turned out to be.
    pub(crate) fn locate(&self, uuid: Uuid, entry: EntryId) {
        self.with(|state| {
            if let Some(open) = state.requests.get_mut(&uuid) {
                open.stage = Stage::Queued(entry);
                open.accepted = true;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::insert, *};

    #[test]
    fn what_was_accepted_is_not_refused_any_more() {
        let open = OpenRequests::default();
        let unreachable = |retry_after| SubmitError::Unreachable { retry_after };
        let (fresh, mut refused) = insert(&open, "rev", 0);
        let (accepted, mut kept) = insert(&open, "rev", 0);
        open.confirm(accepted, &"rev".into(), 0, EntryId::default());
        open.refuse([fresh, accepted], unreachable);
        assert!(refused.try_recv().unwrap().is_err());
        assert!(kept.try_recv().is_err(), "it got an outcome");
        let due = open.suspicions(Duration::from_mins(1), 1);
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].uuid, due[0].stage), (accepted, Stage::Lost));
    }

    #[test]
    fn a_call_carries_one_revision_within_its_bounds() {
        let open = OpenRequests::default();
        let sizes = [("a", 600_000), ("a", 600_000), ("a", 1), ("b", 2_000_000)];
        let small = (0..200).map(|_| ("b", 1));
        let (mut waiting, receivers): (VecDeque<_>, Vec<_>) = sizes
            .into_iter()
            .chain(small)
            .map(|(revision, size)| insert(&open, revision, size))
            .unzip();
        drop(open.abandon(waiting[2]));
        let groups: Vec<_> = std::iter::from_fn(|| {
            let group = open.send(&mut waiting);
            (!group.is_empty()).then_some(group.len())
        })
        .collect();
        assert_eq!(groups, [1, 1, 1, 128, 72]);
        drop(receivers);
    }

    #[test]
    fn what_was_not_looked_for_the_longest_is_looked_for_first_within_the_budget() {
        let open = OpenRequests::default();
        let receivers: Vec<_> = (0..6)
            .map(|_| {
                let (uuid, receiver) = insert(&open, "rev", 100);
                open.confirm(uuid, &"rev".into(), 100, EntryId::default());
                receiver
            })
            .collect();
        let mut looked: Vec<_> = (0..3)
            .flat_map(|_| open.suspicions(Duration::ZERO, 150))
            .map(|suspicion| suspicion.uuid)
            .collect();
        assert_eq!(looked.len(), 6);
        looked.sort();
        looked.dedup();
        assert_eq!(
            looked.len(),
            6,
            "one was looked for twice, another not at all"
        );
        drop(receivers);
    }
}
