//! The binary `carpool`.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    carpool_operator::cli::main().await
}
