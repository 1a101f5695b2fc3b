//! The rate of answers, and the time for which a full queue should be left alone.

use std::time::Duration;

/// The time after which a refused client should try again: before any rate is known, and the bounds of it afterwards.
const UNKNOWN: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(1);

/// The weight of the newest second in the average.
const WEIGHT: f64 = 0.3;

/// Answers per second below which the rate says nothing.
const LEAST: f64 = 0.01;

/// The rate of answers, averaged over some seconds.
#[derive(Debug, Default)]
pub(super) struct Rate {
    since_measured: u32,
    per_second: f64,
}

impl Rate {
    pub(super) fn count(&mut self) {
        self.since_measured += 1;
    }

    /// Adds the answers of the last second to the average; to be called once a second.
    pub(super) fn measure(&mut self) {
        let latest = f64::from(std::mem::take(&mut self.since_measured));
        self.per_second += WEIGHT * (latest - self.per_second);
    }

    /// Returns the time in which half of the `open` requests, this proxy's share of the queue, is answered.
    pub(super) fn retry_after(&self, open: usize) -> Duration {
        if self.per_second < LEAST {
            return UNKNOWN;
        }
        #[expect(clippy::cast_precision_loss, reason = "2^52 requests are out of reach")]
        let seconds = open as f64 / 2.0 / self.per_second;
        Duration::from_secs_f64(seconds.clamp(SHORTEST.as_secs_f64(), LONGEST.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_retry_follows_the_rate() {
        let mut rate = Rate::default();
        assert_eq!(rate.retry_after(400), UNKNOWN);
        for _ in 0..60 {
            (0..10).for_each(|_| rate.count());
            rate.measure();
        }
        let seconds = rate.retry_after(400).as_secs_f64();
        assert!((19.9..20.1).contains(&seconds), "{seconds}");
        assert_eq!(rate.retry_after(1), SHORTEST);
        assert_eq!(rate.retry_after(1_000_000), LONGEST);
        for _ in 0..60 {
            rate.measure();
        }
        assert_eq!(rate.retry_after(400), UNKNOWN);
    }
}
