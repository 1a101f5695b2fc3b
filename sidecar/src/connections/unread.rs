//! The bound on the bytes of all answers that clients have not taken.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::Relaxed},
};

use prometheus_client::metrics::gauge::Gauge;

/// The count of the bytes of all answers that one proxy holds for its clients, and how many it may hold. Beyond it, who
/// has not taken one answer gets no further one.
#[derive(Debug, Clone)]
pub struct Unread(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: Gauge,
    limit: AtomicI64,
}

/// The bytes of an answer whose body does not tell them, as an extension of its response.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub u64);

impl Unread {
    /// Counts nothing yet, and what is to come with `held`.
    pub fn new(limit: u64, held: Gauge) -> Self {
        let limit = AtomicI64::new(signed(limit));
        Self(Arc::new(Inner { held, limit }))
    }

    /// Sets another limit, for answers that come from now on.
    pub fn set_limit(&self, limit: u64) {
        self.0.limit.store(signed(limit), Relaxed);
    }

    /// Counts bytes of an answer.
    pub(super) fn hold(&self, bytes: u64) {
        self.0.held.inc_by(signed(bytes));
    }

    /// Counts bytes no longer.
    pub(super) fn give_back(&self, bytes: u64) {
        self.0.held.dec_by(signed(bytes));
    }

    /// Whether more would be too much.
    pub(super) fn is_full(&self) -> bool {
        self.0.held.get() > self.0.limit.load(Relaxed)
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
