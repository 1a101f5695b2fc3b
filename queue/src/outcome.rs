//! How outcomes travel in a replies stream: a field for each.

use bytes::Bytes;
use uuid::Uuid;

use crate::{Failure, FailureKind, Outcome, wire::is_large};

/// What the field of a replies stream's entry that brings an outcome is called: what it is, then whose.
const FIELD: usize = 1 + 16;

/// An answer that is kept in a key of its own; the field's value names the worker.
const ELSEWHERE: u8 = b'E';

/// What a field of a replies stream's entry brings.
pub(crate) enum Reply {
    Outcome(Outcome),
    /// An answer that is kept in a key of its own: the worker that wrote it, and its size.
    Elsewhere {
        worker: String,
        size: usize,
    },
}

impl Outcome {
    /// About what it takes in an entry.
    pub(crate) fn size(&self) -> usize {
        self.payload().len()
    }

    /// The answer, or a failure's message.
    pub(crate) fn payload(&self) -> &[u8] {
        match self {
            Self::Answer(body) => body,
            Self::Failure(failure) => failure.message.as_bytes(),
        }
    }

    /// Whether it is kept in a key of its own.
    pub(crate) fn is_large(&self) -> bool {
        matches!(self, Self::Answer(body) if is_large(body.len()))
    }

    /// The name of the field that brings it; `inline` in the entry, even a large one.
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

/// The value of a field that says where a large answer is.
pub(crate) fn elsewhere(size: usize, worker: &str) -> String {
    format!("{size} {worker}")
}

/// Reads a field of a replies stream's entry; none if it brings nothing.
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
            // A kind that a newer worker knows is a failure all the same.
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
