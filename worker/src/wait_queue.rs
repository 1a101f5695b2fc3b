//! The requests that wait for the device, and which of them share a batch.

use std::{collections::VecDeque, sync::Arc};

use carpool_protocol::Tensor;
use carpool_queue::JobId;
use tokio::time::Instant;

use crate::item::{Item, Slice, tensor_rows};

/// A request that is not yet answered.
pub struct Pending<I = JobId> {
    /// The request's entry in the queue.
    pub id: I,
    /// The item that the model is to be given.
    pub item: Arc<Item>,
    /// The time at which the request entered the queue.
    pub arrived: Instant,
    /// The time at which nobody waits for the request any more.
    pub expires: Instant,
    /// The number of the suspects that this request must run with, and with nobody else, for it may have killed a
    /// worker.
    pub quarantine: Option<u64>,
    /// The model's outputs for the rows that have run.
    pub parts: Vec<Vec<Tensor>>,
    /// The number of rows that have run.
    pub done: usize,
}

impl<I> Pending<I> {
    /// The number of rows that have yet to run.
    #[must_use]
    pub fn left(&self) -> usize {
        self.item.rows - self.done
    }

    /// Keeps the outputs of the next rows, which have run.
    pub fn ran(&mut self, outputs: Vec<Tensor>) {
        self.done += outputs.first().map_or(0, tensor_rows);
        self.parts.push(outputs);
    }
}

/// The requests of one batch, and their rows in it.
pub struct BatchPlan<I = JobId> {
    /// The requests.
    pub requests: Vec<Pending<I>>,
    /// The requests' rows in the batch, in the same order.
    pub slices: Vec<Slice>,
}

/// The requests that wait, oldest first.
pub struct WaitQueue<I = JobId> {
    waiting: VecDeque<Pending<I>>,
}

impl<I> Default for WaitQueue<I> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<I> WaitQueue<I> {
    /// Puts a request at the end. A request of which some rows have run goes there, too: so its slices interleave with
    /// others, and the queue moves for everyone.
    pub fn push(&mut self, pending: Pending<I>) {
        self.waiting.push_back(pending);
    }

    /// The number of requests that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no request waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The number of rows that wait.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.waiting.iter().map(Pending::left).sum()
    }

    /// The number of rows of a batch of `max` that are spoken for, which new requests need not fill. A request never
    /// claims more than its share, or one of many rows would keep all others in the queue until its last; once some of
    /// its rows have run, it claims one row, so that even of such requests no more are taken in than a batch has rows.
    #[must_use]
    pub fn claimed(&self, max: usize) -> usize {
        let claim = |pending: &Pending<I>| match pending.done {
            0 => pending.left().min(share(max)),
            _ => 1,
        };
        self.waiting.iter().map(claim).sum()
    }

    /// The request at the head.
    #[must_use]
    pub fn head(&self) -> Option<&Pending<I>> {
        self.waiting.front()
    }

    /// Whether a request waits that must run by itself: until it has, the queue gives nothing else.
    #[must_use]
    pub fn holds_suspect(&self) -> bool {
        self.waiting
            .iter()
            .any(|pending| pending.quarantine.is_some())
    }

    /// Takes out the requests that nobody waits for any more.
    pub fn expired(&mut self, now: Instant) -> Vec<Pending<I>> {
        let (expired, waiting): (Vec<_>, Vec<_>) = self
            .waiting
            .drain(..)
            .partition(|pending| pending.expires <= now);
        self.waiting = waiting.into();
        expired
    }

    /// Takes out requests, and returns how many.
    pub fn remove(&mut self, which: impl Fn(&I) -> bool) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|pending| !which(&pending.id));
        before - self.waiting.len()
    }

    /// Takes out all requests.
    pub fn drain(&mut self) -> Vec<Pending<I>> {
        self.waiting.drain(..).collect()
    }

    /// Takes out the next batch of at most `max` rows: the head of the queue, then the requests that may join it,
    /// nearest in length first; one of another length joins only where batches are `padded`. None of them gets more
    /// than half of the rows while others want them. No request starves, since the one at the head goes next. A request
    /// that must run by itself runs only as the head, and then with no other.
    pub fn plan(&mut self, max: usize, padded: bool) -> BatchPlan<I> {
        let mut plan = BatchPlan {
            requests: Vec::new(),
            slices: Vec::new(),
        };
        let Some(head) = self.waiting.front() else {
            return plan;
        };
        let joins = |pending: &Pending<I>| {
            pending.quarantine == head.quarantine && pending.item.joins(&head.item, padded)
        };
        let mut others: Vec<usize> = (1..self.waiting.len())
            .filter(|index| joins(&self.waiting[*index]))
            .collect();
        let length = head.item.length();
        // The sort is stable: among equally near ones the older goes first.
        others.sort_by_key(|index| self.waiting[*index].item.length().abs_diff(length));
        let mut capacity = max;
        let mut chosen = vec![0; self.waiting.len()];
        for most in [share(max), max] {
            for index in std::iter::once(0).chain(others.iter().copied()) {
                let more = self.waiting[index].left().min(most) - chosen[index];
                chosen[index] += more.min(capacity);
                capacity -= more.min(capacity);
            }
        }
        let waiting = std::mem::take(&mut self.waiting);
        for (pending, rows) in waiting.into_iter().zip(chosen) {
            if rows == 0 {
                self.waiting.push_back(pending);
            } else {
                let item = Arc::clone(&pending.item);
                plan.slices.push(Slice {
                    item,
                    rows: pending.done..pending.done + rows,
                });
                plan.requests.push(pending);
            }
        }
        plan
    }
}

/// The most rows of a batch that one request gets while others want them.
fn share(max: usize) -> usize {
    max.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pending(name: &'static str, rows: usize, length: i64) -> Pending<&'static str> {
        let now = Instant::now();
        Pending {
            id: name,
            item: Arc::new(Item {
                id: name.to_owned(),
                rows,
                inputs: Vec::new(),
                outputs: Vec::new(),
                lengths: vec![length],
                unpadded: Vec::new(),
                texts: Vec::new(),
            }),
            arrived: now,
            expires: now + Duration::from_secs(30),
            quarantine: None,
            parts: Vec::new(),
            done: 0,
        }
    }

    fn queue(requests: impl IntoIterator<Item = Pending<&'static str>>) -> WaitQueue<&'static str> {
        WaitQueue {
            waiting: requests.into_iter().collect(),
        }
    }

    fn names<'a>(plan: &'a BatchPlan<&'static str>) -> Vec<(&'a str, std::ops::Range<usize>)> {
        plan.slices
            .iter()
            .map(|slice| (slice.item.id.as_str(), slice.rows.clone()))
            .collect()
    }

    #[test]
    fn the_head_runs_with_requests_of_its_length() {
        let mut queue = queue([
            pending("a", 1, 10),
            pending("b", 1, 90),
            pending("c", 1, 12),
            pending("d", 1, 11),
        ]);
        assert_eq!(
            names(&queue.plan(3, true)),
            [("a", 0..1), ("c", 0..1), ("d", 0..1)]
        );
        assert_eq!(names(&queue.plan(3, true)), [("b", 0..1)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn only_equal_lengths_share_a_batch_where_nothing_is_padded() {
        let mut queue = queue([
            pending("a", 1, 10),
            pending("b", 1, 11),
            pending("c", 1, 10),
        ]);
        assert_eq!(names(&queue.plan(3, false)), [("a", 0..1), ("c", 0..1)]);
        assert_eq!(names(&queue.plan(3, false)), [("b", 0..1)]);
    }

    #[test]
    fn a_length_that_nothing_pads_is_equal_within_a_batch() {
        let with = |name, length, unpadded| {
            let mut pending = pending(name, 1, length);
            Arc::get_mut(&mut pending.item).unwrap().unpadded = vec![unpadded];
            pending
        };
        let mut queue = queue([with("a", 10, 2), with("b", 10, 3), with("c", 12, 2)]);
        assert_eq!(names(&queue.plan(3, true)), [("a", 0..1), ("c", 0..1)]);
        assert_eq!(names(&queue.plan(3, true)), [("b", 0..1)]);
    }

    #[test]
    fn a_long_one_waits_for_one_batch_at_most() {
        let mut queue = queue([pending("short", 1, 1), pending("long", 1, 100)]);
        queue.plan(1, true);
        for _ in 0..5 {
            queue.push(pending("short", 1, 1));
        }
        assert_eq!(names(&queue.plan(1, true)), [("long", 0..1)]);
    }

    #[test]
    fn a_large_request_runs_in_slices_between_others() {
        let mut queue = queue([pending("large", 5, 0), pending("small", 1, 0)]);
        let mut plan = queue.plan(4, true);
        assert_eq!(names(&plan), [("large", 0..3), ("small", 0..1)]);
        let mut large = plan.requests.remove(0);
        large.done = 3;
        queue.push(large);
        queue.push(pending("small", 1, 0));
        assert_eq!(
            names(&queue.plan(4, true)),
            [("large", 3..5), ("small", 0..1)]
        );
    }

    #[test]
    fn a_large_one_leaves_half_to_others_and_takes_what_they_do_not() {
        let small = || (0..16).map(|_| pending("small", 1, 0));
        let mut queue = queue(std::iter::once(pending("large", 20_000, 0)).chain(small()));
        let mut plan = queue.plan(8, true);
        assert_eq!(plan.slices[0].rows, 0..4);
        assert_eq!(plan.slices.len(), 5);
        let mut large = plan.requests.remove(0);
        large.done = 4;
        queue.push(large);
        // The requests that came before it in the queue go before it.
        assert!(
            queue
                .plan(8, true)
                .slices
                .iter()
                .all(|slice| slice.item.rows == 1)
        );
        let plan = queue.plan(8, true);
        assert_eq!(names(&plan)[4..], [("large", 4..8)]);
        assert!(queue.is_empty());
        // Neither of two large requests takes all rows.
        queue.push(pending("a", 100, 0));
        queue.push(pending("b", 100, 0));
        assert_eq!(names(&queue.plan(8, true)), [("a", 0..4), ("b", 0..4)]);
        queue.push(pending("alone", 100, 0));
        assert_eq!(names(&queue.plan(8, true)), [("alone", 0..8)]);
    }

    #[test]
    fn a_large_request_claims_its_share_and_one_row_once_it_has_begun() {
        let mut queue = queue([pending("a", 3, 0), pending("large", 500_000, 0)]);
        assert_eq!(queue.claimed(32), 3 + 16);
        queue.waiting[1].done = 32;
        assert_eq!(queue.claimed(32), 3 + 1);
        assert_eq!(queue.rows(), 3 + 500_000 - 32);
        assert_eq!(queue.claimed(1), 1 + 1);
    }

    #[test]
    fn a_suspect_runs_by_itself() {
        let suspect = Pending {
            quarantine: Some(1),
            ..pending("suspect", 3, 0)
        };
        let mut queue = queue([pending("a", 1, 0), suspect, pending("b", 1, 0)]);
        assert!(queue.holds_suspect());
        assert_eq!(names(&queue.plan(8, true)), [("a", 0..1), ("b", 0..1)]);
        queue.push(pending("c", 1, 0));
        assert_eq!(names(&queue.plan(8, true)), [("suspect", 0..3)]);
        assert!(!queue.holds_suspect());
        assert_eq!(names(&queue.plan(8, true)), [("c", 0..1)]);
    }

    #[test]
    fn requests_of_clients_that_left_are_taken_out() {
        let mut queue = queue([pending("a", 1, 0), pending("b", 1, 0), pending("c", 1, 0)]);
        assert_eq!(queue.remove(|id| *id == "b" || *id == "other"), 1);
        assert_eq!(names(&queue.plan(4, true)), [("a", 0..1), ("c", 0..1)]);
    }

    #[test]
    fn a_request_that_nobody_waits_for_leaves_the_queue() {
        let mut queue = queue([pending("a", 1, 0), pending("b", 1, 0)]);
        let now = Instant::now();
        queue.waiting[0].expires = now;
        let expired = queue.expired(now);
        assert_eq!(expired.len(), 1);
        assert_eq!(names(&queue.plan(4, true)), [("b", 0..1)]);
    }
}
