//! The task that writes to Redis, over one connection after another.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, timeout_at},
};
use uuid::Uuid;

use super::{
    command::{Command, unreachable},
    session::Session,
    shared::Shared,
};
use crate::backoff::{Backoff, FIRST_PAUSE};

/// The age below which a connection that breaks has done no work, so that the next attempt waits longer.
const SHORT_SESSION: Duration = Duration::from_secs(1);

/// Runs until it is stopped or every producer is gone.
pub(super) async fn run(shared: Arc<Shared>, mut commands: UnboundedReceiver<Command>) {
    let _finished = shared.finished.clone().drop_guard();
    let mut backoff = Backoff::new();
    let mut reachable = true;
    let mut waiting = VecDeque::new();
    loop {
        match shared.connections.get().await {
            Ok(connection) => {
                if !std::mem::replace(&mut reachable, true) {
                    tracing::info!("Redis is back");
                }
                let begun = StdInstant::now();
                let session = Session::new(shared.clone(), connection.clone(), &mut waiting);
                if session.run(&mut commands).await.is_break() {
                    return;
                }
                shared.connections.forget(&connection);
                let was_alone = shared.in_flight.lose_track();
                if begun.elapsed() >= SHORT_SESSION || was_alone {
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
        shared.in_flight.refuse(waiting.drain(..), unreachable);
        match pause(&shared, &mut commands, backoff.next()).await {
            ControlFlow::Break(()) => return,
            ControlFlow::Continue(request) => waiting.extend(request),
        }
    }
}

/// Waits before Redis is tried again, and refuses requests that arrive meanwhile. A request that comes when the last
/// attempt is not quite new ends the wait instead and shares the fate of the next attempt, so that nobody is refused
/// for long by a Redis that is back. Entries to cancel expire by themselves.
async fn pause(
    shared: &Shared,
    commands: &mut UnboundedReceiver<Command>,
    pause: Duration,
) -> ControlFlow<(), Option<Uuid>> {
    let begun = Instant::now();
    loop {
        match timeout_at(begun + pause, commands.recv()).await {
            Ok(Some(Command::Enqueue(uuid))) if begun.elapsed() >= FIRST_PAUSE => {
                return ControlFlow::Continue(Some(uuid));
            }
            Ok(Some(Command::Enqueue(uuid))) => shared.in_flight.refuse([uuid], unreachable),
            Ok(Some(Command::Cancel(_))) => {}
            Ok(Some(Command::Stop) | None) => return ControlFlow::Break(()),
            Err(_) => return ControlFlow::Continue(None),
        }
    }
}
