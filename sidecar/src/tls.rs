//! TLS for those who send requests: the certificate, which is followed as it is renewed.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use carpool_process::follow_files;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// The file with the certificate and those between it and its authority, and the one with its key, as Kubernetes names
/// both.
const FILES: [&str; 2] = ["tls.crt", "tls.key"];

/// The protocols spoken, the ones liked better first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The settings of TLS as they are now, for the next connection.
pub type Current = watch::Receiver<Arc<ServerConfig>>;

/// A certificate and its key, as read from files.
pub struct Certificate {
    folder: PathBuf,
    /// The content of both files, to tell a renewal from a mere touch.
    content: [Vec<u8>; 2],
    settings: Arc<ServerConfig>,
}

/// The reason that a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file can't be read.
    #[error(
        "failed to read {}: {source}; the folder must hold tls.crt and tls.key, as a Secret of the type \
         kubernetes.io/tls does",
        file.display()
    )]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file holds no PEM certificate, or no PEM key, or one that is broken.
    #[error("{} must hold a {expected} in PEM form: {message}", file.display())]
    Pem {
        /// The file.
        file: PathBuf,
        /// The thing that must be in there.
        expected: &'static str,
        /// The mistake.
        message: String,
    },
    /// The certificate and the key can't be used together.
    #[error(
        "{}/tls.crt and tls.key can't be used: {source}; the first certificate in tls.crt must be the server's own, and \
         tls.key its key",
        folder.display()
    )]
    Pair {
        /// The folder of both.
        folder: PathBuf,
        /// The mistake.
        source: rustls::Error,
    },
}

impl Certificate {
    /// Reads `tls.crt` and `tls.key` of a folder.
    pub fn read(folder: &Path) -> Result<Self, CertificateError> {
        let [certificate_file, key_file] = FILES.map(|name| folder.join(name));
        let read = |file: &PathBuf| {
            let read = fs::read(file);
            read.map_err(|source| CertificateError::Read {
                file: file.clone(),
                source,
            })
        };
        let content = [read(&certificate_file)?, read(&key_file)?];
        let chain = certificates(&content[0]).map_err(|message| CertificateError::Pem {
            file: certificate_file,
            expected: "certificate",
            message,
        })?;
        let key = PrivateKeyDer::from_pem_slice(&content[1]);
        let key = key.map_err(|error| CertificateError::Pem {
            file: key_file,
            expected: "private key",
            message: error.to_string(),
        })?;
        let settings = settings(chain, key).map_err(|source| CertificateError::Pair {
            folder: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            content,
            settings: Arc::new(settings),
        })
    }

    /// The settings of TLS with this certificate, and the one that sets them anew once it is renewed.
    #[must_use]
    pub fn served(&self) -> (watch::Sender<Arc<ServerConfig>>, Current) {
        watch::channel(Arc::clone(&self.settings))
    }

    /// Follows the files, for ever. Connections that are open keep the certificate they began with. A renewal that
    /// can't be used is told, and the last good one kept.
    pub async fn follow(mut self, served: watch::Sender<Arc<ServerConfig>>, metrics: &Metrics) {
        let folder = self.folder.clone();
        let files = FILES.map(|name| folder.join(name));
        let apply = |read: Result<Self, CertificateError>| match read {
            Ok(next) if next.content == self.content => {}
            Ok(next) => {
                served.send_replace(Arc::clone(&next.settings));
                self = next;
                metrics.renewed(true);
                tracing::info!("new connections get the renewed certificate");
            }
            Err(error) => {
                metrics.renewed(false);
                tracing::warn!(%error, "the last certificate stays");
            }
        };
        follow_files(files, move || Self::read(&folder), apply).await;
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the certificate in {}", self.folder.display())
    }
}

/// The certificates of a PEM file, which must hold some.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match chain {
        Ok(chain) if chain.is_empty() => Err("it holds none".to_owned()),
        Ok(chain) => Ok(chain),
        Err(error) => Err(error.to_string()),
    }
}

fn settings(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut settings = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    settings.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(settings)
}
