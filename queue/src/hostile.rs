//! The readers of what proxies and workers leave in Redis, for tests that leave anything there. They are no part of what this
//! crate offers.

use bytes::Bytes;

use crate::{
    consumer::bodies,
    id::EntryId,
    lane::Lane,
    outcome,
    wire::{self, Entry, Read},
};

/// The number of ways in which [`queue`] reads.
pub const WAYS: usize = 3;

/// Reads `input` as Redis' reply to a read of a jobs stream and of a replies stream; as the header of a request; or as an
/// answer, which begins with its field's name.
pub fn queue(way: usize, input: &[u8]) -> Result<(), String> {
    let lane = Lane::new("", "r1");
    match way {
        0 => {
            let reply = redis::parse_redis_value(input).map_err(|error| error.to_string())?;
            for (key, entries) in wire::read_streams(reply.clone()) {
                read(&Lane::new("", &String::from_utf8_lossy(&key)), entries);
            }
            read(&lane, wire::read_entries(reply.clone()));
            read(&lane, wire::entries(reply));
        }
        1 => {
            let header = Bytes::copy_from_slice(input);
            let with = |name: &'static [u8], value: &'static [u8]| Entry {
                id: EntryId::default(),
                fields: vec![
                    (Bytes::from_static(b"h"), header.clone()),
                    (Bytes::from_static(name), Bytes::from_static(value)),
                ],
            };
            let entries = vec![with(b"b", b"body"), with(b"s", b"18446744073709551615")];
            read(&lane, entries);
        }
        _ => {
            if let Some((name, value)) = input.split_at_checked(17) {
                let _ = outcome::reply(name, Bytes::copy_from_slice(value));
            }
        }
    }
    Ok(())
}

/// Reads entries, as those of a lane and as those of replies.
fn read(lane: &Lane, entries: Vec<Entry>) {
    for entry in &entries {
        for (name, value) in &entry.fields {
            let _ = outcome::reply(name, value.clone());
        }
    }
    let jobs = entries
        .into_iter()
        .filter_map(|entry| match entry.job(lane, 0) {
            Read::Job(job) => Some(job),
            Read::Expired(_) | Read::Wake | Read::Newer(_) | Read::Unknown => None,
        });
    lane.class();
    bodies::within(jobs.collect());
}
