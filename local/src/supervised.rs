//! One process that should run: when it crashes, it is due again after a growing pause.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::process::Handle;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A process that should run, whether or not it does now.
#[derive(Debug)]
pub struct Supervised {
    running: Option<Running>,
    /// Crashes in a row. The first may be of a process that was ready, the others are of ones that never were.
    crashes: u32,
    due: Instant,
}

/// The process while it runs.
#[derive(Debug)]
pub struct Running {
    /// The handle to stop it.
    pub handle: Handle,
    /// The process's own name.
    pub name: String,
    /// The file where the process writes the address of its admin port.
    pub address_file: PathBuf,
    /// The address of its admin port, once the process has written it.
    pub admin: Option<SocketAddr>,
    ready: bool,
    has_been_ready: bool,
}

impl Running {
    /// Returns a process that has just been started and is not ready.
    pub fn new(handle: Handle, name: String, address_file: PathBuf) -> Self {
        Self {
            handle,
            name,
            address_file,
            admin: None,
            ready: false,
            has_been_ready: false,
        }
    }

    /// The URL of its metrics and probes, once the admin port is known.
    pub fn url(&self) -> Option<String> {
        self.admin.map(|address| format!("http://{address}"))
    }

    /// Whether the process is ready.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// Whether the process has ever been ready.
    pub fn has_been_ready(&self) -> bool {
        self.has_been_ready
    }

    /// Notes whether the process is ready.
    pub fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
        self.has_been_ready |= ready;
    }
}

impl Supervised {
    /// Returns a process that is due now.
    pub fn new(now: Instant) -> Self {
        Self {
            running: None,
            crashes: 0,
            due: now,
        }
    }

    /// The process, if it runs.
    pub fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// The process, if it runs.
    pub fn running_mut(&mut self) -> Option<&mut Running> {
        self.running.as_mut()
    }

    /// Whether the process runs and is ready.
    pub fn ready(&self) -> bool {
        self.running.as_ref().is_some_and(Running::ready)
    }

    /// Whether the process was told to stop and has not ended.
    pub fn is_stopping(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.handle.is_stopping())
    }

    /// Whether it is time to start the process.
    pub fn is_due(&self, now: Instant) -> bool {
        self.running.is_none() && self.due <= now
    }

    /// Notes that the process has been started.
    pub fn started(&mut self, running: Running) {
        self.running = Some(running);
    }

    /// Notes that the process has ended. Only a life that was ready ends a row of crashes: a process that takes long to
    /// fail is no better for it.
    pub fn ended(&mut self, now: Instant) -> End {
        let expected = self.is_stopping();
        let (name, was_ready) = match self.running.take() {
            Some(running) => (running.name, running.has_been_ready),
            None => (String::new(), false),
        };
        if was_ready {
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

/// The end of a supervised process.
#[derive(Debug)]
pub struct End {
    /// The process's own name.
    pub name: String,
    /// Whether the process was told to stop.
    pub expected: bool,
    /// Crashes in a row, this one included.
    pub crashes: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(ready: &[bool]) -> Running {
        let mut running = Running::new(Handle::of_nobody(), "w".to_owned(), PathBuf::new());
        for ready in ready {
            running.set_ready(*ready);
        }
        running
    }

    #[test]
    fn crashes_in_a_row_are_started_again_later_and_later() {
        let mut now = Instant::now();
        let mut supervised = Supervised::new(now);
        assert!(supervised.is_due(now));
        for (crashes, pause) in [(1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (6, 15), (7, 15)] {
            supervised.started(running(&[false, false]));
            assert_eq!(supervised.ended(now).crashes, crashes);
            let pause = Duration::from_secs(pause);
            assert_eq!(supervised.is_due(now), pause.is_zero());
            now += pause;
            assert!(supervised.is_due(now));
        }
    }

    #[test]
    fn only_a_life_that_was_ready_ends_a_row_of_crashes() {
        let mut now = Instant::now();
        let mut supervised = Supervised::new(now);
        for (ready, crashes) in [
            (&[false][..], 1),
            (&[false, false], 2),
            (&[false, true, false], 1),
            (&[false], 2),
            (&[], 3),
        ] {
            supervised.started(running(ready));
            // The length of a life does not count.
            now += Duration::from_mins(10);
            assert_eq!(supervised.ended(now).crashes, crashes, "{ready:?}");
        }
    }
}
