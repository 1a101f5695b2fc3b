//! `carpool run`: the operator.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use carpool_process::ListenAddress;
use clap::Args as ClapArgs;
use futures::channel::mpsc;
use kube::{
    Config,
    client::ClientBuilder,
    runtime::events::{Recorder, Reporter},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    admin, autoscale,
    calls::Calls,
    cluster::Cluster,
    controller,
    defaults::ModelDefaults,
    lease::{Leadership, LeaseError},
    memory::Memory,
    metrics::Metrics,
    names,
    reconcile::{Context, build::Images},
    turns::Turns,
};

/// The time within which reconciles that were begun must be over.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The operator's settings.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Address on which metrics and probes are served. :PORT is a port of every address, of IPv6 and IPv4.
    #[arg(
        long,
        env = "CARPOOL_ADMIN_LISTEN",
        default_value = ":9090",
        value_name = "ADDRESS"
    )]
    admin_listen: ListenAddress,

    /// The image of proxies.
    #[arg(long, env = "CARPOOL_SIDECAR_IMAGE", default_value_t = image("sidecar"), value_name = "IMAGE")]
    sidecar_image: String,

    /// The image of workers.
    #[arg(long, env = "CARPOOL_WORKER_IMAGE", default_value_t = image("worker"), value_name = "IMAGE")]
    worker_image: String,

    /// The image of managed Redis servers: 7.0 or later, or Valkey.
    #[arg(
        long,
        env = "CARPOOL_REDIS_IMAGE",
        default_value = "docker.io/library/redis:7.2-bookworm",
        value_name = "IMAGE"
    )]
    redis_image: String,

    /// The user that Redis runs as, for an image that names none or root.
    #[arg(long, env = "CARPOOL_REDIS_USER", value_name = "UID", value_parser = clap::value_parser!(i64).range(1..))]
    redis_user: Option<i64>,

    /// Pull policy of all images.
    #[arg(long, env = "CARPOOL_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"], value_name = "POLICY")]
    image_pull_policy: String,

    /// A namespace, beside the operator's own, from where metrics of proxies and workers may be read: Prometheus'. Give
    /// it once for each.
    #[arg(
        long = "metrics-namespace",
        env = "CARPOOL_METRICS_NAMESPACE",
        value_delimiter = ',',
        value_name = "NAMESPACE"
    )]
    metrics_namespaces: Vec<String>,

    /// Settings of models whose own spec leaves them out, as JSON: nodeSelector, tolerations, imagePullSecrets,
    /// priorityClassName, and networkPolicies, which is Managed or None.
    #[arg(
        long,
        env = "CARPOOL_MODEL_DEFAULTS",
        default_value = "{}",
        value_name = "JSON"
    )]
    model_defaults: ModelDefaults,
    /// The number of models whose pods may be replaced at a time because this operator's version, or its images, make
    /// them differ. Each waits until the one before is Ready again. What a user changes waits for nobody.
    #[arg(
        long,
        env = "CARPOOL_MAX_UPDATES",
        default_value = "1",
        value_name = "MODELS",
        value_parser = at_least_one
    )]
    max_updates: usize,

    /// The operator's own namespace: where its Lease is, and from where proxies and workers may be asked.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "default",
        value_name = "NAMESPACE"
    )]
    namespace: String,

    /// The operator's name, unique among those alive: the pod's. Default: a random one.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    name: Option<String>,
}

/// The image of one of our programs, of this very version.
pub(crate) fn image(program: &str) -> String {
    format!("docker.io/carpool/{program}:{}", env!("CARGO_PKG_VERSION"))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a number of models from 1 on".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Reasons for which the operator ends badly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The admin port is taken.
    #[error("failed to listen on {0}: {1}")]
    Listen(ListenAddress, std::io::Error),
    /// Signals can't be waited for.
    #[error("failed to listen to signals: {0}")]
    Signal(#[from] std::io::Error),
    /// There is no way to an API server.
    #[error("failed to make a Kubernetes client: {0}")]
    Client(#[from] kube::Error),
    /// The Lease is not this process', or not any more.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The scaler has ended, which it never should.
    #[error("the scaler has ended, and no model would be scaled any more")]
    Scaler,
}

/// Runs the operator until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Result<(), RunError> {
    let stop = stop_on_signal()?;
    let calls = Calls::default();
    let config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    let client = ClientBuilder::try_from(config)?.with_layer(&calls).build();
    let listener = args
        .admin_listen
        .listen()
        .await
        .map_err(|error| RunError::Listen(args.admin_listen, error))?;
    let memory = Arc::new(Memory::default());
    let metrics = Arc::new(Metrics::new(Arc::clone(&memory), calls.clone()));
    tokio::spawn(admin::serve(listener, Arc::clone(&metrics)));

    let identity = args
        .name
        .unwrap_or_else(|| format!("carpool-{}", Uuid::new_v4()));
    let mut leadership = Leadership::contend(&args.namespace, &identity, &calls).await?;
    tracing::info!(identity, namespace = args.namespace, "waiting to lead");
    tokio::select! {
        gained = leadership.gained() => gained?,
        () = stop.cancelled() => {
            leadership.release().await;
            return Ok(());
        }
    }
    tracing::info!(identity, "leading");
    metrics.leading.set(1);

    let (cluster, watches) = Cluster::watch(&client);
    calls.expect(Cluster::watched(), Instant::now());
    let (asks, asked) = mpsc::unbounded();
    let context = Arc::new(Context {
        recorder: Recorder::new(
            client.clone(),
            Reporter {
                controller: names::MANAGER.to_owned(),
                instance: Some(identity),
            },
        ),
        client,
        cluster,
        memory,
        images: Images {
            sidecar: args.sidecar_image,
            worker: args.worker_image,
            redis: args.redis_image,
            redis_user: args.redis_user,
            pull_policy: args.image_pull_policy,
            defaults: args.model_defaults,
        },
        scrape_namespaces: std::iter::once(args.namespace)
            .chain(args.metrics_namespaces)
            .collect(),
        metrics,
        turns: Mutex::new(Turns::new(args.max_updates)),
        asks,
    });
    let mut scaler = tokio::spawn(autoscale::run(Arc::clone(&context)));
    let controller = controller::run(context, watches, asked, stop.clone().cancelled_owned());
    let result = tokio::select! {
        () = controller => Ok(()),
        () = leadership.lost() => Err(RunError::Lease(LeaseError::Lost)),
        // A task ends without a word, and this process would go on leading.
        _ = &mut scaler => Err(RunError::Scaler),
        // Reconciles that hang in a call would keep the process from ending.
        () = async { stop.cancelled().await; tokio::time::sleep(SHUTDOWN).await } => Ok(()),
    };
    scaler.abort();
    if !matches!(result, Err(RunError::Lease(LeaseError::Lost))) {
        leadership.release().await;
    }
    result
}

fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });
    Ok(stop)
}
