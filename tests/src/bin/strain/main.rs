//! The cost of the queue to Redis: proxies and workers in one process, with a simulated model, against a redis-server
//! of its own with the settings of a managed one. Prints a table, or a JSON line for each of its rows.

mod load;
mod redis;
mod report;
mod scenarios;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use report::Row;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Clients that each send one small request after another.
    Steady,
    /// Redis is killed with thousands of requests open, and comes back with its log.
    Restart,
    /// Five times what the workers can do, beside once as much.
    Overload,
    /// One client, with bodies from 256 bytes to 4 MiB.
    Bodies,
    /// A proxy dies, and its requests are answered at length.
    DeadProxy,
}

#[derive(Parser)]
struct Args {
    /// Scenarios to run; may be given several times. Default: everything.
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// Proxies.
    #[arg(long, default_value_t = 64)]
    producers: usize,
    /// Workers.
    #[arg(long, default_value_t = 32)]
    consumers: usize,
    /// Clients of each proxy under steady load.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Seconds that each load lasts.
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Requests of 256 bytes, and then of 4 KiB, that are open when Redis restarts.
    #[arg(long, default_value_t = 10_000)]
    open: usize,
    /// Requests of 1 MiB that are open when it restarts once more.
    #[arg(long, default_value_t = 256)]
    open_large: usize,
    /// Prints JSON lines in place of a table.
    #[arg(long)]
    json: bool,
    /// The program of Redis.
    #[arg(long, default_value = "redis-server", value_name = "FILE")]
    redis_server: PathBuf,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Error> {
    let args = Args::parse();
    if !args.json {
        println!("{}", Row::header());
    }
    let all = [
        Scenario::Steady,
        Scenario::Restart,
        Scenario::Overload,
        Scenario::Bodies,
        Scenario::DeadProxy,
    ];
    for scenario in all {
        if !args.scenario.is_empty() && !args.scenario.contains(&scenario) {
            continue;
        }
        match scenario {
            Scenario::Steady => scenarios::steady(&args).await,
            Scenario::Restart => scenarios::restart(&args).await,
            Scenario::Overload => scenarios::overload(&args).await,
            Scenario::Bodies => scenarios::bodies(&args).await,
            Scenario::DeadProxy => scenarios::dead_proxy(&args).await,
        }?;
    }
    Ok(())
}

impl Args {
    fn print(&self, row: &Row) -> Result<(), Error> {
        if self.json {
            println!("{}", serde_json::to_string(row)?);
        } else {
            println!("{row}");
        }
        Ok(())
    }
}
