//! Leases: the requests that this worker holds, and whose turn is next.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::{id::EntryId, lane::Lane};

/// Time between two searches for the entries of dead workers.
const TAKE_OVER_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Leases {
    /// Entries that were handed out and are not answered yet, and their lanes.
    out: HashMap<EntryId, Lane>,
    /// Entries that were in `out` when their clients left.
    abandoned: HashSet<EntryId>,
    /// Entries of `out` that run with none but their group.
    quarantined: HashSet<EntryId>,
    /// The number of groups that were quarantined here.
    groups: u64,
    /// The lanes in which requests of dead workers are set aside, waiting to be taken by some worker.
    aside: BTreeSet<Lane>,
    /// The kind of requests whose turn is next where both kinds wait.
    next: Turn,
    /// The time of the last search for the entries of dead workers.
    looked: Option<Instant>,
    /// Whether entries may be this worker's in Redis and in nobody's hands here, because a read was cut off.
    pub(super) stray: bool,
    /// Whether the stream, its group or the record of the artifact is gone, so that this worker must join again.
    pub(super) must_join: bool,
}

/// The kind of requests that may be taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Turn {
    /// Ordinary requests.
    Ordinary,
    /// No requests, before all that were handed out are answered.
    Nobody,
    /// Requests of dead workers that are set aside.
    #[default]
    Quarantine,
}

impl Leases {
    pub(super) fn hand_out(&mut self, lane: &Lane, entry: EntryId, quarantine: Option<u64>) {
        self.out.insert(entry, lane.clone());
        if quarantine.is_some() {
            self.quarantined.insert(entry);
        }
    }

    pub(super) fn settle(&mut self, entry: EntryId) {
        self.out.remove(&entry);
        if self.quarantined.remove(&entry) && self.quarantined.is_empty() {
            self.next = Turn::Ordinary;
        }
    }

    /// Notes that the clients of requests have left, which are in Redis no more.
    pub(super) fn abandon(&mut self, entries: impl IntoIterator<Item = EntryId>) {
        for entry in entries {
            if self.holds(entry) {
                self.settle(entry);
                self.abandoned.insert(entry);
            }
        }
    }

    /// Takes the entries of requests whose clients have left since the last time.
    pub(super) fn take_abandoned(&mut self) -> HashSet<EntryId> {
        std::mem::take(&mut self.abandoned)
    }

    /// Returns a new number for a group of requests that run together and with no others.
    pub(super) fn group(&mut self) -> u64 {
        self.groups += 1;
        self.groups
    }

    /// Notes whether requests of dead workers are set aside in a lane.
    pub(super) fn set_aside(&mut self, lane: &Lane, aside: bool) {
        if aside {
            self.aside.insert(lane.clone());
        } else {
            self.aside.remove(lane);
        }
    }

    /// Returns a lane in which requests of dead workers are set aside, if there is one.
    pub(super) fn set_aside_in(&self) -> Option<Lane> {
        self.aside.first().cloned()
    }

    /// Returns whose turn it is. Ordinary requests and those set aside take turns.
    pub(super) fn turn(&self) -> Turn {
        self.turn_after(&[])
    }

    /// Returns whose turn it will be once these entries are answered.
    pub(super) fn turn_after(&self, answered: &[EntryId]) -> Turn {
        let is_left = |entry: &EntryId| !answered.contains(entry);
        if self.quarantined.iter().any(is_left) {
            Turn::Nobody
        } else if self.aside.is_empty()
            || self.next == Turn::Ordinary
            || !self.quarantined.is_empty()
        {
            Turn::Ordinary
        } else if self.out.keys().any(is_left) {
            Turn::Nobody
        } else {
            Turn::Quarantine
        }
    }

    /// Notes that ordinary requests are about to be read. Returns whether others are set aside, for whose turn the read
    /// must not wait.
    pub(super) fn read_ordinary(&mut self) -> bool {
        self.next = Turn::Quarantine;
        !self.aside.is_empty()
    }

    pub(super) fn is_quarantined(&self, entry: EntryId) -> bool {
        self.quarantined.contains(&entry)
    }

    pub(super) fn holds(&self, entry: EntryId) -> bool {
        self.out.contains_key(&entry)
    }

    /// Returns all entries that this worker holds, by lane.
    pub(super) fn all(&self) -> BTreeMap<Lane, Vec<EntryId>> {
        let mut all: BTreeMap<Lane, Vec<EntryId>> = BTreeMap::new();
        for (entry, lane) in &self.out {
            all.entry(lane.clone()).or_default().push(*entry);
        }
        all
    }

    /// The number of entries that this worker holds.
    pub(super) fn count(&self) -> usize {
        self.out.len()
    }

    /// Whether requests may be due that reading new entries never returns.
    pub(super) fn recovery_due(&self) -> bool {
        self.must_join || self.stray || self.look_due()
    }

    /// Whether the search for the entries of dead workers is due.
    pub(super) fn look_due(&self) -> bool {
        self.looked
            .is_none_or(|looked| looked.elapsed() >= TAKE_OVER_EVERY)
    }

    pub(super) fn looked(&mut self) {
        self.looked = Some(Instant::now());
    }

    /// Makes the search for the entries of dead workers due.
    pub(super) fn look_soon(&mut self) {
        self.looked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane {
        Lane::new("carpool:{u}:", "rev")
    }

    fn entry(millis: u64) -> EntryId {
        EntryId {
            millis,
            sequence: 0,
        }
    }

    #[test]
    fn those_set_aside_wait_for_all_others_and_all_others_for_them() {
        let mut leases = Leases::default();
        leases.hand_out(&lane(), entry(1), None);
        assert_eq!(leases.turn(), Turn::Ordinary);
        leases.set_aside(&lane(), true);
        assert_eq!(leases.turn(), Turn::Nobody);
        assert_eq!(leases.turn_after(&[entry(1)]), Turn::Quarantine);

        leases.settle(entry(1));
        assert_eq!(leases.turn(), Turn::Quarantine);
        let group = leases.group();
        leases.hand_out(&lane(), entry(2), Some(group));
        leases.hand_out(&lane(), entry(3), Some(group));
        leases.settle(entry(2));
        assert_eq!(leases.turn(), Turn::Nobody);
        assert_eq!(leases.turn_after(&[entry(3)]), Turn::Ordinary);
    }

    #[test]
    fn ordinary_ones_have_their_turn_between_two_groups() {
        let mut leases = Leases::default();
        leases.set_aside(&lane(), true);
        leases.hand_out(&lane(), entry(1), Some(1));
        leases.settle(entry(1));
        assert_eq!(leases.turn(), Turn::Ordinary);
        assert!(leases.read_ordinary(), "others wait");
        assert_eq!(leases.turn(), Turn::Quarantine);
        leases.set_aside(&lane(), false);
        assert_eq!(leases.turn(), Turn::Ordinary);
    }
}
