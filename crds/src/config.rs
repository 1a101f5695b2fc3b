//! The one file that the operator writes and that sidecar and worker read.

use std::{collections::BTreeMap, path::Path};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{
        IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::Value;

use crate::{Batching, Device, Model, Queue};

/// The settings that proxies and workers of one `BatchedModel` share. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The resource's name, which is the model's name to clients.
    pub name: String,
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's UID. It is part of every Redis key: a recreated resource never replays old jobs.
    pub uid: String,
    /// The revision that proxies feed, where `places` says nothing else.
    pub serving: String,
    /// The revision that proxies of each place of the queue feed, by the name of the Secret with its URL. There is more
    /// than one place while the queue moves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub places: BTreeMap<String, String>,
    /// Every revision that has, or is to have, workers.
    pub models: BTreeMap<String, Model>,
    /// The rules by which requests become batches.
    pub batching: Batching,
    /// The queue's bounds and times.
    pub queue: Queue,
    /// The device on which workers run the model.
    pub device: Device,
    /// The origins whose pages may read answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cors_allow_origins: Vec<String>,
}

/// The reason that a configuration file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("failed to read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file holds no configuration.
    #[error("failed to parse the configuration {path}: {message}")]
    Parse {
        /// The file.
        path: String,
        /// The mistake, and its place.
        message: String,
    },
    /// The file names a revision that it doesn't hold.
    #[error("the configuration holds no model of revision {revision}; it holds {held}")]
    NoRevision {
        /// The revision asked for.
        revision: String,
        /// The revisions that the file holds.
        held: String,
    },
    /// No workers read the Redis that a proxy was given.
    #[error(
        "no workers read the Redis of the Secret {place}; they read that of {held}: inject the sidecar anew, or wait until the operator has written the configuration"
    )]
    NoPlace {
        /// The Secret asked for.
        place: String,
        /// The Secrets that workers read.
        held: String,
    },
}

impl Config {
    /// Reads a configuration file. Fields that it does not know are skipped: an injected sidecar outlives the
    /// operator that it came with, and the next one may have more to say.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.display().to_string(),
            source,
        })?;
        let config = Self::parse(&text).map_err(|message| ConfigError::Parse {
            path: path.display().to_string(),
            message,
        })?;
        config.model(&config.serving)?;
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, String> {
        // Booleans are strict, for the text is parsed before the types are known: `y` must not become `true`.
        let options = serde_yaml::options! { strict_booleans: true };
        let value =
            serde_yaml::from_str_with_options(text, options).map_err(|error| error.to_string())?;
        Self::deserialize(Lenient(value)).map_err(|error| error.to_string())
    }

    /// The revision that a proxy with the Redis of this Secret feeds. One that does not know its Secret feeds `serving`, as
    /// all do where an older operator wrote the file.
    pub fn fed_at(&self, place: Option<&str>) -> Result<&str, ConfigError> {
        let Some(place) = place.filter(|_| !self.places.is_empty()) else {
            return Ok(&self.serving);
        };
        self.places
            .get(place)
            .map(String::as_str)
            .ok_or_else(|| ConfigError::NoPlace {
                place: place.to_owned(),
                held: self.places.keys().cloned().collect::<Vec<_>>().join(", "),
            })
    }

    /// The model of one revision.
    pub fn model(&self, revision: &str) -> Result<&Model, ConfigError> {
        self.models
            .get(revision)
            .ok_or_else(|| ConfigError::NoRevision {
                revision: revision.to_owned(),
                held: self.models.keys().cloned().collect::<Vec<_>>().join(", "),
            })
    }
}

/// A value whose structures skip fields they do not know, even where they refuse them in what a user wrote.
struct Lenient(Value);

impl<'de> Deserializer<'de> for Lenient {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, Self(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            Value::Array(items) => {
                visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Self)))
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if let Value::Object(fields) = &mut self.0 {
            fields.retain(|name, _| known.contains(&&**name));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

impl IntoDeserializer<'_, serde_json::Error> for Lenient {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> Value {
        json!({
            "name": "m",
            "namespace": "default",
            "uid": "0c5b5a3e",
            // A revision that looks like a number.
            "serving": "12e4567890",
            "models": {"12e4567890": {
                "uri": "file://m",
                "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1], "pad": 1}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}],
                "text": {"tokenizer": "tokenizer.json", "labels": ["NEGATIVE", "POSITIVE"]},
            }},
            "batching": {"maxDelay": "5ms"},
            "queue": {"redis": {"managed": {"resources": {"limits": {"cpu": 1}}}}},
            "device": "cpu",
        })
    }

    #[test]
    fn a_proxy_feeds_the_revision_of_its_place() {
        let mut written = config();
        let fed_at = |written: &Value, place| {
            let config = Config::parse(&written.to_string()).unwrap();
            config
                .fed_at(place)
                .map(str::to_owned)
                .map_err(|error| error.to_string())
        };
        let serving = || Ok("12e4567890".to_owned());
        assert_eq!(fed_at(&written, Some("old")), serving());
        written["places"] = json!({"new": "12e4567890", "old": "r1"});
        assert_eq!(fed_at(&written, Some("old")).unwrap(), "r1");
        assert_eq!(fed_at(&written, Some("new")), serving());
        assert_eq!(fed_at(&written, None), serving());
        let error = fed_at(&written, Some("gone")).unwrap_err();
        assert!(
            error.starts_with(
                "no workers read the Redis of the Secret gone; they read that of new, old"
            ),
            "{error}"
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let config: Config = serde_json::from_value(config()).unwrap();
        let text = serde_yaml::to_string(&config).unwrap();
        assert_eq!(Config::parse(&text), Ok(config));
    }

    #[test]
    fn what_a_newer_operator_says_is_skipped() {
        let mut newer = config();
        let known = Config::parse(&newer.to_string()).unwrap();
        for path in [
            "",
            "/models/12e4567890",
            "/models/12e4567890/inputs/0",
            "/models/12e4567890/text",
            "/batching",
            "/queue",
            "/queue/redis",
            "/queue/redis/managed",
            "/queue/redis/managed/resources",
        ] {
            newer.pointer_mut(path).unwrap()["surprise"] = json!({"a": [1]});
        }
        assert_eq!(Config::parse(&newer.to_string()).unwrap(), known);
    }

    #[test]
    fn what_is_wrong_is_still_told() {
        for (path, value, says) in [
            (
                "/queue/timeout",
                json!("soon"),
                "\"soon\" is not a duration",
            ),
            ("/device", json!("tpu"), "unknown variant `tpu`"),
            (
                "/models",
                json!([]),
                "invalid type: sequence, expected a map",
            ),
            ("/uid", Value::Null, "invalid type: null, expected a string"),
        ] {
            let mut wrong = config();
            wrong["queue"]["timeout"] = json!("30s");
            *wrong.pointer_mut(path).unwrap() = value;
            let error = Config::parse(&wrong.to_string()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
