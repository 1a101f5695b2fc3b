//! Outcomes as they travel in a replies stream: one field for each.

use bytes::Bytes;
use uuid::Uuid;

use crate::{Failure, FailureKind, Outcome, wire::is_large};

/// The length of the name of a field that brings an outcome: a tag, then the request's uuid.
const FIELD: usize = 1 + 16;

/// The tag of an answer that is kept in a key of its own. The field's value names the worker that wrote it.
const ELSEWHERE: u8 = b'E';

/// The content of one field of a replies stream's entry.
pub(crate) enum Reply {
    Outcome(Outcome),
    /// An answer that is kept in a key of its own: the worker that wrote it, and its size in bytes.
    Elsewhere {
        worker: String,
        size: usize,
    },
}

impl Outcome {
    /// Returns about how many bytes the outcome takes in an entry.
    pub(crate) fn size(&self) -> usize {
        self.payload().len()
    }

    /// Returns the answer, or a failure's message.
    pub(crate) fn payload(&self) -> &[u8] {
        match self {
            Self::Answer(body) => body,
            Self::Failure(failure) => failure.message.as_bytes(),
        }
    }

    /// Whether the outcome is an answer that is kept in a key of its own.
    pub(crate) fn is_large(&self) -> bool {
        matches!(self, Self::Answer(body) if is_large(body.len()))
    }

    /// Returns the name of the field that brings the outcome. `inline` says that the answer is in the entry, however
    /// large.
    pub(crate) fn field(&self, uuid: Uuid, inline: bool) -> [u8; FIELD] {
        let tag = match self {
            Self::Answer(_) if self.is_large() && !inline => ELSEWHERE,
            Self::Answer(_) => b'a',
            Self::Failure(failure) => failure.kind.tag(),
        };
        let mut field = [tag; FIELD];
        field[1..].copy_from_slice(uuid.as_bytes());
        field
    }
}

/// Returns the value of a field that says where a large answer is.
pub(crate) fn elsewhere(size: usize, worker: &str) -> String {
    format!("{size} {worker}")
}

/// Reads a field of a replies stream's entry; `None` if it brings no outcome.
pub(crate) fn reply(name: &[u8], value: Bytes) -> Option<(Uuid, Reply)> {
    let (tag, uuid) = name.split_first()?;
    let uuid = Uuid::from_slice(uuid).ok()?;
    let reply = match *tag {
        b'a' => Reply::Outcome(Outcome::Answer(value)),
        ELSEWHERE => {
            let (size, worker) = std::str::from_utf8(&value).ok()?.split_once(' ')?;
            Reply::Elsewhere {
                worker: worker.to_owned(),
                size: size.parse().ok()?,
            }
        }
        tag => Reply::Outcome(Outcome::Failure(Failure {
            // A kind that only a newer worker knows is a failure all the same.
            kind: FailureKind::ALL
                .into_iter()
                .find(|kind| kind.tag() == tag)
                .unwrap_or(FailureKind::Model),
            message: String::from_utf8_lossy(&value).into_owned(),
        })),
    };
    Some((uuid, reply))
}

impl FailureKind {
    const ALL: [Self; 4] = [
        Self::Invalid,
        Self::Model,
        Self::TooManyDeliveries,
        Self::Expired,
    ];

    fn tag(self) -> u8 {
        match self {
            Self::Invalid => b'i',
            Self::Model => b'm',
            Self::TooManyDeliveries => b'd',
            Self::Expired => b'e',
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::LARGE;

    #[test]
    fn outcomes_survive_the_wire() {
        let mut outcomes = vec![
            Outcome::Answer(Bytes::from_static(b"abc")),
            Outcome::Answer(Bytes::new()),
        ];
        outcomes.extend(FailureKind::ALL.map(|kind| {
            Outcome::Failure(Failure {
                kind,
                message: "naïve".to_owned(),
            })
        }));
        let uuid = Uuid::from_u128(7);
        for outcome in outcomes {
            let payload = Bytes::copy_from_slice(outcome.payload());
            let (whose, read) = reply(&outcome.field(uuid, false), payload).unwrap();
            assert_eq!(whose, uuid);
            assert!(matches!(read, Reply::Outcome(read) if read == outcome));
        }
        let large = Outcome::Answer(vec![0; LARGE + 1].into());
        let (_, read) = reply(
            &large.field(uuid, false),
            elsewhere(70_000, "worker-1").into(),
        )
        .unwrap();
        assert!(matches!(read, Reply::Elsewhere { worker, size: 70_000 } if worker == "worker-1"));
        assert!(reply(b"present", Bytes::new()).is_none());
    }
}
