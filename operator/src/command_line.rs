//! The parts of a command line that the binaries `carpool` and `carpool-operator` share: exit codes and logs.

use std::{fmt::Display, process::ExitCode};

use clap::{Parser, ValueEnum};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// BSD's `EX_USAGE`: the command line is wrong, and trying again will not help.
const USAGE: u8 = 64;

/// Logging of a process: to where, and how.
#[derive(Debug, clap::Args)]
pub struct Logging {
    /// Form of log lines.
    #[arg(long, env = "CARPOOL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Parses the command line. Where that fails, or help is asked for, it is printed and the exit code comes back.
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| {
        // Clap's message goes nowhere else if this fails, too.
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
    })
}

/// Ends a program: prints the error that it ends with, if any, after the program's name.
pub fn end(program: &str, result: Result<(), impl Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Logging {
    /// Sends the process's log to standard error from here on, filtered by `RUST_LOG`.
    pub fn start(&self) {
        let filter = EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| EnvFilter::new("info,kube_lease_manager=warn"));
        let registry = tracing_subscriber::registry().with(filter);
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => registry.with(layer).init(),
            LogFormat::Json => registry.with(layer.json()).init(),
        }
    }
}
