//! The lifecycle of one model: a sidecar and as many workers as its queue needs, from its start to its drain.

mod processes;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use carpool_crds::Config;
use carpool_scaling::{Observation, Scaler, backlog::AdminClient};
use tokio::{task::JoinSet, time::sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    LocalError, Shared, cpus,
    files::{self, Files},
    manifest::Manifest,
    metrics::Meter,
    process::Exit,
    reporter::{Reporter, Snapshot},
    scrape::scrape,
    supervised::{Running, Supervised},
};

/// The time between two scrapes. A request that finds no worker waits this long for one to be started.
const PERIOD: Duration = Duration::from_secs(1);
/// The time between two scrapes while a process has yet to say that it is ready: a crash counts differently after that.
const STARTING: Duration = Duration::from_millis(100);
/// The time that a sidecar is given to end, beyond the longest that a request may be open.
const PROXY_GRACE: Duration = Duration::from_secs(5);
/// The time that a worker is given to end: the batch that runs is answered first.
const WORKER_GRACE: Duration = Duration::from_secs(30);
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    Proxy,
    Worker(u32),
}

/// A model that is served.
pub struct Served {
    shared: Arc<Shared>,
    manifest: Manifest,
    revision: String,
    config: Config,
    /// The socket that the sidecars listen on, one after another; `None` once no more requests are to come.
    listener: Option<TcpListener>,
    files: Files,
    client: AdminClient,
    scaler: Scaler,
    meter: Meter,
    reporter: Reporter,
    proxy: Supervised,
    proxies_started: u32,
    /// The workers by slot, which is part of a worker's name: the next one in a slot takes over the requests of the
    /// last one.
    workers: BTreeMap<u32, Supervised>,
    children: JoinSet<(Child, Exit)>,
    announced: bool,
    proven: bool,
    stopping: bool,
}

impl Served {
    /// Prepares a model, of which nothing runs yet.
    pub fn new(
        shared: Arc<Shared>,
        manifest: Manifest,
        listen: SocketAddr,
        listener: TcpListener,
    ) -> Result<Self, LocalError> {
        let now = Instant::now();
        let model = manifest.spec.model.clone();
        let revision = model.revision();
        let config = Config {
            name: manifest.name.clone(),
            namespace: manifest.namespace.clone(),
            uid: Uuid::new_v4().to_string(),
            serving: revision.clone(),
            places: BTreeMap::new(),
            models: BTreeMap::from([(revision.clone(), model)]),
            batching: manifest.spec.batching.clone(),
            queue: manifest.spec.queue.clone(),
            device: manifest.spec.worker.device(),
            cors_allow_origins: manifest.spec.proxy.cors_allow_origins.clone(),
        };
        let files = Files::new(shared.folder.join(&manifest.name), &manifest.file)?;
        files.write_config(&config)?;
        let reporter = Reporter::new(
            shared.console.clone(),
            &manifest.name,
            listen,
            shared.tls_dir.is_some(),
        );
        let scaling = cpus::bounded(&manifest.spec.scaling, cpus::available(), &reporter);
        Ok(Self {
            files,
            revision,
            config,
            listener: Some(listener),
            client: AdminClient::new(),
            scaler: Scaler::new(scaling),
            meter: Meter::default(),
            reporter,
            proxy: Supervised::new(now),
            proxies_started: 0,
            workers: BTreeMap::new(),
            children: JoinSet::new(),
            announced: false,
            proven: false,
            stopping: false,
            shared,
            manifest,
        })
    }

    /// Serves until `stop`, then answers what is open and ends every process.
    pub async fn serve(mut self, stop: CancellationToken) -> Result<(), LocalError> {
        let result = self.run(&stop).await;
        if let Err(error) = &result {
            self.listener = None;
            self.stop_all().await;
            let status = files::failed_status(&self.manifest.name, &self.revision, error);
            // The error itself is reported in any case.
            let _ = self.files.write_status(&status);
        }
        self.reporter.close();
        result
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<(), LocalError> {
        let mut next = Instant::now();
        loop {
            tokio::select! {
                Some(ended) = self.children.join_next() => {
                    // A child's task neither panics nor is aborted.
                    if let Ok((child, exit)) = ended {
                        self.on_end(child, &exit)?;
                    }
                }
                () = stop.cancelled(), if !self.stopping => {
                    self.stopping = true;
                    self.listener = None;
                    let grace = self.config.queue.timeout.0 + PROXY_GRACE;
                    if let Some(proxy) = self.proxy.running_mut() {
                        proxy.handle.stop(grace);
                    }
                }
                () = sleep_until(next.into()) => {
                    self.tick().await?;
                    next = Instant::now() + if self.is_starting() { STARTING } else { PERIOD };
                }
            }
            if self.stopping && self.proxy.running().is_none() {
                self.stop_all().await;
                return Ok(());
            }
        }
    }

    async fn tick(&mut self) -> Result<(), LocalError> {
        self.reload()?;
        let scrape = scrape(&self.client, &mut self.proxy, &mut self.workers).await;
        let queue = scrape
            .backlog
            .map(|mut backlog| backlog.revisions.remove(&self.revision).unwrap_or_default());
        let rates = self
            .meter
            .rates(Instant::now(), &scrape.proxies, &scrape.workers);
        if self.proxy.ready() && !self.announced {
            self.announced = true;
            let admin = self.proxy.running().and_then(Running::url);
            let curl = self.files.curl(
                &self.manifest.name,
                &self.reporter.url,
                &self.manifest.spec.model,
            )?;
            self.reporter
                .announce(&admin.unwrap_or_default(), &self.files.status, &curl);
        }
        if !self.proven && self.workers.values().any(Supervised::ready) {
            self.proven = true;
            self.reporter
                .say(format_args!("the model is loaded, ready"));
        }
        self.reporter.loaded(&scrape.loaded);
        let decision = self.scaler.decide(
            Instant::now(),
            Observation {
                length: queue.as_ref().map(|queue| queue.length),
                current: u32::try_from(self.wanted()).unwrap_or(u32::MAX),
                proven: self.proven,
            },
        );
        self.scale_to(decision.replicas, queue.as_ref());
        self.start_due()?;

        let wanted = self.wanted();
        let ready = self
            .workers
            .values()
            .filter(|worker| worker.ready() && !worker.is_stopping())
            .count();
        self.reporter.show(&Snapshot {
            queue: queue.map(|queue| queue.length),
            rates,
            ready,
            wanted,
            reason: decision.reason,
        });
        let workers = self.workers.values().filter_map(Supervised::running);
        let proxy = self.proxy.running();
        let status = files::Status {
            name: &self.manifest.name,
            url: &self.reporter.url,
            revision: &self.revision,
            wanted,
            proxy,
            workers: workers.collect(),
        };
        self.files.write_status(&status.json())
    }

    /// Whether a process that runs has not been ready yet.
    fn is_starting(&self) -> bool {
        let workers = self.workers.values().filter_map(Supervised::running);
        !self.proxy.ready() || workers.into_iter().any(|worker| !worker.has_been_ready())
    }

    /// The number of workers that are asked for, running or not.
    fn wanted(&self) -> usize {
        self.workers
            .values()
            .filter(|worker| !worker.is_stopping())
            .count()
    }

    /// Follows changes of the manifest, as far as they need no other processes.
    fn reload(&mut self) -> Result<(), LocalError> {
        let Some(manifest) = self.files.changed_manifest(&self.manifest.name) else {
            return Ok(());
        };
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(message) => {
                self.reporter
                    .say(format_args!("{message}; what was there before still holds"));
                return Ok(());
            }
        };
        if manifest.spec.model != self.manifest.spec.model
            || manifest.spec.worker != self.manifest.spec.worker
        {
            self.reporter
                .say("spec.model and spec.worker are read at start; for changes there, start anew");
        }
        self.config.batching = manifest.spec.batching;
        self.config.queue = manifest.spec.queue;
        self.files.write_config(&self.config)?;
        if manifest.spec.scaling != self.manifest.spec.scaling {
            self.manifest.spec.scaling = manifest.spec.scaling;
            let scaling = &self.manifest.spec.scaling;
            let scaling = cpus::bounded(scaling, cpus::available(), &self.reporter);
            self.scaler.set(scaling);
        }
        self.reporter
            .say("the manifest has changed: scaling, batching and queue follow");
        Ok(())
    }
}
