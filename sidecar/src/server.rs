//! The server: connections, signals, and the way down.

use std::{io, net::SocketAddr, os::fd::AsFd, path::PathBuf, sync::Arc, time::Duration};

use carpool_crds::AdminAddress;
use carpool_process::ListenAddress;
use http::{HeaderValue, header::InvalidHeaderValue};
use socket2::SockRef;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    admin,
    connections::Way,
    proxy::{Access, Proxy, ServeError},
    reload, routes,
    settings::{Listen, Settings},
};

/// The least time to sign off from Redis, however long the requests took.
const SIGN_OFF_TIME: Duration = Duration::from_secs(1);

/// The reason that the proxy can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The runtime or the signal handlers can't be set up.
    #[error("failed to start: {0}")]
    Start(#[from] io::Error),
    /// An address can't be listened on.
    #[error("failed to listen on {address}: {source}")]
    Listen {
        /// The address.
        address: ListenAddress,
        /// The system's error.
        source: io::Error,
    },
    /// Standard input is no socket to take requests on.
    #[error("--listen stdin: standard input is no listening socket: {0}")]
    Stdin(io::Error),
    /// The admin port's address can't be told.
    #[error("failed to write the admin port's address to {}: {source}", file.display())]
    Tell {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The name can't be told over HTTP.
    #[error("--name: {0}")]
    Name(#[from] InvalidHeaderValue),
    /// The configuration can't be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves until SIGTERM or SIGINT, then finishes what is open.
pub fn run(settings: Settings) -> Result<(), RunError> {
    // The runtime has one thread: more of them cost a fifth more processor time a request and gain nothing. The
    // blocking ones read and write large bodies.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(std::thread::available_parallelism()?.get())
        .build()?
        .block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let server = Server::bind(settings).await?;
            let stop = async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            };
            server.run(stop).await;
            Ok(())
        })
}

/// A proxy that listens and doesn't answer yet.
pub struct Server {
    data: TcpListener,
    admin: TcpListener,
    proxy: Arc<Proxy>,
    name: HeaderValue,
    settings: Settings,
}

impl Server {
    /// Listens on both ports and starts the queue's tasks. Redis need not be up yet.
    pub async fn bind(settings: Settings) -> Result<Self, RunError> {
        let data = match settings.listen {
            Listen::Address(address) => listen(address).await?,
            Listen::Stdin => of_stdin().map_err(RunError::Stdin)?,
        };
        let admin = listen(settings.admin_listen).await?;
        let name = HeaderValue::from_str(&settings.name)?;
        if let Some(file) = &settings.admin_address_file {
            let told = admin.local_addr().and_then(|address| {
                let name = settings.name.clone();
                AdminAddress { name, address }.write(file)
            });
            told.map_err(|source| RunError::Tell {
                file: file.clone(),
                source,
            })?;
        }
        let config = &settings.config;
        let access = Access {
            endpoint: settings.redis.clone(),
            secret: settings.redis_secret.clone(),
            name: settings.name.clone(),
        };
        let proxy = Arc::new(Proxy::new(config, access)?);
        Ok(Self {
            data,
            admin,
            proxy,
            name,
            settings,
        })
    }

    /// The address at which requests are taken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.data.local_addr()
    }

    /// The address at which metrics and probes are served.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until `stop` is done. Then the proxy is no longer ready, and for the lame duck's time serves those who
    /// have not seen that yet; after that it takes nothing more, finishes what is open, bounded by `queue.timeout`, and
    /// signs off from Redis. The admin port answers to the end.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self {
            data,
            admin,
            proxy,
            name,
            settings,
        } = self;
        let never = CancellationToken::new();
        let (listens, admin_listens) = (data.local_addr(), admin.local_addr());
        let own: Arc<str> = settings.name.into();
        let to_admin = {
            let proxy = Arc::clone(&proxy);
            move |_, request| admin::serve(Arc::clone(&proxy), name.clone(), request)
        };
        let way = Way::new(Arc::clone(&own), None, proxy.unread.clone());
        let to_admin = way.accept(admin, to_admin, never);
        let _admin = AbortOnDropHandle::new(tokio::spawn(to_admin));
        let _reload = AbortOnDropHandle::new(tokio::spawn(reload::watch(
            Arc::clone(&proxy),
            settings.config_file,
            settings.config,
        )));
        let to_data = {
            let proxy = Arc::clone(&proxy);
            move |client, request| routes::serve(Arc::clone(&proxy), client, request)
        };
        let closing = CancellationToken::new();
        let (tls, _renewal) = settings
            .certificate
            .map(|certificate| {
                let (renewed, current) = certificate.served();
                let proxy = Arc::clone(&proxy);
                let follow = async move { certificate.follow(renewed, &proxy.metrics).await };
                (current, AbortOnDropHandle::new(tokio::spawn(follow)))
            })
            .unzip();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let to_data =
            Way::new(own, tls, proxy.unread.clone()).accept(data, to_data, closing.clone());
        let accepting = tokio::spawn(to_data);
        if let (Ok(listen), Ok(admin)) = (listens, admin_listens) {
            let serving = &*proxy.served().revision;
            tracing::info!(%listen, scheme, %admin, serving, "serving");
        }

        stop.await;
        tracing::info!(open = proxy.producer().in_flight(), "shutting down");
        proxy.drain();
        sleep(settings.lame_duck).await;
        closing.cancel();
        let deadline = Instant::now() + proxy.served().timeout;
        let closed = timeout_at(deadline, async {
            if let Ok(connections) = accepting.await {
                connections.shutdown().await;
            }
        });
        if closed.await.is_err() {
            tracing::warn!(
                open = proxy.producer().in_flight(),
                "requests are still open"
            );
        }
        let left = deadline.saturating_duration_since(Instant::now());
        proxy.producer().shutdown(left.max(SIGN_OFF_TIME)).await;
    }
}

async fn listen(address: ListenAddress) -> Result<TcpListener, RunError> {
    address
        .listen()
        .await
        .map_err(|source| RunError::Listen { address, source })
}

/// The socket that standard input is.
fn of_stdin() -> io::Result<TcpListener> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let listener = std::net::TcpListener::from(socket);
    if !SockRef::from(&listener).is_listener()? {
        return Err(io::ErrorKind::NotConnected.into());
    }
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}
