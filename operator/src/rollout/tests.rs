mod capacity;
mod world;

use std::time::{Duration, Instant};

use self::world::World;
use super::*;

fn broken() -> Problem {
    Problem {
        reason: "ModelInvalid".into(),
        message: "it gives 3 outputs, not 2".into(),
    }
}

#[test]
fn with_room_for_both_the_old_one_serves_until_the_new_one_is_ready() {
    let mut world = World::new(2);
    world.view.latest = "b".into();
    for _ in 0..20 {
        world.step();
        let active = world.view.active.clone().unwrap();
        assert!(
            world.revision(&active).workers.ready > 0,
            "{active} serves without a worker"
        );
    }
    assert_eq!(world.view.active.as_deref(), Some("b"));
    assert_eq!(world.view.revisions.keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn with_room_for_one_they_take_turns_and_every_request_is_answered() {
    let mut world = World::new(1);
    world.view.latest = "b".into();
    world.run(3);
    assert_eq!(world.revision("a").replicas, 0, "the old one makes room");
    world.queue("a", 8);
    world.run(40);
    assert_eq!(world.view.revisions.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(world.revision("b").workers.ready, 1);
    assert_eq!(
        world.answered["a"], 8,
        "by the model that they were sent to"
    );
}

#[test]
fn with_room_for_one_a_broken_model_gives_way_to_the_old_one() {
    let mut world = World::new(1);
    world.broken.insert("b".into(), broken());
    world.view.latest = "b".into();
    world.run(3);
    world.queue("a", 8);
    world.run(40);
    assert_eq!(world.view.active.as_deref(), Some("a"));
    assert_eq!(world.revision("a").workers.ready, 1);
    assert_eq!(world.answered["a"], 8);
    assert_eq!(world.revision("b").replicas, 0);
    assert_eq!(
        world.revision("b").failing(),
        Some(broken()),
        "it stays away, for the reason that it gave"
    );
    assert!(world.revision("b").given_up.is_some());

    world.view.latest = "c".into();
    world.run(40);
    assert_eq!(
        world.view.revisions.keys().collect::<Vec<_>>(),
        ["c"],
        "a repaired model gets its turn"
    );
}

#[test]
fn with_room_for_both_a_broken_model_may_go_on_trying() {
    let mut world = World::new(2);
    world.broken.insert("b".into(), broken());
    world.view.latest = "b".into();
    world.run(20);
    assert_eq!(world.view.active.as_deref(), Some("a"));
    assert_eq!(
        (world.revision("b").replicas, &world.revision("b").given_up),
        (1, &None)
    );
    assert_eq!(world.revision("b").failing(), Some(broken()));

    world.broken.clear();
    world.run(20);
    assert_eq!(
        world.view.active.as_deref(),
        Some("b"),
        "its file was repaired"
    );
}

#[test]
fn a_model_that_no_room_can_place_leaves_the_old_one_alone() {
    let mut world = World::new(1);
    let refused = Problem::unschedulable("persistentvolumeclaim \"modles\" not found".into());
    world.refused.insert("b".into(), refused.clone());
    world.view.latest = "b".into();
    for _ in 0..120 {
        world.step();
        assert_eq!(world.revision("a").workers.ready, 1);
    }
    assert_eq!(world.revision("b").failing(), Some(refused));
}

#[test]
fn a_model_that_is_too_large_has_the_old_one_leave_once() {
    let mut world = World::new(1);
    world.large.push("b".into());
    world.view.latest = "b".into();
    let mut turns = 0;
    for _ in 0..300 {
        let before = world.revision("a").replicas;
        world.step();
        turns += u32::from(world.revision("a").replicas < before);
    }
    assert_eq!(turns, 1, "the room that helped nobody is not made again");
    assert_eq!(world.view.active.as_deref(), Some("a"));
    assert_eq!(world.revision("a").workers.ready, 1);
    let reason = world.revision("b").failing().unwrap().reason;
    assert_eq!(reason, "Unschedulable");
}

#[test]
fn a_model_that_is_too_large_gives_way_to_requests_for_the_old_one() {
    let mut world = World::new(1);
    world.large.push("b".into());
    world.view.latest = "b".into();
    world.run(3);
    world.queue("a", 8);
    world.run(300);
    assert_eq!(world.answered["a"], 8);
    assert_eq!(world.revision("a").workers.ready, 1);
    let b = world.revision("b");
    assert_eq!(b.replicas, 0);
    assert_eq!(b.given_up.as_ref().unwrap().problem.reason, "Unschedulable");
}

#[test]
fn a_broken_model_gives_the_one_workers_room_back() {
    let mut world = World::with(4, 4);
    world.broken.insert("b".into(), broken());
    world.view.latest = "b".into();
    world.run(40);
    assert_eq!(world.view.active.as_deref(), Some("a"));
    assert_eq!(world.revision("a").workers.ready, 4);
    let b = world.revision("b");
    assert_eq!(
        (b.replicas, &b.given_up.as_ref().unwrap().problem),
        (0, &broken())
    );
}

#[test]
fn a_request_wakes_an_idle_model_while_the_next_one_loads() {
    let mut world = World::with(2, 0);
    world.view.latest = "b".into();
    world.step();
    world.scaled = 1;
    world.queue("a", 8);
    world.step();
    assert_eq!(world.revision("b").workers.ready, 0);
    assert_eq!(world.revision("a").workers.pods, 1);
    world.run(10);
    assert_eq!(world.answered["a"], 8);
}

#[test]
fn going_back_before_the_new_one_is_ready_removes_it() {
    let mut world = World::new(2);
    world.view.latest = "b".into();
    world.run(2);
    world.view.latest = "a".into();
    world.run(5);
    assert_eq!(world.view.revisions.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(world.revision("a").workers.ready, 1);
}

#[test]
fn a_first_model_that_never_ran_is_replaced_at_once() {
    let mut world = World::new(1);
    world.view = View {
        latest: "x".into(),
        switched: true,
        ..View::default()
    };
    world.broken.insert("x".into(), broken());
    world.run(10);
    assert_eq!(world.revision("x").failing(), Some(broken()));
    world.view.latest = "y".into();
    world.run(10);
    assert_eq!(world.view.revisions.keys().collect::<Vec<_>>(), ["y"]);
    assert_eq!(world.revision("y").workers.ready, 1);
}

fn retiring(length: Option<u64>, switched: bool) -> Plan {
    let loaded = |ready, length| Revision {
        replicas: 1,
        loaded: true,
        length,
        workers: Workers {
            pods: ready,
            ready,
            ..Workers::default()
        },
        ..Revision::default()
    };
    plan(&View {
        latest: "b".into(),
        active: Some("b".into()),
        revisions: [
            ("a".to_owned(), loaded(1, length)),
            ("b".to_owned(), loaded(1, Some(0))),
        ]
        .into(),
        switched,
        ..View::default()
    })
}

#[test]
fn the_old_one_goes_when_nobody_feeds_it_and_its_queue_is_empty() {
    assert_eq!(retiring(Some(0), true).delete, ["a"]);
    for (length, switched) in [(Some(1), true), (Some(0), false), (None, true)] {
        let plan = retiring(length, switched);
        assert_eq!(
            plan.delete, [""; 0],
            "length {length:?}, switched {switched}"
        );
        assert_eq!(plan.replicas["a"], Replicas::Keep);
        assert_eq!(plan.replicas["b"], Replicas::Scaled);
    }
}

#[test]
fn a_third_revision_waits_for_the_first_to_leave() {
    let revision = |length| Revision {
        replicas: 1,
        loaded: true,
        length: Some(length),
        ..Revision::default()
    };
    let view = View {
        latest: "c".into(),
        active: Some("b".into()),
        revisions: [("a".to_owned(), revision(3)), ("b".to_owned(), revision(0))].into(),
        switched: true,
        ..View::default()
    };
    assert!(!plan(&view).start);
    let mut drained = view.clone();
    drained.revisions.get_mut("a").unwrap().length = Some(0);
    assert!(plan(&drained).start);
}

#[test]
fn the_next_worker_leaves_only_once_the_scheduler_had_the_room_of_the_one_before() {
    let workers = |pods, unschedulable: Option<&str>| Workers {
        pods,
        ready: if unschedulable.is_some() { 0 } else { pods },
        waiting: usize::from(unschedulable.is_some()),
        unschedulable: unschedulable.map(str::to_owned),
        ..Workers::default()
    };
    let mut view = View {
        latest: "b".into(),
        active: Some("a".into()),
        bounds: Bounds {
            room_timeout: Duration::ZERO,
            max_unavailable: 2,
            ..Bounds::default()
        },
        revisions: [
            (
                "a".to_owned(),
                Revision {
                    replicas: 2,
                    loaded: true,
                    workers: workers(3, None),
                    ..Revision::default()
                },
            ),
            (
                "b".to_owned(),
                Revision {
                    replicas: 1,
                    workers: workers(1, Some("Insufficient nvidia.com/gpu")),
                    ..Revision::default()
                },
            ),
        ]
        .into(),
        ..View::default()
    };
    let (mut patience, begin) = (Patience::default(), Instant::now());
    let mut asked = |pods, milliseconds| {
        view.revisions.get_mut("a").unwrap().workers = workers(pods, None);
        patience.look(&mut view, begin + Duration::from_millis(milliseconds));
        plan(&view).replicas["a"]
    };
    assert_eq!(asked(3, 0), Replicas::Exactly(2), "one is still leaving");
    assert_eq!(asked(2, 1000), Replicas::Keep, "it has only just left");
    assert_eq!(asked(2, 10_900), Replicas::Keep);
    assert_eq!(asked(2, 11_000), Replicas::Exactly(1));
}

#[test]
fn a_revision_with_another_redis_stays_for_those_who_feed_it_and_holds_nobody_up() {
    let view = |fed, length| {
        let ready = |place| Revision {
            replicas: 1,
            loaded: true,
            length,
            place,
            workers: Workers {
                pods: 1,
                ready: 1,
                ..Workers::default()
            },
            ..Revision::default()
        };
        View {
            latest: "c".into(),
            active: Some("b".into()),
            switched: true,
            revisions: [
                ("a".to_owned(), ready(Place::Other { fed })),
                ("b".to_owned(), ready(Place::Active)),
            ]
            .into(),
            ..View::default()
        }
    };
    for (fed, length, leaves) in [
        (true, Some(0), false),
        (true, None, false),
        (false, Some(3), false),
        (false, Some(0), true),
    ] {
        let plan = plan(&view(fed, length));
        assert_eq!(
            plan.delete.contains(&"a".to_owned()),
            leaves,
            "{fed} {length:?}"
        );
        assert!(plan.start, "a third revision has its turn");
        assert_eq!(plan.active, "b");
    }

    // On a full node the two take turns.
    let turn = |length, needs: &str| {
        let mut view = view(true, Some(length));
        view.latest = "b".into();
        let waits = view.revisions.get_mut(needs).unwrap();
        waits.workers = Workers {
            pods: 1,
            waiting: 1,
            unschedulable: Some("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.".into()),
            ..Workers::default()
        };
        plan(&view).replicas
    };
    assert_eq!(
        turn(3, "a")["b"],
        Replicas::Exactly(0),
        "a has requests and no room"
    );
    assert_eq!(
        turn(0, "b")["a"],
        Replicas::Exactly(0),
        "a has none, and b waits"
    );
    assert_eq!(turn(3, "b")["a"], Replicas::Keep);
}
