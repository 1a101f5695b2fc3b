use proptest::{collection::vec, option, prelude::*};

use super::*;

const TARGET: u32 = 64;
const COOLDOWN: u64 = 60;

fn scaling(min: u32, max: u32) -> Scaling {
    Scaling {
        min_replicas: min,
        max_replicas: max,
        target_queue_length: TARGET,
        cooldown: carpool_crds::Duration(Duration::from_secs(COOLDOWN)),
        ..Scaling::default()
    }
}

fn seen(length: impl Into<Option<u64>>, current: u32) -> Observation {
    Observation {
        length: length.into(),
        current,
        proven: true,
    }
}

/// A scaler, its workers and a clock that ticks once a second.
struct World {
    scaler: Scaler,
    now: Instant,
    workers: u32,
}

impl World {
    fn new(scaling: Scaling, workers: u32) -> Self {
        Self {
            scaler: Scaler::new(scaling),
            now: Instant::now(),
            workers,
        }
    }

    fn tick(&mut self, length: impl Into<Option<u64>>) -> Decision {
        let decision = self.scaler.decide(self.now, seen(length, self.workers));
        self.workers = decision.replicas;
        self.now += Duration::from_secs(1);
        decision
    }

    /// Returns the numbers of workers over `seconds` of one length.
    fn hold(&mut self, length: u64, seconds: u64) -> Vec<u32> {
        (0..seconds).map(|_| self.tick(length).replicas).collect()
    }
}

fn formula(length: u64, min: u32, max: u32) -> u32 {
    u32::try_from(length.div_ceil(u64::from(TARGET)))
        .unwrap()
        .clamp(min, max)
}

/// Returns how many times the direction of change changes.
fn reversals(workers: &[u32]) -> usize {
    let directions: Vec<bool> = workers
        .windows(2)
        .filter(|pair| pair[0] != pair[1])
        .map(|pair| pair[0] < pair[1])
        .collect();
    directions
        .windows(2)
        .filter(|pair| pair[0] != pair[1])
        .count()
}

#[test]
fn the_first_request_wakes_a_worker_at_once() {
    let mut world = World::new(scaling(0, 8), 0);
    assert_eq!(world.hold(0, 100), vec![0; 100]);
    let decision = world.tick(1);
    assert_eq!(
        (decision.replicas, decision.reason),
        (1, Reason::FirstRequest)
    );
}

#[test]
fn lengths_give_workers() {
    for (length, expected) in [
        (0, 0),
        (1, 1),
        (64, 1),
        (65, 2),
        (128, 2),
        (129, 3),
        (512, 8),
        (513, 8),
        (u64::MAX, 8),
    ] {
        let mut world = World::new(scaling(0, 8), 0);
        assert_eq!(
            world.hold(length, 20).last(),
            Some(&expected),
            "length {length}"
        );
    }
}

#[test]
fn a_burst_is_followed_within_the_panic_window() {
    let mut world = World::new(scaling(0, 8), 1);
    world.hold(10, 60);
    assert_eq!(world.tick(512).reason, Reason::Burst);
    assert_eq!(world.tick(512).replicas, 8);
}

#[test]
fn a_small_rise_waits_for_the_stable_window() {
    let mut world = World::new(scaling(0, 8), 4);
    world.hold(250, 60);
    let workers = world.hold(270, 10);
    assert_eq!(workers[0], 4, "one second says little");
    assert_eq!(workers[9], 5);
}

#[test]
fn workers_go_after_the_cooldown_and_not_before() {
    let mut world = World::new(scaling(0, 8), 0);
    world.hold(200, 20);
    let workers = world.hold(70, COOLDOWN + 5);
    let held = usize::try_from(COOLDOWN).unwrap();
    assert_eq!(workers[..held], vec![4; held]);
    assert_eq!(workers[held + 4], 2);
}

#[test]
fn one_longer_moment_in_the_cooldown_keeps_the_workers() {
    let mut world = World::new(scaling(0, 8), 2);
    world.hold(100, 10);
    for _ in 0..10 {
        world.hold(0, COOLDOWN - 1);
        world.tick(100);
        assert_eq!(world.workers, 2);
    }
}

#[test]
fn a_new_scaler_watches_a_whole_cooldown_first() {
    let mut world = World::new(scaling(0, 8), 3);
    let held = usize::try_from(COOLDOWN).unwrap();
    assert_eq!(world.hold(0, COOLDOWN), vec![3; held]);
    assert_eq!(world.tick(0).replicas, 0);
}

#[test]
fn what_is_not_known_keeps_every_worker_and_starts_the_cooldown_anew() {
    let mut world = World::new(scaling(0, 8), 3);
    world.hold(0, COOLDOWN - 10);
    for _ in 0..30 {
        let decision = world.tick(None);
        assert_eq!((decision.replicas, decision.reason), (3, Reason::Unknown));
    }
    let held = usize::try_from(COOLDOWN).unwrap();
    assert_eq!(world.hold(0, COOLDOWN), vec![3; held]);
    assert_eq!(world.tick(0).replicas, 0);
}

#[test]
fn a_short_gap_in_what_is_known_does_not_start_the_cooldown_anew() {
    let mut world = World::new(scaling(0, 8), 3);
    world.hold(0, COOLDOWN - 5);
    for _ in 0..3 {
        world.tick(None);
    }
    assert_eq!(world.hold(0, 3).last(), Some(&0));
}

#[test]
fn an_unproven_revision_has_one_worker_and_loses_none() {
    let mut scaler = Scaler::new(scaling(0, 8));
    let now = Instant::now();
    for (current, length, expected) in [
        (0, Some(0), 1),
        (0, Some(10_000), 1),
        (1, None, 1),
        (5, Some(0), 5),
    ] {
        let decision = scaler.decide(
            now,
            Observation {
                length,
                current,
                proven: false,
            },
        );
        assert_eq!(
            (decision.replicas, decision.reason),
            (expected, Reason::Unproven)
        );
    }
}

#[test]
fn a_changed_spec_holds_from_the_next_decision_on() {
    let mut world = World::new(scaling(0, 8), 0);
    world.hold(512, 20);
    world.scaler.set(scaling(0, 3));
    let decision = world.tick(512);
    assert_eq!((decision.replicas, decision.reason), (3, Reason::Bounds));
    world.scaler.set(scaling(5, 8));
    assert_eq!(world.tick(0).replicas, 8, "the average is still that long");

    let mut longer = scaling(0, 8);
    longer.cooldown.0 = Duration::from_secs(2 * COOLDOWN);
    world.hold(0, COOLDOWN - 5);
    world.scaler.set(longer);
    assert_eq!(
        world.hold(0, COOLDOWN).last(),
        Some(&8),
        "a longer cooldown is waited for in full"
    );
}

#[test]
fn a_cooldown_shorter_than_the_stable_window_does_not_bring_workers_back() {
    let mut short = scaling(0, 8);
    short.cooldown.0 = Duration::from_secs(2);
    let mut world = World::new(short, 0);
    world.hold(512, 30);
    let workers = world.hold(0, 30);
    assert_eq!(workers.last(), Some(&0));
    assert_eq!(reversals(&workers), 0);
}

#[test]
fn a_cooldown_shorter_than_a_look_still_ends() {
    let mut short = scaling(0, 8);
    short.cooldown.0 = Duration::from_millis(500);
    let mut world = World::new(short, 0);
    assert_eq!(world.hold(512, 3), [8; 3]);
    assert_eq!(world.hold(0, 2), [0; 2]);
}

proptest! {
    /// The number of workers is within the bounds, never below what the queue needs now unless it was so before, and
    /// never falls while the length is unknown.
    #[test]
    fn every_decision_is_safe(
        lengths in vec(option::weighted(0.9, 0_u64..2_000), 1..300),
        min in 0_u32..4,
        more in 0_u32..10,
        start in 0_u32..20,
        cooldown in 0_u64..30,
    ) {
        let max = (min + more).max(1);
        let mut spec = scaling(min, max);
        spec.cooldown.0 = Duration::from_secs(cooldown);
        let mut world = World::new(spec, start);
        for length in lengths {
            let before = world.workers.clamp(min, max);
            let after = world.tick(length).replicas;
            prop_assert!((min..=max).contains(&after));
            match length {
                None => prop_assert_eq!(after, before),
                Some(length) => prop_assert!(after >= before.min(formula(length, min, max))),
            }
            if length.is_some_and(|length| length > 0) {
                prop_assert!(after >= 1);
            }
        }
    }

    /// A step up and down again reverses once, and ends at the formula's number both times.
    #[test]
    fn a_step_reverses_once_at_most(
        low in 0_u64..500,
        high in 0_u64..500,
        seconds in 30_u64..120,
        start in 0_u32..8,
    ) {
        let mut world = World::new(scaling(0, 8), start);
        world.hold(low, COOLDOWN + 1);
        let mut workers = vec![world.workers];
        workers.extend(world.hold(high, seconds));
        if high >= low {
            prop_assert_eq!(workers.last(), Some(&formula(high, 0, 8)));
        }
        workers.extend(world.hold(low, 2 * COOLDOWN));
        prop_assert_eq!(workers.last(), Some(&formula(low, 0, 8)));
        prop_assert!(reversals(&workers) <= 1, "{:?}", workers);
    }

    /// Under a steady load with noise the number changes in one direction only.
    #[test]
    fn a_steady_load_makes_no_reversal(
        base in 0_u64..500,
        noise in vec(0_u64..100, 300),
        start in 0_u32..8,
    ) {
        let mut world = World::new(scaling(0, 8), start);
        world.scaler.set(Scaling { cooldown: carpool_crds::Duration(Duration::from_mins(5)), ..scaling(0, 8) });
        let workers: Vec<u32> = noise.iter().map(|noise| world.tick(base + noise).replicas).collect();
        prop_assert_eq!(reversals(&workers), 0, "{:?}", workers);
    }

    /// Beside the same workers a longer queue never gets fewer.
    #[test]
    fn more_requests_never_mean_fewer_workers(
        lengths in vec((0_u64..1_000, 0_u64..500), 1..120),
        start in 0_u32..8,
    ) {
        let mut less = World::new(scaling(0, 8), start);
        let mut more = World::new(scaling(0, 8), start);
        for (length, extra) in lengths {
            more.workers = less.workers;
            let fewer = less.tick(length).replicas;
            prop_assert!(more.tick(length + extra).replicas >= fewer);
        }
    }
}
