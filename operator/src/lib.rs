//! `carpool`: the controller of `BatchedModel`s, the same on a laptop, and the sidecar's injector.
//!
//! - [`run`] is the operator: it turns each `BatchedModel` into Redis, proxies and workers (`reconcile`), brings
//!   revisions on and off (`rollout`) and keeps the number of workers on the queue's length (`autoscale`, which asks
//!   [`scaling`]).
//! - [`local`] runs one manifest as processes instead of pods, scaled by the same [`scaling`].
//! - [`inject`] adds the sidecar to an app's manifest; [`infer`] sends a model one request.

mod admin;
mod api;
mod autoscale;
pub mod backlog;
pub mod cli;
mod cluster;
mod controller;
mod index;
pub mod infer;
pub mod inject;
mod lease;
pub mod local;
mod memory;
mod metrics;
mod names;
mod reconcile;
mod rollout;
pub mod run;
pub mod scaling;
mod workers;
mod yaml;
