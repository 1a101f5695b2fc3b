//! The worker: the queue in front, libtorch behind, one model a process.
//!
//! A request's way through it, and where that is written:
//!
//! - **fetch**: [`service`] takes requests from the queue when the device is about to be free, never earlier, and no
//!   more than fill the next batch, so that an idle worker elsewhere finds them; only where requests differ in length
//!   and the queue is deep ([`run_timing`]) as many again, to choose which of them share a batch;
//! - **assemble**: [`assemble`] decodes and tokenizes, long texts beside the batches (`long_texts`); [`wait_queue`] says
//!   which requests share a batch;
//! - **run**: a batch is padded ([`batch`]) and made ready (`stage`) before the device is free, launched and collected by
//!   the one thread that runs the model ([`runner`]); [`executor`] halves what fails; [`backend`] is libtorch;
//! - **answer**: [`batch`] cuts the outputs apart, [`assemble`] encodes them, and one write carries the answers and
//!   the next fetch.
//!
//! Around it: [`artifact`] and [`fetch`] bring the model, [`warmup`] proves it, [`start`] puts the parts together.

pub mod admin;
pub mod artifact;
pub mod assemble;
pub mod backend;
pub mod batch;
mod block;
pub mod executor;
pub mod fatal;
pub mod fetch;
pub mod item;
pub mod live_settings;
mod long_texts;
mod memory_limit;
pub mod metrics;
pub mod probe;
pub mod progress;
pub mod proof;
pub mod run_timing;
pub mod runner;
pub mod service;
pub mod settings;
pub mod sharing;
pub mod size;
mod stage;
pub mod start;
mod text;
mod tokens;
mod unreadable;
mod values;
pub mod wait_queue;
pub mod warmup;
