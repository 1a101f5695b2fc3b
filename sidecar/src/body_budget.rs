//! The bound on the bytes of all request bodies that one proxy holds.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The number of largest allowed bodies whose bytes all bodies together may hold.
const LARGEST_BODIES: u64 = 16;

/// The number of bytes that all bodies together may hold in any case, so that a small limit is none on the number of
/// clients.
const LEAST_BUDGET: u64 = 64 << 20;

/// The count of the bytes of all bodies that are not in the queue yet; the queue counts its own.
#[derive(Debug, Clone, Default)]
pub struct BodyBudget(Arc<AtomicU64>);

impl BodyBudget {
    /// Counts more bytes of a body that may have up to `limit`. False, and nothing counted, where that is too many
    /// beside all other bodies.
    pub fn take(&self, bytes: u64, limit: u64) -> bool {
        let Self(held) = self;
        let most = limit.saturating_mul(LARGEST_BODIES).max(LEAST_BUDGET);
        let fits = held.fetch_add(bytes, Ordering::Relaxed) + bytes <= most;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    /// Counts bytes no longer, for their body is gone.
    pub fn give_back(&self, bytes: u64) {
        let Self(held) = self;
        held.fetch_sub(bytes, Ordering::Relaxed);
    }
}
