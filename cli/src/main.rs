//! The binary `carpool`: the operator, the same on a laptop, the sidecar's injector, and one request to a model.

use std::process::ExitCode;

use carpool_local as local;
use carpool_operator::{
    command_line::{Logging, end, parse},
    infer, inject, run,
};
use clap::{Parser, Subcommand};

/// Requests share a ride to the GPU.
#[derive(Debug, Parser)]
#[command(name = "carpool", version)]
struct Cli {
    #[command(flatten)]
    logging: Logging,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator: serve every `BatchedModel` of the cluster.
    Run(Box<run::Args>),
    /// Serve one manifest on this machine, with processes in place of pods.
    Local(local::Args),
    /// Add the sidecar to the pods of a manifest.
    Inject(inject::Args),
    /// Send one inference to a model, with an input made from its metadata.
    Infer(infer::Args),
    /// Print the `CustomResourceDefinition`.
    Crds,
}

/// A reason why the process ends with an error.
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    carpool_process::raise_open_files();
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    cli.logging.start();
    let result: Result<(), Error> = match cli.command {
        Command::Run(args) => run::run(*args).await.map_err(Error::from),
        Command::Local(args) => local::run(args).await.map_err(Error::from),
        Command::Inject(args) => inject::run(&args).map_err(Error::from),
        Command::Infer(args) => infer::run(args).await.map_err(Error::from),
        Command::Crds => print_crd().map_err(Error::from),
    };
    end("carpool", result)
}

fn print_crd() -> Result<(), serde_yaml::SerializeError> {
    print!("{}", carpool_crds::manifest()?);
    Ok(())
}
