//! The real proxy on ports of its own, a real Redis, and workers that use the real queue and a model of few words.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "helpers of tests may fail as tests do, and take what reads well in a call"
)]

mod answers;
mod binary;
mod bodies;
mod bounds;
mod client;
mod following;
mod frames;
mod grpc;
mod hostile;
mod jobs;
mod lifecycle;
mod methods;
mod moving;
mod process;
mod refusals;
mod reload;
mod rig;
mod tasks;
mod tls;
mod v1;
mod worker;
