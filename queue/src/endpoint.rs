//! Endpoints: where Redis is, and how a connection to it is opened.

mod address;
mod connector;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use redis::aio::MultiplexedConnection;

use crate::QueueError;
use address::Address;

/// The address of Redis and the login for it.
#[derive(Clone)]
pub struct Endpoint {
    source: Source,
    /// A PEM file of certificate authorities to trust in place of the system's.
    ca_file: Option<PathBuf>,
}

/// The name of the file with certificate authorities in a Secret that also holds the URL.
const CA_FILE: &str = "ca.crt";

#[derive(Clone)]
enum Source {
    Url(Box<Address>),
    File(PathBuf),
}

impl Endpoint {
    /// Makes an endpoint from a URL:
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

    /// Makes an endpoint from a file that holds the URL. It is followed: each new connection reads it, and one that is open
    /// is replaced once a changed URL works. Where a `ca.crt` lies beside it, a URL with TLS trusts the certificate authorities in
    /// there in place of the system's.
    pub fn from_file(path: &Path) -> Result<Self, QueueError> {
        let endpoint = Self {
            source: Source::File(path.to_owned()),
            ca_file: None,
        };
        endpoint.resolve()?;
        Ok(endpoint)
    }

    /// Trusts the certificate authorities of a PEM file in place of the system's. The file is read again for each new
    /// connection, so that a new authority arrives. The URL must be one with TLS.
    pub fn with_ca_file(self, path: &Path) -> Result<Self, QueueError> {
        let endpoint = Self {
            ca_file: Some(path.to_owned()),
            ..self
        };
        endpoint.resolve()?;
        Ok(endpoint)
    }

    /// Reads the address and the certificate authorities as they are now.
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
            (Some(path), _) => Some(connector::authorities(path)?),
            (None, Source::File(path)) if address.is_tls() => {
                let beside = path.with_file_name(CA_FILE);
                // A path that can't be looked at is reported as one that can't be read.
                match beside.try_exists() {
                    Ok(false) => None,
                    Ok(true) | Err(_) => Some(connector::authorities(&beside)?),
                }
            }
            (None, _) => None,
        };
        Ok((address, authorities))
    }

    /// The URL as the file holds it now; `None` where there is no file, or it can't be read.
    pub(crate) fn url_in_file(&self) -> Option<String> {
        match &self.source {
            Source::Url(_) => None,
            Source::File(path) => std::fs::read_to_string(path).ok(),
        }
    }

    /// Opens a connection to a server that takes writes.
    pub(crate) async fn open(
        &self,
        response_timeout: Duration,
    ) -> Result<MultiplexedConnection, QueueError> {
        let (address, authorities) = self.resolve()?;
        let connector = connector::Connector {
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
}
