//! Lanes: the streams over which the requests of one revision are spread, so that some need not wait behind others.
//!
//! Every revision has a *common* lane, named like the revision itself. Requests of other than the default priority, those
//! that nobody waits for, and the overflow of callers with many requests in flight have lanes of their own. They exist
//! while they have entries, and workers read them in weighted turns. Where nobody uses them, nothing looks for them but
//! a read of an absent key once a second and with each enqueue.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// The character between a revision and the rest of a lane's name. No revision contains it.
const SEPARATOR: char = '~';

/// The number of lanes over which the callers of one class are spread. Callers that share a lane share its turns.
const SHARDS: u64 = 8;

/// The class of requests that nobody waits for, in lane names.
const BACKGROUND: &str = "b";

/// A class of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Class {
    /// Requests of the default priority.
    #[default]
    Default,
    /// Requests of another priority; 1 is the highest.
    Priority(u8),
    /// Requests that nobody waits for. They fill what others leave, and a small share of what others do not.
    Background,
}

/// A caller, whose requests are not to suffer under those of others. Different callers may have the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller(u64);

impl Caller {
    /// Makes the value of a caller's name.
    #[must_use]
    pub fn named(name: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Returns the name of the lane of a revision's requests of a class and a caller; `None` for a proxy itself.
pub(crate) fn name(revision: &str, class: Class, caller: Option<Caller>) -> Arc<str> {
    let shard = caller.map_or(0, |caller| caller.0 % SHARDS);
    match class {
        Class::Default => format!("{revision}{SEPARATOR}0.{shard}"),
        Class::Priority(priority) => format!("{revision}{SEPARATOR}{priority}.{shard}"),
        Class::Background => format!("{revision}{SEPARATOR}{BACKGROUND}.{shard}"),
    }
    .into()
}

/// Returns the revision of a lane.
pub(crate) fn revision(name: &str) -> &str {
    name.split(SEPARATOR).next().unwrap_or(name)
}

/// A lane of one revision, with the names of its keys.
#[derive(Clone)]
pub(crate) struct Lane(Arc<Names>);

struct Names {
    name: String,
    jobs: String,
    index: String,
}

impl Lane {
    /// Returns the lane of a name, whose keys begin with `prefix`.
    pub(crate) fn new(prefix: &str, name: &str) -> Self {
        Self(Arc::new(Names {
            name: name.to_owned(),
            jobs: format!("{prefix}jobs:{name}"),
            index: format!("{prefix}index:{name}"),
        }))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// The key of the stream.
    pub(crate) fn jobs(&self) -> &str {
        &self.0.jobs
    }

    /// The key of the entries by when they expire.
    pub(crate) fn index(&self) -> &str {
        &self.0.index
    }

    /// The class of the lane's requests; the common lane's is the default one.
    pub(crate) fn class(&self) -> Class {
        let class = self.0.name.split_once(SEPARATOR).map(|(_, rest)| rest);
        let class = class.and_then(|rest| rest.split('.').next());
        match class {
            None | Some("0") => Class::Default,
            Some(BACKGROUND) => Class::Background,
            // A class that only newer proxies know is read as the least urgent one.
            Some(priority) => priority.parse().map_or(Class::Background, Class::Priority),
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

impl PartialEq for Lane {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Lane {}

impl PartialOrd for Lane {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Lane {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name().cmp(other.name())
    }
}

/// Sorts things by the lane that each comes with.
pub(crate) fn by_lane<T>(things: impl IntoIterator<Item = (Lane, T)>) -> BTreeMap<Lane, Vec<T>> {
    let mut sorted: BTreeMap<Lane, Vec<T>> = BTreeMap::new();
    for (lane, thing) in things {
        sorted.entry(lane).or_default().push(thing);
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lanes_name_says_what_it_holds() {
        let caller = Caller::named(b"team-a");
        for class in [
            Class::Default,
            Class::Priority(1),
            Class::Priority(9),
            Class::Background,
        ] {
            let name = name("0a1b2c", class, Some(caller));
            assert_eq!(revision(&name), "0a1b2c");
            assert_eq!(Lane::new("carpool:{u}:", &name).class(), class, "{name}");
        }
        let common = Lane::new("carpool:{u}:", "0a1b2c");
        assert_eq!(
            (revision(common.name()), common.class()),
            ("0a1b2c", Class::Default)
        );
        assert_eq!(common.jobs(), "carpool:{u}:jobs:0a1b2c");
    }
}
