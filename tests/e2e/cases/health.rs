//! Every state of a rollout, as tools judge it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually},
    model::{self, Affine, merge},
    recorder::aligned,
    slots::Slots,
    verdicts::{HEADER, Verdicts},
};

const MODEL: &str = "affine";
/// A finalizer of the test's own, which keeps the model while it is being deleted.
const FINALIZER: &str = "carpool.dev/end-to-end-test";

/// One state: its name, the reasons of Ready that stand for it, and the tools' verdicts.
struct State {
    name: &'static str,
    reasons: &'static [&'static str],
    wait: bool,
    argo: &'static str,
    flux: &'static str,
}

/// States in which the model serves what was applied.
const fn healthy(name: &'static str, reasons: &'static [&'static str]) -> State {
    State {
        name,
        reasons,
        wait: true,
        argo: "Healthy",
        flux: "Current",
    }
}

/// States that end by themselves.
const fn under_way(name: &'static str, reasons: &'static [&'static str]) -> State {
    State {
        name,
        reasons,
        wait: false,
        argo: "Progressing",
        flux: "InProgress",
    }
}

/// States that only a change ends.
const fn failed(name: &'static str, reasons: &'static [&'static str]) -> State {
    State {
        name,
        reasons,
        wait: false,
        argo: "Degraded",
        flux: "Failed",
    }
}

struct Asked {
    namespace: Namespace,
    table: String,
    wrong: Vec<String>,
}

impl Asked {
    /// Waits for a state and asks every tool about it.
    fn expect(&mut self, state: &State) {
        let reason = "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
        let is_there = || {
            let mut status = self.namespace.get(&["bm", MODEL]);
            let seen = status["status"]["observedGeneration"] == status["metadata"]["generation"];
            let stalled = status["status"]["conditions"].take();
            let stalled = stalled
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["type"] == "Stalled"));
            let now = self.namespace.kubectl(&["get", "bm", MODEL, "-o", reason]);
            if seen && state.reasons.contains(&now.as_str()) && stalled == (state.flux == "Failed")
            {
                Ok(())
            } else {
                Err(format!(
                    "{}: the reason is {now}, Stalled: {stalled}",
                    state.name
                ))
            }
        };
        // A state that ends meanwhile is waited for again.
        let verdicts = eventually(Duration::from_mins(2), || {
            is_there()?;
            let verdicts = Verdicts::ask(&self.namespace, MODEL, state.name);
            is_there()?;
            Ok(verdicts)
        });
        self.judge(state, &verdicts);
    }

    fn judge(&mut self, state: &State, verdicts: &Verdicts) {
        self.table += &verdicts.row(state.name);
        let expected = (state.wait, state.argo, state.flux);
        let given = (verdicts.wait, &*verdicts.argo[0], &*verdicts.flux[0]);
        if expected != given {
            self.wrong.push(format!(
                "{}: expected {expected:?}, got {verdicts:?}",
                state.name
            ));
        }
    }

    /// Applies a model with more laid over the spec.
    fn apply(&self, uri: &str, layers: &[&Value]) {
        let mut spec = json!({});
        for layer in layers {
            merge(&mut spec, layer);
        }
        self.namespace
            .apply(&Affine::manifest(MODEL, uri, &spec).to_string());
    }
}

/// `kubectl wait`, `kubectl get`, Argo CD and Flux say the same of each state, and the right thing.
pub fn every_state() {
    let slots = Slots::create("health", 1);
    let mut asked = Asked {
        namespace: Namespace::create("health"),
        table: HEADER.to_owned(),
        wrong: Vec::new(),
    };
    let [first, second] =
        [Affine::FIRST, Affine::SECOND].map(|model| model.publish(&asked.namespace));
    let spec = json!({
        "scaling": {"minReplicas": 1, "maxReplicas": 1, "cooldown": "5s"},
        "worker": {"resources": slots.one(), "rollout": {"roomTimeout": "10m"}, "podOverrides": super::rollouts::slow()}
    });

    asked.apply(&first, &[&spec]);
    asked.expect(&under_way("first-load", &["ModelLoading"]));
    asked.expect(&healthy("serving", &["Serving"]));

    asked.apply(&second, &[&spec]);
    asked.expect(&under_way("waiting-for-room", &["WaitingForRoom"]));
    slots.set(2);
    asked.expect(&under_way("rolling-out", &["RollingOut"]));
    asked.expect(&healthy("rolled-out", &["Serving"]));

    let broken = super::rollouts::broken();
    asked.apply(&first, &[&spec, &broken]);
    asked.expect(&failed("failed-beside-the-old-one", &["ModelInvalid"]));
    slots.set(1);
    let at_once = json!({"worker": {"rollout": {"roomTimeout": "0s"}}});
    asked.apply(&first, &[&spec, &at_once]);
    asked.expect(&under_way("making-room", &["MakingRoom", "RollingOut"]));
    asked.expect(&healthy("traded", &["Serving"]));
    asked.apply(&second, &[&spec, &at_once, &broken]);
    asked.expect(&failed("given-up", &["ModelInvalid"]));

    let typing_error = json!({"worker": {"podOverrides": {"spec": {"nodeSelecter": {}}}}});
    asked.apply(&first, &[&spec, &typing_error]);
    asked.expect(&failed("invalid-spec", &["InvalidSpec"]));

    asked.apply(&first, &[&spec, &json!({"scaling": {"minReplicas": 0}})]);
    asked.expect(&healthy("scaled-to-zero", &["ScaledToZero"]));

    let finalizers = |names: &[&str]| {
        let patch = json!({"metadata": {"finalizers": names}}).to_string();
        asked
            .namespace
            .kubectl(&["patch", "bm", MODEL, "--type=merge", "-p", &patch]);
    };
    finalizers(&[FINALIZER]);
    asked
        .namespace
        .kubectl(&["delete", "bm", MODEL, "--wait=false"]);
    let verdicts = Verdicts::ask(&asked.namespace, MODEL, "being-deleted");
    finalizers(&[]);
    let going = State {
        name: "being-deleted",
        reasons: &[],
        // A deletion raises the generation, of which the operator's last words do not speak.
        wait: false,
        argo: "Progressing",
        flux: "Terminating",
    };
    asked.judge(&going, &verdicts);
    model::no_workers(&asked.namespace, MODEL, Duration::from_mins(1));

    println!("{}", aligned(&asked.table));
    let folder = carpool_testkit::cache().join("logs/rollouts");
    std::fs::write(folder.join("states.tsv"), &asked.table).unwrap();
    assert!(asked.wrong.is_empty(), "{}", asked.wrong.join("\n"));
}
