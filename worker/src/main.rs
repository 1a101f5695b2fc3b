//! The binary `carpool-worker`.

use std::process::ExitCode;

use carpool_worker::{settings::Cli, start};
use clap::Parser;

/// The allocator, for libtorch's own calls of malloc, too. glibc's gives back to the system much of what a forward pass
/// frees and faults it in again in the next, up to thousands of pages; telling it not to takes more time and no less
/// memory than this one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
