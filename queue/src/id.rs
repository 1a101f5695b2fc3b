//! Names of requests in Redis.

use std::{fmt, str::FromStr, sync::Arc};

use tokio::time::Instant;
use uuid::Uuid;

use crate::lane::{Class, Lane};

/// The number of different marks: a mark is the last 13 digits of an entry's sequence number.
const MARK: u64 = 10_000_000_000_000;

/// A stream entry's id: milliseconds of Redis' clock and a sequence number.
///
/// Streams may forget (FLUSHALL, a lost AOF tail, a failover) and then hand out the same id again. The enqueue script
/// therefore makes the last 13 digits of the sequence number from the request's uuid: whoever holds an id holds the
/// request of that very uuid or nothing, and no script needs to read an entry to know whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct EntryId {
    pub(crate) millis: u64,
    pub(crate) sequence: u64,
}

impl EntryId {
    /// Returns the smallest id that is greater than this one.
    pub(crate) fn next(self) -> Self {
        match self.sequence.checked_add(1) {
            Some(sequence) => Self { sequence, ..self },
            None => Self {
                millis: self.millis.saturating_add(1),
                sequence: 0,
            },
        }
    }
}

/// Returns the 13 digits that a request's entry id ends with, some 43 bits of its uuid.
pub(crate) fn mark(uuid: Uuid) -> String {
    format!("{:013}", uuid.as_u128() % u128::from(MARK))
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

impl FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (millis, sequence) = text.split_once('-').ok_or(())?;
        Ok(Self {
            millis: millis.parse().map_err(|_| ())?,
            sequence: sequence.parse().map_err(|_| ())?,
        })
    }
}

/// The identity of a request in a worker's hands: its entry, its uuid and where its answer goes.
#[derive(Debug, Clone)]
pub struct JobId {
    pub(crate) lane: Lane,
    pub(crate) entry: EntryId,
    pub(crate) uuid: Uuid,
    /// The proxy that waits for the answer; `None` where it stays with the request's job.
    pub(crate) proxy: Option<Arc<str>>,
    /// Bytes of the request's body.
    pub(crate) size: usize,
    /// Whether the request's body is in a key of its own.
    pub(crate) is_large: bool,
    /// The client that sent the request; empty where nobody says.
    pub(crate) client: Arc<str>,
    /// The time from which nobody waits for the answer any more.
    pub(crate) expires: Instant,
}

impl JobId {
    /// Returns the class of the request, by which those that wait for the same worker take turns.
    #[must_use]
    pub fn class(&self) -> Class {
        self.lane.class()
    }
}

impl PartialEq for JobId {
    fn eq(&self, other: &Self) -> bool {
        (self.entry, self.uuid) == (other.entry, other.uuid)
    }
}

impl Eq for JobId {}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uuid.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_ids_survive_the_wire_and_keep_their_order() {
        let id: EntryId = "1700000000001-1000999123456789012".parse().unwrap();
        assert_eq!(id.to_string(), "1700000000001-1000999123456789012");
        assert!(id < id.next());
        assert!("1700000000001-9".parse::<EntryId>().unwrap() < id);
        let last = EntryId {
            millis: 1,
            sequence: u64::MAX,
        };
        assert_eq!(last.next().to_string(), "2-0");
        for wrong in ["", "1", "1-", "-1", "a-b", "1-2-3"] {
            assert!(wrong.parse::<EntryId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn marks_have_thirteen_digits() {
        for uuid in [Uuid::nil(), Uuid::max(), Uuid::from_u128(7)] {
            let mark = mark(uuid);
            assert_eq!(mark.len(), 13);
            assert!(mark.bytes().all(|digit| digit.is_ascii_digit()));
        }
        assert_eq!(mark(Uuid::from_u128(7)), "0000000000007");
    }
}
