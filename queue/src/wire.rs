//! The form of requests in stream entries, and the reading of Redis' replies.

use std::{str::FromStr, time::Duration};

use bytes::Bytes;
use prost::Message;
use redis::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    Job, JobId, Submit,
    id::{EntryId, mark},
    keys::WAKE,
    lane::Lane,
};

/// The newest version of the entry format that this code reads. It writes a request with the oldest that has all that
/// the request needs, so that older workers may run it.
pub(crate) const FORMAT: u32 = 3;

/// The version of entries whose answer a proxy waits for, and that of those with a job.
const OF_PROXY: u32 = 2;
const OF_JOB: u32 = 3;

/// The largest body or answer, in bytes, that is kept in an entry. A larger one has a key of its own, so that no script
/// copies it, for one more round trip. As measured by `carpool-strain`, with both body and answer in keys of their own,
/// a request took 0.9 times as long at 64 KiB and 0.6 times at 1 MiB.
pub(crate) const LARGE: usize = 16 << 10;

/// The part of an entry that describes its request. It is protobuf, so that fields may be added; a change of what the
/// present ones mean makes a new [`FORMAT`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Header {
    #[prost(uint32, tag = "1")]
    pub(crate) format: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) uuid: Bytes,
    /// The destination of the answer.
    #[prost(oneof = "Destination", tags = "3, 8")]
    pub(crate) to: Option<Destination>,
    /// Milliseconds until nobody waits any more, from when the entry was added.
    #[prost(uint64, tag = "4")]
    pub(crate) ttl: u64,
    #[prost(uint32, tag = "5")]
    pub(crate) rows: u32,
    /// The `traceparent` (W3C) of the caller.
    #[prost(string, tag = "6")]
    pub(crate) trace: String,
    #[prost(string, tag = "7")]
    pub(crate) client: String,
}

/// The destination of an answer.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum Destination {
    /// The proxy of this name, which holds the client's connection.
    #[prost(string, tag = "3")]
    Proxy(String),
    /// The job of the request, which nobody waits for.
    #[prost(bool, tag = "8")]
    Job(bool),
}

/// An entry of any stream: its id, and its fields in order.
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    pub(crate) fields: Vec<(Bytes, Bytes)>,
}

/// An entry of a jobs stream, understood.
pub(crate) enum Read {
    /// A request, whose body is there or is to be fetched.
    Job(Job),
    /// A request whose client has stopped waiting.
    Expired(JobId),
    /// A sign that released requests wait to be taken, and no request.
    Wake,
    /// A request of this format, which is newer than this code's.
    Newer(u32),
    /// A damaged entry.
    Unknown,
}

/// Reads the entries of one stream, as XRANGE gives them. Those that can't be understood are left out.
pub(crate) fn entries(value: Value) -> Vec<Entry> {
    list(value).into_iter().filter_map(entry).collect()
}

/// Reads the entries of the one stream that was read, as XREAD gives them; none if the read found none.
pub(crate) fn read_entries(value: Value) -> Vec<Entry> {
    let streams = list(value).into_iter();
    let entries = streams.filter_map(|stream| list(stream).pop());
    entries.flat_map(self::entries).collect()
}

/// Reads the entries of every stream that was read, by the stream's key, as XREADGROUP gives them; none if the read
/// found none.
pub(crate) fn read_streams(value: Value) -> Vec<(Bytes, Vec<Entry>)> {
    let streams = list(value).into_iter();
    let streams = streams.filter_map(|stream| {
        let mut parts = list(stream).into_iter();
        Some((bytes(parts.next()?)?, entries(parts.next()?)))
    });
    streams.collect()
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

/// Returns an array's values; none if it is nil.
pub(crate) fn list(value: Value) -> Vec<Value> {
    value.into_sequence().unwrap_or_default()
}

/// Returns a string's bytes, without a copy.
pub(crate) fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into_bytes().into()),
        _ => None,
    }
}

/// Parses a number, or a string.
pub(crate) fn parse<T: FromStr>(value: Value) -> Option<T> {
    match value {
        Value::Int(number) => number.to_string().parse().ok(),
        value => std::str::from_utf8(&bytes(value)?).ok()?.parse().ok(),
    }
}

/// Reads the reply to TIME, in milliseconds.
pub(crate) fn clock(value: Value) -> Option<u64> {
    let mut parts = list(value).into_iter();
    let seconds: u64 = parse(parts.next()?)?;
    let micros: u64 = parse(parts.next()?)?;
    Some(seconds.saturating_mul(1000).saturating_add(micros / 1000))
}

impl Entry {
    /// Reads an entry of a lane's stream. `now` is the time of Redis' clock, in milliseconds. A large body is left out.
    pub(crate) fn job(self, lane: &Lane, now: u64) -> Read {
        let mut header = None;
        let mut body = Bytes::new();
        let mut size = None;
        for (name, value) in self.fields {
            match &*name {
                b"h" => header = Header::decode(value).ok(),
                b"b" => {
                    size = Some(value.len());
                    body = value;
                }
                b"s" => size = text(&value),
                name if name == WAKE.as_bytes() => return Read::Wake,
                _ => {}
            }
        }
        let Some(header) = header else {
            return Read::Unknown;
        };
        if header.format > FORMAT {
            return Read::Newer(header.format);
        }
        let uuid = Uuid::from_slice(&header.uuid).ok();
        let (Some(uuid), Some(to), Some(size)) = (uuid, header.to, size) else {
            return Read::Unknown;
        };
        let age = now.saturating_sub(self.id.millis);
        let left = Duration::from_millis(header.ttl.saturating_sub(age));
        let id = JobId {
            lane: lane.clone(),
            entry: self.id,
            uuid,
            proxy: match to {
                Destination::Proxy(proxy) => Some(proxy.into()),
                Destination::Job(_) => None,
            },
            size,
            is_large: size > body.len(),
            client: header.client.into(),
            // A deadline out of reach is none.
            expires: Instant::now().checked_add(left).unwrap_or_else(far_away),
        };
        if left.is_zero() {
            return Read::Expired(id);
        }
        Read::Job(Job {
            body,
            rows: header.rows,
            trace: Some(header.trace).filter(|trace| !trace.is_empty()),
            client: Some(id.client.to_string()).filter(|client| !client.is_empty()),
            age: Duration::from_millis(age),
            deadline: left,
            quarantine: None,
            id,
        })
    }
}

fn far_away() -> Instant {
    Instant::now() + Duration::from_hours(24)
}

fn text<T: FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Whether a body or an answer of so many bytes is kept in a key of its own.
pub(crate) fn is_large(size: usize) -> bool {
    size > LARGE
}

/// Adds the arguments that the enqueue scripts take of one request, whose answer goes to a proxy or, without one, to the
/// request's job.
pub(crate) fn enqueue_arguments(
    command: &mut redis::Cmd,
    uuid: Uuid,
    proxy: Option<&str>,
    ttl: Duration,
    request: &Submit,
) {
    let (format, to) = match proxy {
        Some(proxy) => (OF_PROXY, Destination::Proxy(proxy.to_owned())),
        None => (OF_JOB, Destination::Job(true)),
    };
    let header = Header {
        format,
        uuid: Bytes::copy_from_slice(uuid.as_bytes()),
        to: Some(to),
        ttl: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1),
        rows: request.rows,
        trace: request.trace.clone().unwrap_or_default(),
        client: request.client.as_deref().unwrap_or_default().to_owned(),
    };
    let body = if is_large(request.body.len()) {
        &[][..]
    } else {
        &request.body
    };
    command
        .arg(mark(uuid))
        .arg(header.ttl)
        .arg(request.body.len())
        .arg(header.encode_to_vec())
        .arg(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            format: FORMAT,
            uuid: Bytes::copy_from_slice(Uuid::from_u128(7).as_bytes()),
            to: Some(Destination::Proxy("proxy".to_owned())),
            ttl: 500,
            rows: 3,
            trace: String::new(),
            client: "10.0.0.7".to_owned(),
        }
    }

    fn lane() -> Lane {
        Lane::new("carpool:{u}:", "rev")
    }

    fn entry(header: &Header, body: (&'static str, &'static str)) -> Entry {
        let field = |name: &'static str, value| (Bytes::from_static(name.as_bytes()), value);
        Entry {
            id: EntryId {
                millis: 1_000,
                sequence: 7,
            },
            fields: vec![
                field("h", header.encode_to_vec().into()),
                field(body.0, Bytes::from_static(body.1.as_bytes())),
            ],
        }
    }

    #[test]
    fn a_job_knows_its_age_and_its_deadline() {
        let Read::Job(job) = entry(&header(), ("b", "tensor")).job(&lane(), 1_200) else {
            panic!("not a job");
        };
        assert_eq!(job.age, Duration::from_millis(200));
        assert_eq!(job.deadline, Duration::from_millis(300));
        assert_eq!((job.rows, &*job.body, job.trace), (3, &b"tensor"[..], None));
        assert_eq!(job.client.as_deref(), Some("10.0.0.7"));
        assert_eq!(
            (job.id.proxy.as_deref(), job.id.size, job.id.is_large),
            (Some("proxy"), 6, false)
        );
    }

    #[test]
    fn a_large_body_is_elsewhere() {
        let Read::Job(job) = entry(&header(), ("s", "4194304")).job(&lane(), 1_200) else {
            panic!("not a job");
        };
        assert_eq!(
            (job.body.len(), job.id.size, job.id.is_large),
            (0, 4 << 20, true)
        );
    }

    #[test]
    fn a_clock_behind_the_entry_makes_it_new_and_one_far_ahead_makes_it_expired() {
        let sample = || entry(&header(), ("b", ""));
        assert!(matches!(sample().job(&lane(), 10), Read::Job(job) if job.age.is_zero()));
        assert!(matches!(sample().job(&lane(), 1_500), Read::Expired(_)));
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let newer = Header {
            format: FORMAT + 1,
            to: None,
            ..header()
        };
        assert!(
            matches!(entry(&newer, ("b", "")).job(&lane(), 1_000), Read::Newer(format) if format == FORMAT + 1)
        );
        let damaged = Header {
            uuid: Bytes::new(),
            ..header()
        };
        assert!(matches!(
            entry(&damaged, ("b", "")).job(&lane(), 1_000),
            Read::Unknown
        ));
        assert!(matches!(
            entry(&header(), ("s", "much")).job(&lane(), 1_000),
            Read::Unknown
        ));
    }
}
