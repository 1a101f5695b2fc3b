//! The timing of past runs, from which follows how long the next one takes and how much to fetch for it.

use std::{collections::VecDeque, time::Duration};

/// The weight of a new measurement in a moving average.
const WEIGHT: f64 = 0.2;
/// The time below which a run is over before a fetch beside it would be.
const WORTHWHILE: Duration = Duration::from_millis(4);
/// The period of timers, Tokio's and Redis'.
const TICK: Duration = Duration::from_millis(1);
/// The share of a run's time that may be spent on waiting for the clients just answered to come again. Measured with 10
/// and 30 clients at 13 ms a run: without, two cohorts take turns; with 0.15 throughput is 1.5 times that, with 0.3
/// twice.
const GATHER_SHARE: f64 = 0.3;
/// The least share of the rows just answered that must come again in time for the wait to pay.
const GATHER_PAYS: f64 = 0.25;
/// The number of past requests from which the rows of the next ones are guessed.
const RECENT: usize = 31;
/// The number of runs after which a wait that didn't pay is tried again.
const GATHER_RETRY: u32 = 32;

/// An exponentially weighted moving average.
#[derive(Debug, Clone, Copy, Default)]
struct Average(Option<f64>);

impl Average {
    fn add(&mut self, value: f64) {
        self.0 = Some(
            self.0
                .map_or(value, |average| average + WEIGHT * (value - average)),
        );
    }

    fn duration(self) -> Option<Duration> {
        self.0.map(Duration::from_secs_f64)
    }
}

/// The last values, for their median: one huge value among many small ones doesn't change it.
#[derive(Debug, Clone, Default)]
struct Recent {
    values: VecDeque<usize>,
}

impl Recent {
    fn add(&mut self, value: usize) {
        if self.values.len() == RECENT {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    fn median(&self) -> Option<usize> {
        let mut values: Vec<usize> = self.values.iter().copied().collect();
        let middle = values.len().checked_sub(1)? / 2;
        Some(*values.select_nth_unstable(middle).1)
    }
}

/// Measurements of the last runs, exchanges and requests.
#[derive(Debug, Default)]
pub struct RunTiming {
    /// The seconds of a run, by the power of two that its rows reach.
    runs: [Average; 16],
    /// The seconds of a write to the queue and its reply.
    exchange: Average,
    /// The seconds from a fetch's reply to requests that are ready to run.
    assembly: Average,
    /// The seconds from the choice of a batch's requests to a batch that is ready for the device.
    staging: Average,
    /// Whether the queue had as many requests as the last fetch asked for, so that it may well hold more.
    deep: bool,
    /// The rows of the last requests.
    rows: Recent,
    /// The share of the rows just answered that came again in time.
    returned: Average,
    /// The number of runs since a wait for the clients just answered was last worth it.
    unpaid: u32,
}

impl RunTiming {
    /// Notes that a batch of so many rows ran for so long.
    pub fn ran(&mut self, rows: usize, took: Duration) {
        self.runs[class(rows)].add(took.as_secs_f64());
    }

    /// Notes the time that an exchange with the queue took.
    pub fn exchanged(&mut self, took: Duration) {
        self.exchange.add(took.as_secs_f64());
    }

    /// Notes the time that decoding and tokenizing took.
    pub fn assembled(&mut self, took: Duration) {
        self.assembly.add(took.as_secs_f64());
    }

    /// Notes the time that making a batch ready for the device took.
    pub fn staged(&mut self, took: Duration) {
        self.staging.add(took.as_secs_f64());
    }

    /// Notes how many requests came of those asked for.
    pub fn fetched(&mut self, came: usize, asked: usize) {
        if asked > 0 {
            self.deep = came >= asked;
        }
    }

    /// Notes that a request of so many rows came.
    pub fn came(&mut self, rows: usize) {
        self.rows.add(rows);
    }

    /// The number of rows to have at hand where it matters which requests share a batch: a batch of `max` and, while
    /// the queue is deep, as many again to choose from. From a shallow queue that would take what an idle worker
    /// elsewhere could run. Simulated with batches of 32 and lengths spread evenly, it cuts padding from 0.48 of a
    /// batch to 0.28.
    #[must_use]
    pub fn window(&self, max: usize) -> usize {
        if self.deep && max > 1 { 2 * max } else { max }
    }

    /// The number of requests that hold about so many rows.
    #[must_use]
    pub fn requests(&self, rows: usize) -> usize {
        rows.div_ceil(self.rows.median().unwrap_or(1).max(1))
    }

    /// The time after its start at which a run of so many rows is about to end, with just the time left to fetch,
    /// assemble and stage the next one. `None` where nothing is known, or where the run is too short for that.
    #[must_use]
    pub fn about_to_end(&self, rows: usize) -> Option<Duration> {
        let expected = self.runs[class(rows)].duration()?;
        let assembly = self.assembly.duration().unwrap_or_default();
        let staging = self.staging.duration().unwrap_or_default();
        let lead = 2 * self.exchange.duration()? + assembly + staging + TICK;
        (expected > WORTHWHILE).then(|| expected.saturating_sub(lead))
    }

    /// The time to wait, after a run of so many rows, for the clients just answered to come again: a small share of the
    /// run's time. Clients that send their next request when they have an answer otherwise split into cohorts that take
    /// turns, and each runs in a batch of half the size. `None` where the wait doesn't pay.
    pub fn gather(&mut self, rows: usize) -> Option<Duration> {
        let window = self.runs[class(rows)].duration()?.mul_f64(GATHER_SHARE);
        if window < TICK {
            return None;
        }
        if self.returned.0.is_none_or(|share| share >= GATHER_PAYS) {
            self.unpaid = 0;
            return Some(window);
        }
        self.unpaid += 1;
        self.unpaid.is_multiple_of(GATHER_RETRY).then_some(window)
    }

    /// Notes how many of the rows just answered came again in time.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn gathered(&mut self, came: usize, answered: usize) {
        self.returned
            .add((came as f64 / answered.max(1) as f64).min(1.0));
    }
}

fn class(rows: usize) -> usize {
    (rows.max(1).ilog2() as usize).min(15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_about_to_end_as_its_likes_did() {
        let mut timing = RunTiming::default();
        timing.exchanged(Duration::from_millis(1));
        assert_eq!(timing.about_to_end(8), None);
        for _ in 0..50 {
            timing.ran(8, Duration::from_millis(20));
            timing.ran(1, Duration::from_millis(2));
        }
        let at = timing.about_to_end(9).unwrap();
        assert!(
            at.abs_diff(Duration::from_millis(17)) < Duration::from_micros(10),
            "{at:?}"
        );
        assert_eq!(timing.about_to_end(1), None);
        timing.assembled(Duration::from_millis(5));
        let earlier = at.checked_sub(timing.about_to_end(9).unwrap()).unwrap();
        assert!(
            earlier.abs_diff(Duration::from_millis(5)) < Duration::from_micros(10),
            "{earlier:?}"
        );
    }

    #[test]
    fn a_shallow_queue_is_left_to_others() {
        let mut timing = RunTiming::default();
        assert_eq!(timing.window(8), 8);
        timing.fetched(8, 8);
        assert_eq!((timing.window(8), timing.window(1)), (16, 1));
        // A fetch that asks for none tells nothing.
        timing.fetched(0, 0);
        assert_eq!(timing.window(8), 16);
        timing.fetched(15, 16);
        assert_eq!(timing.window(8), 8);
    }

    #[test]
    fn gathering_stops_where_nobody_returns_and_is_tried_again() {
        let mut timing = RunTiming::default();
        timing.ran(4, Duration::from_millis(1));
        assert_eq!(timing.gather(4), None);
        timing.ran(8, Duration::from_millis(20));
        let window = timing.gather(8).unwrap();
        assert!(
            window.abs_diff(Duration::from_millis(6)) < Duration::from_micros(10),
            "{window:?}"
        );
        let spent = (0..200)
            .filter(|_| {
                let waited = timing.gather(8).is_some();
                if waited {
                    timing.gathered(0, 8);
                }
                waited
            })
            .count();
        assert!((5..10).contains(&spent), "waited {spent} times in vain");
        for _ in 0..10 {
            timing.gathered(8, 8);
        }
        assert!(timing.gather(8).is_some());
    }

    #[test]
    fn large_requests_need_less_room() {
        let mut timing = RunTiming::default();
        assert_eq!(timing.requests(32), 32);
        for _ in 0..50 {
            timing.came(16);
        }
        assert_eq!(timing.requests(32), 2);
        assert_eq!(timing.requests(1), 1);
    }

    #[test]
    fn a_huge_request_among_many_small_ones_changes_nothing() {
        let mut timing = RunTiming::default();
        timing.came(500_000);
        for _ in 0..2 {
            timing.came(1);
        }
        assert_eq!(timing.requests(32), 32);
        for rows in [1, 1, 500_000, 1, 1, 500_000, 1] {
            timing.came(rows);
            assert_eq!(timing.requests(32), 32);
        }
        // A lasting change of the requests is learnt all the same.
        for _ in 0..RECENT {
            timing.came(8);
        }
        assert_eq!(timing.requests(32), 4);
    }
}
