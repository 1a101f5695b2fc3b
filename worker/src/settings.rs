//! The command line, and the settings that it makes once every part is known to be good.
//!
//! A command line that can't be read ends at its first mistake, which clap tells; mistakes in the files and the URL
//! that it names are told all at once.

use std::{num::NonZeroUsize, path::PathBuf};

use carpool_crds::{Config, Model};
use carpool_process::ListenAddress;
use carpool_queue::Endpoint;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Takes requests from the queue, runs them in batches and answers them.
#[derive(Debug, Parser)]
#[command(name = "carpool-worker", version)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of the process.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Loads the model and serves the queue until it is told to stop.
    Serve(ServeArgs),
    /// Copies the artifact to where `serve` reads it and checks it.
    Fetch(FetchArgs),
}

/// Arguments of both commands.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// The configuration that the operator writes, as YAML.
    #[arg(long, env = "CARPOOL_CONFIG")]
    pub config: PathBuf,

    /// The revision of the model, as the configuration names it.
    #[arg(long, env = "CARPOOL_REVISION")]
    pub revision: String,

    /// The file to write to why the process ended. Default: /dev/termination-log, where that exists.
    #[arg(long, env = "CARPOOL_TERMINATION_LOG")]
    pub termination_log: Option<PathBuf>,

    /// The form of log lines.
    #[arg(long, env = "CARPOOL_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Arguments of `carpool-worker serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Arguments of both commands.
    #[command(flatten)]
    pub common: CommonArgs,

    #[allow(
        rustdoc::broken_intra_doc_links,
        reason = "the brackets of a form, printed by --help as they stand here"
    )]
    /// The Redis that holds the queue: redis[s]://[USER:PASSWORD@]HOST[:PORT][/DB], s for TLS; or
    /// redis[s]+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/NAME[/DB], the primary that those sentinels know
    /// by this name; ?sentinelUsername=USER&sentinelPassword=PASSWORD at the end is for the sentinels.
    #[arg(
        long,
        env = "CARPOOL_REDIS_URL",
        hide_env_values = true,
        required_unless_present = "redis_url_file"
    )]
    pub redis_url: Option<String>,

    /// A file that holds the URL of --redis-url.
    #[arg(long, env = "CARPOOL_REDIS_URL_FILE", conflicts_with = "redis_url")]
    pub redis_url_file: Option<PathBuf>,

    /// A PEM file with the certificate authorities that Redis' certificate may come from, read again for each new
    /// connection. Default: `ca.crt` beside --redis-url-file, where there is one, or else the system's.
    #[arg(long, env = "CARPOOL_REDIS_CA_FILE")]
    pub redis_ca_file: Option<PathBuf>,

    /// The name of this worker, unique among those alive: the pod's.
    #[arg(long, env = "CARPOOL_NAME")]
    pub name: String,

    /// The address at which metrics and probes are served. :PORT is a port of every address, of IPv6 and IPv4.
    #[arg(long, env = "CARPOOL_ADMIN_LISTEN", default_value = ":9090")]
    pub admin_listen: ListenAddress,

    /// The file to write this worker's name and the address of its admin port to, as JSON, once it listens there. For
    /// --admin-listen with port 0.
    #[arg(long, env = "CARPOOL_ADMIN_ADDRESS_FILE")]
    pub admin_address_file: Option<PathBuf>,

    /// The artifact: a folder with `model.pt`, or the file itself.
    #[arg(long, env = "CARPOOL_MODEL")]
    pub model: PathBuf,

    /// The number of threads within one forward pass. Default: the processors that this process may use, by its
    /// affinity and the limit of its control group, rounded down but at least one.
    #[arg(long, env = "CARPOOL_THREADS")]
    pub threads: Option<NonZeroUsize>,
}

/// Arguments of `carpool-worker fetch`.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// Arguments of both commands.
    #[command(flatten)]
    pub common: CommonArgs,

    /// The artifact: a folder, or a file.
    #[arg(long, env = "CARPOOL_SOURCE")]
    pub source: PathBuf,

    /// The folder to copy it to.
    #[arg(long, env = "CARPOOL_TO")]
    pub to: PathBuf,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// JSON for machines.
    Json,
}

/// The mistakes in what the command line names, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SettingsError(pub Vec<String>);

/// The settings that `serve` works with, parsed and checked.
#[derive(Debug)]
pub struct Settings {
    /// The whole configuration.
    pub config: Config,
    /// The model of the configuration that this worker runs.
    pub model: Model,
    /// The address of Redis.
    pub connection: Endpoint,
    /// The number of threads within one forward pass.
    pub threads: usize,
}

impl ServeArgs {
    /// Reads and checks the configuration and the URL that the command line names.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let config = self.common.config();
        let connection = self.connection();
        match (config, connection) {
            (Ok((config, model)), Ok(connection)) => Ok(Settings {
                config,
                model,
                connection,
                threads: self
                    .threads
                    .map_or_else(available_threads, NonZeroUsize::get),
            }),
            (config, connection) => Err(SettingsError(
                [config.err(), connection.err()]
                    .into_iter()
                    .flatten()
                    .collect(),
            )),
        }
    }

    fn connection(&self) -> Result<Endpoint, String> {
        let connection = match (&self.redis_url, &self.redis_url_file) {
            (Some(url), _) => Endpoint::from_url(url),
            (None, Some(file)) => Endpoint::from_file(file),
            (None, None) => {
                return Err("neither --redis-url nor --redis-url-file is given".to_owned());
            }
        };
        connection
            .and_then(|connection| match &self.redis_ca_file {
                Some(file) => connection.with_ca_file(file),
                None => Ok(connection),
            })
            .map_err(|error| error.to_string())
    }
}

impl CommonArgs {
    /// Reads the configuration and finds the revision in it.
    pub fn config(&self) -> Result<(Config, Model), String> {
        Config::read(&self.config)
            .and_then(|config| {
                let model = config.model(&self.revision)?.clone();
                Ok((config, model))
            })
            .map_err(|error| error.to_string())
    }

    /// The file to write to why the process ended, if any.
    #[must_use]
    pub fn termination_log(&self) -> Option<PathBuf> {
        let kubernetes = PathBuf::from("/dev/termination-log");
        self.termination_log
            .clone()
            .or_else(|| kubernetes.exists().then_some(kubernetes))
    }
}

/// The number of processors that this process may use; the standard library reads the limits of its control group.
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
