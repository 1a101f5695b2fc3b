//! The map of in-flight requests. An outcome is for whoever is in it, and takes it out: that makes answers
//! exactly-once.

mod callers;
mod stage;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tracing::Span;
use uuid::Uuid;

use super::rate::Rate;
use crate::{
    Limits, Outcome, Submit, SubmitError, commands::Removal, events, id::EntryId, wire::is_large,
};
use callers::Callers;
pub(super) use stage::{Outgoing, Overdue, Stage};

/// The end of a channel on which an in-flight request's outcome comes.
pub(super) type Receiver = oneshot::Receiver<Result<Outcome, SubmitError>>;

struct InFlightRequest {
    submit: Submit,
    /// The name of the lane that the request is in, or is to be.
    lane: Arc<str>,
    outcome: oneshot::Sender<Result<Outcome, SubmitError>>,
    stage: Stage,
    /// Whether the request was in the stream once, so that it is no longer refused.
    accepted: bool,
    /// The number of connections that broke while the request was written for the first time.
    breaks: u32,
    submitted: Instant,
    checked: Instant,
}

/// An entry that nobody waits for.
#[derive(Debug)]
pub(super) struct Cancelled {
    pub(super) lane: Arc<str>,
    pub(super) removal: Removal,
}

#[derive(Default)]
pub(super) struct InFlight {
    state: Mutex<State>,
    drained: Notify,
}

#[derive(Default)]
struct State {
    requests: HashMap<Uuid, InFlightRequest>,
    /// Bytes of the bodies of all requests.
    bytes: u64,
    /// Requests given up between writing and confirmation: to be cancelled when their entry is known.
    abandoned: HashSet<Uuid>,
    closed: bool,
    rate: Rate,
    callers: Callers,
}

impl InFlight {
    pub(super) fn insert(
        &self,
        uuid: Uuid,
        submit: Submit,
        limits: Limits,
    ) -> Result<Receiver, SubmitError> {
        self.with(|state| {
            if state.closed {
                return Err(SubmitError::ShuttingDown);
            }
            let bytes = state.bytes + size(&submit);
            if state.requests.len() as u64 >= limits.max_length || bytes > limits.max_bytes {
                return Err(SubmitError::Full {
                    retry_after: state.retry_after(),
                });
            }
            let (outcome, receiver) = oneshot::channel();
            let now = Instant::now();
            state.bytes = bytes;
            let lane = state.callers.admit(&submit, limits.window);
            state.requests.insert(
                uuid,
                InFlightRequest {
                    submit,
                    lane,
                    outcome,
                    stage: Stage::Waiting,
                    accepted: false,
                    breaks: 0,
                    submitted: now,
                    checked: now,
                },
            );
            Ok(receiver)
        })
    }

    /// Notes whether other proxies have requests in flight, too.
    pub(super) fn set_crowded(&self, crowded: bool) {
        self.with(|state| state.callers.set_crowded(crowded));
    }

    pub(super) fn contains(&self, uuid: Uuid) -> bool {
        self.with(|state| state.requests.contains_key(&uuid))
    }

    pub(super) fn len(&self) -> usize {
        self.with(|state| state.requests.len())
    }

    /// Delivers an outcome to whoever waits for it, if anyone does.
    pub(super) fn deliver(&self, uuid: Uuid, outcome: Outcome) {
        let span = self.with(|state| {
            let span = state.settle(uuid, Ok(outcome));
            if span.is_some() {
                state.rate.count();
            }
            span
        });
        if let Some(span) = span {
            events::received(&span, uuid);
        }
        self.tell_if_drained();
    }

    /// Takes out a request whose client has stopped waiting. Returns the entry to cancel if it is known.
    pub(super) fn abandon(&self, uuid: Uuid) -> Option<Cancelled> {
        let abandoned = self.with(|state| state.abandon(uuid));
        self.tell_if_drained();
        abandoned.and_then(|(_, cancelled)| cancelled)
    }

    /// Takes out all requests. Returns the entries to cancel that are known.
    pub(super) fn abandon_all(&self) -> Vec<Cancelled> {
        self.with(|state| {
            let uuids: Vec<Uuid> = state.requests.keys().copied().collect();
            uuids
                .into_iter()
                .filter_map(|uuid| {
                    let (request, cancelled) = state.abandon(uuid)?;
                    // The client may be gone.
                    let _ = request.outcome.send(Err(SubmitError::ShuttingDown));
                    cancelled
                })
                .collect()
        })
    }

    /// Measures the rate of answers; to be called once a second.
    pub(super) fn measure(&self) {
        self.with(|state| state.rate.measure());
    }

    /// Refuses new requests from now on.
    pub(super) fn close(&self) {
        self.with(|state| state.closed = true);
    }

    /// Waits until no request is in flight.
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
    fn remove(&mut self, uuid: Uuid) -> Option<InFlightRequest> {
        let request = self.requests.remove(&uuid)?;
        self.bytes -= size(&request.submit);
        self.callers.leave(&request.submit, &request.lane);
        Some(request)
    }

    /// Takes a request out with an outcome. Returns its span if it was there.
    fn settle(&mut self, uuid: Uuid, outcome: Result<Outcome, SubmitError>) -> Option<Span> {
        let request = self.remove(uuid)?;
        // The client may be gone.
        let _ = request.outcome.send(outcome);
        Some(request.submit.span)
    }

    /// Takes a request out without an outcome. Returns it and the entry to cancel, if that is known; else the entry is
    /// cancelled when it is.
    fn abandon(&mut self, uuid: Uuid) -> Option<(InFlightRequest, Option<Cancelled>)> {
        let request = self.remove(uuid)?;
        let cancelled = match request.stage {
            Stage::Queued(entry) => Some(Cancelled {
                lane: request.lane.clone(),
                removal: removal(uuid, request.submit.body.len(), entry),
            }),
            Stage::Sent(_) => {
                self.abandoned.insert(uuid);
                None
            }
            Stage::Waiting | Stage::Unsure(_) | Stage::Lost => None,
        };
        Some((request, cancelled))
    }

    fn retry_after(&self) -> Duration {
        self.rate.retry_after(self.requests.len())
    }
}

/// Returns the removal of an entry that nobody waits for.
fn removal(uuid: Uuid, size: usize, entry: EntryId) -> Removal {
    Removal {
        entry,
        size,
        large: is_large(size).then_some(uuid),
    }
}

fn size(submit: &Submit) -> u64 {
    submit.body.len() as u64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const LIMITS: Limits = Limits {
        max_length: 1_000,
        max_bytes: 10 << 20,
        max_request_bytes: 4 << 20,
        lease: Duration::from_secs(1),
        result_ttl: Duration::from_mins(1),
        window: 32,
    };

    pub(super) fn insert(in_flight: &InFlight, revision: &str, size: usize) -> (Uuid, Receiver) {
        let uuid = Uuid::from_u128(rand::random());
        let body = vec![0; size].into();
        let request = Submit::new(revision.into(), body, 1, Instant::now());
        (uuid, in_flight.insert(uuid, request, LIMITS).unwrap())
    }

    fn outcome() -> Outcome {
        Outcome::Answer(Bytes::new())
    }

    #[test]
    fn a_second_outcome_finds_nobody() {
        let in_flight = InFlight::default();
        let (uuid, mut receiver) = insert(&in_flight, "rev", 0);
        in_flight.deliver(uuid, outcome());
        in_flight.deliver(uuid, Outcome::Answer(Bytes::from_static(b"late")));
        assert_eq!(receiver.try_recv().unwrap().unwrap(), outcome());
        assert_eq!(in_flight.len(), 0);
    }

    #[test]
    fn what_is_cut_off_while_it_is_written_is_cancelled_when_its_entry_is_known() {
        let in_flight = InFlight::default();
        let (uuid, mut receiver) = insert(&in_flight, "rev", 3);
        in_flight.send(&mut [uuid].into(), 1, true);
        assert!(
            in_flight.abandon_all().is_empty(),
            "its entry is not known yet"
        );
        assert_eq!(receiver.try_recv().unwrap(), Err(SubmitError::ShuttingDown));
        let cancelled = in_flight.confirm(uuid, &"rev".into(), 3, EntryId::default());
        assert_eq!(cancelled.unwrap().removal.size, 3);
    }
}
