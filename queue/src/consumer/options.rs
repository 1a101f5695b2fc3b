//! The options of a worker that joins the queue.

use std::time::Duration;

/// The options of a worker that joins the queue.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// The resource's UID.
    pub uid: String,
    /// The revision that the worker serves.
    pub revision: String,
    /// The name of the worker's process. The next process of this name sets aside the requests that this one held.
    pub name: String,
    /// The SHA-256 of the artifact that the worker has loaded. The first one is recorded as the revision's; a worker
    /// with another one is refused. Without it nothing is recorded or compared.
    pub artifact: Option<String>,
    /// The bounds, which may change while the worker serves.
    pub limits: ConsumerLimits,
}

/// A worker's bounds, as the resource states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerLimits {
    /// The time that the worker may be silent before others take its requests.
    pub lease: Duration,
    /// The number of times that a request may be given to a worker, the first included.
    pub max_deliveries: u32,
    /// The most bytes of request bodies and unread large answers that Redis may hold.
    pub max_bytes: u64,
    /// The time that the outcome of a request that nobody waits for is kept.
    pub result_ttl: Duration,
    /// The priority of requests that name none; 1 is the highest.
    pub default_priority: u8,
}
