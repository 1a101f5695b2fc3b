//! One process that should be there: when it crashes, it is due again after a growing pause.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::process::Handle;

/// One that lived this long and then crashed is started again at once.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A process that should be there, whether or not it is now.
#[derive(Debug)]
pub struct Supervised {
    running: Option<Running>,
    /// Crashes in a row.
    crashes: u32,
    due: Instant,
}

/// The process, once it is started.
#[derive(Debug)]
pub struct Running {
    /// Stops it.
    pub handle: Handle,
    /// Its own name.
    pub name: String,
    /// Its admin port.
    pub admin: SocketAddr,
    /// Whether it has said that it is ready.
    pub ready: bool,
    /// When it was started.
    pub since: Instant,
}

impl Supervised {
    /// One that is due now.
    pub fn new(now: Instant) -> Self {
        Self {
            running: None,
            crashes: 0,
            due: now,
        }
    }

    /// The process, if it is there.
    pub fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// The process, if it is there.
    pub fn running_mut(&mut self) -> Option<&mut Running> {
        self.running.as_mut()
    }

    /// Whether it is there and ready.
    pub fn ready(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.ready)
    }

    /// Whether it is on its way out.
    pub fn is_stopping(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.handle.is_stopping())
    }

    /// Whether it is time to start it.
    pub fn is_due(&self, now: Instant) -> bool {
        self.running.is_none() && self.due <= now
    }

    /// It is started.
    pub fn started(&mut self, running: Running) {
        self.running = Some(running);
    }

    /// It has ended.
    pub fn ended(&mut self, now: Instant) -> End {
        let expected = self.is_stopping();
        let (name, lived) = match self.running.take() {
            Some(running) => (running.name, now.duration_since(running.since)),
            None => (String::new(), Duration::ZERO),
        };
        if lived >= HEALTHY_AFTER {
            self.crashes = 0;
        }
        let pause = match self.crashes {
            0 => Duration::ZERO,
            again => FIRST_PAUSE
                .saturating_mul(1 << again.min(10))
                .min(LONGEST_PAUSE),
        };
        self.crashes += 1;
        self.due = now + pause;
        End {
            name,
            expected,
            crashes: self.crashes,
        }
    }
}

/// The end of a process.
#[derive(Debug)]
pub struct End {
    /// Its own name.
    pub name: String,
    /// Whether it was told to stop.
    pub expected: bool,
    /// The crashes in a row, this one included.
    pub crashes: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_in_a_row_are_started_again_later_and_later() {
        let mut now = Instant::now();
        let mut supervised = Supervised::new(now);
        assert!(supervised.is_due(now));
        for (crashes, pause) in [(1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (6, 15), (7, 15)] {
            assert_eq!(supervised.ended(now).crashes, crashes);
            let pause = Duration::from_secs(pause);
            assert_eq!(supervised.is_due(now), pause.is_zero());
            now += pause;
            assert!(supervised.is_due(now));
        }
    }
}
