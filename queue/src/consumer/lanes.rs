//! The other lanes of a revision, and the turns in which all are read.
//!
//! A worker waits for the common lane, where every ordinary request comes. It learns of other lanes once a second, when
//! an entry of the common one wakes it, and with each read while there are some.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use redis::Value;

use super::{
    inner::Inner,
    intake,
    read::{self, Found, read_command, sent},
};
use crate::{
    Class, Job, QueueError,
    call::{Call, Reply, lost_group},
    lane::{self, Lane},
    wire,
};

/// The weight of priority 1. Each further one has half of it, down to the least.
const HIGHEST: u32 = 64;
const LEAST: u32 = 1;

/// A multiple of most numbers of lanes, so that the weight of a class is divided without a rest.
const PARTS: u32 = 840;

/// The most rounds of one fetch: the second and third give what some lanes left to those that have more.
const ROUNDS: usize = 3;

/// The revision's lanes beside the common one.
#[derive(Default)]
pub(super) struct Lanes {
    /// The lanes that have entries, as far as this worker knows.
    active: BTreeSet<Lane>,
    /// The lanes that this worker has ever known to have entries: it may hold some of them.
    known: BTreeSet<Lane>,
    /// By how much each lane is behind with its turns, the common one's included.
    credit: BTreeMap<Lane, i64>,
}

impl Lanes {
    /// Whether there are lanes beside the common one to be read.
    pub(super) fn any(&self) -> bool {
        !self.active.is_empty()
    }

    pub(super) fn active(&self) -> Vec<Lane> {
        self.active.iter().cloned().collect()
    }

    pub(super) fn known(&self) -> Vec<Lane> {
        self.known.iter().cloned().collect()
    }

    fn set_active(&mut self, active: BTreeSet<Lane>) {
        self.known.extend(active.iter().cloned());
        self.credit.retain(|lane, _| active.contains(lane));
        self.active = active;
    }

    /// Divides a fetch among lanes by the weights of their classes, request by request, so that over some fetches even
    /// the lightest has its turns.
    fn divide(&mut self, lanes: &[Lane], capacity: usize, default_priority: u8) -> Vec<usize> {
        let mut members: BTreeMap<Class, u32> = BTreeMap::new();
        for lane in lanes {
            *members.entry(lane.class()).or_default() += 1;
        }
        let weights: Vec<i64> = lanes
            .iter()
            .map(|lane| {
                let class = lane.class();
                i64::from((weight(class, default_priority) * PARTS / members[&class]).max(1))
            })
            .collect();
        let total: i64 = weights.iter().sum();
        let mut credit: Vec<i64> = lanes
            .iter()
            .map(|lane| self.credit.get(lane).copied().unwrap_or_default())
            .collect();
        let mut quotas = vec![0; lanes.len()];
        for _ in 0..capacity {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += weight;
            }
            // The first of equals, so that the common lane, which is the first, goes before others.
            let next = (0..lanes.len()).rev().max_by_key(|lane| credit[*lane]);
            if let Some(next) = next {
                credit[next] -= total;
                quotas[next] += 1;
            }
        }
        self.credit.extend(lanes.iter().cloned().zip(credit));
        quotas
    }

    /// Notes that a lane left some of its turns: it has nothing to wait for.
    fn fell_short(&mut self, lane: &Lane) {
        self.credit.remove(lane);
    }
}

fn weight(class: Class, default_priority: u8) -> u32 {
    let priority = match class {
        Class::Default => default_priority,
        Class::Priority(priority) => priority,
        Class::Background => return LEAST,
    };
    let halvings = u32::from(priority.max(1)) - 1;
    HIGHEST.checked_shr(halvings).unwrap_or(0).max(LEAST)
}

/// Makes the command that reads which lanes have entries.
fn look_command(inner: &Inner) -> redis::Cmd {
    let mut command = redis::cmd("HKEYS");
    command.arg(inner.keys.lengths());
    command
}

fn learn(inner: &Inner, reply: Value) {
    let names = wire::list(reply).into_iter();
    let names = names.filter_map(wire::parse::<String>);
    let active: BTreeSet<Lane> = names
        .filter(|name| lane::revision(name) == inner.revision)
        .map(|name| inner.keys.lane(&name))
        .collect();
    let gone: Vec<Lane> = inner.lanes(|lanes| {
        let gone = lanes.active.difference(&active).cloned().collect();
        lanes.set_active(active);
        gone
    });
    inner.leases(|leases| {
        for lane in gone {
            leases.set_aside(&lane, false);
        }
    });
}

/// Learns which lanes have entries.
pub(super) async fn look(inner: &Inner) -> Result<(), QueueError> {
    let call = Call::of(look_command(inner));
    learn(inner, inner.commands.last(&call, "HKEYS").await?);
    Ok(())
}

/// Takes new requests of all lanes in turns, up to `capacity`, waiting up to `wait` for the first.
pub(super) async fn read(
    inner: &Inner,
    capacity: usize,
    wait: Duration,
) -> Result<Vec<Job>, QueueError> {
    let mut jobs = Vec::new();
    let mut lanes = vec![inner.common.clone()];
    lanes.extend(inner.lanes(|lanes| lanes.active()));
    for _ in 0..ROUNDS {
        let left = capacity - jobs.len();
        let default_priority = inner.limits().default_priority;
        let quotas = inner.lanes(|all| all.divide(&lanes, left, default_priority));
        let (taken, more) = round(inner, &lanes, &quotas).await?;
        jobs.extend(taken);
        lanes = more;
        if jobs.len() >= capacity || lanes.is_empty() {
            break;
        }
    }
    if jobs.is_empty() && !wait.is_zero() {
        jobs = wait_for_any(inner, capacity, wait).await?;
    }
    Ok(jobs)
}

/// Reads each lane up to its quota, in one write. Returns the jobs, and the lanes that may have more.
async fn round(
    inner: &Inner,
    lanes: &[Lane],
    quotas: &[usize],
) -> Result<(Vec<Job>, Vec<Lane>), QueueError> {
    let connection = inner.commands.get().await?;
    let mut call = Call::new();
    let asked = || lanes.iter().zip(quotas).filter(|(_, quota)| **quota > 0);
    for (lane, quota) in asked() {
        let lane = std::slice::from_ref(lane);
        call.command(read_command(inner, lane, *quota, Duration::ZERO));
    }
    call.command(look_command(inner));
    call.command(redis::cmd("TIME"));
    let outcome = call.send(&connection).await;
    let mut replies = sent(inner, &inner.commands, &connection, outcome)?;
    let time = read::time(replies.pop());
    let active = replies.pop().map(|reply| reply.value("HKEYS")).transpose();
    let mut found = Vec::new();
    let mut more: Vec<Lane> = lanes
        .iter()
        .zip(quotas)
        .filter(|(_, quota)| **quota == 0)
        .map(|(lane, _)| lane.clone())
        .collect();
    let mut failure = None;
    for ((lane, quota), reply) in asked().zip(replies) {
        match entries(inner, lane, reply) {
            Ok(entries) if entries.len() == *quota => {
                more.push(lane.clone());
                found.push((lane.clone(), entries));
            }
            Ok(entries) => {
                inner.lanes(|lanes| lanes.fell_short(lane));
                found.push((lane.clone(), entries));
            }
            Err(error) => failure = Some(error),
        }
    }
    // Requests that were read are this worker's, and in nobody's hands if the rest failed.
    let now = match (failure, time, active) {
        (None, Ok(now), Ok(active)) => {
            learn(inner, active.unwrap_or(Value::Nil));
            now
        }
        (Some(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
            inner.leases(|leases| leases.stray = true);
            return Err(error);
        }
    };
    Ok((intake::of_new(inner, found, now).await?, more))
}

/// Reads the reply to the read of one lane. One other than the common lane may be gone.
fn entries(inner: &Inner, lane: &Lane, reply: Reply) -> Result<Vec<wire::Entry>, QueueError> {
    match reply.value("XREADGROUP") {
        Ok(value) => {
            let found = read::parse_read(std::slice::from_ref(lane), value);
            Ok(found
                .into_iter()
                .flat_map(|(_, entries): Found| entries)
                .collect())
        }
        Err(error) if lost_group(&error) && *lane != inner.common => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Waits for a new request of any lane.
async fn wait_for_any(
    inner: &Inner,
    capacity: usize,
    wait: Duration,
) -> Result<Vec<Job>, QueueError> {
    let mut lanes = vec![inner.common.clone()];
    lanes.extend(inner.lanes(|lanes| lanes.active()));
    // The count is each lane's.
    let count = (capacity / lanes.len()).max(1);
    lanes.truncate(capacity);
    let connection = inner.reads.get().await?;
    let mut call = Call::new();
    call.command(read_command(inner, &lanes, count, wait));
    call.command(redis::cmd("TIME"));
    let outcome = call.send(&connection).await;
    let replies = sent(inner, &inner.reads, &connection, outcome)?;
    let jobs = intake::of_replies(inner, &lanes, replies).await;
    if jobs.as_ref().is_err_and(lost_group) {
        // One of the lanes is gone, and nobody can say which.
        inner.lanes(|lanes| lanes.set_active(BTreeSet::new()));
    }
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(names: &[&str]) -> Vec<Lane> {
        let names = names.iter();
        names.map(|name| Lane::new("carpool:{u}:", name)).collect()
    }

    #[test]
    fn a_fetch_is_divided_by_weight_and_nobody_starves() {
        let lanes = lanes(&["rev", "rev~1.0", "rev~3.0", "rev~b.0"]);
        let mut all = Lanes::default();
        let mut sums = vec![0; lanes.len()];
        for _ in 0..113 {
            for (sum, quota) in sums.iter_mut().zip(all.divide(&lanes, 8, 2)) {
                *sum += quota;
            }
        }
        // Of 113 parts, priority 1 has 64, the default one, 2, has 32, priority 3 has 16, and the background has one.
        assert_eq!(sums, [32 * 8, 64 * 8, 16 * 8, 8]);
    }

    #[test]
    fn callers_of_one_class_share_its_turns() {
        let lanes = lanes(&["rev", "rev~0.1", "rev~0.2", "rev~3.0", "rev~3.1"]);
        let mut all = Lanes::default();
        let mut sums = vec![0; lanes.len()];
        for _ in 0..30 {
            for (sum, quota) in sums.iter_mut().zip(all.divide(&lanes, 5, 1)) {
                *sum += quota;
            }
        }
        assert_eq!(sums, [40, 40, 40, 15, 15]);
    }
}
