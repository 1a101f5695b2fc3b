use super::*;

/// A cluster whose nodes hold `room` workers, and a queue per revision.
struct World {
    room: usize,
    view: View,
    /// Revisions whose workers end with this problem.
    broken: BTreeMap<String, Problem>,
    /// Steps from being placed to being Ready or failing, left per revision.
    loading: BTreeMap<String, u32>,
    answered: BTreeMap<String, u64>,
}

const LOADING: u32 = 3;

impl World {
    fn new(room: usize) -> Self {
        let view = View {
            wanted: "a".into(),
            switched: true,
            ..View::default()
        };
        let mut world = Self {
            room,
            view,
            broken: BTreeMap::new(),
            loading: BTreeMap::new(),
            answered: BTreeMap::new(),
        };
        world.run(10);
        assert_eq!(
            world.revision("a").workers.ready,
            1,
            "the first revision is up"
        );
        world
    }

    fn revision(&self, name: &str) -> &Revision {
        &self.view.revisions[name]
    }

    fn queue(&mut self, name: &str, requests: u64) {
        self.view.revisions.get_mut(name).unwrap().length = Some(requests);
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// The operator acts, then proxies, the cluster and workers move on.
    fn step(&mut self) {
        let plan = plan(&self.view);
        self.view.switched = self.view.serving.as_ref() == Some(&plan.serving);
        self.view.serving = Some(plan.serving.clone());
        for name in &plan.delete {
            let gone = self.view.revisions.remove(name).unwrap();
            assert!(
                gone.length.unwrap_or(0) == 0 || !gone.loaded,
                "{name} went with requests in its queue"
            );
        }
        if plan.start && !self.view.revisions.contains_key(&self.view.wanted) {
            let new = Revision {
                replicas: 1,
                length: Some(0),
                ..Revision::default()
            };
            self.view.revisions.insert(self.view.wanted.clone(), new);
        }
        if let Some(wanted) = self.view.revisions.get_mut(&self.view.wanted) {
            wanted.given_up = plan.give_up;
        }
        for (name, asked) in &plan.replicas {
            let revision = self.view.revisions.get_mut(name).unwrap();
            revision.replicas = match asked {
                Replicas::Exactly(count) => *count,
                Replicas::Keep => revision.replicas,
                Replicas::Scaled => 1,
            };
        }
        self.pods();
        for (name, revision) in &mut self.view.revisions {
            if revision.workers.ready > 0 {
                *self.answered.entry(name.clone()).or_default() +=
                    revision.length.replace(0).unwrap_or(0);
            }
        }
    }

    fn pods(&mut self) {
        for revision in self.view.revisions.values_mut() {
            if revision.replicas == 0 {
                revision.workers = Workers::default();
            }
        }
        let placed = |revision: &Revision| {
            revision.workers.pods > 0 && revision.workers.unschedulable.is_none()
        };
        let mut free = self.room
            - self
                .view
                .revisions
                .values()
                .filter(|revision| placed(revision))
                .count();
        for (name, revision) in &mut self.view.revisions {
            if revision.replicas == 0 {
                continue;
            }
            let workers = &mut revision.workers;
            if workers.pods == 0 || workers.unschedulable.is_some() {
                workers.pods = 1;
                workers.unschedulable = (free == 0).then(|| "Insufficient nvidia.com/gpu".into());
                if free > 0 {
                    free -= 1;
                    self.loading.insert(name.clone(), LOADING);
                }
                continue;
            }
            let left = self.loading.entry(name.clone()).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 {
                workers.problem = self.broken.get(name).cloned();
                workers.ready = usize::from(workers.problem.is_none());
                revision.loaded |= workers.ready > 0;
            }
        }
    }
}

fn broken() -> Problem {
    Problem {
        reason: "ModelInvalid".into(),
        message: "it gives 3 outputs, not 2".into(),
    }
}

#[test]
fn with_room_for_both_the_old_one_serves_until_the_new_one_is_ready() {
    let mut world = World::new(2);
    world.view.wanted = "b".into();
    for _ in 0..20 {
        world.step();
        let serving = world.view.serving.clone().unwrap();
        assert!(
            world.revision(&serving).workers.ready > 0,
            "{serving} serves without a worker"
        );
    }
    assert_eq!(world.view.serving.as_deref(), Some("b"));
    assert_eq!(world.view.revisions.keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn with_room_for_one_they_take_turns_and_every_request_is_answered() {
    let mut world = World::new(1);
    world.view.wanted = "b".into();
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
    world.view.wanted = "b".into();
    world.run(3);
    world.queue("a", 8);
    world.run(40);
    assert_eq!(world.view.serving.as_deref(), Some("a"));
    assert_eq!(world.revision("a").workers.ready, 1);
    assert_eq!(world.answered["a"], 8);
    assert_eq!(world.revision("b").replicas, 0);
    assert_eq!(
        world.revision("b").given_up,
        Some(broken()),
        "it stays away, for the reason that it gave"
    );

    world.view.wanted = "c".into();
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
    world.view.wanted = "b".into();
    world.run(20);
    assert_eq!(world.view.serving.as_deref(), Some("a"));
    assert_eq!(
        (world.revision("b").replicas, &world.revision("b").given_up),
        (1, &None)
    );
    assert_eq!(world.revision("b").failing(), Some(broken()));

    world.broken.clear();
    world.run(20);
    assert_eq!(
        world.view.serving.as_deref(),
        Some("b"),
        "its file was repaired"
    );
}

#[test]
fn going_back_before_the_new_one_is_ready_removes_it() {
    let mut world = World::new(2);
    world.view.wanted = "b".into();
    world.run(2);
    world.view.wanted = "a".into();
    world.run(5);
    assert_eq!(world.view.revisions.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(world.revision("a").workers.ready, 1);
}

#[test]
fn a_first_model_that_never_ran_is_replaced_at_once() {
    let mut world = World::new(1);
    world.view = View {
        wanted: "x".into(),
        switched: true,
        ..View::default()
    };
    world.broken.insert("x".into(), broken());
    world.run(10);
    assert_eq!(world.revision("x").failing(), Some(broken()));
    world.view.wanted = "y".into();
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
        wanted: "b".into(),
        serving: Some("b".into()),
        revisions: [
            ("a".to_owned(), loaded(1, length)),
            ("b".to_owned(), loaded(1, Some(0))),
        ]
        .into(),
        switched,
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
        wanted: "c".into(),
        serving: Some("b".into()),
        revisions: [("a".to_owned(), revision(3)), ("b".to_owned(), revision(0))].into(),
        switched: true,
    };
    assert!(!plan(&view).start);
    let mut drained = view.clone();
    drained.revisions.get_mut("a").unwrap().length = Some(0);
    assert!(plan(&drained).start);
}
