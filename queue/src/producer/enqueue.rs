//! The task that writes to Redis. Requests that arrive together go in one script call, and calls are pipelined.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use redis::Value;
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use uuid::Uuid;

use super::{
    Shared, check,
    open::{Cancelled, Outgoing},
};
use crate::{
    QueueError, SubmitError,
    call::{Call, Reply, out_of_memory},
    connection::{Backoff, Live},
    id::EntryId,
    scripts::{DROP, ENQUEUE, MOST_REQUESTS, groups},
    wire,
};

/// Calls on their way at a time. While they are, what arrives gathers into the next one.
const MOST_CALLS: usize = 4;

/// How often open requests are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How often a full queue is searched for expired requests, which costs Redis more than a refusal.
const EVICT_EVERY: Duration = Duration::from_millis(100);

/// A connection that breaks sooner has done no work, so the next try waits longer.
const SHORT_SESSION: Duration = Duration::from_secs(1);

/// What a client is told to wait when Redis can't be reached.
const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);

/// What is asked of the task.
pub(super) enum Command {
    Enqueue(Uuid),
    Cancel(Cancelled),
    /// Finish, take the replies stream away and end.
    Stop,
}

/// Runs until it is stopped or every producer is gone.
pub(super) async fn run(shared: Arc<Shared>, mut commands: UnboundedReceiver<Command>) {
    let _finished = shared.finished.clone().drop_guard();
    let mut backoff = Backoff::new();
    let mut reachable = true;
    loop {
        match shared.link.get().await {
            Ok(live) => {
                if !std::mem::replace(&mut reachable, true) {
                    tracing::info!("Redis is back");
                }
                let begun = StdInstant::now();
                let session = Session::new(shared.clone(), live.clone());
                if session.run(&mut commands).await.is_break() {
                    return;
                }
                shared.link.forget(&live);
                shared.open.lose_track();
                if begun.elapsed() >= SHORT_SESSION {
                    backoff.reset();
                    continue;
                }
            }
            Err(error) => {
                if std::mem::replace(&mut reachable, false) {
                    tracing::warn!(%error, "Redis can't be reached");
                }
            }
        }
        let until = Instant::now() + backoff.next();
        if refuse(&shared, &mut commands, until).await.is_break() {
            return;
        }
    }
}

/// Refuses what arrives until then. Entries to cancel expire by themselves.
async fn refuse(
    shared: &Shared,
    commands: &mut UnboundedReceiver<Command>,
    until: Instant,
) -> ControlFlow<()> {
    let unreachable = |_| SubmitError::Unreachable {
        retry_after: RETRY_UNREACHABLE,
    };
    loop {
        match timeout_at(until, commands.recv()).await {
            Ok(Some(Command::Enqueue(uuid))) => shared.open.refuse([uuid], unreachable),
            Ok(Some(Command::Cancel(_))) => {}
            Ok(Some(Command::Stop) | None) => return ControlFlow::Break(()),
            Err(_) => return ControlFlow::Continue(()),
        }
    }
}

/// The time from one connection to the next.
struct Session {
    shared: Arc<Shared>,
    live: Live,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    calls: usize,
    /// A check is under way.
    checking: bool,
    /// When a full queue was last searched for expired requests.
    evicted: Option<StdInstant>,
    stopping: bool,
}

/// Work that is done.
enum Done {
    Enqueued {
        sent: Vec<(Uuid, Arc<str>, usize)>,
        may_evict: bool,
        replies: Result<Vec<Reply>, QueueError>,
    },
    Cancelled(Result<Value, QueueError>),
    Checked(Result<Vec<Uuid>, QueueError>),
}

impl Session {
    fn new(shared: Arc<Shared>, live: Live) -> Self {
        Self {
            shared,
            live,
            work: FuturesUnordered::new(),
            calls: 0,
            checking: false,
            evicted: None,
            stopping: false,
        }
    }

    /// Serves until the connection breaks, or breaks off for good.
    async fn run(mut self, commands: &mut UnboundedReceiver<Command>) -> ControlFlow<()> {
        let mut tick = interval(CHECK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        // Whatever is open was written to an earlier connection, and Redis may have restarted since.
        self.check(Duration::ZERO);
        let mut arrived = Vec::with_capacity(MOST_REQUESTS);
        loop {
            tokio::select! {
                biased;
                // First, so that a busy queue does not keep it waiting.
                _ = tick.tick() => {
                    self.shared.open.measure();
                    self.check(self.shared.limits().lease);
                }
                () = self.shared.doubt.notified() => self.check(self.shared.limits().lease),
                Some(done) = self.work.next() => {
                    if let Err(error) = self.settle(done) {
                        tracing::debug!(%error, "the connection to Redis broke");
                        return ControlFlow::Continue(());
                    }
                }
                count = commands.recv_many(&mut arrived, MOST_REQUESTS),
                    if self.calls < MOST_CALLS && !self.stopping =>
                {
                    self.take(&mut arrived);
                    self.stopping |= count == 0;
                }
            }
            if self.stopping && self.calls == 0 {
                let mut farewell = redis::cmd("DEL");
                farewell.arg(self.shared.keys.replies(&self.shared.proxy));
                // The stream expires by itself, too.
                let _ = Call::of(farewell).send(&self.live).await;
                return ControlFlow::Break(());
            }
        }
    }

    fn take(&mut self, arrived: &mut Vec<Command>) {
        let mut uuids = Vec::with_capacity(arrived.len());
        let mut cancelled = Vec::new();
        for command in arrived.drain(..) {
            match command {
                Command::Enqueue(uuid) => uuids.push(uuid),
                Command::Cancel(entry) => cancelled.push(entry),
                Command::Stop => self.stopping = true,
            }
        }
        self.enqueue(&uuids);
        self.cancel(cancelled);
    }

    fn enqueue(&mut self, uuids: &[Uuid]) {
        let mut revisions: BTreeMap<Arc<str>, Vec<Outgoing>> = BTreeMap::new();
        for outgoing in self.shared.open.send(uuids) {
            revisions
                .entry(outgoing.request.revision.clone())
                .or_default()
                .push(outgoing);
        }
        for (revision, requests) in revisions {
            for group in groups(requests, |outgoing| outgoing.request.body.len()) {
                self.write(&revision, &group);
            }
        }
    }

    fn write(&mut self, revision: &Arc<str>, group: &[Outgoing]) {
        let limits = self.shared.limits();
        let may_evict = self
            .evicted
            .is_none_or(|evicted| evicted.elapsed() >= EVICT_EVERY);
        let size = group
            .iter()
            .map(|outgoing| outgoing.request.body.len() + 128)
            .sum();
        let keys = &self.shared.keys;
        let mut command = ENQUEUE.call(&[&keys.jobs(revision), &keys.bytes()], size);
        command
            .arg(&**revision)
            .arg(limits.max_length)
            .arg(limits.max_bytes)
            .arg(u8::from(may_evict))
            .arg(&self.shared.proxy);
        let now = Instant::now();
        for Outgoing { uuid, request } in group {
            wire::enqueue_arguments(
                &mut command,
                *uuid,
                request.deadline.saturating_duration_since(now),
                request.rows,
                request.trace.as_deref(),
                &request.body,
            );
        }
        let sent = group
            .iter()
            .map(|outgoing| (outgoing.uuid, revision.clone(), outgoing.request.body.len()))
            .collect();
        let live = self.live.clone();
        self.calls += 1;
        self.work.push(
            async move {
                Done::Enqueued {
                    sent,
                    may_evict,
                    replies: Call::of_script(&ENQUEUE, command).send(&live).await,
                }
            }
            .boxed(),
        );
    }

    fn cancel(&mut self, cancelled: Vec<Cancelled>) {
        let mut revisions: BTreeMap<Arc<str>, Vec<Cancelled>> = BTreeMap::new();
        for entry in cancelled {
            revisions
                .entry(entry.revision.clone())
                .or_default()
                .push(entry);
        }
        for (revision, entries) in revisions {
            let keys = &self.shared.keys;
            let mut command = DROP.call(&[&keys.jobs(&revision), &keys.bytes()], 0);
            command.arg(&*revision);
            for Cancelled { entry, size, .. } in entries {
                command.arg(entry.to_string()).arg(size);
            }
            let live = self.live.clone();
            self.calls += 1;
            self.work.push(
                async move {
                    Done::Cancelled(
                        Call::of_script(&DROP, command)
                            .last("a cancellation", &live)
                            .await,
                    )
                }
                .boxed(),
            );
        }
    }

    fn check(&mut self, patience: Duration) {
        if !std::mem::replace(&mut self.checking, true) {
            let (shared, live) = (self.shared.clone(), self.live.clone());
            self.work.push(
                async move { Done::Checked(check::run(&shared, &live, patience).await) }.boxed(),
            );
        }
    }

    /// Takes in what is done. An error means that the connection is of no more use.
    fn settle(&mut self, done: Done) -> Result<(), QueueError> {
        match done {
            Done::Enqueued {
                sent,
                may_evict,
                replies,
            } => {
                self.calls -= 1;
                let reply = replies?
                    .pop()
                    .ok_or(QueueError::Answer {
                        operation: "an enqueue",
                    })?
                    .value("an enqueue");
                self.enqueued(sent, may_evict, reply)
            }
            Done::Cancelled(result) => {
                self.calls -= 1;
                survivable(result.map(drop))
            }
            Done::Checked(result) => {
                self.checking = false;
                match result {
                    Ok(missing) => {
                        if !missing.is_empty() {
                            tracing::warn!(
                                count = missing.len(),
                                "Redis has lost requests; they are enqueued again"
                            );
                            self.enqueue(&missing);
                        }
                        Ok(())
                    }
                    Err(error) => survivable(Err(error)),
                }
            }
        }
    }

    fn enqueued(
        &mut self,
        sent: Vec<(Uuid, Arc<str>, usize)>,
        may_evict: bool,
        reply: Result<Value, QueueError>,
    ) -> Result<(), QueueError> {
        let open = &self.shared.open;
        let entries = match reply {
            Ok(value) => wire::list(value),
            Err(error) => {
                // Redis refused the script before it did anything.
                let full = out_of_memory(&error);
                let uuids = sent.iter().map(|(uuid, ..)| *uuid);
                open.refuse(uuids, |retry_after| {
                    if full {
                        SubmitError::Full { retry_after }
                    } else {
                        SubmitError::Unreachable {
                            retry_after: RETRY_UNREACHABLE,
                        }
                    }
                });
                return if full { Ok(()) } else { survivable(Err(error)) };
            }
        };
        let mut refused = Vec::new();
        let mut cancelled = Vec::new();
        for ((uuid, revision, size), entry) in sent.into_iter().zip(entries) {
            match wire::parse::<EntryId>(entry) {
                Some(entry) => cancelled.extend(open.confirm(uuid, &revision, size, entry)),
                None => refused.push(uuid),
            }
        }
        if !refused.is_empty() {
            if may_evict {
                self.evicted = Some(StdInstant::now());
            }
            open.refuse(refused, |retry_after| SubmitError::Full { retry_after });
        }
        self.cancel(cancelled);
        Ok(())
    }
}

/// A refusal leaves the connection as it was.
fn survivable(result: Result<(), QueueError>) -> Result<(), QueueError> {
    match result {
        Err(error @ (QueueError::Refused { .. } | QueueError::Answer { .. })) => {
            tracing::warn!(%error, "the queue met an error");
            Ok(())
        }
        result => result,
    }
}
