//! Turns of models whose pods a newer operator renders otherwise: at most so many models are updated at a time, each after
//! the one before has all its pods Ready again. Pure: what stands on the cluster comes in with each reconcile, so an
//! operator that starts anew counts whoever is being updated and lets nobody begin before it has seen all models.

use std::{collections::BTreeMap, fmt};

/// A model's namespace and name. Models take turns in this order.
pub type Key = (String, String);

/// The stage of an update of a model's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// The pods are as this operator renders them.
    Settled,
    /// The pods are being replaced in the model's turn.
    Updating,
    /// The pods are to be replaced once it is the model's turn.
    Waiting,
}

/// Models up to which one that waits is told who is before it. A large fleet would be written anew at every turn.
const NEAR: usize = 10;

/// The models before one that waits for its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ahead {
    /// More than are counted, or not known yet.
    Far,
    /// A number that is counted.
    Near {
        /// The number of models.
        models: usize,
        /// The models of them that are being updated.
        updating: Vec<Key>,
    },
}

impl fmt::Display for Ahead {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Far => write!(text, "other models are before it")?,
            Self::Near { models: 0, .. } => write!(text, "it is the next")?,
            Self::Near { models: 1, .. } => write!(text, "1 model is before it")?,
            Self::Near { models, .. } => write!(text, "{models} models are before it")?,
        }
        match self {
            Self::Near { updating, .. } if !updating.is_empty() => {
                let names = updating
                    .iter()
                    .map(|(namespace, name)| format!("{namespace}/{name}"));
                let names: Vec<_> = names.collect();
                write!(text, ", {} is being updated", names.join(", "))
            }
            _ => Ok(()),
        }
    }
}

/// The turns of all models.
#[derive(Debug)]
pub struct Turns {
    at_once: usize,
    stands: BTreeMap<Key, Stand>,
    /// Whether somebody's turn has begun or ended since [`Turns::outdated`].
    moved: bool,
}

impl Turns {
    /// Turns of which so many may be under way at a time.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        Self {
            at_once,
            stands: BTreeMap::new(),
            moved: false,
        }
    }

    /// Writes down that a model has nothing to be replaced. One in its turn stays in it while `is_updating`; one whose
    /// turn is over, or was none, has none for pods that come and go later.
    pub fn settle(&mut self, model: &Key, is_updating: bool) {
        let before = self.stands.get(model);
        let in_turn = before.is_none_or(|before| *before == Stand::Updating);
        let now = if is_updating && in_turn {
            Stand::Updating
        } else {
            Stand::Settled
        };
        self.moved |= before == Some(&Stand::Updating) && now == Stand::Settled;
        self.stands.insert(model.clone(), now);
    }

    /// Asks for a model's turn: `None` is that it has come, else the models before it. `all_seen` is whether every other
    /// model has been seen: one that was not may be in its turn.
    pub fn ask(&mut self, model: &Key, all_seen: bool) -> Option<Ahead> {
        let stand = self.stands.entry(model.clone()).or_insert(Stand::Waiting);
        if *stand == Stand::Updating {
            return None;
        }
        *stand = Stand::Waiting;
        if self.next(all_seen).contains(model) {
            self.stands.insert(model.clone(), Stand::Updating);
            self.moved = true;
            return None;
        }
        let is_before = |other: &Key, stand: &Stand| match stand {
            Stand::Settled => false,
            Stand::Updating => true,
            Stand::Waiting => other < model,
        };
        let stands = self.stands.iter();
        let before = stands.filter(|(other, stand)| is_before(other, stand));
        let before: Vec<_> = before.collect();
        Some(match before.len() {
            // Models that have not been seen may be before it as well.
            far if far > NEAR || !all_seen => Ahead::Far,
            models => Ahead::Near {
                models,
                updating: before
                    .into_iter()
                    .filter(|(_, stand)| **stand == Stand::Updating)
                    .map(|(other, _)| other.clone())
                    .collect(),
            },
        })
    }

    /// Models that wait near the front, once after somebody's turn has begun or ended: what they were told of the models
    /// before them holds no more.
    pub fn outdated(&mut self) -> Vec<Key> {
        if !std::mem::take(&mut self.moved) {
            return Vec::new();
        }
        let stands = self.stands.iter();
        let waiting = stands.filter(|(_, stand)| **stand == Stand::Waiting);
        waiting
            .take(NEAR + 1)
            .map(|(model, _)| model.clone())
            .collect()
    }

    /// Waiting models whose turn has come.
    #[must_use]
    pub fn next(&self, all_seen: bool) -> Vec<Key> {
        if !all_seen {
            return Vec::new();
        }
        let free = self.at_once.saturating_sub(self.count(Stand::Updating));
        let waiting = self
            .stands
            .iter()
            .filter(|(_, stand)| **stand == Stand::Waiting);
        waiting.take(free).map(|(model, _)| model.clone()).collect()
    }

    /// The number of models at this stand.
    #[must_use]
    pub fn count(&self, stand: Stand) -> usize {
        self.stands
            .values()
            .filter(|other| **other == stand)
            .count()
    }

    /// Whether a model was seen.
    #[must_use]
    pub fn has(&self, model: &Key) -> bool {
        self.stands.contains_key(model)
    }

    /// Forgets a model that is gone.
    pub fn forget(&mut self, model: &Key) {
        self.moved |= self
            .stands
            .remove(model)
            .is_some_and(|stand| stand != Stand::Settled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> Key {
        ("nlp".to_owned(), name.to_owned())
    }

    fn near(models: usize, updating: &[&str]) -> Ahead {
        let updating = updating.iter().map(|name| model(name)).collect();
        Ahead::Near { models, updating }
    }

    #[test]
    fn so_many_at_a_time_take_their_turn_in_order_of_their_names() {
        let mut turns = Turns::new(2);
        for name in ["d", "c", "b", "a"] {
            let before = turns.ask(&model(name), name == "a");
            // The last one to be seen is the first in order.
            assert_eq!(before.is_none(), name == "a", "{name}: {before:?}");
        }
        assert_eq!(turns.next(true), [model("b")]);
        assert_eq!(turns.ask(&model("c"), true), Some(near(2, &["a"])));
        assert_eq!(turns.ask(&model("b"), true), None);
        assert_eq!(turns.ask(&model("d"), true), Some(near(3, &["a", "b"])));
        assert_eq!(
            turns.ask(&model("a"), true),
            None,
            "a turn lasts until it is over"
        );
        assert_eq!(turns.count(Stand::Updating), 2);
        turns.settle(&model("a"), true);
        assert!(turns.next(true).is_empty(), "a has pods that are not Ready");
        turns.settle(&model("a"), false);
        assert_eq!(turns.next(true), [model("c")]);
    }

    #[test]
    fn nobody_begins_before_all_have_been_seen() {
        let mut turns = Turns::new(1);
        assert_eq!(turns.ask(&model("a"), false), Some(Ahead::Far));
        assert!(turns.next(false).is_empty());
        // The last one that is seen has been in its turn under the leader before.
        turns.settle(&model("b"), true);
        assert!(turns.next(true).is_empty());
        assert_eq!(turns.ask(&model("a"), true), Some(near(1, &["b"])));
        turns.settle(&model("b"), false);
        assert_eq!(turns.next(true), [model("a")]);
    }

    #[test]
    fn pods_that_fail_after_a_turn_hold_nobody_up() {
        let mut turns = Turns::new(1);
        turns.settle(&model("a"), false);
        turns.settle(&model("a"), true);
        assert_eq!(turns.ask(&model("b"), true), None);
    }

    #[test]
    fn whoever_waits_near_the_front_is_told_anew_when_a_turn_begins_or_ends() {
        let mut turns = Turns::new(1);
        let names: Vec<String> = (10..30).map(|number| format!("m{number}")).collect();
        let first = model(&names[0]);
        assert_eq!(turns.ask(&first, true), None);
        let mut told = Vec::new();
        for name in &names[1..] {
            told.push(turns.ask(&model(name), true).unwrap().to_string());
        }
        assert_eq!(told[0], "1 model is before it, nlp/m10 is being updated");
        assert_eq!(told[9], "10 models are before it, nlp/m10 is being updated");
        assert_eq!(told[10], "other models are before it");
        let near: Vec<Key> = names[1..12].iter().map(|name| model(name)).collect();
        assert_eq!(turns.outdated(), near, "a turn has begun");
        assert!(turns.outdated().is_empty(), "they have been told");
        turns.settle(&first, true);
        assert!(turns.outdated().is_empty(), "nothing has changed");
        turns.settle(&first, false);
        assert_eq!(turns.outdated(), near, "a turn has ended");
        assert_eq!(turns.ask(&near[0], true), None);
        assert_eq!(turns.outdated()[0], near[1]);
        turns.forget(&near[0]);
        assert_eq!(turns.outdated()[0], near[1], "a model has gone");
    }

    #[test]
    fn a_model_that_goes_leaves_its_turn_to_the_next() {
        let mut turns = Turns::new(1);
        assert_eq!(turns.ask(&model("a"), true), None);
        assert_eq!(turns.ask(&model("b"), true), Some(near(1, &["a"])));
        turns.forget(&model("a"));
        assert_eq!(turns.next(true), [model("b")]);
    }
}
