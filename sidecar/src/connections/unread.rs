//! The bound on the bytes of all answers that clients have not taken.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The count of the bytes of all answers that one proxy holds for its clients, and how many it may hold. Beyond it, who has
/// not taken one answer gets no further one.
#[derive(Debug, Clone)]
pub struct Unread(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: AtomicU64,
    limit: AtomicU64,
}

/// The bytes of an answer whose body does not tell them, as an extension of its response.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub u64);

impl Unread {
    /// Counts nothing yet.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Inner {
            held: AtomicU64::new(0),
            limit: AtomicU64::new(limit),
        }))
    }

    /// Sets another limit, for answers that come from now on.
    pub fn set_limit(&self, limit: u64) {
        self.0.limit.store(limit, Relaxed);
    }

    /// Counts bytes of an answer.
    pub(super) fn hold(&self, bytes: u64) {
        self.0.held.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes no longer.
    pub(super) fn give_back(&self, bytes: u64) {
        self.0.held.fetch_sub(bytes, Relaxed);
    }

    /// Whether more would be too much.
    pub(super) fn is_full(&self) -> bool {
        self.0.held.load(Relaxed) > self.0.limit.load(Relaxed)
    }
}
