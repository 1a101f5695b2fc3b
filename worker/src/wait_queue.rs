//! The requests that wait for the device, and which of them ride together.

use std::{collections::VecDeque, sync::Arc};

use carpool_protocol::Tensor;
use carpool_queue::JobId;
use tokio::time::Instant;

use crate::item::{Item, Slice, tensor_rows};

/// A request that is not yet answered.
pub struct Open<I = JobId> {
    /// Its entry in the queue.
    pub id: I,
    /// What the model is to be given.
    pub item: Arc<Item>,
    /// When it entered the queue.
    pub arrived: Instant,
    /// When nobody waits for it any more.
    pub expires: Instant,
    /// It may have killed a worker, so it runs only with those of the same number.
    pub quarantine: Option<u64>,
    /// The model's outputs for its first rows.
    pub parts: Vec<Vec<Tensor>>,
    /// How many rows those are.
    pub done: usize,
}

impl<I> Open<I> {
    /// How many of its rows have yet to run.
    #[must_use]
    pub fn left(&self) -> usize {
        self.item.rows - self.done
    }

    /// Its next rows have run.
    pub fn ran(&mut self, outputs: Vec<Tensor>) {
        self.done += outputs.first().map_or(0, tensor_rows);
        self.parts.push(outputs);
    }
}

/// One batch: who rides, and with which rows.
pub struct Ride<I = JobId> {
    /// The requests.
    pub riders: Vec<Open<I>>,
    /// Their rows, in the same order.
    pub slices: Vec<Slice>,
}

/// The requests that wait, oldest first.
pub struct Line<I = JobId> {
    waiting: VecDeque<Open<I>>,
}

impl<I> Default for Line<I> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<I> Line<I> {
    /// Puts a request at the end. One that has ridden with some of its rows goes there too: so its slices
    /// interleave with others, and the line moves for everyone.
    pub fn push(&mut self, open: Open<I>) {
        self.waiting.push_back(open);
    }

    /// How many requests wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many rows wait.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.waiting.iter().map(Open::left).sum()
    }

    /// How many rows of a batch of `max` are spoken for, which is what new requests need not fill. A request never claims
    /// more than its share, or one of many rows would keep all others in the queue until its last; once it has ridden, a
    /// row, so that even of those no more are taken in than a batch has rows.
    #[must_use]
    pub fn claimed(&self, max: usize) -> usize {
        let claim = |open: &Open<I>| match open.done {
            0 => open.left().min(share(max)),
            _ => 1,
        };
        self.waiting.iter().map(claim).sum()
    }

    /// The request at the head.
    #[must_use]
    pub fn head(&self) -> Option<&Open<I>> {
        self.waiting.front()
    }

    /// Whether one of those that wait must run by itself: until it has, the queue gives nothing else.
    #[must_use]
    pub fn holds_suspect(&self) -> bool {
        self.waiting.iter().any(|open| open.quarantine.is_some())
    }

    /// Takes out the requests that nobody waits for any more.
    pub fn expired(&mut self, now: Instant) -> Vec<Open<I>> {
        let (expired, waiting): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|open| open.expires <= now);
        self.waiting = waiting.into();
        expired
    }

    /// Takes out everyone.
    pub fn drain(&mut self) -> Vec<Open<I>> {
        self.waiting.drain(..).collect()
    }

    /// Takes out the next batch of at most `max` rows: the head of the line, then those that may join it, nearest in length
    /// first; who is of another length joins only where batches are `padded`. None of them gets more than half of the rows
    /// while others want them.
    /// Nobody starves, since whoever is at the head goes next. Who must run by itself rides only as the head, and then
    /// with nobody.
    pub fn ride(&mut self, max: usize, padded: bool) -> Ride<I> {
        let mut ride = Ride {
            riders: Vec::new(),
            slices: Vec::new(),
        };
        let Some(head) = self.waiting.front() else {
            return ride;
        };
        let joins = |open: &Open<I>| {
            open.quarantine == head.quarantine && open.item.joins(&head.item, padded)
        };
        let mut others: Vec<usize> = (1..self.waiting.len())
            .filter(|index| joins(&self.waiting[*index]))
            .collect();
        let length = head.item.length();
        // The sort is stable: among equally near ones the older goes first.
        others.sort_by_key(|index| self.waiting[*index].item.length().abs_diff(length));
        let mut room = max;
        let mut chosen = vec![0; self.waiting.len()];
        for most in [share(max), max] {
            for index in std::iter::once(0).chain(others.iter().copied()) {
                let more = self.waiting[index].left().min(most) - chosen[index];
                chosen[index] += more.min(room);
                room -= more.min(room);
            }
        }
        let waiting = std::mem::take(&mut self.waiting);
        for (open, rows) in waiting.into_iter().zip(chosen) {
            if rows == 0 {
                self.waiting.push_back(open);
            } else {
                let item = Arc::clone(&open.item);
                ride.slices.push(Slice {
                    item,
                    rows: open.done..open.done + rows,
                });
                ride.riders.push(open);
            }
        }
        ride
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

    fn open(name: &'static str, rows: usize, length: i64) -> Open<&'static str> {
        let now = Instant::now();
        Open {
            id: name,
            item: Arc::new(Item {
                id: name.to_owned(),
                rows,
                inputs: Vec::new(),
                outputs: Vec::new(),
                lengths: vec![length],
                unpadded: Vec::new(),
            }),
            arrived: now,
            expires: now + Duration::from_secs(30),
            quarantine: None,
            parts: Vec::new(),
            done: 0,
        }
    }

    fn line(opens: impl IntoIterator<Item = Open<&'static str>>) -> Line<&'static str> {
        Line {
            waiting: opens.into_iter().collect(),
        }
    }

    fn names<'a>(ride: &'a Ride<&'static str>) -> Vec<(&'a str, std::ops::Range<usize>)> {
        ride.slices
            .iter()
            .map(|slice| (slice.item.id.as_str(), slice.rows.clone()))
            .collect()
    }

    #[test]
    fn the_head_rides_with_those_of_its_length() {
        let mut line = line([
            open("a", 1, 10),
            open("b", 1, 90),
            open("c", 1, 12),
            open("d", 1, 11),
        ]);
        assert_eq!(
            names(&line.ride(3, true)),
            [("a", 0..1), ("c", 0..1), ("d", 0..1)]
        );
        assert_eq!(names(&line.ride(3, true)), [("b", 0..1)]);
        assert!(line.is_empty());
    }

    #[test]
    fn only_equal_lengths_ride_where_nothing_is_padded() {
        let mut line = line([open("a", 1, 10), open("b", 1, 11), open("c", 1, 10)]);
        assert_eq!(names(&line.ride(3, false)), [("a", 0..1), ("c", 0..1)]);
        assert_eq!(names(&line.ride(3, false)), [("b", 0..1)]);
    }

    #[test]
    fn a_length_that_nothing_pads_is_equal_for_all_who_ride() {
        let with = |name, length, unpadded| {
            let mut open = open(name, 1, length);
            Arc::get_mut(&mut open.item).unwrap().unpadded = vec![unpadded];
            open
        };
        let mut line = line([with("a", 10, 2), with("b", 10, 3), with("c", 12, 2)]);
        assert_eq!(names(&line.ride(3, true)), [("a", 0..1), ("c", 0..1)]);
        assert_eq!(names(&line.ride(3, true)), [("b", 0..1)]);
    }

    #[test]
    fn a_long_one_waits_for_one_batch_at_most() {
        let mut line = line([open("short", 1, 1), open("long", 1, 100)]);
        line.ride(1, true);
        for _ in 0..5 {
            line.push(open("short", 1, 1));
        }
        assert_eq!(names(&line.ride(1, true)), [("long", 0..1)]);
    }

    #[test]
    fn a_large_one_rides_in_slices_between_others() {
        let mut line = line([open("large", 5, 0), open("small", 1, 0)]);
        let mut ride = line.ride(4, true);
        assert_eq!(names(&ride), [("large", 0..3), ("small", 0..1)]);
        let mut large = ride.riders.remove(0);
        large.done = 3;
        line.push(large);
        line.push(open("small", 1, 0));
        assert_eq!(
            names(&line.ride(4, true)),
            [("large", 3..5), ("small", 0..1)]
        );
    }

    #[test]
    fn a_large_one_leaves_half_to_others_and_takes_what_they_do_not() {
        let small = || (0..16).map(|_| open("small", 1, 0));
        let mut line = line(std::iter::once(open("large", 20_000, 0)).chain(small()));
        let mut ride = line.ride(8, true);
        assert_eq!(ride.slices[0].rows, 0..4);
        assert_eq!(ride.slices.len(), 5);
        let mut large = ride.riders.remove(0);
        large.done = 4;
        line.push(large);
        // Those who came before it in line go before it.
        assert!(
            line.ride(8, true)
                .slices
                .iter()
                .all(|slice| slice.item.rows == 1)
        );
        let ride = line.ride(8, true);
        assert_eq!(names(&ride)[4..], [("large", 4..8)]);
        assert!(line.is_empty());
        // Of two, none takes all.
        line.push(open("a", 100, 0));
        line.push(open("b", 100, 0));
        assert_eq!(names(&line.ride(8, true)), [("a", 0..4), ("b", 0..4)]);
        line.push(open("alone", 100, 0));
        assert_eq!(names(&line.ride(8, true)), [("alone", 0..8)]);
    }

    #[test]
    fn a_large_one_claims_no_more_than_its_share_and_once_it_has_ridden_a_row() {
        let mut line = line([open("a", 3, 0), open("large", 500_000, 0)]);
        assert_eq!(line.claimed(32), 3 + 16);
        line.waiting[1].done = 32;
        assert_eq!(line.claimed(32), 3 + 1);
        assert_eq!(line.rows(), 3 + 500_000 - 32);
        assert_eq!(line.claimed(1), 1 + 1);
    }

    #[test]
    fn a_suspect_rides_by_itself() {
        let suspect = Open {
            quarantine: Some(1),
            ..open("suspect", 3, 0)
        };
        let mut line = line([open("a", 1, 0), suspect, open("b", 1, 0)]);
        assert!(line.holds_suspect());
        assert_eq!(names(&line.ride(8, true)), [("a", 0..1), ("b", 0..1)]);
        line.push(open("c", 1, 0));
        assert_eq!(names(&line.ride(8, true)), [("suspect", 0..3)]);
        assert!(!line.holds_suspect());
        assert_eq!(names(&line.ride(8, true)), [("c", 0..1)]);
    }

    #[test]
    fn who_nobody_waits_for_leaves_the_line() {
        let mut line = line([open("a", 1, 0), open("b", 1, 0)]);
        let now = Instant::now();
        line.waiting[0].expires = now;
        let expired = line.expired(now);
        assert_eq!(expired.len(), 1);
        assert_eq!(names(&line.ride(4, true)), [("b", 0..1)]);
    }
}
