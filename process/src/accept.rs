//! Connections, taken one after another, and the messages where they can't be.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout_at},
};

use crate::open_files;

/// The pause after a connection that couldn't be taken: it stays in the backlog, and the next try would fail at once.
const PAUSE: Duration = Duration::from_millis(50);

/// The time without a failed try after which the trouble counts as over. Near the limit, every connection that closes
/// lets one in, and the next fails again.
const QUIET: Duration = Duration::from_secs(5);

/// A listener that waits out what keeps it from taking connections, and says once when that begins and once when it
/// is over.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    /// The time of the last failure of a trouble that isn't over.
    failed: Option<Instant>,
}

impl Acceptor {
    /// Makes an acceptor that takes connections from `listener`.
    #[must_use]
    pub fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            failed: None,
        }
    }

    /// Waits for the next connection. Dropped before it is there, the future takes none.
    pub async fn accept(&mut self) -> TcpStream {
        loop {
            let accepted = match self.failed {
                None => self.listener.accept().await,
                Some(failed) => {
                    let accepted = timeout_at(failed + QUIET, self.listener.accept()).await;
                    let Ok(accepted) = accepted else {
                        self.recovered();
                        continue;
                    };
                    accepted
                }
            };
            match accepted {
                Ok((stream, _)) => {
                    if self.failed.is_some_and(|failed| failed.elapsed() >= QUIET) {
                        self.recovered();
                    }
                    return stream;
                }
                Err(error) if is_the_clients(&error) => {}
                Err(error) => {
                    if self.failed.replace(Instant::now()).is_none() {
                        self.report(&error);
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn report(&self, error: &io::Error) {
        let address = self.address();
        match Errno::from_io_error(error) {
            Some(Errno::MFILE) => tracing::warn!(
                address,
                limit = open_files::limit(),
                "this process has as many files open as it may, so new connections wait until others close: raise its \
                 hard limit of open files (ulimit -Hn, or that of the container runtime), or run more replicas"
            ),
            Some(Errno::NFILE) => tracing::warn!(
                address,
                "the machine has as many files open as it may, so new connections wait until others close: raise the \
                 sysctl fs.file-max"
            ),
            _ => tracing::warn!(address, %error, "new connections wait, as the system gives none"),
        }
    }

    fn recovered(&mut self) {
        self.failed = None;
        tracing::info!(address = self.address(), "new connections are taken again");
    }

    fn address(&self) -> String {
        let address = self.listener.local_addr();
        address.map_or_else(|error| error.to_string(), |it: SocketAddr| it.to_string())
    }
}

/// Whether an error is the connection's own, which a client broke off before it was taken.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}
