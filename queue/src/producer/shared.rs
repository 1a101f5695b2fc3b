//! The state that the tasks of a proxy share.

use std::{
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::in_flight::InFlight;
use crate::{
    Caller, Endpoint, Limits, QueueError, id::EntryId, keys::Keys, manager::ConnectionManager,
};

/// The longest time that Redis may take to answer. A shorter one, which a stalled Redis often exceeds, would only make
/// many requests uncertain.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The state that the tasks of a proxy share.
pub(super) struct Shared {
    pub(super) keys: Keys,
    pub(super) proxy: String,
    /// This proxy as a caller, for requests of which no other is known.
    pub(super) caller: Caller,
    pub(super) limits: RwLock<Limits>,
    pub(super) in_flight: InFlight,
    pub(super) connections: ConnectionManager,
    /// The number of the next enqueue, which no other process of this name has used.
    pub(super) calls: AtomicU64,
    /// The largest body that Redis takes, in bytes.
    pub(super) max_body_bytes: AtomicU64,
    /// The id of the last reply read.
    pub(super) cursor: Mutex<EntryId>,
    /// A signal that the connection which reads replies broke, so that the one that writes may have, too. Writing to it
    /// would leave requests uncertain.
    pub(super) reader_broke: Notify,
    /// The stop of the task that reads replies.
    pub(super) stop: CancellationToken,
    /// The end of the writing task.
    pub(super) finished: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        endpoint: Endpoint,
        uid: &str,
        proxy: &str,
        limits: Limits,
        stop: CancellationToken,
    ) -> Result<Self, QueueError> {
        Ok(Self {
            keys: Keys::new(uid)?,
            proxy: proxy.to_owned(),
            caller: Caller::named(proxy.as_bytes()),
            limits: RwLock::new(limits),
            in_flight: InFlight::default(),
            connections: ConnectionManager::new(endpoint, RESPONSE_TIMEOUT),
            // Lua's numbers are exact up to 2^53.
            calls: AtomicU64::new(rand::random::<u64>() >> 12),
            max_body_bytes: AtomicU64::new(u64::MAX),
            cursor: Mutex::default(),
            reader_broke: Notify::new(),
            stop,
            finished: CancellationToken::new(),
        })
    }

    pub(super) fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn cursor(&self) -> EntryId {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_cursor(&self, entry: EntryId) {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = entry;
    }
}
