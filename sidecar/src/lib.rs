//! The batching proxy: HTTP in front, the queue behind, nothing kept in between.
//!
//! A request's way: `connections` takes it, `routes` finds who answers, `infer`, `predict` or the file of another form reads
//! it, `validate` holds it against the model, the queue carries it to a worker and its answer back, and the same connection
//! carries it out. Whatever goes wrong becomes one [`Error`].
//!
//! The proxy is the role; a proxy that runs next to an app in its pod is called a sidecar, as Kubernetes calls such
//! containers.

mod admin;
mod binary;
mod body;
mod body_budget;
mod compression;
mod connections;
mod cors;
mod embeddings;
mod error;
mod followed;
mod grpc;
#[doc(hidden)]
pub mod hostile;
mod infer;
mod jobs;
mod metadata;
mod metrics;
mod payload;
mod predict;
mod proxy;
mod reload;
mod rerank;
mod routes;
mod server;
mod settings;
mod shape;
mod task;
mod tls;
mod trace;
mod v1;
mod validate;

pub use error::Error;
pub use server::{RunError, Server, run};
pub use settings::{Args, LogFormat, Settings, SettingsError};
pub use tls::{Certificate, CertificateError};
