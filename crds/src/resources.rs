//! The resources that a container asks of its node.

use std::collections::BTreeMap;

#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// A container's resources. Claims of dynamic resource allocation go through `podOverrides`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub struct Resources {
    /// The most that the container may use, by resource, such as `nvidia.com/gpu: 1` or `memory: 2Gi`. A worker's
    /// `ephemeral-storage` bounds its copy of the artifact, too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,

    /// The amounts that a node must have free for the container, by resource. Default: the limits; of a managed Redis'
    /// memory only 128Mi, if its limit is more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
}

/// An amount, as Kubernetes writes it: `500m`, `1.5`, `2Gi`, or a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

const UNITS: [(&str, f64); 14] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
];

impl Quantity {
    /// The amount in the resource's base unit, such as bytes; `None` where the text is no quantity.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((self.0.strip_suffix(unit)?, *factor)))
            // Exa is left to `f64`'s own exponent: `1E3` is a number, `1E` is not one worth writing.
            .unwrap_or((&self.0, 1.0));
        number.parse::<f64>().ok().map(|number| number * factor)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(serde_json::Number),
            Text(String),
        }
        Ok(Self(match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        }))
    }
}

#[cfg(feature = "kube")]
impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 0,
            "maxLength": 32,
            "pattern": "^([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, value) in [
            ("\"1Gi\"", 1_073_741_824.0),
            ("\"1.5Gi\"", 1_610_612_736.0),
            ("\"500m\"", 0.5),
            ("\"1e3\"", 1000.0),
            ("\"128M\"", 128e6),
            ("2", 2.0),
        ] {
            let quantity: Quantity = serde_json::from_str(text).unwrap();
            assert_eq!(quantity.value(), Some(value), "{text}");
        }
        assert_eq!(Quantity("lots".into()).value(), None);
    }

    #[test]
    fn a_number_is_kept_as_text() {
        let resources: Resources =
            serde_json::from_str(r#"{"limits": {"nvidia.com/gpu": 1}}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&resources).unwrap(),
            r#"{"limits":{"nvidia.com/gpu":"1"}}"#
        );
    }
}
