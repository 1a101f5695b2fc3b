//! Rollouts under load: capacity is kept, no request is lost, and the status tells the truth at every moment.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually},
    load::{Answer, Load, check, image},
    model::{self, Affine, merge},
    recorder::{Recorder, State},
    slots::Slots,
};

const MODEL: &str = "affine";
/// The seconds that a worker takes to load, beyond what it does, so that a gap would be seen.
const LOADS_FOR: &str = "4";

/// A model of some workers, and the record of what becomes of it.
struct Rollout {
    namespace: Namespace,
    /// The laid-over spec of the model.
    spec: Value,
}

impl Rollout {
    /// Starts the first revision and waits until all its workers are Ready.
    fn start(name: &str, workers: u32, spec: &Value) -> Self {
        let namespace = Namespace::create(&format!("rollout-{name}"));
        let mut whole = json!({
            "scaling": {"minReplicas": workers, "maxReplicas": workers},
            "queue": {"timeout": "2m"},
            "batching": {"maxBatchSize": 4},
            "worker": {"podOverrides": slow()}
        });
        merge(&mut whole, spec);
        let rollout = Self {
            namespace,
            spec: whole,
        };
        rollout.apply(&Affine::FIRST.publish(&rollout.namespace), &json!({}));
        rollout.wait();
        model::workers(
            &rollout.namespace,
            MODEL,
            workers as usize,
            Duration::from_mins(1),
        );
        rollout
    }

    /// Applies the model at a URI, with more laid over its spec.
    fn apply(&self, uri: &str, over: &Value) {
        let mut spec = self.spec.clone();
        merge(&mut spec, over);
        let manifest = Affine::manifest(MODEL, uri, &spec);
        self.namespace.apply(&manifest.to_string());
    }

    fn wait(&self) {
        self.namespace.wait("bm/affine", "condition=Ready", "300s");
    }

    fn status(&self, field: &str) -> String {
        let path = format!("jsonpath={{.status.{field}}}");
        self.namespace.kubectl(&["get", "bm", MODEL, "-o", &path])
    }

    /// Waits until no Deployment of a revision is left.
    fn gone(&self, revision: &str) {
        eventually(Duration::from_mins(1), || {
            let selector = format!("carpool.dev/revision={revision}");
            match self.namespace.list("deployments", &selector).len() {
                0 => Ok(()),
                left => Err(format!("revision {revision} still has {left} Deployments")),
            }
        });
    }

    /// Waits until the condition Ready has a reason.
    fn reason(&self, wanted: &str) {
        self.namespace.wait(
            "bm/affine",
            &format!("jsonpath={{.status.conditions[?(@.type==\"Ready\")].reason}}={wanted}"),
            "120s",
        );
    }
}

/// Overrides of a worker's pod that make it slow to start.
pub fn slow() -> Value {
    json!({"spec": {"initContainers": [{
        "name": "slow", "image": image(), "imagePullPolicy": "IfNotPresent", "command": ["sleep", LOADS_FOR],
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}
    }]}})
}

/// Checks that every request was answered, by the model of the revision that its answer names.
fn nothing_lost(answers: &[Answer], first: &str) {
    check(answers, |answer| {
        let of_first = answer.body["model_version"] == first;
        let model = if of_first {
            Affine::FIRST
        } else {
            Affine::SECOND
        };
        model.gave(answer)
    });
}

/// The states from an apply on.
fn since(states: &[State], applied: Duration) -> &[State] {
    let begin = states.partition_point(|state| state.at < applied);
    // The state that the apply met counts, too.
    &states[begin.saturating_sub(1)..]
}

fn least(states: &[State], count: fn(&State) -> usize) -> usize {
    states.iter().map(count).min().expect("states")
}

/// Every state with Ready True is one in which the latest revision serves with all its workers.
fn ready_tells_the_truth(states: &[State], workers: usize) {
    for state in states.iter().filter(|state| state.holds("Ready")) {
        assert_eq!(state.serving, state.latest, "at {:?}", state.at);
        // The pods' watch may be some milliseconds ahead of the status.
        assert!(
            state.serving_ready() >= workers || state.serving.is_empty(),
            "Ready with {} workers at {:?}",
            state.serving_ready(),
            state.at
        );
    }
}

/// A state in which the condition Ready is False and names both revisions was seen.
fn names_both(states: &[State], old: &str, new: &str) {
    let mut told = states.iter().map(|state| state.message("Ready"));
    assert!(
        told.any(|message| message.contains(old) && message.contains(new)),
        "no message of Ready names {old} and {new}"
    );
}

/// Rolls the second model out under load. Returns the states from the apply to the old revision's end.
fn roll_out(rollout: &Rollout, name: &str, workers: usize) -> Vec<State> {
    let second = Affine::SECOND.publish(&rollout.namespace);
    let old = rollout.status("serving");
    let recorder = Recorder::start(&rollout.namespace);
    let load = Load::numbered(&rollout.namespace, MODEL, 8);
    load.answered(50);
    let applied = recorder.now();
    rollout.apply(&second, &json!({}));
    rollout.wait();
    let new = rollout.status("serving");
    assert_ne!(new, old, "kubectl wait came back before the rollout");
    rollout.gone(&old);
    load.answered(load.so_far() + 50);
    let answers = load.stop();
    let states = recorder.finish(name, &answers);
    nothing_lost(&answers, &old);
    let states = since(&states, applied);
    names_both(states, &old, &new);
    ready_tells_the_truth(states, workers);
    states.to_vec()
}

/// With room for both revisions three workers stay three, all the time.
pub fn with_room() {
    let rollout = Rollout::start("room", 3, &json!({}));
    let states = roll_out(&rollout, "three-with-room", 3);
    assert_eq!(least(&states, State::serving_ready), 3);
}

/// With room for one more worker, three are traded for three, and at least two serve all the time.
pub fn room_for_one_more() {
    let slots = Slots::create("rollout-trade", 4);
    let spec = json!({"worker": {"resources": slots.one(), "rollout": {"roomTimeout": "0s"}}});
    let rollout = Rollout::start("trade", 3, &spec);
    let states = roll_out(&rollout, "three-with-room-for-one", 3);
    assert!(least(&states, State::serving_ready) >= 2);
    assert!(least(&states, State::all_ready) >= 2);
}

/// Where one worker fits and a node is on its way, the old worker serves until the new one is Ready on that node.
pub fn late_node() {
    let late = std::env::var("CARPOOL_LATE_NODE_SECONDS");
    let late = late.map_or(15, |seconds| seconds.parse().expect("a number of seconds"));
    let slots = Slots::create("rollout-late", 1);
    let spec = json!({"worker": {"resources": slots.one(), "rollout": {"roomTimeout": "10m"}}});
    let rollout = Rollout::start("late", 1, &spec);
    let states = thread::scope(|scope| {
        scope.spawn(|| {
            rollout.reason("WaitingForRoom");
            thread::sleep(Duration::from_secs(late));
            slots.set(2);
        });
        roll_out(&rollout, "late-node", 1)
    });
    let waiting = |state: &&State| state.reason("Ready") == "WaitingForRoom";
    let waited: Vec<Duration> = states
        .iter()
        .filter(waiting)
        .map(|state| state.at)
        .collect();
    println!("it waited for the node from {:?} on", waited.first());
    assert_eq!(least(&states, State::serving_ready), 1, "there was a gap");
}
