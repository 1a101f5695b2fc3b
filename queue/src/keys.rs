//! The names of everything Carpool keeps in Redis.
//!
//! Keys of one model share the hash tag of the resource's UID, so that a script may touch them all on a Redis Cluster
//! and a recreated resource never replays old jobs.
//!
//! | key | kind | what |
//! |---|---|---|
//! | `jobs:<revision>` | stream, group `workers` | one entry per request: `v` (format version), `id` (uuid), `to` (the proxy that waits), `ttl` (ms left at entry), `rows`, `trace`, `body`. An entry with the one field `wake` tells a waiting worker to look for released requests |
//! | `replies:<proxy>` | stream, expires without its proxy | one entry per batch, a field per answered uuid |
//! | `dead` | stream, capped at 256 entries, each without fields above 64 KiB | what was given up, why, and by whom |
//! | `artifacts` | hash, capped at 32 fields | by revision: the SHA-256 of the artifact that its first worker loaded, and when a worker last joined, in ms |
//! | `bytes` | hash | bytes of request bodies in `jobs:<revision>`, by revision; its fields are also the list of revisions |

use std::sync::Arc;

use crate::QueueError;

/// The consumer group of every jobs stream.
pub(crate) const GROUP: &str = "workers";

/// Holds requests that a worker handed back before they started. No pod can have this name.
pub(crate) const RELEASED: &str = "~released";

/// Holds requests handed back that once were in the hands of a worker that died.
pub(crate) const SUSPECTS: &str = "~suspects";

/// The field of an entry that is no request but wakes a worker which waits for one.
pub(crate) const WAKE: &str = "wake";

/// The key names of one model.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: Arc<str>,
}

impl Keys {
    pub(crate) fn new(uid: &str) -> Result<Self, QueueError> {
        // Braces would end the hash tag early, and an empty one is none.
        if uid.is_empty() || uid.contains(['{', '}']) {
            return Err(QueueError::Uid(uid.to_owned()));
        }
        Ok(Self {
            prefix: format!("carpool:{{{uid}}}:").into(),
        })
    }

    pub(crate) fn jobs(&self, revision: &str) -> String {
        format!("{}jobs:{revision}", self.prefix)
    }

    pub(crate) fn replies(&self, proxy: &str) -> String {
        format!("{}replies:{proxy}", self.prefix)
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}dead", self.prefix)
    }

    pub(crate) fn artifacts(&self) -> String {
        format!("{}artifacts", self.prefix)
    }

    pub(crate) fn bytes(&self) -> String {
        format!("{}bytes", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_model_share_one_hash_tag() {
        let keys = Keys::new("6f1c").unwrap();
        for key in [
            keys.jobs("rev1"),
            keys.replies("proxy"),
            keys.dead(),
            keys.artifacts(),
            keys.bytes(),
        ] {
            assert!(key.starts_with("carpool:{6f1c}:"), "{key}");
        }
        for uid in ["", "a}b", "{"] {
            assert!(Keys::new(uid).is_err(), "{uid}");
        }
    }
}
