//! The names of everything Carpool keeps in Redis.
//!
//! Keys of one model share the hash tag of the resource's UID, so that a script may touch them all on a Redis Cluster
//! and a recreated resource never replays old jobs. A *lane* is a revision, or a revision and a class of its requests
//! (see [`crate::lane`]).
//!
//! | key | kind | content |
//! |---|---|---|
//! | `jobs:<lane>` | stream, group `workers` | one entry per request: `h`, its [header](crate::wire), and `b`, its body, or `s`, the size of a body that is kept in a key of its own. An entry with the one field `wake` tells a waiting worker to look for released requests |
//! | `index:<lane>` | sorted set | the entries of that stream, by the millisecond in which they expire |
//! | `body:<uuid>` | string, expires with its request | a body that is too large for an entry |
//! | `replies:<proxy>` | stream, kept alive by its proxy | one entry per batch, a field per answered uuid. Where it is missing, its proxy is gone and nothing is added |
//! | `reply:<proxy>:<uuid>:<worker>` | string, expires with `replies:<proxy>` | an answer that is too large for an entry |
//! | `receipts:<proxy>` | hash, expires | the entries that the proxy's last enqueues added, from which it learns them after a connection broke |
//! | `dead` | stream, capped at 256 entries, each without fields above 64 KiB | requests that were given up, with the reason and the worker |
//! | `job:<uuid>` | hash, expires | a request that nobody waits for: its lane, entry, size, whether its body has a key of its own, when it expires, `note`, which its client is told, then its outcome or `cancelled` |
//! | `answer:<uuid>:<worker>` | string, expires with its job | a job's answer that is too large for a field |
//! | `name:<name>` | hash, expires with its job | the job of a request that its client named, and the request's digest |
//! | `results` | sorted set | the jobs that have an outcome, each with its size, by the millisecond in which they expire; `~results` in `bytes` is their sum |
//! | `done` | stream, capped | the jobs that got an outcome last |
//! | `artifacts` | hash, capped at 32 fields | by revision: the SHA-256 of the artifact that its first worker loaded, and when a worker last joined, in ms |
//! | `bytes` | hash | bytes of request bodies in `jobs:<lane>`, by lane; its fields are also the list of lanes. `~replies` is all that `unread` holds |
//! | `lengths` | hash | the number of entries of each lane but the common ones; a lane without entries has no field |
//! | `callers` | hash | when a proxy last said that it has requests in flight, by proxy, in ms |
//! | `left` | hash, expires | the workers that hold requests whose clients have left, by entry; each worker takes its own out |
//! | `unread` | hash | bytes of the large answers that a proxy has not read, by proxy |
//! | `pulse` | hash | when anyone last spoke, and until when nobody is taken to be dead, in ms |

use std::sync::Arc;

use uuid::Uuid;

use crate::{QueueError, lane::Lane};

/// The consumer group of every jobs stream.
pub(crate) const GROUP: &str = "workers";

/// The consumer that holds requests which a worker handed back before they started. No pod can have this name.
pub(crate) const RELEASED: &str = "~released";

/// The consumer that holds requests of workers that died, until a worker takes some of them.
pub(crate) const SUSPECTS: &str = "~suspects";

/// The field of an entry that is no request but wakes a worker which waits for one.
pub(crate) const WAKE: &str = "wake";

/// Whether a consumer's or revision's name is one of the queue's own.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with('~')
}

/// Returns the consumer that holds requests of a format which the worker that read them does not know. Workers that
/// know it take them from there.
pub(crate) fn newer(format: u32) -> String {
    format!("~format-{format}")
}

/// The key names of one model.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: Arc<str>,
}

impl Keys {
    pub(crate) fn new(uid: &str) -> Result<Self, QueueError> {
        // Braces would end the hash tag early, and an empty tag is none.
        if uid.is_empty() || uid.contains(['{', '}']) {
            return Err(QueueError::Uid(uid.to_owned()));
        }
        Ok(Self {
            prefix: format!("carpool:{{{uid}}}:").into(),
        })
    }

    /// Returns the lane of this name.
    pub(crate) fn lane(&self, name: &str) -> Lane {
        Lane::new(&self.prefix, name)
    }

    pub(crate) fn body(&self, uuid: Uuid) -> String {
        format!("{}body:{uuid}", self.prefix)
    }

    pub(crate) fn replies(&self, proxy: &str) -> String {
        format!("{}replies:{proxy}", self.prefix)
    }

    pub(crate) fn reply(&self, proxy: &str, uuid: Uuid, worker: &str) -> String {
        format!("{}reply:{proxy}:{uuid}:{worker}", self.prefix)
    }

    pub(crate) fn job(&self, uuid: Uuid) -> String {
        format!("{}job:{uuid}", self.prefix)
    }

    pub(crate) fn answer(&self, uuid: Uuid, worker: &str) -> String {
        format!("{}answer:{uuid}:{worker}", self.prefix)
    }

    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}name:{name}", self.prefix)
    }

    pub(crate) fn results(&self) -> String {
        format!("{}results", self.prefix)
    }

    pub(crate) fn done(&self) -> String {
        format!("{}done", self.prefix)
    }

    pub(crate) fn receipts(&self, proxy: &str) -> String {
        format!("{}receipts:{proxy}", self.prefix)
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

    pub(crate) fn lengths(&self) -> String {
        format!("{}lengths", self.prefix)
    }

    pub(crate) fn callers(&self) -> String {
        format!("{}callers", self.prefix)
    }

    pub(crate) fn left(&self) -> String {
        format!("{}left", self.prefix)
    }

    pub(crate) fn unread(&self) -> String {
        format!("{}unread", self.prefix)
    }

    pub(crate) fn pulse(&self) -> String {
        format!("{}pulse", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_model_share_one_hash_tag() {
        let keys = Keys::new("6f1c").unwrap();
        for key in [
            keys.lane("rev1").jobs().to_owned(),
            keys.lane("rev1").index().to_owned(),
            keys.lengths(),
            keys.callers(),
            keys.left(),
            keys.body(Uuid::nil()),
            keys.replies("proxy"),
            keys.reply("proxy", Uuid::nil(), "worker"),
            keys.receipts("proxy"),
            keys.job(Uuid::nil()),
            keys.answer(Uuid::nil(), "worker"),
            keys.name("{order} 7"),
            keys.results(),
            keys.done(),
            keys.dead(),
            keys.artifacts(),
            keys.bytes(),
            keys.unread(),
            keys.pulse(),
        ] {
            assert!(key.starts_with("carpool:{6f1c}:"), "{key}");
        }
        for uid in ["", "a}b", "{"] {
            assert!(Keys::new(uid).is_err(), "{uid}");
        }
    }
}
