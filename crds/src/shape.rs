//! The dimensions of a tensor's shape.

use std::fmt;

#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A dimension of an item's shape: its size, `-1` where it is variable, or a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dimension {
    /// A size of at least 1, or -1: a variable size, and one of unknown origin in an output.
    Size(i64),
    /// A variable size that is equal wherever this name stands in the same request.
    Name(String),
}

impl Dimension {
    /// The dimension's size, where it is fixed.
    #[must_use]
    pub fn fixed(&self) -> Option<i64> {
        match self {
            Self::Size(size) if *size != -1 => Some(*size),
            Self::Size(_) | Self::Name(_) => None,
        }
    }

    /// The dimension's name, where it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Size(_) => None,
            Self::Name(name) => Some(name),
        }
    }

    /// The dimension as the Open Inference Protocol's metadata has it: the size, -1 where it is variable.
    #[must_use]
    pub fn as_protocol(&self) -> i64 {
        self.fixed().unwrap_or(-1)
    }

    /// Whether a client's item may have this size in this dimension. A variable dimension is at least 1.
    #[must_use]
    pub fn allows(&self, size: i64) -> bool {
        self.fixed().map_or(size >= 1, |fixed| fixed == size)
    }
}

/// Whether a client's item may have this shape.
#[must_use]
pub fn allows(declared: &[Dimension], item: &[i64]) -> bool {
    declared.len() == item.len()
        && declared
            .iter()
            .zip(item)
            .all(|(dimension, size)| dimension.allows(*size))
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "{size}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl From<i64> for Dimension {
    fn from(size: i64) -> Self {
        Self::Size(size)
    }
}

impl From<&str> for Dimension {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

#[cfg(feature = "kube")]
impl JsonSchema for Dimension {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Dimension".into()
    }

    fn inline_schema() -> bool {
        true
    }

    // A pattern and a minimum, as far as they go, rather than CEL: the API server takes a string here to be as long as a
    // whole request and refuses what a rule that looks into it would cost.
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": -1,
            "maxLength": 63,
            "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_read_and_written_as_users_write_it() {
        let json = r#"[3,-1,"seq"]"#;
        let shape: Vec<Dimension> = serde_json::from_str(json).unwrap();
        assert_eq!(shape, [3.into(), (-1).into(), "seq".into()]);
        assert_eq!(serde_json::to_string(&shape).unwrap(), json);
        let metadata: Vec<i64> = shape.iter().map(Dimension::as_protocol).collect();
        assert_eq!(metadata, [3, -1, -1]);
    }

    #[test]
    fn a_variable_dimension_is_at_least_1() {
        for (dimension, size, allowed) in [
            (Dimension::from(3), 3, true),
            (3.into(), 4, false),
            ((-1).into(), 1, true),
            ((-1).into(), 0, false),
            ("seq".into(), 9, true),
            ("seq".into(), 0, false),
        ] {
            assert_eq!(dimension.allows(size), allowed, "{dimension} {size}");
        }
    }
}
