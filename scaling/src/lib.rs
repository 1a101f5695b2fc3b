//! The number of workers that a queue needs, for pods and for `carpool local` alike: [`backlog`] asks for the queue's
//! length, [`Scaler`] decides. Neither knows of Kubernetes.

pub mod backlog;
mod decide;

pub use decide::{Decision, Observation, Reason, Scaler};
