//! Access to a model: network policies, who may reach the proxies, and their certificate.

use std::collections::BTreeMap;

#[cfg(feature = "kube")]
use kube::KubeSchema;
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The writer of a model's network policies. `Managed`: the operator, by `proxy.allowFrom`. `None`: nobody, or you; those that
/// the operator made go. Default: the chart's `models.networkPolicies`, which is `Managed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum NetworkPolicyMode {
    /// The operator: one for the proxies, one for the workers and one for a managed Redis.
    #[default]
    Managed,
    /// Nobody, or you: the operator makes none and removes those that it made.
    None,
}

/// Pods or addresses that may reach the proxies, as a `NetworkPolicyPeer`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "has(self.ipBlock) != (has(self.podSelector) || has(self.namespaceSelector))",
    "allowFrom: either ipBlock, or podSelector, namespaceSelector or both"
)))]
pub struct Peer {
    /// The pods: those that `namespaceSelector` selects, or else of the model's namespace. `{}` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<Selector>,

    /// The namespaces, all their pods where `podSelector` selects none. `{}` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<Selector>,

    /// Addresses, such as those of clients outside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// Labels that objects must have, as a `LabelSelector`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
pub struct Selector {
    /// Labels with these values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,

    /// Requirements, all of which must be met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 16)))]
    pub match_expressions: Option<Vec<Requirement>>,
}

/// A requirement of a label, as a `LabelSelectorRequirement`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
    "matchExpressions: In and NotIn need values, Exists and DoesNotExist take none"
)))]
pub struct Requirement {
    /// The label's key.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 317)))]
    pub key: String,

    /// The relation of the label to the values.
    pub operator: RequirementOperator,

    /// The values, for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 64), inner(length(max = 63))))]
    pub values: Option<Vec<String>>,
}

/// The relation of a label to a requirement's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum RequirementOperator {
    /// The label has one of the values.
    In,
    /// The label has none of the values.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is no such label.
    DoesNotExist,
}

/// Addresses, as an `IPBlock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub struct IpBlock {
    /// The addresses, such as `10.0.0.0/8` or `2001:db8::/32`; `0.0.0.0/0` and `::/0` are all.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 49)))]
    pub cidr: String,

    /// Addresses within `cidr` that are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 64), inner(length(min = 1, max = 49)))
    )]
    pub except: Option<Vec<String>>,
}

/// The certificate of the proxies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
pub struct ProxyTls {
    /// A Secret of this namespace, of the type kubernetes.io/tls: its key `tls.crt` holds the certificate for the names
    /// by which clients call the Service, and those between it and its authority, `tls.key` its key, both as PEM. A
    /// renewal is followed without a restart. Sidecars in the pods of apps are called without TLS, as nothing leaves
    /// the pod.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    #[cfg_attr(feature = "kube", x_kube(validation = (
        "self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')",
        "tls.secretName: the name of a Secret is lower-case letters, digits, '-' and '.', starting and ending with a letter or digit"
    )))]
    pub secret_name: String,
}
