//! What the run thread tells others without being asked: whether it is busy, and when it last got on.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Written by the run thread, read by probes and by what renews the lease.
#[derive(Debug)]
pub struct Progress {
    origin: Instant,
    /// Milliseconds from the origin to the last step of the work in hand, counted from 1; 0 when there is none.
    last_step: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            last_step: AtomicU64::new(0),
        }
    }
}

impl Progress {
    /// Work begins, or a part of it is done.
    pub fn step(&self) {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last_step.store(now + 1, Ordering::Relaxed);
    }

    /// The work is done.
    pub fn rest(&self) {
        self.last_step.store(0, Ordering::Relaxed);
    }

    /// How long the work in hand has not got on; zero when there is none.
    #[must_use]
    pub fn stalled(&self) -> Duration {
        match self.last_step.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            step => self
                .origin
                .elapsed()
                .saturating_sub(Duration::from_millis(step - 1)),
        }
    }
}
