//! The start: from the command line to a running service, and from its end to an exit code.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use carpool_crds::{AdminAddress, Loaded};
use carpool_queue::{Consumer, ConsumerOptions};
use hyper::header::HeaderValue;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    admin::{self, Admin},
    artifact::Artifact,
    assemble::Assembler,
    backend::TorchScript,
    executor::Executor,
    fatal::{Fatal, TerminationReason},
    fetch,
    live_settings::{self, LiveSettings},
    metrics::Metrics,
    probe,
    progress::Progress,
    runner::Runner,
    service::{Service, ServiceParts},
    settings::{
        Cli, Command, CommonArgs, FetchArgs, LogFormat, ServeArgs, Settings, SettingsError,
    },
    sharing::Sharing,
    warmup::warm_up,
};

/// The exit code for settings that can't be used: `EX_USAGE`.
pub const BAD_SETTINGS: u8 = 64;

/// The time between two looks at the run thread.
const WATCH: Duration = Duration::from_millis(500);

/// The reason that the process ends other than as it was told.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Fatal(#[from] Fatal),
    #[error("failed to {0}")]
    System(String),
}

/// Does what the command line says.
#[must_use]
pub fn run(cli: &Cli) -> ExitCode {
    let (common, result) = match &cli.command {
        Command::Serve(args) => (&args.common, run_serve(args)),
        Command::Fetch(args) => (&args.common, run_fetch(args)),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{error}");
    match error {
        Error::Settings(_) => ExitCode::from(BAD_SETTINGS),
        Error::System(_) => ExitCode::FAILURE,
        Error::Fatal(fatal) => {
            if let Some(path) = common.termination_log() {
                fatal.write(&path);
            }
            ExitCode::FAILURE
        }
    }
}

fn run_serve(args: &ServeArgs) -> Result<(), Error> {
    let settings = args.settings()?;
    log(&args.common);
    let runtime = runtime()?;
    let result = runtime.block_on(serve(args, settings));
    // The runtime is left behind, for a large artifact that is still being read would be waited for.
    runtime.shutdown_background();
    result
}

fn run_fetch(args: &FetchArgs) -> Result<(), Error> {
    let (_, model) = args
        .common
        .config()
        .map_err(|error| SettingsError(vec![error]))?;
    log(&args.common);
    let artifact = fetch::fetch(&args.source, &args.to, model.sha256.as_deref())?;
    println!("{}", artifact.sha256);
    Ok(())
}

fn log(common: &CommonArgs) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match common.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

/// Makes the runtime. One thread is enough beside the one that runs the model.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::System(format!("start the runtime: {error}")))
}

async fn serve(args: &ServeArgs, settings: Settings) -> Result<(), Error> {
    let stop = stop_on_signals()?;
    let name = HeaderValue::from_str(&args.name)
        .map_err(|error| SettingsError(vec![format!("--name {:?}: {error}", args.name)]))?;
    let listener = admin::bind(args.admin_listen)
        .await
        .map_err(Error::System)?;
    let address = listener
        .local_addr()
        .map_err(|error| Error::System(format!("get the admin port's address: {error}")))?;
    tracing::info!(%address, "listening");
    if let Some(file) = &args.admin_address_file {
        let name = args.name.clone();
        let told = AdminAddress { name, address }.write(file);
        told.map_err(|error| {
            let file = file.display();
            Error::System(format!("write the admin port's address to {file}: {error}"))
        })?;
    }
    let (sender, live_settings) = watch::channel(LiveSettings::from(&settings.config));
    tokio::spawn(live_settings::follow(args.common.config.clone(), sender));
    let admin = Arc::new(Admin {
        name,
        ready: AtomicBool::new(false),
        model: watch::Sender::new(None),
        metrics: Arc::new(Metrics::default()),
        progress: Arc::new(Progress::default()),
        live_settings,
    });
    tokio::spawn(admin::serve(listener, Arc::clone(&admin)));
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        started = start(args, settings, &admin, &stop) => {
            let service = started?;
            tokio::select! {
                served = service.serve() => Ok(served?),
                hang = hung(&admin) => Err(hang.into()),
            }
        }
    }
}

/// Loads the model, proves it and joins the queue.
async fn start(
    args: &ServeArgs,
    settings: Settings,
    admin: &Arc<Admin>,
    stop: &CancellationToken,
) -> Result<Service, Fatal> {
    let Settings {
        config,
        model,
        connection,
        threads,
    } = settings;
    let revision = &args.common.revision;
    let artifact = digest(args.model.clone(), model.sha256.clone()).await?;
    let assembler = Arc::new(Assembler::load(
        &config.name,
        revision,
        &model,
        &artifact.folder,
    )?);
    let runner = {
        let (admin, assembler, settings) = (
            Arc::clone(admin),
            Arc::clone(&assembler),
            *admin.live_settings.borrow(),
        );
        let (file, folder, device) = (
            artifact.model.clone(),
            artifact.folder.clone(),
            config.device,
        );
        Runner::start(move || {
            let backend = TorchScript::load(&file, &model, device)?;
            let mut executor = Executor::new(Box::new(backend), model.clone(), threads);
            let examples = probe::examples(&assembler, &model, &folder)?;
            warm_up(
                &mut executor,
                &assembler,
                &model,
                &examples,
                settings.max_batch_size,
            )?;
            executor.report_to(Arc::clone(&admin.progress), Arc::clone(&admin.metrics));
            Ok(executor)
        })
        .await?
    };
    artifact.check_unchanged()?;
    let settings = *admin.live_settings.borrow();
    let options = ConsumerOptions {
        uid: config.uid,
        revision: revision.clone(),
        name: args.name.clone(),
        artifact: Some(artifact.sha256.clone()),
        limits: settings.queue,
    };
    // The connection is waited for without end: to give up would cost a start of the process and of its model.
    let consumer = Consumer::connect(connection, options)
        .await
        .map_err(|error| Fatal::of_queue(&error))?;
    let mut sharing = runner.sharing();
    let tell = tell(Arc::clone(admin), revision.clone(), artifact.sha256);
    tell(&sharing.borrow_and_update());
    tokio::spawn(async move {
        while sharing.changed().await.is_ok() {
            tell(&sharing.borrow_and_update());
        }
    });
    admin.ready.store(!stop.is_cancelled(), Ordering::Relaxed);
    tracing::info!(model = config.name, revision, threads, "serving");

    // The renewer ends with the consumer.
    tokio::spawn(consumer.renewer().run());
    let service = Service::new(ServiceParts {
        consumer,
        runner,
        assembler,
        live_settings: admin.live_settings.clone(),
        metrics: Arc::clone(&admin.metrics),
        stop: stop.clone(),
    });
    unready_at(stop.clone(), Arc::clone(admin));
    Ok(service)
}

/// Tells whoever asks, and the log, how the model is served.
fn tell(admin: Arc<Admin>, revision: String, sha256: String) -> impl Fn(&Sharing) {
    move |sharing| {
        let Sharing {
            reason, message, ..
        } = sharing;
        if !message.is_empty() {
            tracing::warn!(reason = reason.name(), "{message}");
        }
        admin.model.send_replace(Some(Loaded {
            revision: revision.clone(),
            sha256: sha256.clone(),
            reason: *reason,
            message: message.clone(),
        }));
    }
}

async fn digest(path: PathBuf, pinned: Option<String>) -> Result<Artifact, Fatal> {
    let open = move || Artifact::open(Path::new(&path), pinned.as_deref());
    tokio::task::spawn_blocking(open)
        .await
        .unwrap_or_else(|error| {
            Err(Fatal::new(
                TerminationReason::ArtifactMissing,
                error.to_string(),
            ))
        })
}

/// Waits until a forward pass hangs; then the process must end, so that others take its requests. Its leases would be
/// renewed for as long as it lives, however long a pass takes.
async fn hung(admin: &Admin) -> Fatal {
    loop {
        if let Some(hang) = admin.hang() {
            return Fatal::new(TerminationReason::DeviceUnavailable, hang.to_string());
        }
        tokio::time::sleep(WATCH).await;
    }
}

fn unready_at(stop: CancellationToken, admin: Arc<Admin>) {
    tokio::spawn(async move {
        stop.cancelled().await;
        admin.ready.store(false, Ordering::Relaxed);
        tracing::info!("stopping: the batch that runs is answered, what waits is handed back");
    });
}

/// Listens for SIGTERM and Ctrl-C, which tell the process to stop.
fn stop_on_signals() -> Result<CancellationToken, Error> {
    let listen =
        |kind| signal(kind).map_err(|error| Error::System(format!("listen for signals: {error}")));
    let (mut terminate, mut interrupt) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    );
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopped.cancel();
    });
    Ok(stop)
}
