//! Helpers that the tests of several crates share. No product code depends on this crate, and it depends on none.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "helpers of tests fail as tests do"
)]

pub mod hostile;
mod redis;

use std::{
    net::TcpListener,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

pub use redis::{RedisServer, spawn_until};

/// The time within which everything that [`eventually`] waits for must have happened.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `check` holds, for what no event tells of. `what` says in the panic what never came true.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < give_up, "it never came true: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns a loopback port that nothing listens on.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Sends a process a signal by its short name, such as `STOP`.
pub fn signal(process: u32, signal: &str) {
    let process = process.to_string();
    let sent = Command::new("kill").args(["-s", signal, &process]).status();
    assert!(sent.unwrap().success());
}

/// The folder that `hack/env.sh` keeps models and tools in, which outlives a checkout.
#[must_use]
pub fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map_or_else(
            || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"),
            PathBuf::from,
        );
    base.join("carpool")
}

/// The interpreter of `hack/python`, which has torch.
#[must_use]
pub fn python() -> PathBuf {
    cache().join("venv/bin/python")
}
