//! Ready workers through a rollout: of the revision that proxies feed, and of both.

use super::*;

/// A rollout from the first revision to the next, among nodes that hold so many workers.
fn rollout(room: usize, scaled: i32) -> World {
    let mut world = World::with(room, scaled);
    world.view.latest = "b".into();
    world
}

fn is_done(world: &World, scaled: usize) -> bool {
    let only = world.view.revisions.keys().eq(["b"]);
    only && world.view.active.as_deref() == Some("b") && world.ready() == (scaled, scaled)
}

#[test]
fn with_room_for_all_the_revision_that_serves_keeps_its_workers() {
    let mut world = rollout(6, 3);
    assert_eq!(world.fewest(40).0, 3);
    assert!(is_done(&world, 3));
}

#[test]
fn one_worker_proves_a_revision_before_the_others_start() {
    let mut world = rollout(6, 3);
    world.step();
    while !world.revision("b").loaded {
        assert_eq!(world.revision("b").workers.pods, 1);
        world.step();
    }
    world.step();
    assert_eq!(world.revision("b").workers.pods, 3);
    assert_eq!(world.view.active.as_deref(), Some("a"));
}

#[test]
fn a_queue_that_has_become_short_needs_fewer_workers_of_the_next_revision() {
    let mut world = rollout(7, 4);
    world.scaled = 2;
    while world.view.active.as_deref() == Some("a") {
        world.step();
    }
    assert_eq!(world.revision("b").replicas, 2);
    assert_eq!(world.ready().0, 2);
}

#[test]
fn without_room_for_all_workers_are_traded_one_for_one() {
    for (room, scaled, serving, all) in [
        (4, 3, 2, 2),
        (5, 4, 2, 3),
        (4, 4, 2, 3),
        (9, 8, 4, 7),
        (3, 3, 1, 2),
        (2, 2, 1, 1),
        (1, 1, 0, 0),
    ] {
        let mut world = rollout(room, scaled);
        let mut both = usize::MAX;
        let mut fewest = world.ready();
        for _ in 0..200 {
            fewest = world.fewest(1).min(fewest);
            // Workers that proxies feed no more need not be as many as are wanted.
            if world.view.active.as_deref() == Some("a") {
                both = both.min(world.ready().1);
            }
        }
        let fewest = (fewest.0, both);
        assert!(
            fewest.0 >= serving && fewest.1 >= all,
            "{scaled} workers, room for {room}: {fewest:?}"
        );
        assert!(
            is_done(&world, usize::try_from(scaled).unwrap()),
            "{scaled} workers, room for {room}: {:?}",
            world.view
        );
    }
}

#[test]
fn nobody_makes_room_while_a_node_may_be_coming() {
    for (room, scaled) in [(1, 1), (4, 3), (3, 3)] {
        let mut world = rollout(room, scaled);
        world.view.bounds.room_timeout = Duration::from_mins(5);
        let workers = usize::try_from(scaled).unwrap();
        assert_eq!(world.fewest(120).0, workers, "{room}");
        world.grow(3);
        assert_eq!(world.fewest(40).0, workers, "{room}");
        assert!(is_done(&world, workers));
    }
}

#[test]
fn a_node_that_does_not_come_is_waited_for_once() {
    let mut world = rollout(4, 4);
    world.view.bounds.room_timeout = Duration::from_mins(5);
    assert_eq!(world.fewest(295).0, 4);
    world.run(60);
    assert!(is_done(&world, 4), "{:?}", world.view);
}

#[test]
fn a_bound_of_no_surge_replaces_workers_one_for_one_at_once_whatever_room_there_is() {
    for scaled in [1, 4] {
        let mut world = rollout(20, scaled);
        world.view.bounds.max_surge = Some(0);
        world.view.bounds.room_timeout = Duration::from_mins(5);
        let workers = usize::try_from(scaled).unwrap();
        for _ in 0..60 {
            world.step();
            let pods = world
                .view
                .revisions
                .values()
                .map(|revision| revision.workers.pods);
            assert!(pods.sum::<usize>() <= workers, "{:?}", world.view);
        }
        assert!(is_done(&world, workers), "{:?}", world.view);
    }
}

#[test]
fn where_no_worker_may_be_missing_a_rollout_waits_for_room() {
    let mut world = rollout(1, 1);
    world.view.bounds.max_unavailable = 0;
    assert_eq!(world.fewest(600).0, 1);
    world.grow(1);
    assert_eq!(world.fewest(40).0, 1);
    assert!(is_done(&world, 1));

    let mut world = rollout(4, 3);
    world.view.bounds.max_unavailable = 0;
    assert_eq!(world.fewest(600).0, 3);
    assert_eq!(world.view.active.as_deref(), Some("a"));
}

#[test]
fn a_first_start_that_fails_is_followed_by_another() {
    let mut world = rollout(1, 1);
    world.broken.insert("b".into(), broken());
    world.step();
    while world.revision("b").failing().is_none() {
        world.step();
    }
    assert_eq!(world.revision("b").workers.failed_starts, 1);
    world.broken.clear();
    world.run(20);
    assert!(
        is_done(&world, 1),
        "its volume was there at the second start"
    );
}

#[test]
fn what_was_given_up_is_tried_again_as_another_attempt() {
    let mut world = rollout(1, 1);
    world.view.attempt("256Mi".into());
    world.broken.insert("b".into(), broken());
    world.run(40);
    assert!(world.revision("b").given_up.is_some());
    world.view.attempt("256Mi".into());
    world.broken.clear();
    world.run(40);
    assert_eq!(world.view.active.as_deref(), Some("a"), "the same attempt");
    world.view.attempt("512Mi".into());
    world.run(40);
    assert!(is_done(&world, 1));
}

#[test]
fn an_image_that_cannot_be_pulled_is_no_start_and_gives_way_after_a_while() {
    let mut world = rollout(1, 1);
    world.step();
    let pull = Problem {
        reason: "ImagePullBackOff".into(),
        message: "the image can't be pulled".into(),
    };
    let candidate = world.view.revisions.get_mut("b").unwrap();
    candidate.workers = Workers {
        pods: 1,
        problem: Some(pull.clone()),
        ..Workers::default()
    };
    let old = world.view.revisions.get_mut("a").unwrap();
    old.workers = Workers {
        pods: 1,
        waiting: 1,
        unschedulable: Some("Insufficient nvidia.com/gpu".into()),
        ..Workers::default()
    };
    let (mut patience, begin) = (Patience::default(), Instant::now());
    let mut given_up = |seconds| {
        patience.look(&mut world.view, begin + Duration::from_secs(seconds));
        plan(&world.view).give_up.map(|given_up| given_up.problem)
    };
    assert_eq!(given_up(0), None);
    assert_eq!(given_up(29), None);
    assert_eq!(given_up(30), Some(pull));
}

#[test]
fn pods_of_the_same_revision_are_replaced_without_a_gap_unless_there_is_no_room() {
    let mut view = View {
        latest: "a".into(),
        active: Some("a".into()),
        revisions: BTreeMap::from([(
            "a".to_owned(),
            Revision {
                replicas: 1,
                loaded: true,
                updating: true,
                workers: Workers {
                    pods: 2,
                    ready: 1,
                    waiting: 1,
                    unschedulable: Some("Insufficient nvidia.com/gpu".into()),
                    ..Workers::default()
                },
                ..Revision::default()
            },
        )]),
        ..View::default()
    };
    let (mut patience, begin) = (Patience::default(), Instant::now());
    let mut trades = |view: &mut View, seconds| {
        patience.look(view, begin + Duration::from_secs(seconds));
        (plan(view).trade, view.look_again)
    };
    assert_eq!(trades(&mut view, 0), (false, Some(Duration::from_mins(5))));
    assert_eq!(trades(&mut view, 299).1, Some(Duration::from_secs(1)));
    assert_eq!(trades(&mut view, 300), (true, None));
    view.revisions.get_mut("a").unwrap().workers.unschedulable = None;
    assert!(trades(&mut view, 301).0, "until the last pod is replaced");
    view.revisions.get_mut("a").unwrap().updating = false;
    assert!(!trades(&mut view, 302).0);

    let revision = view.revisions.get_mut("a").unwrap();
    revision.workers.unschedulable = Some("Insufficient nvidia.com/gpu".into());
    assert_eq!(
        trades(&mut view, 900),
        (false, None),
        "more for the queue is no update"
    );
}
