//! The proxy's side: requests go in, outcomes come back.
//!
//! One task writes requests (`writer`, and `session` over each connection), one reads replies (`replies`). The map of
//! in-flight requests (`in_flight`) ties them together: an outcome is for whoever is still in it, so each request is
//! answered once. Requests that Redis lost are found by `check` and written again.

mod backlog;
mod check;
mod command;
mod enqueue;
mod heartbeat;
mod in_flight;
mod jobs;
mod rate;
mod replies;
mod session;
mod shared;
mod writer;

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::{
    Backlog, Endpoint, JobName, JobView, Limits, Outcome, QueueError, Submit, SubmitError,
    Submitted, call::Call,
};
use command::Command;
use in_flight::Receiver;
use jobs::Jobs;
use shared::Shared;

/// The longest time that a readiness probe waits.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest time that shutting down takes once nothing is in flight.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The proxy's side of the queue. Clones share it; with the last one its tasks end.
#[derive(Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    jobs: Jobs,
    /// The channel to the writing task, which ends when all producers are gone.
    commands: mpsc::UnboundedSender<Command>,
    _stop: DropGuard,
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
        let shared = Arc::new(Shared::new(
            endpoint.clone(),
            uid,
            proxy,
            limits,
            stop.clone(),
        )?);
        let (commands, receiver) = mpsc::unbounded_channel();
        tokio::spawn(writer::run(shared.clone(), receiver));
        tokio::spawn(replies::run(shared.clone(), endpoint.clone()));
        Ok(Self {
            handle: Arc::new(Handle {
                shared,
                jobs: Jobs::new(endpoint),
                commands,
                _stop: stop.drop_guard(),
            }),
        })
    }

    /// Applies new bounds to requests that come from now on.
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
        self.enqueue(request)?.outcome().await
    }

    /// Queues a request and returns the ticket that brings its outcome.
    pub fn enqueue(&self, mut request: Submit) -> Result<Ticket<'_>, SubmitError> {
        let deadline = request.deadline;
        if deadline <= Instant::now() {
            return Err(SubmitError::DeadlineExceeded);
        }
        let shared = &self.handle.shared;
        let most = shared.max_body_bytes.load(Ordering::Relaxed);
        if request.body.len() as u64 > most {
            return Err(SubmitError::TooLarge { most });
        }
        request.caller.get_or_insert(shared.caller);
        let uuid = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        let receiver = shared.in_flight.insert(uuid, request, shared.limits())?;
        let ticket = Ticket {
            handle: &self.handle,
            uuid,
            deadline,
            receiver,
        };
        if self.handle.commands.send(Command::Enqueue(uuid)).is_err() {
            return Err(SubmitError::ShuttingDown);
        }
        Ok(ticket)
    }

    /// Returns the number of requests that are not answered yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.handle.shared.in_flight.len()
    }

    /// Reads the content of the queue, of every revision.
    pub async fn backlog(&self) -> Result<Backlog, QueueError> {
        backlog::read(&self.handle.shared).await
    }

    /// Puts a request into the queue that nobody waits for, in the class of those. Once this returns, Redis has it, and
    /// workers run it by its deadline, whatever becomes of this proxy. `note` is given back with the job's state. After an
    /// error the job may be there all the same, unless the error says that it was refused.
    pub async fn submit_job(
        &self,
        request: Submit,
        note: &[u8],
        name: Option<JobName>,
    ) -> Result<Submitted, SubmitError> {
        jobs::submit(&self.handle.shared, request, note, name).await
    }

    /// Reads the state of a job, whichever proxy submitted it; if it is open, waits until it is not or `until`.
    pub async fn job(&self, uuid: Uuid, until: Instant) -> Result<JobView, QueueError> {
        self.handle
            .jobs
            .wait(&self.handle.shared, uuid, until)
            .await
    }

    /// Takes a job out of the queue, and returns its state then.
    pub async fn cancel_job(&self, uuid: Uuid) -> Result<JobView, QueueError> {
        jobs::cancel(&self.handle.shared, uuid).await
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

    /// Refuses new requests, waits up to `grace` for those in flight, cancels the rest and removes the replies stream.
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

/// A place in the map of in-flight requests. Dropped before the outcome is there, it cancels the request.
#[must_use = "a ticket that is dropped cancels its request"]
pub struct Ticket<'a> {
    handle: &'a Handle,
    uuid: Uuid,
    deadline: Instant,
    receiver: Receiver,
}

impl Ticket<'_> {
    /// Returns the request's uuid, which is in the events about it of the proxy and of workers.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.uuid
    }

    /// Waits for the outcome, which comes once and by the request's deadline. Dropping the future cancels the request.
    pub async fn outcome(mut self) -> Result<Outcome, SubmitError> {
        match timeout_at(self.deadline, &mut self.receiver).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(SubmitError::ShuttingDown),
            Err(_) => Err(SubmitError::DeadlineExceeded),
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(cancelled) = self.handle.shared.in_flight.abandon(self.uuid) {
            // A closed channel means that the writing task has ended; the request expires by itself.
            let _ = self.handle.commands.send(Command::Cancel(cancelled));
        }
    }
}
