//! The progress that the client of one connection makes: what it asks for, and whether it takes what it gets.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use http::Version;
use tokio::sync::{Notify, futures::Notified};

/// The state of one connection, shared by its transport, its requests and their answers.
#[derive(Debug, Default)]
pub struct Progress {
    spoken: Notify,
    /// Whether the client speaks HTTP/1.1.
    http1: AtomicBool,
    /// The number of requests so far.
    requests: AtomicUsize,
    /// The requests by HTTP/1.1 whose answers have not begun.
    waiting: AtomicUsize,
    /// The requests whose answers have not been handed over in full.
    open: AtomicUsize,
    /// Whether a part of the head of a further request by HTTP/1.1 is there.
    heading: AtomicBool,
    /// The parts of answers that the client has not taken, by whether the check after their making was an even one.
    unsent: [AtomicUsize; 2],
    /// The number of checks so far.
    checks: AtomicUsize,
    /// The number of requests at the last check, if the head of the next one had begun by then.
    heading_since: AtomicUsize,
}

/// The value of `heading_since` where no head had begun.
const NONE: usize = usize::MAX;

impl Progress {
    /// Waits for the first request.
    pub(super) fn spoken(&self) -> Notified<'_> {
        self.spoken.notified()
    }

    /// Notes a request whose head is there.
    pub(super) fn asked(self: &Arc<Self>, version: Version) -> Asked {
        if self.requests.fetch_add(1, Relaxed) == 0 {
            self.http1.store(version == Version::HTTP_11, Relaxed);
            self.spoken.notify_one();
        }
        self.heading.store(false, Relaxed);
        self.open.fetch_add(1, Relaxed);
        // A client of HTTP/1.0 must not be sent what its transport would send to one that waits.
        let waits = version == Version::HTTP_11;
        if waits {
            self.waiting.fetch_add(1, Relaxed);
        }
        Asked {
            progress: Arc::clone(self),
            waits,
        }
    }

    /// Notes that bytes came in.
    pub(super) fn received(&self) {
        if self.http1.load(Relaxed) && self.open.load(Relaxed) == 0 {
            self.heading.store(true, Relaxed);
        }
    }

    /// Whether a request by HTTP/1.1 has no answer yet.
    pub(super) fn waits(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Whether a request by HTTP/1.1 has not been answered in full.
    pub(super) fn is_open(&self) -> bool {
        self.http1.load(Relaxed) && self.open.load(Relaxed) > 0
    }

    /// Whether the client has taken none of a part of an answer, or has not finished a head, since the check before the
    /// last one. To be called from time to time.
    pub(super) fn has_stalled(&self) -> bool {
        let checks = self.checks.load(Relaxed);
        let unsent = self.unsent[(checks + 1) % 2].load(Relaxed) > 0;
        self.checks.store(checks + 1, Relaxed);
        let heading = if self.heading.load(Relaxed) {
            self.requests.load(Relaxed)
        } else {
            NONE
        };
        // The first check finds 0 here, which is no number of requests of a connection that is checked.
        let before = self.heading_since.swap(heading, Relaxed);
        unsent || (heading != NONE && heading == before)
    }
}

/// A request, from its head to the end of its answer.
#[derive(Debug)]
pub struct Asked {
    progress: Arc<Progress>,
    waits: bool,
}

impl Asked {
    /// Notes that the answer begins.
    pub(super) fn answered(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.progress.waiting.fetch_sub(1, Relaxed);
        }
    }

    /// Notes a part of the answer that is to be sent.
    pub(super) fn sends(&self) -> Unsent {
        let progress = Arc::clone(&self.progress);
        let parity = progress.checks.load(Relaxed) % 2;
        progress.unsent[parity].fetch_add(1, Relaxed);
        Unsent { progress, parity }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.answered();
        self.progress.open.fetch_sub(1, Relaxed);
    }
}

/// A part of an answer that the client has not taken. Dropped, it has left this process.
#[derive(Debug)]
pub struct Unsent {
    progress: Arc<Progress>,
    parity: usize,
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.progress.unsent[self.parity].fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> (Arc<Progress>, Asked) {
        let progress = Arc::new(Progress::default());
        let asked = progress.asked(Version::HTTP_11);
        (progress, asked)
    }

    #[test]
    fn a_part_that_is_not_taken_for_two_checks_is_a_stall() {
        let (progress, asked) = asked();
        let held = asked.sends();
        assert!(!progress.has_stalled());
        assert!(progress.has_stalled());
        drop(held);
        assert!(!progress.has_stalled());
    }

    #[test]
    fn parts_that_are_taken_one_after_another_are_none() {
        let (progress, asked) = asked();
        let mut held = asked.sends();
        for _ in 0..8 {
            assert!(!progress.has_stalled());
            // The last part leaves once the next is there.
            held = asked.sends();
        }
        drop(held);
    }

    #[test]
    fn a_further_head_has_two_checks_and_an_idle_connection_has_none() {
        let (progress, asked) = asked();
        // A body that comes slowly is bounded by the request's deadline.
        progress.received();
        for _ in 0..4 {
            assert!(!progress.has_stalled());
        }
        drop(asked);
        for _ in 0..4 {
            assert!(!progress.has_stalled());
        }
        progress.received();
        assert!(!progress.has_stalled());
        drop(progress.asked(Version::HTTP_11));
        assert!(!progress.has_stalled());
        progress.received();
        assert!(!progress.has_stalled());
        progress.received();
        assert!(progress.has_stalled());
    }
}
