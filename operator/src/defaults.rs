//! Settings of models whose own spec leaves them to the cluster.

use std::{collections::BTreeMap, str::FromStr};

use carpool_crds::{BatchedModelSpec, ImagePullSecret, NetworkPolicyMode, Toleration};
use serde::Deserialize;

/// Settings of models whose own spec leaves them to the cluster: the chart's `models`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ModelDefaults {
    /// Labels of the nodes that may run pods.
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that pods put up with.
    pub tolerations: Vec<Toleration>,
    /// Secrets, in each model's namespace, with which images are pulled.
    pub image_pull_secrets: Vec<ImagePullSecret>,
    /// The pods' priority class; the cluster's default where it is empty.
    pub priority_class_name: String,
    /// The writer of network policies.
    pub network_policies: NetworkPolicyMode,
}

impl ModelDefaults {
    /// Whether the operator writes a model's network policies.
    #[must_use]
    pub fn manages_network_policies(&self, spec: &BatchedModelSpec) -> bool {
        let mode = spec.network_policies.unwrap_or(self.network_policies);
        mode == NetworkPolicyMode::Managed
    }
}

impl FromStr for ModelDefaults {
    type Err = serde_json::Error;

    fn from_str(json: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_read_as_the_chart_writes_them() {
        let json = r#"{"imagePullSecrets":[],"networkPolicies":"None","nodeSelector":{"pool":"gpu"},
            "priorityClassName":"","tolerations":[{"key":"gpu","operator":"Exists"}]}"#;
        let defaults: ModelDefaults = json.parse().unwrap();
        assert_eq!(defaults.node_selector["pool"], "gpu");
        assert_eq!(defaults.tolerations[0].key.as_deref(), Some("gpu"));
        assert_eq!(
            "{}".parse::<ModelDefaults>().unwrap(),
            ModelDefaults::default()
        );
        let error = r#"{"nodeSelecter":{}}"#.parse::<ModelDefaults>().unwrap_err();
        assert!(error.to_string().contains("nodeSelecter"), "{error}");
    }
}
