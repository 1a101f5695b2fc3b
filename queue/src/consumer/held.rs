//! What this worker holds.

use std::collections::{HashSet, VecDeque};

use tokio::time::Instant;

use super::{TAKE_OVER_EVERY, suspects::Suspect};
use crate::id::EntryId;

#[derive(Default)]
pub(super) struct Held {
    /// Handed out, not answered yet.
    out: HashSet<EntryId>,
    /// The one of them that must run by itself.
    alone: Option<EntryId>,
    /// Taken over from the dead, waiting for their turn to run by themselves.
    suspects: VecDeque<Suspect>,
    /// When the entries of dead workers were last looked for.
    looked: Option<Instant>,
    /// A read was cut off: what it was given is in nobody's hands.
    pub(super) stray: bool,
    /// The stream, its group or the record of the artifact is gone, so that this worker must join again.
    pub(super) unknown: bool,
}

/// Whose turn it is.
pub(super) enum Turn {
    /// Ordinary requests'.
    Anyone,
    /// Nobody's before all that was handed out is answered.
    Nobody,
    /// This suspect's.
    Suspect(Suspect),
}

impl Held {
    pub(super) fn hand_out(&mut self, entry: EntryId) {
        self.out.insert(entry);
    }

    pub(super) fn settle(&mut self, entry: EntryId) {
        self.out.remove(&entry);
        if self.alone == Some(entry) {
            self.alone = None;
        }
    }

    /// Adds suspects, those with the fewest deliveries first: they are the likeliest to be innocent.
    pub(super) fn suspect(&mut self, suspects: Vec<Suspect>) {
        for suspect in suspects {
            if !self.holds(suspect.entry) {
                self.suspects.push_back(suspect);
            }
        }
        self.suspects
            .make_contiguous()
            .sort_by_key(|suspect| (suspect.deliveries, suspect.entry));
    }

    /// Says whose turn it is, and gives a suspect its turn.
    pub(super) fn turn(&mut self) -> Turn {
        if self.alone.is_some() || (!self.suspects.is_empty() && !self.out.is_empty()) {
            return Turn::Nobody;
        }
        let Some(suspect) = self.suspects.pop_front() else {
            return Turn::Anyone;
        };
        self.alone = Some(suspect.entry);
        self.out.insert(suspect.entry);
        Turn::Suspect(suspect)
    }

    /// Takes back a turn that could not be used.
    pub(super) fn put_back(&mut self, suspect: Suspect) {
        self.settle(suspect.entry);
        self.suspects.push_front(suspect);
    }

    /// Whether it is ordinary requests' turn.
    pub(super) fn ordinary(&self) -> bool {
        self.ordinary_after(std::iter::empty())
    }

    /// Whether it will be ordinary requests' turn once those are answered.
    pub(super) fn ordinary_after<'a>(
        &self,
        mut answered: impl Iterator<Item = &'a EntryId>,
    ) -> bool {
        self.suspects.is_empty()
            && self
                .alone
                .is_none_or(|alone| answered.any(|entry| *entry == alone))
    }

    pub(super) fn is_alone(&self, entry: EntryId) -> bool {
        self.alone == Some(entry)
    }

    pub(super) fn holds(&self, entry: EntryId) -> bool {
        self.out.contains(&entry) || self.suspects.iter().any(|suspect| suspect.entry == entry)
    }

    /// Everything held, started or not.
    pub(super) fn all(&self) -> Vec<EntryId> {
        self.out
            .iter()
            .copied()
            .chain(self.suspects.iter().map(|suspect| suspect.entry))
            .collect()
    }

    /// Gives up all suspects that wait for their turn.
    pub(super) fn take_suspects(&mut self) -> Vec<Suspect> {
        self.suspects.drain(..).collect()
    }

    /// Whether there is something to see to that reading alone never returns.
    pub(super) fn recovery_due(&self) -> bool {
        self.unknown || self.stray || self.look_due()
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

    fn suspect(millis: u64, deliveries: u32) -> Suspect {
        Suspect {
            entry: entry(millis),
            deliveries,
        }
    }

    #[test]
    fn a_suspect_waits_for_all_others_and_all_others_for_it() {
        let mut held = Held::default();
        held.hand_out(entry(1));
        assert!(held.ordinary());
        held.suspect(vec![suspect(2, 1)]);
        assert!(matches!(held.turn(), Turn::Nobody));
        assert!(!held.ordinary());
        assert!(!held.ordinary_after([entry(1)].iter()));

        held.settle(entry(1));
        assert!(matches!(held.turn(), Turn::Suspect(turn) if turn.entry == entry(2)));
        assert!(matches!(held.turn(), Turn::Nobody));
        assert!(held.is_alone(entry(2)));
        assert!(!held.ordinary());
        assert!(held.ordinary_after([entry(2)].iter()));

        held.settle(entry(2));
        assert!(matches!(held.turn(), Turn::Anyone));
        assert!(held.all().is_empty());
    }

    #[test]
    fn the_likeliest_innocent_go_first_and_none_twice() {
        let mut held = Held::default();
        held.suspect(vec![suspect(1, 3), suspect(2, 1)]);
        held.suspect(vec![suspect(2, 1), suspect(3, 2)]);
        let order: Vec<_> = held
            .take_suspects()
            .into_iter()
            .map(|suspect| suspect.entry.millis)
            .collect();
        assert_eq!(order, [2, 3, 1]);
    }

    #[test]
    fn a_turn_put_back_comes_again() {
        let mut held = Held::default();
        held.suspect(vec![suspect(1, 1)]);
        let Turn::Suspect(turn) = held.turn() else {
            panic!("no turn");
        };
        held.put_back(turn);
        assert!(matches!(held.turn(), Turn::Suspect(turn) if turn.entry == entry(1)));
    }
}
