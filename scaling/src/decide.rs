//! The number of workers that a queue needs. Pure: the clock and an observation come in, a number goes out.
//!
//! Scale-out follows the average length over a stable window. Once the average over a much shorter panic
//! window asks for twice the workers there are, it follows that one for a while, too. Scale-in follows the longest queue of the whole
//! cooldown. The average of a window never exceeds the longest queue of the cooldown that contains it,
//! so the two can't argue: a steady load makes no reversals, a step up and down makes one.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use carpool_crds::Scaling;

/// The window of the average that scale-out follows, or the cooldown where that is shorter.
const STABLE: Duration = Duration::from_secs(10);
/// The window of the average that shows a burst.
const PANIC: Duration = Duration::from_secs(2);
/// A burst asks for at least this many times the workers there are.
const PANIC_FACTOR: u32 = 2;
/// The time after the beginning of a burst in which the average over the panic window counts as well.
const PANIC_LASTS: Duration = STABLE;
/// The bounds of the gap between two lengths after which the earlier ones say nothing any more, and the cooldown starts
/// anew. The gap is as long as the cooldown within these bounds; the lower one is a few scrapes that failed.
const SILENCE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(10));

/// The state of a queue and its workers at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Requests waiting and in flight; `None` when it is unknown.
    pub length: Option<u64>,
    /// Workers that are asked for, ready or not, without those on their way out.
    pub current: u32,
    /// Whether a worker of this revision has ever been ready. A revision proves itself with one worker first.
    pub proven: bool,
}

/// The number of workers there should be, and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Workers wanted, between the spec's `minReplicas` and `maxReplicas`.
    pub replicas: u32,
    /// The reason for this number.
    pub reason: Reason,
}

/// A reason why a number of workers was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A new revision starts one worker, however long the queue is.
    Unproven,
    /// The length is unknown, so no worker goes.
    Unknown,
    /// A request came while there were no workers.
    FirstRequest,
    /// The queue grew suddenly, as the panic window shows.
    Burst,
    /// The average length needs more workers.
    LongQueue,
    /// Fewer workers were enough during the whole cooldown.
    ShortQueue,
    /// The number was outside of `minReplicas` and `maxReplicas`.
    Bounds,
    /// The number is right, or the cooldown is not over.
    Steady,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unproven => "a new revision proves itself with one worker",
            Self::Unknown => "the queue's length is unknown",
            Self::FirstRequest => "a request came while there were no workers",
            Self::Burst => "the queue grew suddenly",
            Self::LongQueue => "the queue is longer than the workers carry",
            Self::ShortQueue => "fewer workers were enough during the whole cooldown",
            Self::Bounds => "minReplicas or maxReplicas says so",
            Self::Steady => "the number of workers fits the queue",
        })
    }
}

/// Decides for one revision of one model, about once a second.
#[derive(Debug)]
pub struct Scaler {
    scaling: Scaling,
    /// Lengths in the stable window, oldest first.
    recent: VecDeque<(Instant, u64)>,
    /// Lengths in the cooldown that no later one exceeds, so the first is the longest.
    peaks: VecDeque<(Instant, u64)>,
    /// The time from which on `peaks` is complete, and the time at which the length was last known.
    watched: Option<(Instant, Instant)>,
    panics_until: Option<Instant>,
}

impl Scaler {
    /// Returns a scaler that has seen nothing yet: it scales in after a whole cooldown at the earliest.
    #[must_use]
    pub fn new(scaling: Scaling) -> Self {
        Self {
            scaling,
            recent: VecDeque::new(),
            peaks: VecDeque::new(),
            watched: None,
            panics_until: None,
        }
    }

    /// Takes a changed specification over. The lengths seen so far are kept.
    pub fn set(&mut self, scaling: Scaling) {
        self.scaling = scaling;
    }

    /// Returns how many workers there should be. `now` must not go back.
    pub fn decide(&mut self, now: Instant, seen: Observation) -> Decision {
        if let Some(length) = seen.length {
            self.record(now, length);
        }
        let current = self.bounded(seen.current);
        if !seen.proven {
            return Decision {
                replicas: current.max(1),
                reason: Reason::Unproven,
            };
        }
        if seen.length.is_none() {
            return Decision {
                replicas: current,
                reason: Reason::Unknown,
            };
        }

        let stable = self.needed_on_average(now, STABLE);
        let burst = self.needed_on_average(now, PANIC);
        if burst >= current.saturating_mul(PANIC_FACTOR) {
            self.panics_until = Some(now + PANIC_LASTS);
        }
        let panics = burst > stable && self.panics_until.is_some_and(|until| now < until);
        let more = if panics { burst } else { stable };
        let fewest = self.needed(self.peaks.front().map_or(0, |(_, length)| *length), 1);

        let (replicas, reason) = if more > current {
            let reason = match (current, panics) {
                (0, _) => Reason::FirstRequest,
                (_, true) => Reason::Burst,
                (_, false) => Reason::LongQueue,
            };
            (more, reason)
        } else if fewest < current && self.watched_whole_cooldown(now) {
            (fewest, Reason::ShortQueue)
        } else if current == seen.current {
            (current, Reason::Steady)
        } else {
            (current, Reason::Bounds)
        };
        Decision { replicas, reason }
    }

    fn record(&mut self, now: Instant, length: u64) {
        let cooldown = self.scaling.cooldown.0;
        let since = match self.watched {
            Some((since, last))
                if now.duration_since(last) <= cooldown.clamp(SILENCE.0, SILENCE.1) =>
            {
                since
            }
            _ => {
                self.recent.clear();
                self.peaks.clear();
                now
            }
        };
        // Lengths older than the cooldown are forgotten, so a cooldown that grows later waits for the rest.
        let since = now
            .checked_sub(cooldown)
            .map_or(since, |start| since.max(start));
        self.watched = Some((since, now));

        while self.peaks.back().is_some_and(|(_, other)| *other <= length) {
            self.peaks.pop_back();
        }
        self.peaks.push_back((now, length));
        self.recent.push_back((now, length));
        drop_older(&mut self.peaks, now, cooldown);
        drop_older(&mut self.recent, now, STABLE);
    }

    fn watched_whole_cooldown(&self, now: Instant) -> bool {
        self.watched
            .is_some_and(|(since, _)| now.duration_since(since) >= self.scaling.cooldown.0)
    }

    fn needed_on_average(&self, now: Instant, window: Duration) -> u32 {
        let window = window.min(self.scaling.cooldown.0);
        let (sum, count) = self
            .recent
            .iter()
            .rev()
            .take_while(|(at, _)| *at == now || now.duration_since(*at) < window)
            .fold((0_u64, 0_u64), |(sum, count), (_, length)| {
                (sum.saturating_add(*length), count + 1)
            });
        self.needed(sum, count.max(1))
    }

    /// Returns the workers that `sum / count` requests need.
    fn needed(&self, sum: u64, count: u64) -> u32 {
        let target = u64::from(self.scaling.target_queue_length.max(1));
        let workers = sum.div_ceil(target.saturating_mul(count));
        self.bounded(u32::try_from(workers).unwrap_or(u32::MAX))
    }

    fn bounded(&self, workers: u32) -> u32 {
        // `clamp` would panic where a specification that nobody checked has the bounds the wrong way round.
        workers
            .max(self.scaling.min_replicas)
            .min(self.scaling.max_replicas)
    }
}

fn drop_older(lengths: &mut VecDeque<(Instant, u64)>, now: Instant, window: Duration) {
    while lengths
        .front()
        .is_some_and(|(at, _)| now.duration_since(*at) > window)
    {
        lengths.pop_front();
    }
}

#[cfg(test)]
mod tests;
