//! The binary `carpool-operator`: all that the operator's image holds.

use std::process::ExitCode;

use carpool_operator::{
    command_line::{Logging, end, parse},
    infer, run,
};
use clap::{Parser, Subcommand};

/// The operator: serves every `BatchedModel` of the cluster.
#[derive(Debug, Parser)]
#[command(
    name = "carpool-operator",
    version,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(flatten)]
    logging: Logging,

    #[command(flatten)]
    run: run::Args,

    #[command(subcommand)]
    other: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send one inference to a model, with an input made from its metadata. `helm test` does.
    Infer(infer::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    carpool_process::raise_open_files();
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    cli.logging.start();
    let result = match cli.other {
        None => run::run(cli.run).await.map_err(|error| error.to_string()),
        Some(Command::Infer(args)) => infer::run(args).await.map_err(|error| error.to_string()),
    };
    end("carpool-operator", result)
}
