//! `carpool-worker`.

use std::process::ExitCode;

use carpool_worker::{settings::Cli, start};
use clap::Parser;

fn main() -> ExitCode {
    carpool_process::raise_open_files();
    match Cli::try_parse() {
        Ok(cli) => start::run(&cli),
        Err(error) => {
            // Help and version are no mistakes; printing them fails only where nobody reads.
            drop(error.print());
            if error.use_stderr() {
                ExitCode::from(start::BAD_SETTINGS)
            } else {
                ExitCode::SUCCESS
            }
        }
    }
}
