//! The progress of the run thread: which forward pass is under way, and how long passes take.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The factor on the slowest pass so far that bounds a pass where `queue.runTimeout` is not given.
const TIMES_SLOWEST: u32 = 20;
/// The time that a pass may take in any case where `queue.runTimeout` is not given.
const AT_LEAST: Duration = Duration::from_mins(1);

/// The progress that the run thread writes, and others read to learn whether it hangs.
#[derive(Debug, Default)]
pub struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The pass under way: its rows, and when it began.
    pass: Option<(usize, Instant)>,
    slowest: Duration,
}

/// A forward pass that has taken longer than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("one forward pass, of {rows} rows, has taken {took:.1?}, longer than {}: the run thread hangs. {}", .limit.told(), ADVICE)]
pub struct Hang {
    /// The rows of the pass' batch.
    pub rows: usize,
    /// The time that the pass has taken so far.
    pub took: Duration,
    /// The time that the pass may take.
    pub limit: Limit,
}

const ADVICE: &str = "Where a pass may well take that long, raise spec.queue.runTimeout";

/// The time that a forward pass may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The time that `queue.runTimeout` gives.
    Given(Duration),
    /// The default of `queue.runTimeout`, which follows from the slowest pass so far.
    Default {
        /// The time of the slowest pass so far.
        slowest: Duration,
    },
}

impl Limit {
    fn duration(self) -> Duration {
        match self {
            Self::Given(limit) => limit,
            Self::Default { slowest } => slowest.saturating_mul(TIMES_SLOWEST).max(AT_LEAST),
        }
    }

    fn told(self) -> String {
        let limit = self.duration();
        match self {
            Self::Given(_) => format!("queue.runTimeout, {limit:?}"),
            Self::Default { slowest } => format!(
                "{limit:?}, the default of queue.runTimeout ({TIMES_SLOWEST} times the slowest pass so far, {slowest:.1?}, at \
                 least {AT_LEAST:?})"
            ),
        }
    }
}

impl Progress {
    /// Notes that a forward pass of so many rows begins.
    pub fn begin(&self, rows: usize) {
        self.state().pass = Some((rows, Instant::now()));
    }

    /// Notes that the pass has ended, well or not.
    pub fn end(&self) {
        let mut state = self.state();
        if let Some((_, begun)) = state.pass.take() {
            state.slowest = state.slowest.max(begun.elapsed());
        }
    }

    /// The time of the slowest pass so far; zero before the first.
    #[must_use]
    pub fn slowest(&self) -> Duration {
        self.state().slowest
    }

    /// Notes that passes which were seen elsewhere took up to this long.
    pub fn seen(&self, slowest: Duration) {
        let mut state = self.state();
        state.slowest = state.slowest.max(slowest);
    }

    /// The pass under way, where it has taken longer than `run_timeout` or, without one, than its default.
    #[must_use]
    pub fn hang(&self, run_timeout: Option<Duration>) -> Option<Hang> {
        let state = self.state();
        let (rows, begun) = state.pass?;
        let took = begun.elapsed();
        let slowest = state.slowest;
        let limit = run_timeout.map_or(Limit::Default { slowest }, Limit::Given);
        (took > limit.duration()).then_some(Hang { rows, took, limit })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_follows_the_slowest_pass() {
        let limit = |slowest| Limit::Default { slowest }.duration();
        assert_eq!(limit(Duration::ZERO), Duration::from_mins(1));
        assert_eq!(limit(Duration::from_secs(3)), Duration::from_mins(1));
        assert_eq!(limit(Duration::from_secs(7)), Duration::from_secs(140));
        let progress = Progress::default();
        progress.seen(Duration::from_secs(7));
        progress.begin(1);
        progress.end();
        assert_eq!(progress.slowest(), Duration::from_secs(7));
    }

    #[test]
    fn only_a_pass_under_way_hangs_and_what_it_exceeds_is_named() {
        let progress = Progress::default();
        let none = Some(Duration::ZERO);
        assert_eq!(progress.hang(none), None);
        progress.begin(32);
        // The default limit is a minute.
        assert_eq!(progress.hang(None), None);
        let hang = std::iter::repeat_with(|| progress.hang(none)).find_map(|hang| hang);
        let message = hang.unwrap().to_string();
        assert!(message.contains("of 32 rows"), "{message}");
        assert!(message.contains("queue.runTimeout, 0ns"), "{message}");
        progress.end();
        assert_eq!(progress.hang(none), None);

        let message = Limit::Default {
            slowest: Duration::from_secs(7),
        }
        .told();
        assert!(
            message.starts_with("140s, the default of queue.runTimeout (20 times"),
            "{message}"
        );
    }
}
