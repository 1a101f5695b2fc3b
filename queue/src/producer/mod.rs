//! The proxy's side: requests go in, outcomes come back.
//!
//! One task writes requests (`write`, and `enqueue` over each connection), one reads replies (`replies`). What ties them
//! together is the map of open requests (`in_flight`): an outcome is for whoever is still in it, so each request is answered
//! once. Whatever Redis lost is found by `check` and written again.

mod backlog;
mod check;
mod command;
mod enqueue;
mod heartbeat;
mod in_flight;
mod rate;
mod replies;
mod write;

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::{
    Backlog, Endpoint, Limits, Outcome, QueueError, Submit, SubmitError, call::Call,
    connection::ConnectionManager, id::EntryId, keys::Keys,
};
use in_flight::InFlight;
use write::Command;

/// How long Redis may take to answer. Shorter than a stalled Redis often takes, a timeout would only make many
/// requests uncertain.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a readiness probe waits.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// How long shutting down may take once nothing is open.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The proxy's side of the queue. Clones share it; with the last one its tasks end.
#[derive(Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    /// Held by producers only: the writing task ends when it closes.
    commands: mpsc::UnboundedSender<Command>,
    _stop: DropGuard,
}

/// What the tasks share.
struct Shared {
    keys: Keys,
    proxy: String,
    limits: RwLock<Limits>,
    in_flight: InFlight,
    connections: ConnectionManager,
    /// The number of the next enqueue, which no other process of this name has used.
    calls: AtomicU64,
    /// The largest body that Redis takes.
    max_body_bytes: AtomicU64,
    /// The last reply read.
    cursor: Mutex<EntryId>,
    /// The connection that reads replies broke, so the one that writes may have, too. Writing to it would leave
    /// requests uncertain.
    reader_broke: Notify,
    /// Stops reading replies.
    stop: CancellationToken,
    /// The writing task has ended.
    finished: CancellationToken,
}

impl Shared {
    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    fn cursor(&self) -> EntryId {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_cursor(&self, entry: EntryId) {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = entry;
    }
}

impl Producer {
    /// Starts the tasks that talk to Redis, which need not be up yet. `proxy` names this process among all proxies of
    /// the model. Must be called inside a Tokio runtime.
    pub fn start(
        endpoint: Endpoint,
        uid: &str,
        proxy: &str,
        limits: Limits,
    ) -> Result<Self, QueueError> {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            keys: Keys::new(uid)?,
            proxy: proxy.to_owned(),
            limits: RwLock::new(limits),
            in_flight: InFlight::default(),
            connections: ConnectionManager::new(endpoint.clone(), RESPONSE_TIMEOUT),
            // Lua's numbers are exact up to 2^53.
            calls: AtomicU64::new(rand::random::<u64>() >> 12),
            max_body_bytes: AtomicU64::new(u64::MAX),
            cursor: Mutex::default(),
            reader_broke: Notify::new(),
            stop: stop.clone(),
            finished: CancellationToken::new(),
        });
        let (commands, receiver) = mpsc::unbounded_channel();
        tokio::spawn(write::run(shared.clone(), receiver));
        tokio::spawn(replies::run(shared.clone(), endpoint));
        Ok(Self {
            handle: Arc::new(Handle {
                shared,
                commands,
                _stop: stop.drop_guard(),
            }),
        })
    }

    /// Applies new bounds to what comes from now on.
    pub fn set_limits(&self, limits: Limits) {
        *self
            .handle
            .shared
            .limits
            .write()
            .unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Queues a request and waits for its outcome, which comes once and by the request's deadline. Dropping the future
    /// cancels the request.
    pub async fn submit(&self, request: Submit) -> Result<Outcome, SubmitError> {
        let deadline = request.deadline;
        if deadline <= Instant::now() {
            return Err(SubmitError::DeadlineExceeded);
        }
        let shared = &self.handle.shared;
        let most = shared.max_body_bytes.load(Ordering::Relaxed);
        if request.body.len() as u64 > most {
            return Err(SubmitError::TooLarge { most });
        }
        let uuid = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        let receiver = shared.in_flight.insert(uuid, request, shared.limits())?;
        let _ticket = Ticket {
            handle: &self.handle,
            uuid,
        };
        if self.handle.commands.send(Command::Enqueue(uuid)).is_err() {
            return Err(SubmitError::ShuttingDown);
        }
        match timeout_at(deadline, receiver).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(SubmitError::ShuttingDown),
            Err(_) => Err(SubmitError::DeadlineExceeded),
        }
    }

    /// Requests not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.handle.shared.in_flight.len()
    }

    /// What the queue holds, of every revision.
    pub async fn backlog(&self) -> Result<Backlog, QueueError> {
        backlog::read(&self.handle.shared).await
    }

    /// Whether Redis answers.
    pub async fn ping(&self) -> bool {
        let connections = &self.handle.shared.connections;
        let ping = async {
            let connection = connections.get().await?;
            Call::of(redis::cmd("PING")).last("PING", &connection).await
        };
        matches!(timeout(PING_TIMEOUT, ping).await, Ok(Ok(_)))
    }

    /// Refuses new requests, waits up to `grace` for the open ones, cancels what is left and takes the replies stream
    /// away.
    pub async fn shutdown(&self, grace: Duration) {
        let shared = &self.handle.shared;
        shared.in_flight.close();
        if timeout(grace, shared.in_flight.drained()).await.is_err() {
            tracing::warn!(open = self.in_flight(), "shutting down with open requests");
        }
        for cancelled in shared.in_flight.abandon_all() {
            // A closed channel means that the writing task has ended already.
            let _ = self.handle.commands.send(Command::Cancel(cancelled));
        }
        shared.stop.cancel();
        let _ = self.handle.commands.send(Command::Stop);
        let _ = timeout(SHUTDOWN_TIMEOUT, shared.finished.cancelled()).await;
    }
}

/// A place in the map of open requests. Given up before the outcome is there, it cancels the request.
struct Ticket<'a> {
    handle: &'a Handle,
    uuid: Uuid,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(cancelled) = self.handle.shared.in_flight.abandon(self.uuid) {
            // A closed channel means that the writing task has ended; the request expires by itself.
            let _ = self.handle.commands.send(Command::Cancel(cancelled));
        }
    }
}
