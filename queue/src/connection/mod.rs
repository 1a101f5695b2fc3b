//! Where Redis is, and links to it that come back when they break.

mod address;
mod largest;
mod open;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::{Value, aio::MultiplexedConnection};

use crate::{QueueError, call::Call};
use address::Address;
pub(crate) use largest::largest_value;

/// When a silent peer is probed, and how often. Without it a half-open connection looks alive for hours.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The pause before the second try to connect; it doubles up to the longest.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where Redis is and how to log in.
#[derive(Clone)]
pub struct Endpoint {
    source: Source,
    /// Whom to trust in place of the system's certificate authorities.
    ca_file: Option<PathBuf>,
}

/// What a file with certificate authorities is called in a Secret that holds the URL, too.
const CA_FILE: &str = "ca.crt";

#[derive(Clone)]
enum Source {
    Url(Box<Address>),
    File(PathBuf),
}

impl Endpoint {
    /// From a URL:
    ///
    /// - `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, and `rediss://` for TLS,
    /// - `unix:///PATH`,
    /// - `redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/NAME[/DB]`, and `rediss+sentinel://` for TLS: the
    ///   primary that those sentinels know by this name. User and password are the primary's; the sentinels' own come
    ///   last, as `?sentinelUsername=USER&sentinelPassword=PASSWORD`.
    ///
    /// Each new connection looks the host up, or asks the sentinels, anew.
    pub fn from_url(url: &str) -> Result<Self, QueueError> {
        Address::parse(url).map(|address| Self {
            source: Source::Url(Box::new(address)),
            ca_file: None,
        })
    }

    /// From a file that holds the URL. It is read again for each new connection, so that a changed password arrives.
    /// Where a `ca.crt` lies beside it, a URL with TLS trusts the certificate authorities in there in place of the
    /// system's.
    pub fn from_file(path: &Path) -> Result<Self, QueueError> {
        let endpoint = Self {
            source: Source::File(path.to_owned()),
            ca_file: None,
        };
        endpoint.resolve()?;
        Ok(endpoint)
    }

    /// Trusts the certificate authorities of a PEM file in place of the system's. It is read again for each new
    /// connection, so that a new authority arrives. The URL must be one with TLS.
    pub fn with_ca_file(self, path: &Path) -> Result<Self, QueueError> {
        let endpoint = Self {
            ca_file: Some(path.to_owned()),
            ..self
        };
        endpoint.resolve()?;
        Ok(endpoint)
    }

    /// The URL and the authorities as they are now.
    fn resolve(&self) -> Result<(Address, Option<Vec<u8>>), QueueError> {
        let address = match &self.source {
            Source::Url(address) => (**address).clone(),
            Source::File(path) => read(path)?,
        };
        let authorities = match (&self.ca_file, &self.source) {
            (Some(_), _) if !address.is_tls() => {
                return Err(QueueError::Url(
                    "with a CA file it must begin with rediss:// or rediss+sentinel://".to_owned(),
                ));
            }
            (Some(path), _) => Some(open::authorities(path)?),
            (None, Source::File(path)) if address.is_tls() => {
                let beside = path.with_file_name(CA_FILE);
                // A path that can't be looked at is one that can't be read, which is to be told.
                match beside.try_exists() {
                    Ok(false) => None,
                    Ok(true) | Err(_) => Some(open::authorities(&beside)?),
                }
            }
            (None, _) => None,
        };
        Ok((address, authorities))
    }

    /// A connection to a server that takes writes.
    async fn open(&self, response_timeout: Duration) -> Result<MultiplexedConnection, QueueError> {
        let (address, authorities) = self.resolve()?;
        let connector = open::Connector {
            authorities,
            response_timeout,
        };
        match address {
            Address::Server(server) => connector.server(server).await,
            Address::Sentinels(sentinels) => connector.primary(&sentinels).await,
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Url(address) => address.fmt(f),
            Source::File(path) => write!(f, "Redis at the URL in {}", path.display()),
        }
    }
}

fn read(path: &Path) -> Result<Address, QueueError> {
    let url = std::fs::read_to_string(path).map_err(|error| QueueError::UrlFile {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    Address::parse(url.trim())
}

/// One connection at a time, opened when asked for and again after it broke.
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

/// An open connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) redis: MultiplexedConnection,
    /// Which of a link's connections this is.
    generation: u64,
}

impl ConnectionManager {
    pub(crate) fn new(endpoint: Endpoint, response_timeout: Duration) -> Self {
        Self {
            endpoint,
            response_timeout,
            state: Mutex::default(),
        }
    }

    /// The open connection, or a new one to a Redis that serves.
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
        // Others may have opened one meanwhile.
        Ok(self.with(|state| state.open.get_or_insert(connection).clone()))
    }

    /// Sends everything in one write and gives the value of the last, which is all that matters.
    pub(crate) async fn last(
        &self,
        call: &Call,
        operation: &'static str,
    ) -> Result<Value, QueueError> {
        let connection = self.get().await?;
        self.watch(&connection, call.last(operation, &connection).await)
    }

    /// Gives up a connection that broke. Another one that has replaced it already stays.
    pub(crate) fn forget(&self, connection: &Connection) {
        self.with(|state| {
            state
                .open
                .take_if(|open| open.generation == connection.generation);
        });
    }

    /// Passes an outcome on, and gives up the connection if it shows that it is of no use.
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
        let error = Endpoint::from_url("http://user:secret@host").unwrap_err();
        assert!(matches!(error, QueueError::Url(_)), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn a_url_file_may_end_in_a_newline() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        assert!(matches!(
            Endpoint::from_file(&path),
            Err(QueueError::UrlFile { .. })
        ));
        std::fs::write(&path, "redis://:secret@redis:6379\n").unwrap();
        let endpoint = Endpoint::from_file(&path).unwrap();
        assert!(!format!("{endpoint:?}").contains("secret"));
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
