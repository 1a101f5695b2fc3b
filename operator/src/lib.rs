//! The controller of `BatchedModel`s, and the sidecar's injector.
//!
//! - [`run`] is the operator: it turns each `BatchedModel` into Redis, proxies and workers (`reconcile`), brings
//!   revisions on and off (`rollout`) and keeps the number of workers on the queue's length (`autoscale`, which asks
//!   [`carpool_scaling`]).
//! - [`inject`] adds the sidecar to an app's manifest; [`infer`] sends a model one request.
//! - [`command_line`] is shared by the two binaries that offer them.

mod admin;
mod api;
mod autoscale;
mod calls;
mod cluster;
pub mod command_line;
mod contained;
mod controller;
mod defaults;
mod index;
pub mod infer;
pub mod inject;
mod lease;
mod live;
mod memory;
mod metrics;
mod names;
mod reconcile;
mod rollout;
pub mod run;
mod turns;
mod workers;
