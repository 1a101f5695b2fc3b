//! The map of open requests. An outcome is for whoever is in it, and takes it out: that makes answers exactly-once.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use uuid::Uuid;

use super::rate::Rate;
use crate::{Answered, Outcome, Submit, SubmitError, Timings, id::EntryId};

type Receiver = oneshot::Receiver<Result<Answered, SubmitError>>;

/// Where a request is, as far as this proxy knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// About to be written.
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

struct Open {
    request: Submit,
    outcome: oneshot::Sender<Result<Answered, SubmitError>>,
    stage: Stage,
    /// It was in the stream once, so it is no longer refused.
    accepted: bool,
    opened: Instant,
    checked: Instant,
    enqueued: Option<Duration>,
}

/// A request about to be written.
pub(super) struct Outgoing {
    pub(super) uuid: Uuid,
    pub(super) request: Submit,
}

/// A request to look for in Redis.
pub(super) struct Suspicion {
    pub(super) uuid: Uuid,
    pub(super) revision: Arc<str>,
    pub(super) size: usize,
    pub(super) stage: Stage,
}

/// An entry that nobody waits for.
#[derive(Debug)]
pub(super) struct Cancelled {
    pub(super) revision: Arc<str>,
    pub(super) entry: EntryId,
    pub(super) size: usize,
}

#[derive(Default)]
pub(super) struct OpenRequests {
    state: Mutex<State>,
    drained: Notify,
}

#[derive(Default)]
struct State {
    requests: HashMap<Uuid, Open>,
    /// Given up between writing and confirmation: to be cancelled when their entry is known.
    abandoned: HashSet<Uuid>,
    closed: bool,
    rate: Rate,
}

impl OpenRequests {
    pub(super) fn insert(
        &self,
        uuid: Uuid,
        request: Submit,
        most: u64,
    ) -> Result<Receiver, SubmitError> {
        self.with(|state| {
            if state.closed {
                return Err(SubmitError::ShuttingDown);
            }
            if state.requests.len() as u64 >= most {
                return Err(SubmitError::Full {
                    retry_after: state.retry_after(),
                });
            }
            let (outcome, receiver) = oneshot::channel();
            let now = Instant::now();
            state.requests.insert(
                uuid,
                Open {
                    request,
                    outcome,
                    stage: Stage::Waiting,
                    accepted: false,
                    opened: now,
                    checked: now,
                    enqueued: None,
                },
            );
            Ok(receiver)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.with(|state| state.requests.len())
    }

    /// Takes requests to be written, in order. Those given up meanwhile are left out.
    pub(super) fn send(&self, uuids: &[Uuid]) -> Vec<Outgoing> {
        self.with(|state| {
            uuids
                .iter()
                .filter_map(|uuid| {
                    let open = state.requests.get_mut(uuid)?;
                    open.stage = Stage::Sent;
                    Some(Outgoing {
                        uuid: *uuid,
                        request: open.request.clone(),
                    })
                })
                .collect()
        })
    }

    /// Notes where a request is. One that was given up meanwhile is returned.
    pub(super) fn confirm(
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
                open.enqueued.get_or_insert_with(|| open.opened.elapsed());
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
    pub(super) fn refuse(
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
                    Some(_) => state.settle(uuid, Err(why(retry_after))),
                    None => {}
                }
            }
        });
        self.tell_if_drained();
    }

    /// The connection broke: nothing is known of what was not confirmed.
    pub(super) fn lose_track(&self) {
        self.with(|state| {
            state.abandoned.clear();
            for open in state.requests.values_mut() {
                if open.stage == Stage::Sent {
                    open.stage = Stage::Unsure;
                }
            }
        });
    }

    /// Requests to look for: those that nothing was heard of for `patience`, and those that are nowhere for sure.
    /// They come oldest first and are not due again for as long.
    pub(super) fn suspicions(&self, patience: Duration) -> Vec<Suspicion> {
        let now = Instant::now();
        let mut due = self.with(|state| {
            state
                .requests
                .iter_mut()
                .filter_map(|(uuid, open)| {
                    let due = match open.stage {
                        Stage::Waiting | Stage::Sent => false,
                        Stage::Queued(_) => now - open.checked >= patience,
                        Stage::Unsure | Stage::Lost => true,
                    };
                    due.then(|| {
                        open.checked = now;
                        let suspicion = Suspicion {
                            uuid: *uuid,
                            revision: open.request.revision.clone(),
                            size: open.request.body.len(),
                            stage: open.stage,
                        };
                        (open.opened, suspicion)
                    })
                })
                .collect::<Vec<_>>()
        });
        due.sort_by_key(|(opened, _)| *opened);
        due.into_iter().map(|(_, suspicion)| suspicion).collect()
    }

    /// Notes where an uncertain request turned out to be.
    pub(super) fn locate(&self, uuid: Uuid, entry: EntryId) {
        self.with(|state| {
            if let Some(open) = state.requests.get_mut(&uuid) {
                open.stage = Stage::Queued(entry);
                open.accepted = true;
            }
        });
    }

    /// Brings an outcome to whoever waits for it, if anyone does.
    pub(super) fn deliver(&self, uuid: Uuid, outcome: Outcome) {
        self.with(|state| {
            if let Some(open) = state.requests.get(&uuid) {
                let spans = Timings {
                    enqueued: open.enqueued,
                    answered: open.opened.elapsed(),
                };
                state.rate.count();
                state.settle(uuid, Ok(Answered { outcome, spans }));
            }
        });
        self.tell_if_drained();
    }

    /// Takes out a request whose client has stopped waiting, and says what to cancel.
    pub(super) fn abandon(&self, uuid: Uuid) -> Option<Cancelled> {
        let cancelled = self.with(|state| {
            let open = state.requests.remove(&uuid)?;
            if open.stage == Stage::Sent {
                state.abandoned.insert(uuid);
            }
            cancelled(&open)
        });
        self.tell_if_drained();
        cancelled
    }

    /// Takes out everything and says what to cancel.
    pub(super) fn abandon_all(&self) -> Vec<Cancelled> {
        let left = self.with(|state| std::mem::take(&mut state.requests));
        let cancelled = left.values().filter_map(cancelled).collect();
        for open in left.into_values() {
            // The client may be gone.
            let _ = open.outcome.send(Err(SubmitError::ShuttingDown));
        }
        cancelled
    }

    /// Measures the rate of answers; to be called once a second.
    pub(super) fn measure(&self) {
        self.with(|state| state.rate.measure());
    }

    /// Refuses new requests from now on.
    pub(super) fn close(&self) {
        self.with(|state| state.closed = true);
    }

    /// Waits until nothing is open.
    pub(super) async fn drained(&self) {
        loop {
            let drained = self.drained.notified();
            if self.len() == 0 {
                return;
            }
            drained.await;
        }
    }

    fn tell_if_drained(&self) {
        if self.with(|state| state.closed && state.requests.is_empty()) {
            self.drained.notify_waiters();
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn settle(&mut self, uuid: Uuid, outcome: Result<Answered, SubmitError>) {
        if let Some(open) = self.requests.remove(&uuid) {
            // The client may be gone.
            let _ = open.outcome.send(outcome);
        }
    }

    fn retry_after(&self) -> Duration {
        self.rate.retry_after(self.requests.len())
    }
}

fn cancelled(open: &Open) -> Option<Cancelled> {
    match open.stage {
        Stage::Queued(entry) => Some(Cancelled {
            revision: open.request.revision.clone(),
            entry,
            size: open.request.body.len(),
        }),
        Stage::Waiting | Stage::Sent | Stage::Unsure | Stage::Lost => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn insert(open: &OpenRequests, most: u64) -> Result<(Uuid, Receiver), SubmitError> {
        let uuid = Uuid::from_u128(rand::random());
        let request = Submit {
            revision: "rev".into(),
            body: Bytes::new(),
            rows: 1,
            trace: None,
            deadline: Instant::now(),
        };
        Ok((uuid, open.insert(uuid, request, most)?))
    }

    fn outcome() -> Outcome {
        Outcome::Answer(Bytes::new())
    }

    #[test]
    fn a_second_outcome_finds_nobody() {
        let open = OpenRequests::default();
        let (uuid, mut receiver) = insert(&open, 1).unwrap();
        open.deliver(uuid, outcome());
        open.deliver(uuid, Outcome::Answer(Bytes::from_static(b"late")));
        assert_eq!(receiver.try_recv().unwrap().unwrap().outcome, outcome());
        assert_eq!(open.len(), 0);
    }

    #[test]
    fn what_was_accepted_is_not_refused_any_more() {
        let open = OpenRequests::default();
        let unreachable = |retry_after| SubmitError::Unreachable { retry_after };
        let (fresh, mut refused) = insert(&open, 2).unwrap();
        let (accepted, mut kept) = insert(&open, 2).unwrap();
        open.confirm(accepted, &"rev".into(), 0, EntryId::default());
        open.refuse([fresh, accepted], unreachable);
        assert!(refused.try_recv().unwrap().is_err());
        assert!(kept.try_recv().is_err(), "it got an outcome");
        let due = open.suspicions(Duration::from_mins(1));
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].uuid, due[0].stage), (accepted, Stage::Lost));
    }
}
