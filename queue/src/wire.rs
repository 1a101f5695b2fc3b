//! How requests and outcomes look inside stream entries.

use std::{str::FromStr, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use redis::Value;
use uuid::Uuid;

use crate::{
    Failure, FailureKind, Job, JobId, Outcome,
    id::{EntryId, mark},
    keys::WAKE,
};

/// The version of the entry format that this code writes and reads.
const VERSION: &[u8] = b"1";

/// An entry of any stream: its id, and its fields in order.
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    pub(crate) fields: Vec<(Bytes, Bytes)>,
}

/// What an entry of a jobs stream turns out to be.
pub(crate) enum Read {
    Job(Job),
    /// Its client has stopped waiting.
    Expired(JobId),
    /// No request: released ones wait to be taken.
    Wake,
    /// It is of another version, or damaged. What is known of it, so that it can be answered.
    Unknown(Option<JobId>),
}

/// The entries of one stream, as XRANGE gives them. Those that can't be understood are left out.
pub(crate) fn entries(value: Value) -> Vec<Entry> {
    list(value).into_iter().filter_map(entry).collect()
}

/// The entries of the one stream that was read, as XREAD and XREADGROUP give them; none if the read found none.
pub(crate) fn read_entries(value: Value) -> Vec<Entry> {
    list(value)
        .into_iter()
        .filter_map(|stream| list(stream).pop())
        .flat_map(entries)
        .collect()
}

fn entry(value: Value) -> Option<Entry> {
    let mut parts = list(value).into_iter();
    let id = parse(parts.next()?)?;
    let mut fields = Vec::new();
    let mut values = list(parts.next()?).into_iter();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        fields.push((bytes(name)?, bytes(value)?));
    }
    Some(Entry { id, fields })
}

/// An array's values; none if it is nil.
pub(crate) fn list(value: Value) -> Vec<Value> {
    value.into_sequence().unwrap_or_default()
}

/// A string's bytes, without a copy.
pub(crate) fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into_bytes().into()),
        _ => None,
    }
}

/// A number, or a string of something that can be parsed.
pub(crate) fn parse<T: FromStr>(value: Value) -> Option<T> {
    match value {
        Value::Int(number) => number.to_string().parse().ok(),
        value => std::str::from_utf8(&bytes(value)?).ok()?.parse().ok(),
    }
}

/// Redis' clock as TIME gives it, in milliseconds.
pub(crate) fn clock(value: Value) -> Option<u64> {
    let mut parts = list(value).into_iter();
    let seconds: u64 = parse(parts.next()?)?;
    let micros: u64 = parse(parts.next()?)?;
    Some(seconds * 1000 + micros / 1000)
}

impl Entry {
    /// Reads an entry of a jobs stream at a time of Redis' clock, in milliseconds.
    pub(crate) fn job(self, now: u64) -> Read {
        let mut version = Bytes::new();
        let mut uuid = None;
        let mut proxy = None;
        let mut ttl = None;
        let mut rows = None;
        let mut trace = None;
        let mut body = Bytes::new();
        for (name, value) in self.fields {
            let text = std::str::from_utf8(&value);
            match &*name {
                b"v" => version = value,
                b"id" => uuid = text.ok().and_then(|text| Uuid::from_str(text).ok()),
                b"to" => proxy = text.ok().map(Into::into),
                b"ttl" => ttl = text.ok().and_then(|text| text.parse::<u64>().ok()),
                b"rows" => rows = text.ok().and_then(|text| text.parse().ok()),
                b"trace" => trace = text.ok().filter(|text| !text.is_empty()).map(str::to_owned),
                b"body" => body = value,
                name if name == WAKE.as_bytes() => return Read::Wake,
                _ => {}
            }
        }
        let id = uuid.zip(proxy).map(|(uuid, proxy)| JobId {
            entry: self.id,
            uuid,
            proxy,
            size: body.len(),
        });
        let (Some(id), Some(ttl), Some(rows), VERSION) = (id.clone(), ttl, rows, &*version) else {
            return Read::Unknown(id);
        };
        let age = now.saturating_sub(self.id.millis);
        if age >= ttl {
            return Read::Expired(id);
        }
        Read::Job(Job {
            id,
            body,
            rows,
            trace,
            client: None,
            age: Duration::from_millis(age),
            deadline: Duration::from_millis(ttl - age),
            quarantine: None,
        })
    }
}

/// The arguments that the enqueue script takes of one request.
pub(crate) fn enqueue_arguments(
    command: &mut redis::Cmd,
    uuid: Uuid,
    ttl: Duration,
    rows: u32,
    trace: Option<&str>,
    body: &[u8],
) {
    command
        .arg(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) as &str)
        .arg(mark(uuid))
        .arg(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1))
        .arg(rows)
        .arg(trace.unwrap_or_default())
        .arg(body);
}

impl Outcome {
    /// About what it takes in an entry.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Answer(body) => body.len(),
            Self::Failure(failure) => failure.message.len(),
        }
    }

    /// One byte says what follows: the answer or a failure's message.
    pub(crate) fn encode(&self) -> Bytes {
        let (tag, payload) = match self {
            Self::Answer(body) => (b'a', &**body),
            Self::Failure(failure) => (failure.kind.tag(), failure.message.as_bytes()),
        };
        let mut encoded = BytesMut::with_capacity(1 + payload.len());
        encoded.put_u8(tag);
        encoded.put_slice(payload);
        encoded.freeze()
    }

    pub(crate) fn decode(mut encoded: Bytes) -> Self {
        let tag = if encoded.is_empty() {
            0
        } else {
            encoded.split_to(1)[0]
        };
        if tag == b'a' {
            return Self::Answer(encoded);
        }
        // A kind that a newer worker knows is a failure all the same.
        let kind = FailureKind::ALL
            .into_iter()
            .find(|kind| kind.tag() == tag)
            .unwrap_or(FailureKind::Model);
        Self::Failure(Failure {
            kind,
            message: String::from_utf8_lossy(&encoded).into_owned(),
        })
    }
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

    fn field(name: &str, value: &str) -> (Bytes, Bytes) {
        (
            Bytes::copy_from_slice(name.as_bytes()),
            Bytes::copy_from_slice(value.as_bytes()),
        )
    }

    fn sample() -> Entry {
        Entry {
            id: EntryId {
                millis: 1_000,
                sequence: 7,
            },
            fields: vec![
                field("v", "1"),
                field("id", "01234567-89ab-4def-8123-456789abcdef"),
                field("to", "proxy"),
                field("ttl", "500"),
                field("rows", "3"),
                field("trace", ""),
                field("body", "tensor"),
            ],
        }
    }

    #[test]
    fn a_job_knows_its_age_and_its_deadline() {
        let Read::Job(job) = sample().job(1_200) else {
            panic!("not a job");
        };
        assert_eq!(job.age, Duration::from_millis(200));
        assert_eq!(job.deadline, Duration::from_millis(300));
        assert_eq!((job.rows, &*job.body, job.trace), (3, &b"tensor"[..], None));
        assert_eq!((&*job.id.proxy, job.id.size), ("proxy", 6));
    }

    #[test]
    fn a_clock_behind_the_entry_makes_it_new_and_one_far_ahead_makes_it_expired() {
        assert!(matches!(sample().job(10), Read::Job(job) if job.age.is_zero()));
        assert!(matches!(sample().job(1_500), Read::Expired(_)));
    }

    #[test]
    fn another_version_is_unknown_but_can_be_answered() {
        let mut entry = sample();
        entry.fields[0] = field("v", "2");
        assert!(matches!(entry.job(1_000), Read::Unknown(Some(_))));
        let mut entry = sample();
        entry.fields[1] = field("id", "nonsense");
        assert!(matches!(entry.job(1_000), Read::Unknown(None)));
    }

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
        for outcome in outcomes {
            assert_eq!(Outcome::decode(outcome.encode()), outcome);
        }
        assert!(matches!(
            Outcome::decode(Bytes::new()),
            Outcome::Failure(Failure {
                kind: FailureKind::Model,
                ..
            })
        ));
    }
}
