//! The binary `carpool`.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    carpool_process::raise_open_files();
    carpool_operator::cli::main().await
}
