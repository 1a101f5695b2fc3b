//! Writing over one connection. Requests that arrive together go in one script call, and calls are pipelined.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use redis::Value;
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{MissedTickBehavior, interval},
};
use uuid::Uuid;

use super::{
    Shared, check,
    command::{Command, unreachable},
    enqueue::enqueue,
    heartbeat,
    in_flight::{Cancelled, Outgoing},
};
use crate::{
    QueueError, SubmitError,
    call::{Call, Reply, out_of_memory},
    commands::{drop_entries, evict},
    connection::Connection,
    id::EntryId,
    scripts::MAX_REQUESTS,
    wire,
};

/// The most enqueues that are on their way at a time; cancellations, which are small, may come on top. Requests that
/// arrive meanwhile gather into the next one. Each carries about a mebibyte at most, or one request.
const MAX_CALLS: usize = 4;

/// Time between two checks of the in-flight requests.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Time between two searches of a full queue for expired requests, which cost Redis more than a refusal.
const EVICT_EVERY: Duration = Duration::from_millis(100);

/// The use of one connection, from its opening until it breaks.
pub(super) struct Session<'a> {
    shared: Arc<Shared>,
    connection: Connection,
    /// Requests to write. They outlive the session.
    waiting: &'a mut VecDeque<Uuid>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    /// The number of places, of [`MAX_CALLS`], that the calls under way take.
    calls: usize,
    /// Whether a check is under way.
    checking: bool,
    /// Whether the next call is to evict first.
    evict: bool,
    /// The time of the last decision to evict.
    evicted: Option<StdInstant>,
    /// The reason that nothing new is taken, if there is one.
    ending: Option<Ending>,
}

/// The reason for which a session ends once its calls are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Another connection has taken this one's place.
    Moved,
    /// The producer stops.
    Stopping,
}

/// A finished piece of the session's work.
enum Done {
    Enqueued {
        sent: Vec<(Uuid, Arc<str>, usize)>,
        places: usize,
        /// Whether expired requests were evicted just before.
        evicted: bool,
        replies: Result<Vec<Reply>, QueueError>,
    },
    Cancelled(Result<Value, QueueError>),
    Checked(Result<Vec<Uuid>, QueueError>),
}

impl<'a> Session<'a> {
    pub(super) fn new(
        shared: Arc<Shared>,
        connection: Connection,
        waiting: &'a mut VecDeque<Uuid>,
    ) -> Self {
        Self {
            shared,
            connection,
            waiting,
            work: FuturesUnordered::new(),
            calls: 0,
            checking: false,
            evict: false,
            evicted: None,
            ending: None,
        }
    }

    /// Serves until the connection breaks or is replaced, or the producer stops: `Break` means that it has.
    pub(super) async fn run(
        mut self,
        commands: &mut UnboundedReceiver<Command>,
    ) -> ControlFlow<()> {
        if let Err(error) = begin(&self.shared, &self.connection).await {
            tracing::debug!(%error, "the connection to Redis broke");
            return ControlFlow::Continue(());
        }
        let mut tick = interval(CHECK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        // All requests in flight were written over an earlier connection, and Redis may have restarted since.
        self.check(Duration::ZERO);
        let mut arrived = Vec::with_capacity(MAX_REQUESTS);
        loop {
            self.enqueue();
            tokio::select! {
                biased;
                // The tick comes first, so that a busy queue does not keep it waiting.
                _ = tick.tick() => {
                    self.shared.connections.follow();
                    if !self.shared.connections.is_current(&self.connection) {
                        self.ending.get_or_insert(Ending::Moved);
                    }
                    self.shared.in_flight.measure();
                    self.check(self.shared.limits().lease);
                }
                () = self.shared.reader_broke.notified() => self.check(self.shared.limits().lease),
                Some(done) = self.work.next() => {
                    if let Err(error) = self.settle(done) {
                        tracing::debug!(%error, "the connection to Redis broke");
                        return ControlFlow::Continue(());
                    }
                }
                count = commands.recv_many(&mut arrived, MAX_REQUESTS),
                    if self.calls < MAX_CALLS && self.ending.is_none() =>
                {
                    self.take(&mut arrived);
                    if count == 0 {
                        self.ending = Some(Ending::Stopping);
                    }
                }
            }
            if self.calls > 0 {
                continue;
            }
            if self.ending == Some(Ending::Moved) {
                return ControlFlow::Continue(());
            }
            if self.ending == Some(Ending::Stopping) {
                let mut farewell = redis::cmd("DEL");
                let keys = &self.shared.keys;
                farewell
                    .arg(keys.replies(&self.shared.proxy))
                    .arg(keys.receipts(&self.shared.proxy));
                let mut unlisted = redis::cmd("HDEL");
                unlisted.arg(keys.callers()).arg(&self.shared.proxy);
                let mut call = Call::of(farewell);
                call.command(unlisted);
                // All of it expires by itself, too.
                let _ = call.send(&self.connection).await;
                let _ = heartbeat::sweep(&self.shared, &self.connection).await;
                return ControlFlow::Break(());
            }
        }
    }

    fn take(&mut self, arrived: &mut Vec<Command>) {
        let mut cancelled = Vec::new();
        for command in arrived.drain(..) {
            match command {
                Command::Enqueue(uuid) => self.waiting.push_back(uuid),
                Command::Cancel(entry) => cancelled.push(entry),
                Command::Stop => self.ending = Some(Ending::Stopping),
            }
        }
        self.cancel(cancelled);
    }

    /// Writes from the front of the waiting requests.
    fn enqueue(&mut self) {
        while self.calls < MAX_CALLS
            && !self.waiting.is_empty()
            && self.ending != Some(Ending::Moved)
        {
            let call = self.shared.next_call();
            let group = self
                .shared
                .in_flight
                .send(self.waiting, call, self.calls == 0);
            let Some(first) = group.requests.first() else {
                // The first in line must be alone, which it can't be yet.
                break;
            };
            let lane = Arc::clone(&first.lane);
            // A request that must be alone takes all places.
            let places = if group.alone { MAX_CALLS } else { 1 };
            self.write(&lane, call, &group.requests, places);
        }
    }

    fn write(&mut self, lane: &Arc<str>, number: u64, group: &[Outgoing], places: usize) {
        let keys = &self.shared.keys;
        let call = enqueue(&self.shared, lane, number, group);
        let eviction = std::mem::take(&mut self.evict).then(|| evict(keys, &keys.lane(lane)));
        let sent = group
            .iter()
            .map(|outgoing| (outgoing.uuid, lane.clone(), outgoing.request.body.len()))
            .collect();
        let connection = self.connection.clone();
        self.calls += places;
        self.work.push(
            async move {
                if let Some(eviction) = &eviction {
                    // An eviction is not in one write with the enqueue: a script that Redis has forgotten runs after
                    // the others.
                    if let Err(error) = eviction.last("an eviction", &connection).await {
                        tracing::debug!(%error, "failed to evict");
                    }
                }
                Done::Enqueued {
                    sent,
                    places,
                    evicted: eviction.is_some(),
                    replies: call.send(&connection).await,
                }
            }
            .boxed(),
        );
    }

    fn cancel(&mut self, cancelled: Vec<Cancelled>) {
        let mut lanes: BTreeMap<Arc<str>, Vec<Cancelled>> = BTreeMap::new();
        for entry in cancelled {
            lanes.entry(entry.lane.clone()).or_default().push(entry);
        }
        for (lane, entries) in lanes {
            let entries = entries.iter().map(|cancelled| &cancelled.removal);
            let call = drop_entries(
                &self.shared.keys,
                &self.shared.keys.lane(&lane),
                None,
                entries,
            );
            let connection = self.connection.clone();
            self.calls += 1;
            self.work.push(
                async move { Done::Cancelled(call.last("a cancellation", &connection).await) }
                    .boxed(),
            );
        }
    }

    fn check(&mut self, patience: Duration) {
        if !std::mem::replace(&mut self.checking, true) {
            let (shared, connection) = (self.shared.clone(), self.connection.clone());
            self.work.push(
                async move {
                    let checked = async {
                        // The heartbeat also shows a connection that breaks while nothing is sent.
                        heartbeat::beat(&shared, &connection).await?;
                        heartbeat::sweep(&shared, &connection).await?;
                        check::run(&shared, &connection, patience).await
                    };
                    Done::Checked(checked.await)
                }
                .boxed(),
            );
        }
    }

    /// Handles a finished piece of work. An error means that the connection is of no more use.
    fn settle(&mut self, done: Done) -> Result<(), QueueError> {
        match done {
            Done::Enqueued {
                sent,
                places,
                evicted,
                replies,
            } => {
                self.calls -= places;
                let reply = replies?
                    .pop()
                    .ok_or(QueueError::Answer {
                        operation: "an enqueue",
                    })?
                    .value("an enqueue");
                self.enqueued(sent, evicted, reply)
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
                            self.shared.in_flight.wait(&missing);
                            self.waiting.extend(missing);
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
        evicted: bool,
        reply: Result<Value, QueueError>,
    ) -> Result<(), QueueError> {
        let uuids = sent.iter().map(|(uuid, ..)| *uuid);
        let entries = match reply {
            Ok(value) => wire::list(value),
            // Redis did not even begin with the script.
            Err(error) if out_of_memory(&error) => {
                self.full(uuids.collect(), evicted);
                return Ok(());
            }
            // The script may have added some before it failed; those run in vain.
            Err(error) => {
                self.shared.in_flight.refuse(uuids, unreachable);
                return survivable(Err(error));
            }
        };
        let mut refused = Vec::new();
        let mut cancelled = Vec::new();
        for ((uuid, lane, size), entry) in sent.into_iter().zip(entries) {
            match wire::parse::<EntryId>(entry) {
                Some(entry) => {
                    cancelled.extend(self.shared.in_flight.confirm(uuid, &lane, size, entry));
                }
                None => refused.push(uuid),
            }
        }
        self.full(refused, evicted);
        self.cancel(cancelled);
        Ok(())
    }

    /// Handles requests for which there was no room: they are written once more behind an eviction if one is due, and
    /// refused if not.
    fn full(&mut self, refused: Vec<Uuid>, evicted: bool) {
        if refused.is_empty() {
            return;
        }
        let due = self.evicted.is_none_or(|at| at.elapsed() >= EVICT_EVERY);
        if evicted || !due {
            let full = |retry_after| SubmitError::Full { retry_after };
            self.shared.in_flight.refuse(refused, full);
            return;
        }
        self.evicted = Some(StdInstant::now());
        self.evict = true;
        self.shared.in_flight.wait(&refused);
        refused
            .into_iter()
            .rev()
            .for_each(|uuid| self.waiting.push_front(uuid));
    }
}

/// Sends the heartbeat and learns Redis' limits, before anything else over a new connection.
async fn begin(shared: &Shared, connection: &Connection) -> Result<(), QueueError> {
    // A proxy without a heartbeat is not answered.
    survivable(heartbeat::beat(shared, connection).await)?;
    heartbeat::learn_max_body_bytes(shared, connection).await;
    Ok(())
}

/// Logs an error that leaves the connection as it was, such as a refusal, and passes any other on.
fn survivable(result: Result<(), QueueError>) -> Result<(), QueueError> {
    match result {
        Err(error) if !matches!(error, QueueError::Unreachable(_)) => {
            tracing::warn!(%error, "the queue met an error");
            Ok(())
        }
        result => result,
    }
}
