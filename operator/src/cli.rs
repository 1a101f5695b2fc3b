//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{infer, inject, local, run};

/// BSD's `EX_USAGE`: the command line is wrong, and trying again will not help.
const USAGE: u8 = 64;

/// Requests share a ride to the GPU.
#[derive(Debug, Parser)]
#[command(name = "carpool", version)]
struct Cli {
    /// How log lines are written.
    #[arg(long, env = "CARPOOL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator: serve every `BatchedModel` of the cluster.
    Run(run::Args),
    /// Serve one manifest on this machine, with processes in place of pods.
    Local(local::Args),
    /// Add the sidecar to the pods of a manifest.
    Inject(inject::Args),
    /// Send one inference to a model, with an input made from its metadata.
    Infer(infer::Args),
    /// Print the `CustomResourceDefinition`.
    Crds,
}

/// Why the process ends badly.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Run(#[from] run::RunError),
    #[error(transparent)]
    Local(#[from] local::LocalError),
    #[error(transparent)]
    Inject(#[from] inject::InjectError),
    #[error(transparent)]
    Infer(#[from] infer::InferError),
    #[error("failed to print the CustomResourceDefinition: {0}")]
    Crds(#[from] serde_yaml::SerializeError),
}

/// Parses the command line and runs what it asks for.
pub async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // What clap says goes nowhere else if this fails, too.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    log_to_stderr(cli.log_format);
    let result: Result<(), Error> = match cli.command {
        Command::Run(args) => run::run(args).await.map_err(Error::from),
        Command::Local(args) => local::run(args).await.map_err(Error::from),
        Command::Inject(args) => inject::run(args).await.map_err(Error::from),
        Command::Infer(args) => infer::run(args).await.map_err(Error::from),
        Command::Crds => print_crd().map_err(Error::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("carpool: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_crd() -> Result<(), serde_yaml::SerializeError> {
    print!("{}", carpool_crds::manifest()?);
    Ok(())
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,kube_lease_manager=warn"));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => registry.with(layer).init(),
        LogFormat::Json => registry.with(layer.json()).init(),
    }
}
