//! What a worker says of itself when it joins the queue.

use std::time::Duration;

/// How a worker joins the queue.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// The resource's UID.
    pub uid: String,
    /// The revision that it serves.
    pub revision: String,
    /// Its process's own name. The next process of this name takes back what this one held.
    pub name: String,
    /// The SHA-256 of the artifact that it has loaded. The first one is recorded as the revision's; a worker with another
    /// one is refused. Without it nothing is recorded or compared.
    pub artifact: Option<String>,
    /// What may change while it serves.
    pub limits: ConsumerLimits,
}

/// A worker's bounds, as the resource states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerLimits {
    /// How long it may be silent before others take its requests.
    pub lease: Duration,
    /// How often a request may be given to a worker, the first time included.
    pub max_deliveries: u32,
    /// Bytes of request bodies and unread large answers that Redis may hold.
    pub max_bytes: u64,
}
