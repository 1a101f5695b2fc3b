//! The words users write: [`BatchedModelSpec`], its defaults and its rules.
//!
//! `sidecar` and `worker` read the very same structs from the one [`Config`] file that the operator
//! writes, so there is no second vocabulary and nothing to translate. The `kube` feature adds the
//! resource itself, its schema and its CEL rules.

mod access;
mod admin;
#[cfg(feature = "kube")]
mod admission;
mod config;
mod defaults;
#[cfg(test)]
mod golden;
mod loaded;
#[cfg(feature = "kube")]
mod manifest;
mod model;
mod quantity;
mod queue;
mod resources;
#[cfg(test)]
#[cfg(feature = "kube")]
mod rules;
mod scheduling;
#[cfg(feature = "kube")]
mod schema;
mod shape;
mod spec;
mod status;
pub mod tensor_names;
mod termination;
mod text;
#[cfg(feature = "kube")]
pub mod yaml;

pub use access::{
    IpBlock, NetworkPolicyMode, Peer, ProxyTls, Requirement, RequirementOperator, Selector,
};
pub use admin::{AdminAddress, NAME_HEADER};
#[cfg(feature = "kube")]
pub use admission::violations;
pub use config::{Config, ConfigError};
pub use loaded::{Loaded, LoadedReason};
#[cfg(feature = "kube")]
pub use manifest::manifest;
pub use model::{Datatype, Example, Format, Model, TensorSpec};
pub use quantity::{Bytes, Duration, ParseError};
pub use queue::{ExternalRedis, ManagedRedis, Priorities, Queue, Redis};
pub use resources::{Quantity, Resources};
pub use scheduling::{ImagePullSecret, TaintEffect, Toleration, TolerationOperator};
pub use shape::{Dimension, allows};
#[cfg(feature = "kube")]
pub use spec::BatchedModel;
pub use spec::{BatchedModelSpec, Batching, Device, Proxy, Rollout, Scaling, ScalingMode, Worker};
pub use status::{BatchedModelStatus, condition};
pub use termination::{Termination, TerminationReason};
pub use text::{Activation, Pooling, Task, Text};

/// The API group. It stands here alone, so that the owner of another domain changes one line.
pub const GROUP: &str = "carpool.dev";
