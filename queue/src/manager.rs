//! Connections that are opened again when they break.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::Value;

use crate::{
    Endpoint, QueueError,
    call::{Call, Reply},
    connection::Connection,
};

/// A keeper of one connection at a time, which is opened when it is needed, and again after it broke.
pub(crate) struct ConnectionManager {
    endpoint: Endpoint,
    response_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    generation: u64,
    open: Option<Connection>,
}

impl ConnectionManager {
    pub(crate) fn new(endpoint: Endpoint, response_timeout: Duration) -> Self {
        Self {
            endpoint,
            response_timeout,
            state: Mutex::default(),
        }
    }

    /// Returns the open connection, or a new one to a Redis that serves.
    pub(crate) async fn get(&self) -> Result<Connection, QueueError> {
        if let Some(connection) = self.with(|state| state.open.clone()) {
            return Ok(connection);
        }
        let redis = self.endpoint.open(self.response_timeout).await?;
        let connection = self.with(|state| {
            state.generation += 1;
            Connection {
                redis,
                generation: state.generation,
            }
        });
        // A Redis that still loads its data accepts connections.
        Call::of(redis::cmd("PING"))
            .last("PING", &connection)
            .await?;
        // Another task may have opened one meanwhile.
        Ok(self.with(|state| state.open.get_or_insert(connection).clone()))
    }

    /// Sends everything in one write and returns the value of the last command. The other replies are ignored.
    pub(crate) async fn last(
        &self,
        call: &Call,
        operation: &'static str,
    ) -> Result<Value, QueueError> {
        let connection = self.get().await?;
        self.watch(&connection, call.last(operation, &connection).await)
    }

    /// Gives up a connection that broke, unless another one has replaced it already.
    pub(crate) fn forget(&self, connection: &Connection) {
        self.with(|state| {
            state
                .open
                .take_if(|open| open.generation == connection.generation);
        });
    }

    /// Passes an outcome on, and gives up the connection if the outcome shows that it is of no more use.
    pub(crate) fn watch<T>(
        &self,
        connection: &Connection,
        outcome: Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        if matches!(outcome, Err(QueueError::Unreachable(_))) {
            self.forget(connection);
        }
        outcome
    }

    /// Sends everything in one write and returns all replies. The connection is given up if it is of no more use.
    pub(crate) async fn send(&self, call: &Call) -> Result<Vec<Reply>, QueueError> {
        let connection = self.get().await?;
        self.watch(&connection, call.send(&connection).await)
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
