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

/// A revision whose model has no such output, so that none of its workers starts.
pub fn broken() -> Value {
    json!({"model": {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}]}})
}

impl Rollout {
    /// Waits until the latest revision is one that has failed for good, and returns its name.
    fn stalled(&self) -> String {
        self.namespace
            .wait("bm/affine", "condition=Stalled", "120s");
        self.status("latest")
    }
}

/// With room beside it, a revision that does not start costs the one before no worker, and goes on trying.
pub fn broken_with_room() {
    let rollout = Rollout::start("broken", 2, &json!({}));
    let second = Affine::SECOND.publish(&rollout.namespace);
    let old = rollout.status("serving");
    let recorder = Recorder::start(&rollout.namespace);
    let load = Load::numbered(&rollout.namespace, MODEL, 8);
    load.answered(50);
    rollout.apply(&second, &broken());
    let broken = rollout.stalled();
    // One more start, and nothing is different after it.
    let pods = || {
        rollout
            .namespace
            .list("pods", &format!("carpool.dev/revision={broken}"))
    };
    let starts = |pods: &[Value]| {
        let counts = pods
            .iter()
            .filter_map(|pod| pod["status"]["containerStatuses"].as_array());
        counts
            .flatten()
            .filter_map(|status| status["restartCount"].as_u64())
            .max()
    };
    let before = starts(&pods());
    eventually(Duration::from_mins(2), || match starts(&pods()) {
        now if now > before => Ok(()),
        now => Err(format!("restarts: {now:?}")),
    });
    let answers = load.stop();
    let states = recorder.finish("broken-with-room", &answers);
    nothing_lost(&answers, &old);
    assert_eq!(least(&states[states.len() / 4..], State::serving_ready), 2);
    let last = states.last().expect("states");
    assert_eq!((&last.serving, &last.latest), (&old, &broken));
    names_both(&states, &old, &broken);
    for condition in ["Ready", "Stalled"] {
        let message = last.message(condition);
        assert!(
            message.contains(&old) && message.contains(&broken),
            "{condition}: {message}"
        );
        println!("{condition}, {}: {message}", last.reason(condition));
    }
    ready_tells_the_truth(&states, 2);

    // The model that was served before is Ready again as soon as it is applied again.
    rollout.apply(&Affine::FIRST.publish(&rollout.namespace), &json!({}));
    rollout.wait();
    assert_eq!(rollout.status("serving"), old);
    rollout.gone(&broken);
}

/// Where one worker fits, a revision that does not start is given up, the one before comes back, and an annotation has
/// it tried again.
pub fn broken_on_one_slot() {
    let slots = Slots::create("rollout-broken", 1);
    let spec = json!({"worker": {"resources": slots.one(), "rollout": {"roomTimeout": "0s"}}});
    let rollout = Rollout::start("broken-slot", 1, &spec);
    let second = Affine::SECOND.publish(&rollout.namespace);
    let old = rollout.status("serving");
    let recorder = Recorder::start(&rollout.namespace);
    let load = Load::numbered(&rollout.namespace, MODEL, 4);
    load.answered(50);
    for attempt in ["first", "second"] {
        if attempt == "first" {
            rollout.apply(&second, &broken());
        } else {
            let retry = "carpool.dev/retry=again";
            rollout
                .namespace
                .kubectl(&["annotate", "--overwrite", "bm", MODEL, retry]);
        }
        let begin = recorder.now();
        // The revision takes the room, fails more than once, and gives the room back.
        let pods = |revision: &str| {
            rollout
                .namespace
                .list("pods", &format!("carpool.dev/revision={revision}"))
        };
        let latest = eventually(Duration::from_mins(1), || match rollout.status("latest") {
            latest if latest != old => Ok(latest),
            latest => Err(latest),
        });
        let mut starts = 0;
        eventually(Duration::from_mins(2), || {
            for pod in pods(&latest) {
                let count = &pod["status"]["containerStatuses"][0]["restartCount"];
                starts = starts.max(count.as_u64().unwrap_or(0) + 1);
            }
            let states = recorder.states();
            let so_far = since(&states, begin);
            let gave_way = so_far.iter().any(|state| state.all_ready() == 0);
            let now = so_far.last().expect("states");
            if gave_way
                && now.serving == old
                && now.serving_ready() == 1
                && pods(&latest).is_empty()
            {
                Ok(())
            } else {
                Err(format!(
                    "the {attempt} attempt, gave way: {gave_way}, Ready: {}",
                    now.message("Ready")
                ))
            }
        });
        println!(
            "the {attempt} attempt: {starts} starts, {:?}",
            recorder.now().saturating_sub(begin)
        );
        assert!(starts >= 2, "given up after {starts} starts");
        assert_eq!(rollout.stalled(), latest);
    }
    load.answered(load.so_far() + 50);
    let answers = load.stop();
    let states = recorder.finish("broken-on-one-slot", &answers);
    nothing_lost(&answers, &old);
    let last = states.last().expect("states");
    println!("{}: {}", last.reason("Ready"), last.message("Ready"));
    assert!(
        last.message("Ready").contains("carpool.dev/retry"),
        "{}",
        last.message("Ready")
    );
    assert!(!last.holds("Ready"));
    ready_tells_the_truth(&states, 1);
}
