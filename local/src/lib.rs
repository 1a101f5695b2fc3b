//! `carpool local`: manifests served on this machine, with processes in place of pods.
//!
//! One Redis, and for each model one sidecar and as many workers as [`carpool_scaling`] says. What only a cluster
//! has does nothing here: resources, `podOverrides`, `serviceAccountName`, `proxy.replicas`, `rollout`.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

mod console;
mod cpus;
mod example;
mod files;
mod listen;
mod manifest;
mod metrics;
mod model;
mod process;
mod redis;
mod reporter;
mod restart;
mod scrape;
mod supervised;

use console::Console;
use manifest::{Manifest, ManifestError};
use model::Served;
use process::{Children, ProcessError, find};
use redis::RedisError;

/// Serves manifests on this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifests of `BatchedModel`s whose artifacts are at `file://PATH`.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Where the first model listens, such as localhost:8080 or 0.0.0.0:8080; the others follow on the next free ports.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080", value_parser = listen::address)]
    http: SocketAddr,

    /// A Redis of yours, in place of one that lives as long as this process.
    #[arg(
        long,
        env = "CARPOOL_REDIS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    redis_url: Option<String>,

    /// A folder with a certificate `tls.crt` and its key `tls.key`, both PEM: models are served by TLS.
    #[arg(long, env = "CARPOOL_TLS_DIR", value_name = "FOLDER")]
    tls_dir: Option<PathBuf>,
}

/// A reason why the models can't be served, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Manifests are wrong; one message each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Manifests(Vec<ManifestError>),
    /// Two models have the same name.
    #[error("{} and {} both hold a BatchedModel named {name}", first.display(), second.display())]
    SameName {
        /// The shared name.
        name: String,
        /// The first file that has it.
        first: PathBuf,
        /// The second file that has it.
        second: PathBuf,
    },
    /// The model's Redis is named by a Secret, and those are in a cluster.
    #[error("{}: spec.queue.redis.external names a Secret of a cluster; give its URL with --redis-url", file.display())]
    ExternalRedis {
        /// The manifest.
        file: PathBuf,
    },
    /// The address to listen on is taken or not of this machine.
    #[error("failed to listen on {address}: {source}; choose another address with --http")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// No free port is left after the first one.
    #[error("failed to find a free port: {0}")]
    Ports(io::Error),
    /// A sidecar can't be given the socket that it is to listen on.
    #[error("failed to pass the socket of {name}: {source}")]
    Pass {
        /// The sidecar's name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// A file of the run's temporary folder can't be written.
    #[error("failed to write {}: {source}", file.display())]
    File {
        /// The path.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Handlers of signals can't be set.
    #[error("failed to listen for signals: {0}")]
    Signals(io::Error),
    /// A process can't be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Redis can't be started.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// A sidecar or a worker ends before it has ever been ready.
    #[error("{}: {name} can't serve: {message}", file.display())]
    Child {
        /// The manifest.
        file: PathBuf,
        /// The process's name.
        name: String,
        /// The process's last words.
        message: String,
    },
    /// A second signal came before everything had ended.
    #[error("stopped at once; requests that were open are not answered")]
    Interrupted,
}

/// The parts of a run that all its models share.
struct Shared {
    children: Arc<Children>,
    console: Console,
    programs: Programs,
    folder: PathBuf,
    redis_url_file: PathBuf,
    tls_dir: Option<PathBuf>,
}

struct Programs {
    sidecar: PathBuf,
    worker: PathBuf,
}

/// Serves the manifests until SIGINT, SIGTERM or SIGHUP.
pub async fn run(args: Args) -> Result<(), LocalError> {
    let mut signals = Signals::new().map_err(LocalError::Signals)?;
    let stop = CancellationToken::new();
    let console = Console::new();
    let serving = serve(args, console.clone(), stop.clone());
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return result,
        () = signals.next() => (),
    }
    console.say("stopping once what is open is answered; again to stop at once");
    stop.cancel();
    tokio::select! {
        result = serving => result,
        // Processes that still run are killed when their tasks are dropped.
        () = signals.next() => Err(LocalError::Interrupted),
    }
}

async fn serve(args: Args, console: Console, stop: CancellationToken) -> Result<(), LocalError> {
    let manifests = read(&args)?;
    let hint = "`make build` builds it";
    let programs = Programs {
        sidecar: find("carpool-sidecar", hint)?,
        worker: find("carpool-worker", hint)?,
    };
    let listeners = listen::listeners(args.http, manifests.len())?;
    let temporary = tempfile::Builder::new().prefix("carpool-").tempdir();
    let temporary = temporary.map_err(|source| LocalError::File {
        file: std::env::temp_dir(),
        source,
    })?;
    let folder = temporary.path().to_owned();
    let children = Arc::new(Children::new()?);

    let stop_redis = CancellationToken::new();
    let (redis_url_file, redis) = if let Some(url) = args.redis_url {
        let file = folder.join("url");
        std::fs::write(&file, url).map_err(|source| LocalError::File {
            file: file.clone(),
            source,
        })?;
        (file, None)
    } else {
        let hint = "install Redis 7.0 or later, or name one with --redis-url";
        let program = find("redis-server", hint)?;
        let (children, console, stop) = (children.clone(), console.clone(), stop_redis.clone());
        let (file, task) = redis::start(children, console, program, &folder, stop).await?;
        (file, Some(task))
    };

    let shared = Arc::new(Shared {
        children: Arc::clone(&children),
        console,
        programs,
        folder,
        redis_url_file,
        tls_dir: args.tls_dir,
    });
    let result = serve_all(&shared, manifests, listeners, stop).await;
    stop_redis.cancel();
    if let Some(redis) = redis {
        // The task does not panic, and nobody aborts it.
        let _ = redis.await;
    }
    drop(shared);
    if let Some(children) = Arc::into_inner(children) {
        children.close().await;
    }
    result
}

/// Serves every model until all have ended. A model that can't be served ends alone; the last one to end so ends the
/// command.
async fn serve_all(
    shared: &Arc<Shared>,
    manifests: Vec<Manifest>,
    listeners: Vec<(SocketAddr, TcpListener)>,
    stop: CancellationToken,
) -> Result<(), LocalError> {
    let mut models = JoinSet::new();
    for (manifest, (address, listener)) in manifests.into_iter().zip(listeners) {
        let served = Served::new(Arc::clone(shared), manifest, address, listener)?;
        models.spawn(served.serve(stop.clone()));
    }
    while let Some(ended) = models.join_next().await {
        // A model's task neither panics nor is aborted.
        let Ok(Err(error)) = ended else { continue };
        if models.is_empty() && !stop.is_cancelled() {
            return Err(error);
        }
        let others = match models.len() {
            1 => "the other model is".to_owned(),
            others => format!("the other {others} models are"),
        };
        let message = format_args!("{error}; {others} served on");
        shared.console.say(message);
    }
    Ok(())
}

/// Reads all manifests and gathers the errors of all.
fn read(args: &Args) -> Result<Vec<Manifest>, LocalError> {
    let mut manifests: Vec<Manifest> = Vec::new();
    let mut errors = Vec::new();
    for file in &args.files {
        match manifest::read(file) {
            Ok(more) => manifests.extend(more),
            Err(error) => errors.push(error),
        }
    }
    if !errors.is_empty() {
        return Err(LocalError::Manifests(errors));
    }
    for (index, manifest) in manifests.iter().enumerate() {
        if let Some(first) = manifests[..index]
            .iter()
            .find(|other| other.name == manifest.name)
        {
            return Err(LocalError::SameName {
                name: manifest.name.clone(),
                first: first.file.clone(),
                second: manifest.file.clone(),
            });
        }
        if manifest.spec.queue.redis.external.is_some() && args.redis_url.is_none() {
            return Err(LocalError::ExternalRedis {
                file: manifest.file.clone(),
            });
        }
    }
    Ok(manifests)
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// SIGHUP: the terminal was closed.
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
            _ = self.hangup.recv() => (),
        }
    }
}
