//! Connections that are opened again when they break, or when the URL's file names another place or login.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use redis::Value;

use crate::{
    Endpoint, QueueError,
    call::{Call, Reply},
    connection::Connection,
};

/// Time between two looks at the file with the URL, and between two attempts at one that does not work yet.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A keeper of one connection at a time, which is opened when it is needed, and again after it broke. Clones share it.
#[derive(Clone)]
pub(crate) struct ConnectionManager {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    response_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    generation: u64,
    open: Option<Connection>,
    /// The URL that the open connection is of, where it is from a file.
    url: Option<String>,
    /// The time of the last look at that file.
    looked: Option<Instant>,
    /// Whether a connection to another URL is being opened.
    moving: bool,
    /// The URL that was told not to work.
    refused: Option<String>,
}

impl ConnectionManager {
    pub(crate) fn new(endpoint: Endpoint, response_timeout: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                endpoint,
                response_timeout,
                state: Mutex::default(),
            }),
        }
    }

    /// Returns the open connection, or a new one to a Redis that serves.
    pub(crate) async fn get(&self) -> Result<Connection, QueueError> {
        self.follow();
        if let Some(connection) = self.with(|state| state.open.clone()) {
            return Ok(connection);
        }
        let (connection, url) = self.open().await?;
        // Another task may have opened one meanwhile.
        Ok(self.with(|state| {
            if state.open.is_none() {
                state.url = url;
            }
            state.open.get_or_insert(connection).clone()
        }))
    }

    /// Opens a connection to a Redis that serves, and returns it with the URL that it is of.
    async fn open(&self) -> Result<(Connection, Option<String>), QueueError> {
        let url = self.inner.endpoint.url_in_file();
        let redis = self
            .inner
            .endpoint
            .open(self.inner.response_timeout)
            .await?;
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
        Ok((connection, url))
    }

    /// Looks once a second whether the file holds another URL than the open connection's, and then opens another
    /// connection in the background. The open one stays until that has worked, for a URL may come before its server.
    pub(crate) fn follow(&self) {
        let is_due = self.with(|state| {
            let is_due = state.open.is_some()
                && !state.moving
                && state.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
            if is_due {
                state.looked = Some(Instant::now());
            }
            is_due
        });
        if !is_due {
            return;
        }
        let Some(url) = self.inner.endpoint.url_in_file() else {
            return;
        };
        let moves = self.with(|state| {
            state.moving = state.url.as_ref().is_some_and(|open| *open != url);
            state.moving
        });
        if moves {
            let manager = self.clone();
            tokio::spawn(async move { manager.move_to(url).await });
        }
    }

    async fn move_to(&self, wanted: String) {
        match self.open().await {
            Ok((connection, url)) => {
                tracing::info!("the Redis URL has changed and is followed");
                self.with(|state| {
                    (state.open, state.url) = (Some(connection), url);
                    (state.moving, state.refused) = (false, None);
                });
            }
            Err(error) => {
                let known = self.with(|state| {
                    state.moving = false;
                    state
                        .refused
                        .replace(wanted.clone())
                        .is_some_and(|known| known == wanted)
                });
                if !known {
                    tracing::warn!(%error, "the Redis URL has changed and does not work; the connection before stays");
                }
            }
        }
    }

    /// Whether no other connection has replaced this one.
    pub(crate) fn is_current(&self, connection: &Connection) -> bool {
        self.with(|state| {
            let open = state.open.as_ref();
            open.is_none_or(|open| open.generation == connection.generation)
        })
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
        change(
            &mut self
                .inner
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}
