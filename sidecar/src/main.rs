//! `carpool-sidecar`: takes requests over HTTP and has the workers of one model answer them in batches.

use std::process::ExitCode;

use carpool_sidecar::{Settings, run};

fn main() -> ExitCode {
    carpool_process::raise_open_files();
    match Settings::from_command_line().map(run) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("carpool-sidecar: {error}");
            ExitCode::FAILURE
        }
        Err(code) => code,
    }
}
