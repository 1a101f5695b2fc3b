//! The scripts: what must happen at once in Redis happens in one of them.

use std::{sync::LazyLock, time::Duration};

use redis::Cmd;
use uuid::Uuid;

use crate::{
    JobId,
    call::Call,
    id::EntryId,
    keys::{Class, Keys},
};

/// Most requests that one call of a script may carry, so that others wait for Redis but shortly.
pub(crate) const MAX_REQUESTS: usize = 128;

/// About the most bytes that one call of a script may carry.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// After how many milliseconds without a word a worker is taken to be gone. A live one reads or renews every few
/// seconds, and one that comes back after all joins again.
pub(crate) const GONE_AFTER_MS: u64 = 60_000;

/// How long a proxy's replies live without it.
pub(crate) const REPLIES_LIVE: Duration = Duration::from_secs(10);

/// A script, known to Redis by its hash.
pub(crate) struct Script {
    code: &'static str,
    hash: String,
}

macro_rules! scripts {
    ($($name:ident = $file:literal,)*) => {$(
        pub(crate) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("scripts/", $file))));
    )*};
}

scripts! {
    ENQUEUE = "enqueue.lua",
    DROP = "drop.lua",
    EVICT = "evict.lua",
    CONNECT = "connect.lua",
    ANSWER = "answer.lua",
    TAKE_OVER = "takeover.lua",
    QUARANTINE = "quarantine.lua",
    RENEW = "renew.lua",
    RELEASE = "release.lua",
    LEAVE = "leave.lua",
    HEARTBEAT = "heartbeat.lua",
    FORGET = "forget.lua",
    SWEEP = "sweep.lua",
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self {
            code,
            hash: redis::Script::new(code).get_hash().to_owned(),
        }
    }

    /// Begins a call; the arguments are to be added. `size` is about what they take.
    pub(crate) fn call(&self, keys: &[&str], size: usize) -> Cmd {
        let mut command = Cmd::with_capacity(16, size + 256);
        command
            .arg("EVALSHA")
            .arg(&self.hash)
            .arg(keys.len())
            .arg(keys);
        command
    }

    /// Makes the script known to Redis, which forgets it when it restarts.
    pub(crate) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.code);
        command
    }
}

/// An entry to forget.
#[derive(Debug, Clone)]
pub(crate) struct Removal {
    pub(crate) entry: EntryId,
    /// The size of its body.
    pub(crate) size: usize,
    /// Whose body is in a key of its own.
    pub(crate) large: Option<Uuid>,
}

impl From<&JobId> for Removal {
    fn from(id: &JobId) -> Self {
        Self {
            entry: id.entry,
            size: id.size,
            large: id.is_large.then_some(id.uuid),
        }
    }
}

/// The call that forgets entries of a revision.
pub(crate) fn drop_entries<'a>(
    keys: &Keys,
    revision: &str,
    entries: impl IntoIterator<Item = &'a Removal> + Clone,
) -> Call {
    let lane = keys.lane(revision, Class::Interactive);
    let mut names = vec![lane.jobs, lane.index, keys.bytes()];
    let large = entries
        .clone()
        .into_iter()
        .filter_map(|removal| removal.large);
    names.extend(large.map(|uuid| keys.body(uuid)));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut command = DROP.call(&names, 0);
    command.arg(revision);
    for removal in entries {
        command.arg(removal.entry.to_string()).arg(removal.size);
    }
    Call::of_script(&DROP, command)
}

/// The call that forgets a revision's expired entries, and its stream if that is deserted.
pub(crate) fn evict(keys: &Keys, revision: &str) -> Call {
    let lane = keys.lane(revision, Class::Interactive);
    let mut command = EVICT.call(&[&lane.jobs, &lane.index, &keys.bytes()], 0);
    command.arg(revision).arg(GONE_AFTER_MS);
    Call::of_script(&EVICT, command)
}

/// Splits items into groups that a script may carry in one call.
pub(crate) fn groups<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut groups = Vec::new();
    let mut group = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = size(&item);
        if !group.is_empty() && (group.len() == MAX_REQUESTS || bytes + more > MAX_BYTES) {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        bytes += more;
        group.push(item);
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_order_and_bounds() {
        let sizes: Vec<usize> = (0..300)
            .map(|i| if i % 50 == 0 { 700_000 } else { 100 })
            .collect();
        let groups = groups(sizes.clone(), |size| *size);
        assert_eq!(groups.concat(), sizes);
        for group in &groups {
            assert!(group.len() <= MAX_REQUESTS);
            assert!(group.len() == 1 || group.iter().sum::<usize>() <= MAX_BYTES);
        }
    }

    #[test]
    fn one_item_above_the_bound_goes_by_itself() {
        assert_eq!(
            groups(vec![1, 2_000_000, 1], |size| *size),
            [vec![1], vec![2_000_000], vec![1]]
        );
    }
}
