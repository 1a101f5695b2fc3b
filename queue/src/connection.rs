//! Where Redis is, and links to it that come back when they break.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, Value,
    aio::MultiplexedConnection,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use crate::{QueueError, call::Call};

/// Long enough for a new TCP connection across a cluster, short enough for a client that waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// When a silent peer is probed, and how often. Without it a half-open connection looks alive for hours.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The pause before the second try to connect; it doubles up to the longest.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where Redis is and how to log in.
#[derive(Clone)]
pub struct Connection {
    source: Source,
}

#[derive(Clone)]
enum Source {
    Url(Client),
    File(PathBuf),
}

impl Connection {
    /// From a URL: `redis://[user:password@]host[:port][/db]` or `unix:///path`.
    pub fn from_url(url: &str) -> Result<Self, QueueError> {
        client(url).map(|client| Self {
            source: Source::Url(client),
        })
    }

    /// From a file that holds the URL. It is read again for each new connection, so that a changed password arrives.
    pub fn from_file(path: &Path) -> Result<Self, QueueError> {
        read(path)?;
        Ok(Self {
            source: Source::File(path.to_owned()),
        })
    }

    async fn open(&self, response_timeout: Duration) -> Result<MultiplexedConnection, QueueError> {
        let client = match &self.source {
            Source::Url(client) => client.clone(),
            Source::File(path) => read(path)?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(response_timeout));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| QueueError::Unreachable(error.to_string()))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Url(client) => write!(f, "Redis at {}", client.get_connection_info().addr()),
            Source::File(path) => write!(f, "Redis at the URL in {}", path.display()),
        }
    }
}

fn read(path: &Path) -> Result<Client, QueueError> {
    let url = std::fs::read_to_string(path).map_err(|error| QueueError::UrlFile {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    client(url.trim())
}

fn client(url: &str) -> Result<Client, QueueError> {
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(
        TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE)
            .with_retries(2),
    );
    url.into_connection_info()
        .and_then(|info| Client::open(info.set_tcp_settings(tcp)))
        .map_err(|error| QueueError::Url(error.to_string()))
}

/// One connection at a time, opened when asked for and again after it broke.
pub(crate) struct Link {
    connection: Connection,
    response_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    generation: u64,
    open: Option<Live>,
}

/// An open connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) redis: MultiplexedConnection,
    /// Which of a link's connections this is.
    generation: u64,
}

impl Link {
    pub(crate) fn new(connection: Connection, response_timeout: Duration) -> Self {
        Self {
            connection,
            response_timeout,
            state: Mutex::default(),
        }
    }

    /// The open connection, or a new one to a Redis that serves.
    pub(crate) async fn get(&self) -> Result<Live, QueueError> {
        if let Some(live) = self.with(|state| state.open.clone()) {
            return Ok(live);
        }
        let redis = self.connection.open(self.response_timeout).await?;
        let live = self.with(|state| {
            state.generation += 1;
            Live {
                redis,
                generation: state.generation,
            }
        });
        // A Redis that still loads its data accepts connections.
        Call::of(redis::cmd("PING")).last("PING", &live).await?;
        // Others may have opened one meanwhile.
        Ok(self.with(|state| state.open.get_or_insert(live).clone()))
    }

    /// Sends everything in one write and gives the value of the last, which is all that matters.
    pub(crate) async fn last(
        &self,
        call: &Call,
        operation: &'static str,
    ) -> Result<Value, QueueError> {
        let live = self.get().await?;
        self.watch(&live, call.last(operation, &live).await)
    }

    /// Gives up a connection that broke. Another one that has replaced it already stays.
    pub(crate) fn forget(&self, live: &Live) {
        self.with(|state| {
            state
                .open
                .take_if(|open| open.generation == live.generation);
        });
    }

    /// Passes an outcome on, and gives up the connection if it shows that it is of no use.
    pub(crate) fn watch<T>(
        &self,
        live: &Live,
        outcome: Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        if matches!(outcome, Err(QueueError::Unreachable(_))) {
            self.forget(live);
        }
        outcome
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Pauses between tries, longer each time.
pub(crate) struct Backoff {
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { pause: FIRST_PAUSE }
    }

    pub(crate) fn reset(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    /// The next pause: between half of the planned one and all of it, so that many processes do not knock at once.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.pause.mul_f64(rand::random_range(0.5..1.0));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_none_of_redis_is_refused_without_repeating_it() {
        let error = Connection::from_url("http://user:secret@host").unwrap_err();
        assert!(matches!(error, QueueError::Url(_)), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn a_url_file_may_end_in_a_newline() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        assert!(matches!(
            Connection::from_file(&path),
            Err(QueueError::UrlFile { .. })
        ));
        std::fs::write(&path, "redis://:secret@redis:6379\n").unwrap();
        let connection = Connection::from_file(&path).unwrap();
        assert!(!format!("{connection:?}").contains("secret"));
    }

    #[test]
    fn pauses_grow_to_a_second_and_no_further() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= FIRST_PAUSE);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert!(pauses[19] >= LONGEST_PAUSE / 2);
    }
}
