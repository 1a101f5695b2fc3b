//! The opening of one connection: TLS, the search for the primary, and the check that a server is one.

use std::{collections::HashMap, path::Path, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, RedisError, Role, TlsCertificates,
    aio::MultiplexedConnection,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::address::{Sentinels, is_tls};
use crate::QueueError;

/// Time for a new TCP connection: long enough across a cluster, short enough for a client that waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for a sentinel to connect and to answer, which has little else to do.
const SENTINEL_TIMEOUT: Duration = Duration::from_secs(1);

/// The opener of connections, with what they have in common.
pub(super) struct Connector {
    /// PEM certificates to trust in place of the system's.
    pub(super) authorities: Option<Vec<u8>>,
    pub(super) response_timeout: Duration,
}

impl Connector {
    /// Connects to a server, which must take writes.
    pub(super) async fn server(
        &self,
        server: ConnectionInfo,
    ) -> Result<MultiplexedConnection, QueueError> {
        match self.role(server).await? {
            ServerRole::Primary(redis) => Ok(redis),
            ServerRole::ReplicaOf(host, port) => Err(replica(&host, port)),
        }
    }

    /// Connects to the server that the sentinels name. The Redis library has such a search, too, but allows a server
    /// only half a second, which one that all clients come back to at once exceeds.
    pub(super) async fn primary(
        &self,
        sentinels: &Sentinels,
    ) -> Result<MultiplexedConnection, QueueError> {
        let mut last = None;
        for (host, port) in self.ask(sentinels).await? {
            let server = match self.role(sentinels.server(host, port)?).await {
                Ok(ServerRole::Primary(redis)) => return Ok(redis),
                // Sentinels take half a minute to notice what `FAILOVER` did, but the demoted server knows its new
                // primary.
                Ok(ServerRole::ReplicaOf(host, port)) => sentinels.server(host, port)?,
                Err(error) => {
                    last = Some(error);
                    continue;
                }
            };
            match self.server(server).await {
                Ok(redis) => return Ok(redis),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            let primary = &sentinels.primary;
            QueueError::Unreachable(format!("no sentinel knows a primary called {primary:?}"))
        }))
    }

    /// Asks all sentinels at once. An address that more than half of them name is returned alone; else all that were
    /// named, the most named first.
    async fn ask(&self, sentinels: &Sentinels) -> Result<Vec<(String, u16)>, QueueError> {
        let mut asked: FuturesUnordered<_> = sentinels
            .members
            .iter()
            .map(|sentinel| self.ask_one(sentinel.clone(), &sentinels.primary))
            .collect();
        let mut votes: HashMap<(String, u16), usize> = HashMap::new();
        let mut failed = None;
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(Some(address)) => {
                    let count = votes.entry(address.clone()).or_default();
                    *count += 1;
                    if *count * 2 > sentinels.members.len() {
                        return Ok(vec![address]);
                    }
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        if let (true, Some(error)) = (votes.is_empty(), failed) {
            return Err(error);
        }
        let mut votes: Vec<_> = votes.into_iter().collect();
        votes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Ok(votes.into_iter().map(|(address, _)| address).collect())
    }

    async fn ask_one(
        &self,
        sentinel: ConnectionInfo,
        primary: &str,
    ) -> Result<Option<(String, u16)>, QueueError> {
        let about = format!("the sentinel at {}", sentinel.addr());
        let told = |error: String| QueueError::Unreachable(format!("{about}: {error}"));
        let mut redis = self
            .connect(sentinel, SENTINEL_TIMEOUT, SENTINEL_TIMEOUT)
            .await
            .map_err(|error| match error {
                QueueError::Unreachable(error) => told(error),
                other => other,
            })?;
        redis::cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(primary)
            .query_async(&mut redis)
            .await
            .map_err(|error: RedisError| told(error.to_string()))
    }

    async fn connect(
        &self,
        server: ConnectionInfo,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Result<MultiplexedConnection, QueueError> {
        let client = client(server, self.authorities.clone())
            .map_err(|error| QueueError::Url(error.to_string()))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect_timeout))
            .set_response_timeout(Some(response_timeout));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| QueueError::Unreachable(error.to_string()))
    }

    /// Connects and asks the server for its role. After a failover, a name or a sentinel may lead to a server that has
    /// just been demoted, which answers reads as before.
    async fn role(&self, server: ConnectionInfo) -> Result<ServerRole, QueueError> {
        let mut redis = self
            .connect(server, CONNECT_TIMEOUT, self.response_timeout)
            .await?;
        match redis::cmd("ROLE").query_async(&mut redis).await {
            Ok(Role::Replica {
                primary_ip,
                primary_port,
                ..
            }) => Ok(ServerRole::ReplicaOf(primary_ip, primary_port)),
            Ok(Role::Sentinel { .. }) => Err(QueueError::Unreachable(
                "the server is a sentinel, whose URL begins with redis+sentinel:// or rediss+sentinel://"
                    .to_owned(),
            )),
            Err(error) if error.is_unrecoverable_error() || error.is_timeout() => {
                Err(QueueError::Unreachable(error.to_string()))
            }
            // A user who may not ask for the role learns it when the first write is refused.
            Ok(_) | Err(_) => Ok(ServerRole::Primary(redis)),
        }
    }
}

/// The role that a server says it has.
enum ServerRole {
    Primary(MultiplexedConnection),
    /// A replica, with the host and port of its primary.
    ReplicaOf(String, u16),
}

fn replica(host: &str, port: u16) -> QueueError {
    QueueError::Unreachable(format!("the server is a replica of {host}:{port}"))
}

/// Reads the certificates of a PEM file, which must hold some.
pub(super) fn authorities(path: &Path) -> Result<Vec<u8>, QueueError> {
    let wrong = |message: String| QueueError::CaFile {
        path: path.to_owned(),
        message,
    };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let mut certificates = CertificateDer::pem_slice_iter(&pem).peekable();
    if certificates.peek().is_none() {
        return Err(wrong("it holds no PEM certificate".to_owned()));
    }
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        store
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
    }
    Ok(pem)
}

fn client(server: ConnectionInfo, authorities: Option<Vec<u8>>) -> Result<Client, RedisError> {
    if !is_tls(&server) {
        return Client::open(server);
    }
    // Fails if a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: authorities,
    };
    Client::build_with_tls(server, certificates)
}
