//! What this worker holds.

use std::collections::HashSet;

use tokio::time::Instant;

use super::TAKE_OVER_EVERY;
use crate::id::EntryId;

#[derive(Default)]
pub(super) struct Leases {
    /// Handed out, not answered yet.
    out: HashSet<EntryId>,
    /// Those of them that run with nobody else.
    quarantined: HashSet<EntryId>,
    /// How many groups were quarantined here.
    groups: u64,
    /// Requests of dead workers are set aside, waiting to be taken by some worker.
    aside: bool,
    /// Whose turn is next where both wait.
    next: Turn,
    /// When the entries of dead workers were last looked for.
    looked: Option<Instant>,
    /// A read was cut off: what it was given is in nobody's hands.
    pub(super) stray: bool,
    /// The stream, its group or the record of the artifact is gone, so that this worker must join again.
    pub(super) must_join: bool,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Turn {
    /// Ordinary requests'.
    Ordinary,
    /// Nobody's before all that was handed out is answered.
    Nobody,
    /// Theirs that were set aside.
    #[default]
    Quarantine,
}

impl Leases {
    pub(super) fn hand_out(&mut self, entry: EntryId, quarantine: Option<u64>) {
        self.out.insert(entry);
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

    /// A number for a group of requests that run together and with nobody else.
    pub(super) fn group(&mut self) -> u64 {
        self.groups += 1;
        self.groups
    }

    /// Notes whether requests of dead workers are set aside.
    pub(super) fn set_aside(&mut self, aside: bool) {
        self.aside = aside;
    }

    /// Says whose turn it is. Ordinary requests and those set aside take turns.
    pub(super) fn turn(&self) -> Turn {
        self.turn_after(&[])
    }

    /// Says whose turn it will be once these are answered.
    pub(super) fn turn_after(&self, answered: &[EntryId]) -> Turn {
        let left =
            |entries: &HashSet<EntryId>| entries.iter().any(|entry| !answered.contains(entry));
        if left(&self.quarantined) {
            Turn::Nobody
        } else if !self.aside || self.next == Turn::Ordinary || !self.quarantined.is_empty() {
            Turn::Ordinary
        } else if left(&self.out) {
            Turn::Nobody
        } else {
            Turn::Quarantine
        }
    }

    /// Ordinary requests are about to be read. Says whether others are set aside, for whose turn the read must not wait.
    pub(super) fn read_ordinary(&mut self) -> bool {
        self.next = Turn::Quarantine;
        self.aside
    }

    pub(super) fn is_quarantined(&self, entry: EntryId) -> bool {
        self.quarantined.contains(&entry)
    }

    pub(super) fn holds(&self, entry: EntryId) -> bool {
        self.out.contains(&entry)
    }

    /// Everything held.
    pub(super) fn all(&self) -> Vec<EntryId> {
        self.out.iter().copied().collect()
    }

    /// Whether there is something to see to that reading alone never returns.
    pub(super) fn recovery_due(&self) -> bool {
        self.must_join || self.stray || self.look_due()
    }

    /// Whether it is time to look for the entries of dead workers.
    pub(super) fn look_due(&self) -> bool {
        self.looked
            .is_none_or(|looked| looked.elapsed() >= TAKE_OVER_EVERY)
    }

    pub(super) fn looked(&mut self) {
        self.looked = Some(Instant::now());
    }

    /// Makes it time to look.
    pub(super) fn look_soon(&mut self) {
        self.looked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(millis: u64) -> EntryId {
        EntryId {
            millis,
            sequence: 0,
        }
    }

    #[test]
    fn those_set_aside_wait_for_all_others_and_all_others_for_them() {
        let mut leases = Leases::default();
        leases.hand_out(entry(1), None);
        assert_eq!(leases.turn(), Turn::Ordinary);
        leases.set_aside(true);
        assert_eq!(leases.turn(), Turn::Nobody);
        assert_eq!(leases.turn_after(&[entry(1)]), Turn::Quarantine);

        leases.settle(entry(1));
        assert_eq!(leases.turn(), Turn::Quarantine);
        let group = leases.group();
        leases.hand_out(entry(2), Some(group));
        leases.hand_out(entry(3), Some(group));
        leases.settle(entry(2));
        assert_eq!(leases.turn(), Turn::Nobody);
        assert_eq!(leases.turn_after(&[entry(3)]), Turn::Ordinary);
    }

    #[test]
    fn ordinary_ones_have_their_turn_between_two_groups() {
        let mut leases = Leases::default();
        leases.set_aside(true);
        leases.hand_out(entry(1), Some(1));
        leases.settle(entry(1));
        assert_eq!(leases.turn(), Turn::Ordinary);
        assert!(leases.read_ordinary(), "others wait");
        assert_eq!(leases.turn(), Turn::Quarantine);
        leases.set_aside(false);
        assert_eq!(leases.turn(), Turn::Ordinary);
    }
}
