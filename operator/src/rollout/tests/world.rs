//! A cluster to plan for.

use std::time::{Duration, Instant};

use carpool_scaling::Reason;

use super::super::*;

/// A cluster whose nodes hold `room` workers, and a queue per revision. A step takes a second.
pub struct World {
    room: usize,
    pub view: View,
    /// Workers that the scaler wants of a revision that serves.
    pub scaled: i32,
    /// Revisions whose workers end with this problem, once they have a node.
    pub broken: BTreeMap<String, Problem>,
    /// Revisions that no node takes, whoever leaves.
    pub refused: BTreeMap<String, Problem>,
    /// Revisions that need more room than there is.
    pub large: Vec<String>,
    /// Workers that have a node.
    placed: BTreeMap<String, Vec<Worker>>,
    /// Starts that failed, per revision.
    failed: BTreeMap<String, u32>,
    pub answered: BTreeMap<String, u64>,
    patience: Patience,
    now: Instant,
}

/// A worker that has a node.
#[derive(Clone)]
struct Worker {
    /// Steps until it is Ready or fails.
    loading: u32,
    /// Whether it was told to leave.
    leaves: bool,
}

const LOADING: u32 = 4;

impl World {
    pub fn new(room: usize) -> Self {
        Self::with(room, 1)
    }

    /// A first revision that has `scaled` workers. Its nodes are fixed, so nobody waits for another.
    pub fn with(room: usize, scaled: i32) -> Self {
        let view = View {
            latest: "a".into(),
            switched: true,
            bounds: Bounds {
                room_timeout: Duration::ZERO,
                ..Bounds::default()
            },
            ..View::default()
        };
        let mut world = Self {
            room,
            view,
            scaled,
            broken: BTreeMap::new(),
            refused: BTreeMap::new(),
            large: Vec::new(),
            placed: BTreeMap::new(),
            failed: BTreeMap::new(),
            answered: BTreeMap::new(),
            patience: Patience::default(),
            now: Instant::now(),
        };
        world.run(20);
        assert_eq!(
            i32::try_from(world.revision("a").workers.ready),
            Ok(scaled),
            "the first revision is up"
        );
        world
    }

    pub fn revision(&self, name: &str) -> &Revision {
        &self.view.revisions[name]
    }

    /// Nodes that hold one more worker come.
    pub fn grow(&mut self, room: usize) {
        self.room += room;
    }

    /// Ready workers of the revision that proxies feed, and of all.
    pub fn ready(&self) -> (usize, usize) {
        let ready = |revision: &Revision| revision.workers.ready;
        let active = self
            .view
            .active
            .as_ref()
            .and_then(|active| self.view.revisions.get(active));
        (
            active.map_or(0, ready),
            self.view.revisions.values().map(ready).sum(),
        )
    }

    /// The fewest Ready workers, of the revision that proxies feed and of all, in so many steps.
    pub fn fewest(&mut self, steps: u32) -> (usize, usize) {
        let mut fewest = self.ready();
        for _ in 0..steps {
            self.step();
            let (serving, all) = self.ready();
            fewest = (fewest.0.min(serving), fewest.1.min(all));
        }
        fewest
    }

    pub fn queue(&mut self, name: &str, requests: u64) {
        self.view.revisions.get_mut(name).unwrap().length = Some(requests);
    }

    pub fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// The operator acts, then proxies, the cluster and workers move on.
    pub fn step(&mut self) {
        let decided = plan(&self.view);
        self.view.switched = self.view.active.as_ref() == Some(&decided.active);
        self.view.active = Some(decided.active.clone());
        for name in &decided.delete {
            let gone = self.view.revisions.remove(name).unwrap();
            assert!(
                gone.length.unwrap_or(0) == 0 || !gone.loaded,
                "{name} went with requests in its queue"
            );
        }
        if decided.start && !self.view.revisions.contains_key(&self.view.latest) {
            let new = Revision {
                replicas: 1,
                length: Some(0),
                ..Revision::default()
            };
            self.view.revisions.insert(self.view.latest.clone(), new);
        }
        for (name, asked) in &decided.replicas {
            let revision = self.view.revisions.get_mut(name).unwrap();
            revision.replicas = match asked {
                Replicas::Exactly(count) => *count,
                Replicas::Keep => revision.replicas,
                Replicas::Scaled if revision.loaded => self.scaled,
                Replicas::Scaled => 1,
            };
        }
        if let Some(candidate) = self.view.revisions.get_mut(&self.view.latest) {
            candidate.given_up = decided.give_up;
        }
        self.pods();
        for (name, revision) in &mut self.view.revisions {
            if revision.workers.ready > 0 {
                *self.answered.entry(name.clone()).or_default() +=
                    revision.length.replace(0).unwrap_or(0);
            }
            revision.stalled = None;
            revision.decision = revision.loaded.then_some(Decision {
                replicas: u32::try_from(self.scaled).unwrap(),
                reason: Reason::Steady,
            });
        }
        self.now += Duration::from_secs(1);
        self.patience.look(&mut self.view, self.now);
    }

    /// Workers that were told to leave in one step have left in the next, and their room can be had in the one after.
    fn pods(&mut self) {
        let revisions = &self.view.revisions;
        self.placed.retain(|name, _| revisions.contains_key(name));
        let mut free = self.room - self.placed.values().map(Vec::len).sum::<usize>();
        for (name, revision) in &mut self.view.revisions {
            let placed = self.placed.entry(name.clone()).or_default();
            placed.retain(|worker| !worker.leaves);
            // Workers that are not Ready leave first.
            placed.sort_by_key(|worker| worker.loading);
            let wanted = usize::try_from(revision.replicas).unwrap();
            placed
                .iter_mut()
                .skip(wanted)
                .for_each(|worker| worker.leaves = true);
            let missing = wanted.saturating_sub(placed.len());
            let fit = match (&self.refused.get(name), self.large.contains(name)) {
                (None, false) => missing.min(free),
                _ => 0,
            };
            free -= fit;
            if placed.is_empty() {
                self.failed.remove(name);
            }
            placed.extend(vec![
                Worker {
                    loading: LOADING,
                    leaves: false
                };
                fit
            ]);
            let mut workers = Workers {
                pods: placed.len() + missing - fit,
                leaving: placed.iter().filter(|worker| worker.leaves).count(),
                ..Workers::default()
            };
            if missing > fit {
                workers.waiting = missing - fit;
                workers.problem = self.refused.get(name).cloned();
                workers.unschedulable = workers
                    .problem
                    .is_none()
                    .then(|| "Insufficient nvidia.com/gpu".into());
            }
            let broken = self.broken.get(name);
            let failed = self.failed.entry(name.clone()).or_default();
            for worker in placed.iter_mut().filter(|worker| !worker.leaves) {
                worker.loading = worker.loading.saturating_sub(1);
                if worker.loading == 0 && broken.is_some() {
                    *failed += 1;
                    worker.loading = LOADING;
                }
                workers.ready += usize::from(worker.loading == 0);
            }
            revision.loaded |= workers.ready > 0;
            workers.problem = workers.problem.or(broken.filter(|_| *failed > 0).cloned());
            workers.failed_starts = *failed;
            revision.workers = workers;
        }
    }
}
