//! The progress that the client of one connection makes: what it asks for, and whether it takes what it gets.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use http::Version;
use tokio::sync::{Notify, futures::Notified};

use super::unread::Unread;

/// The state of one connection, shared by its transport, its requests and their answers.
#[derive(Debug)]
pub struct Progress {
    spoken: Notify,
    /// The count of the bytes of answers of all connections.
    unread: Unread,
    /// The bytes of answers that this connection's client has not taken.
    held: AtomicU64,
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
    /// Makes the state of a connection whose answers count as `unread`.
    pub(super) fn new(unread: Unread) -> Self {
        Self {
            spoken: Notify::default(),
            unread,
            held: AtomicU64::default(),
            http1: AtomicBool::default(),
            requests: AtomicUsize::default(),
            waiting: AtomicUsize::default(),
            open: AtomicUsize::default(),
            heading: AtomicBool::default(),
            unsent: Default::default(),
            checks: AtomicUsize::default(),
            heading_since: AtomicUsize::new(NONE),
        }
    }

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
        let before = self.heading_since.swap(heading, Relaxed);
        unsent || (heading != NONE && heading == before)
    }

    fn hold(&self, bytes: u64) {
        self.held.fetch_add(bytes, Relaxed);
        self.unread.hold(bytes);
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
        self.unread.give_back(bytes);
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

    /// Counts the bytes of the whole answer, if they may be held: a client that has not taken one answer gets no
    /// further one while all answers together are too much.
    pub(super) fn holds(&self, bytes: u64) -> bool {
        let progress = &self.progress;
        if progress.unread.is_full() && progress.held.load(Relaxed) > 0 {
            return false;
        }
        progress.hold(bytes);
        true
    }

    /// Counts bytes of an answer that were not known before.
    pub(super) fn grows(&self, bytes: u64) {
        self.progress.hold(bytes);
    }

    /// Counts bytes no longer that were not sent.
    pub(super) fn gives_back(&self, bytes: u64) {
        self.progress.give_back(bytes);
    }

    /// Notes a part of the answer that the client is to take, with the bytes that count no longer once it has.
    pub(super) fn sends(&self, bytes: u64) -> Unsent {
        let progress = Arc::clone(&self.progress);
        let parity = progress.checks.load(Relaxed) % 2;
        progress.unsent[parity].fetch_add(1, Relaxed);
        Unsent {
            progress,
            parity,
            bytes,
        }
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
    bytes: u64,
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.progress.unsent[self.parity].fetch_sub(1, Relaxed);
        self.progress.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    fn asked() -> (Arc<Progress>, Asked) {
        let progress = Arc::new(Progress::new(Unread::new(0, Gauge::default())));
        let asked = progress.asked(Version::HTTP_11);
        (progress, asked)
    }

    #[test]
    fn a_part_that_is_not_taken_for_two_checks_is_a_stall() {
        let (progress, asked) = asked();
        let held = asked.sends(0);
        assert!(!progress.has_stalled());
        assert!(progress.has_stalled());
        drop(held);
        assert!(!progress.has_stalled());
    }

    #[test]
    fn parts_that_are_taken_one_after_another_are_none() {
        let (progress, asked) = asked();
        let mut held = asked.sends(0);
        for _ in 0..8 {
            assert!(!progress.has_stalled());
            // The last part leaves once the next is there.
            held = asked.sends(0);
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

    #[test]
    fn who_takes_no_answer_gets_no_further_one_when_there_are_too_many() {
        let unread = Unread::new(100, Gauge::default());
        let asked = || Arc::new(Progress::new(unread.clone())).asked(Version::HTTP_2);
        let (slow, quick) = (asked(), asked());
        assert!(slow.holds(60) && slow.holds(60) && !slow.holds(60));
        assert!(quick.holds(60));
        let part = slow.sends(60);
        slow.gives_back(60);
        assert!(!slow.holds(60) && !quick.holds(60));
        drop(part);
        assert!(slow.holds(60));
    }
}
