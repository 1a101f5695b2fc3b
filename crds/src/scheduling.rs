//! The place of a model's pods: the nodes that they may run on, and what they need to get there.

#[cfg(feature = "kube")]
use kube::KubeSchema;
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A taint of nodes that pods put up with, as in a `PodSpec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(
    validation = (
        "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
        "tolerations: without a key, which stands for all taints, the operator must be Exists"
    ),
    validation = (
        "!has(self.value) || !has(self.operator) || self.operator == 'Equal'",
        "tolerations: with the operator Exists there must be no value"
    ),
    validation = (
        "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        "tolerations: tolerationSeconds is for the effect NoExecute"
    )
))]
pub struct Toleration {
    /// The taint's key. Without one the toleration is of all taints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 317)))]
    pub key: Option<String>,

    /// The comparison with the taint's value. `Equal`, as without one, or `Exists`, which is any value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,

    /// The taint's value, for the operator `Equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub value: Option<String>,

    /// The taint's effect. Without one the toleration is of all effects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,

    /// The seconds after which a pod leaves a node that got a taint of the effect `NoExecute`. Without it the pod stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// The comparison of a toleration with a taint's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum TolerationOperator {
    /// The taint has the toleration's value.
    Equal,
    /// The taint has any value.
    Exists,
}

/// The effect of a taint on pods without a toleration of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum TaintEffect {
    /// Pods are not scheduled there.
    NoSchedule,
    /// Pods are scheduled there only where nothing else is free.
    PreferNoSchedule,
    /// Pods that run there have to leave.
    NoExecute,
}

/// A Secret of the model's namespace with which images are pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub struct ImagePullSecret {
    /// The Secret's name.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
}
