//! The stages of in-flight requests, from waiting to be written to being in the stream, and the search for overdue
//! ones.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use super::{Cancelled, InFlight, removal};
use crate::{
    Submit, SubmitError, events,
    id::EntryId,
    scripts::{MAX_BYTES, MAX_REQUESTS},
};

/// The stage of a request, as far as this proxy knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A request that waits to be written, for the first time or again.
    Waiting,
    /// A request that is written and not confirmed yet.
    Sent(Place),
    /// A request that was written and not confirmed before the connection broke.
    Unsure(Place),
    /// A request that is in the stream.
    Queued(EntryId),
    /// A request that Redis has lost, and for which there was no room when it was to be written again.
    Lost,
}

/// The place of a request: the number of its enqueue call, and its position in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) call: u64,
    pub(crate) position: usize,
}

/// The number of connections that may break while a request is written, before it is refused: it may be why they break.
/// After the first, it is written alone.
pub(super) const MAX_BREAKS: u32 = 3;

/// Requests about to be written in one call.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) requests: Vec<Outgoing>,
    /// Whether no other call may be under way: the one request may be what broke a connection.
    pub(crate) alone: bool,
}

/// A request about to be written.
pub(crate) struct Outgoing {
    pub(crate) uuid: Uuid,
    pub(crate) lane: Arc<str>,
    pub(crate) request: Submit,
}

/// A request to look for in Redis.
pub(crate) struct Overdue {
    pub(crate) uuid: Uuid,
    pub(crate) lane: Arc<str>,
    pub(crate) stage: Stage,
    pub(crate) submitted: Instant,
}

impl InFlight {
    /// Notes that requests that are not in the stream are waiting to be written.
    pub(crate) fn wait(&self, uuids: &[Uuid]) {
        self.with(|state| {
            for uuid in uuids {
                state.abandoned.remove(uuid);
                if let Some(request) = state.requests.get_mut(uuid) {
                    request.stage = Stage::Waiting;
                }
            }
        });
    }

    /// Takes from the front of the waiting requests those that one `call` writes: of one lane, as many as a call
    /// may carry, or one by itself that must be `alone`, if it may be now. Requests given up meanwhile are left out.
    pub(crate) fn send(
        &self,
        waiting: &mut VecDeque<Uuid>,
        call: u64,
        may_be_alone: bool,
    ) -> Group {
        self.with(|state| {
            let mut group = Group::default();
            let mut bytes = 0;
            while let Some(uuid) = waiting.front().copied()
                && group.requests.len() < MAX_REQUESTS
                && !group.alone
            {
                if let Some(request) = state.requests.get_mut(&uuid) {
                    let must_be_alone = request.breaks > 0;
                    bytes += request.submit.body.len();
                    let fits = match group.requests.first() {
                        None => may_be_alone || !must_be_alone,
                        Some(first) => {
                            !must_be_alone && bytes <= MAX_BYTES && first.lane == request.lane
                        }
                    };
                    if !fits {
                        break;
                    }
                    group.alone = must_be_alone;
                    request.stage = Stage::Sent(Place {
                        call,
                        position: group.requests.len(),
                    });
                    group.requests.push(Outgoing {
                        uuid,
                        lane: request.lane.clone(),
                        request: request.submit.clone(),
                    });
                }
                waiting.pop_front();
            }
            group
        })
    }

    /// Notes the entry of a request. The entry of one that was given up meanwhile is returned.
    pub(crate) fn confirm(
        &self,
        uuid: Uuid,
        lane: &Arc<str>,
        size: usize,
        entry: EntryId,
    ) -> Option<Cancelled> {
        let mut span = None;
        let cancelled = self.with(|state| {
            if let Some(request) = state.requests.get_mut(&uuid) {
                request.stage = Stage::Queued(entry);
                request.accepted = true;
                request.breaks = 0;
                request.checked = Instant::now();
                span = events::are_wanted().then(|| request.submit.span.clone());
            } else if state.abandoned.remove(&uuid) {
                return Some(Cancelled {
                    lane: lane.clone(),
                    removal: removal(uuid, size, entry),
                });
            }
            None
        });
        if let Some(span) = span {
            events::enqueued(&span, uuid, entry);
        }
        cancelled
    }

    /// Refuses requests that are not in the stream. Those that were in it before are kept, to be tried again.
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
                    Some(request) if request.accepted => request.stage = Stage::Lost,
                    _ => {
                        state.settle(uuid, Err(why(retry_after)));
                    }
                }
            }
        });
        self.tell_if_drained();
    }

    /// Notes that the connection broke, so that nothing is known of requests that were not confirmed. A request that
    /// was under way each time that `MAX_BREAKS` connections broke is refused. Returns whether such a one was under way
    /// by itself: then others should not suffer for it.
    pub(crate) fn lose_track(&self) -> bool {
        let was_alone = self.with(|state| {
            state.abandoned.clear();
            let mut was_alone = false;
            let mut breaking = Vec::new();
            for (uuid, request) in &mut state.requests {
                if let Stage::Sent(place) = request.stage {
                    request.stage = Stage::Unsure(place);
                    was_alone |= request.breaks > 0;
                    // A request that was in the stream once doesn't break connections.
                    request.breaks += u32::from(!request.accepted);
                    if request.breaks == MAX_BREAKS {
                        breaking.push(*uuid);
                    }
                }
            }
            for uuid in breaking {
                tracing::error!(request = %uuid, "giving up a request: the connection to Redis broke each time it was written");
                state.settle(uuid, Err(SubmitError::Breaks { times: MAX_BREAKS }));
            }
            was_alone
        });
        self.tell_if_drained();
        was_alone
    }

    /// Returns requests to look for, those first that were not looked for the longest: requests that nothing was heard
    /// of for `patience`, and those that are not in the stream for sure. They are not due again for as long as
    /// `patience`.
    pub(crate) fn overdue(&self, patience: Duration) -> Vec<Overdue> {
        let now = Instant::now();
        self.with(|state| {
            let mut due: Vec<_> = state
                .requests
                .iter_mut()
                .filter(|(_, request)| match request.stage {
                    Stage::Waiting | Stage::Sent(_) => false,
                    Stage::Queued(_) => now - request.checked >= patience,
                    Stage::Unsure(_) | Stage::Lost => true,
                })
                .collect();
            due.sort_by_key(|(_, request)| request.checked);
            due.into_iter()
                .map(|(uuid, request)| {
                    request.checked = now;
                    Overdue {
                        uuid: *uuid,
                        lane: request.lane.clone(),
                        stage: request.stage,
                        submitted: request.submitted,
                    }
                })
                .collect()
        })
    }

    /// Notes the entry at which an uncertain request was found.
    pub(crate) fn locate(&self, uuid: Uuid, entry: EntryId) {
        self.with(|state| {
            if let Some(request) = state.requests.get_mut(&uuid) {
                request.stage = Stage::Queued(entry);
                request.accepted = true;
                request.breaks = 0;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::insert, *};

    #[test]
    fn what_was_accepted_is_not_refused_any_more() {
        let in_flight = InFlight::default();
        let unreachable = |retry_after| SubmitError::Unreachable { retry_after };
        let (fresh, mut refused) = insert(&in_flight, "rev", 0);
        let (accepted, mut kept) = insert(&in_flight, "rev", 0);
        in_flight.confirm(accepted, &"rev".into(), 0, EntryId::default());
        in_flight.refuse([fresh, accepted], unreachable);
        assert!(refused.try_recv().unwrap().is_err());
        assert!(kept.try_recv().is_err(), "it got an outcome");
        let due = in_flight.overdue(Duration::from_mins(1));
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].uuid, due[0].stage), (accepted, Stage::Lost));
    }

    #[test]
    fn a_call_carries_one_revision_within_its_bounds() {
        let in_flight = InFlight::default();
        let sizes = [("a", 600_000), ("a", 600_000), ("a", 1), ("b", 2_000_000)];
        let small = (0..200).map(|_| ("b", 1));
        let (mut waiting, receivers): (VecDeque<_>, Vec<_>) = sizes
            .into_iter()
            .chain(small)
            .map(|(revision, size)| insert(&in_flight, revision, size))
            .unzip();
        drop(in_flight.abandon(waiting[2]));
        let groups: Vec<_> = std::iter::from_fn(|| {
            let group = in_flight.send(&mut waiting, 1, true).requests;
            (!group.is_empty()).then_some(group.len())
        })
        .collect();
        assert_eq!(groups, [1, 1, 1, 128, 72]);
        drop(receivers);
    }

    #[test]
    fn what_may_break_connections_goes_alone_and_not_for_ever() {
        let in_flight = InFlight::default();
        let (uuid, mut outcome) = insert(&in_flight, "rev", 1);
        let mut waiting = VecDeque::from([uuid]);
        for times in 0..MAX_BREAKS {
            let (other, _other) = insert(&in_flight, "rev", 1);
            waiting.push_back(other);
            assert!(outcome.try_recv().is_err(), "given up after {times} times");
            if times > 0 {
                let busy = in_flight.send(&mut waiting, 1, false);
                assert!(busy.requests.is_empty(), "others are under way");
            }
            let group = in_flight.send(&mut waiting, 1, true);
            assert_eq!((group.alone, group.requests[0].uuid), (times > 0, uuid));
            assert_eq!(group.requests.len(), if times > 0 { 1 } else { 2 });
            in_flight.lose_track();
            in_flight.wait(&[uuid]);
            waiting = VecDeque::from([uuid]);
        }
        let given_up = Err(SubmitError::Breaks { times: MAX_BREAKS });
        assert_eq!(outcome.try_recv().unwrap(), given_up);
    }

    #[test]
    fn what_was_in_the_stream_breaks_no_connection() {
        let in_flight = InFlight::default();
        let (uuid, mut outcome) = insert(&in_flight, "rev", 1);
        in_flight.confirm(uuid, &"rev".into(), 1, EntryId::default());
        for _ in 0..2 * MAX_BREAKS {
            in_flight.wait(&[uuid]);
            assert!(!in_flight.send(&mut [uuid].into(), 1, true).alone);
            in_flight.lose_track();
        }
        assert!(outcome.try_recv().is_err());
    }
}
