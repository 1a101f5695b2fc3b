//! Durations (`30s`, `1m30s`, `5ms`) and sizes (`512Mi`) as Kubernetes users write them.

use std::{fmt, str::FromStr, time};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that is no duration or no size, with what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a {kind}; allowed: {allowed}")]
pub struct ParseError {
    kind: &'static str,
    given: String,
    allowed: &'static str,
}

/// A length of time, written as Go writes it: `500ms`, `30s`, `1m30s`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub time::Duration);

impl FromStr for Duration {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| ParseError {
                kind: "duration",
                given: text.to_owned(),
                allowed: "numbers with ms, s, m or h, such as 500ms, 30s or 1m30s",
            })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => f.write_str("0s"),
            _ if !millis.is_multiple_of(1000) => write!(f, "{millis}ms"),
            _ => {
                let seconds = millis / 1000;
                for (unit, amount) in [
                    ("h", seconds / 3600),
                    ("m", seconds / 60 % 60),
                    ("s", seconds % 60),
                ] {
                    if amount != 0 {
                        write!(f, "{amount}{unit}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// A size in bytes, written as a Kubernetes quantity: `4194304`, `4Mi`, `1G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 6] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
];

impl FromStr for Bytes {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (digits, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
            .unwrap_or((text, 1));
        digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .map(Self)
            .ok_or_else(|| ParseError {
                kind: "size",
                given: text.to_owned(),
                allowed: "a whole number of bytes, or one with Ki, Mi, Gi, k, M or G, such as 4Mi",
            })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS[..3]
            .iter()
            .rev()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match unit {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

macro_rules! serde_as_string {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(de::Error::custom)
            }
        }
    };
}

serde_as_string!(Duration);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A quantity without a unit may be written as a number, as in every Kubernetes manifest.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self(number)),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

#[cfg(feature = "kube")]
mod schema {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    use super::{Bytes, Duration};

    impl JsonSchema for Duration {
        fn schema_name() -> Cow<'static, str> {
            "Duration".into()
        }

        fn inline_schema() -> bool {
            true
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"type": "string", "maxLength": 20, "pattern": "^([0-9]+(ms|s|m|h))+$"})
        }
    }

    impl JsonSchema for Bytes {
        fn schema_name() -> Cow<'static, str> {
            "Bytes".into()
        }

        fn inline_schema() -> bool {
            true
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            // The pattern has as many digits as fit 64 bits with the largest unit, and never zero.
            json_schema!({
                "x-kubernetes-int-or-string": true,
                "minimum": 1,
                "maxLength": 20,
                "pattern": "^([1-9][0-9]{0,9}(Ki|Mi|Gi|k|M|G)|[1-9][0-9]{0,17})$"
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write_as_go_does() {
        for text in ["500ms", "30s", "1m30s", "1h", "5m", "2h1s"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        assert_eq!(
            "0ms".parse::<Duration>().unwrap(),
            Duration(time::Duration::ZERO)
        );
        assert_eq!("90s".parse::<Duration>().unwrap().to_string(), "1m30s");
        let error = "soon".parse::<Duration>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"soon\" is not a duration; allowed: numbers with ms, s, m or h, such as 500ms, 30s or 1m30s"
        );
    }

    #[test]
    fn sizes_read_and_write_as_quantities() {
        for (text, bytes) in [
            ("512Mi", 512 << 20),
            ("4Ki", 4096),
            ("1000", 1000),
            ("1G", 1_000_000_000),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes));
        }
        assert_eq!(Bytes(4 << 20).to_string(), "4Mi");
        assert_eq!(serde_json::from_str::<Bytes>("7").unwrap(), Bytes(7));
        assert!("-1".parse::<Bytes>().is_err());
        assert!("99999999999Gi".parse::<Bytes>().is_err());
    }
}
