//! The status of a `BatchedModel`: what the operator reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The state that the operator last saw.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub struct BatchedModelStatus {
    /// The conditions Ready, Progressing, Stalled, ModelLoaded, ProxyReady, RedisReady,
    /// ScalingActive and NetworkPoliciesReady.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Workers that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Workers that are Ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Requests waiting and in flight: written with every other change and, by itself, at most every 30 s.
    #[serde(default)]
    pub queue_length: i64,
    /// The revision that answers: the one that the proxies feed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<String>,
    /// The spec's revision. It is `serving` unless a rollout is under way or has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<String>,
    /// The SHA-256 of the artifact that the workers loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The URL at which the model answers inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The label selector of the workers, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

/// The types of condition.
pub mod condition {
    /// The condition that the latest revision serves with the wanted number of workers, or will as soon as a request wakes
    /// it. While a rollout waits or has failed it is False, although the revision before answers.
    pub const READY: &str = "Ready";
    /// The condition that something is on its way to what the spec asks for.
    pub const PROGRESSING: &str = "Progressing";
    /// The condition that only a change of the spec or of the cluster brings the model on. Present only while it is True,
    /// as kstatus, the rules of Flux, has it.
    pub const STALLED: &str = "Stalled";
    /// The condition that Redis accepts connections.
    pub const REDIS_READY: &str = "RedisReady";
    /// The condition that at least one proxy is Ready.
    pub const PROXY_READY: &str = "ProxyReady";
    /// The condition that a worker has loaded this revision and warmed it up; the reason says how it is served. False,
    /// too, where workers serve it but the artifact has changed, so that none can join them.
    pub const MODEL_LOADED: &str = "ModelLoaded";
    /// The condition that the number of workers follows the queue.
    pub const SCALING_ACTIVE: &str = "ScalingActive";
    /// The condition that the cluster has the network policies that the spec asks for. Absent where it asks for none.
    pub const NETWORK_POLICIES_READY: &str = "NetworkPoliciesReady";
}
