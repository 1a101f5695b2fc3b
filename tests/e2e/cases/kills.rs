//! Deaths under load: of workers, pods and the operator. Every request is answered rightly and with status 200.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually},
    load::{Load, check},
    model::{self, Affine},
    operator,
};

const MODEL: &str = "affine";

/// A model with two workers that may be killed and are replaced.
fn start(name: &str, spec: &Value) -> Namespace {
    let namespace = Namespace::create(name);
    let uri = Affine::FIRST.publish(&namespace);
    let mut whole = json!({
        "scaling": {"minReplicas": 2, "maxReplicas": 2},
        "batching": {"maxBatchSize": 8},
        "queue": {"lease": "2s", "timeout": "20s"}
    });
    model::merge(&mut whole, spec);
    namespace.apply(&Affine::manifest(MODEL, &uri, &whole).to_string());
    namespace.wait(&format!("bm/{MODEL}"), "condition=Ready", "120s");
    model::workers(&namespace, MODEL, 2, Duration::from_mins(1));
    namespace
}

/// Returns the number of times that a worker's process has been started again.
fn restarts(namespace: &Namespace, pod: &str) -> u64 {
    let path = "jsonpath={.status.containerStatuses[?(@.name==\"worker\")].restartCount}";
    let count = namespace.kubectl(&["get", "pod", pod, "-o", path]);
    count.parse().expect("a number")
}

/// A worker's process is killed by SIGKILL, five times, each with requests in hand.
pub fn process() {
    // Process 1 of a container can't be killed from inside it; in a shared namespace the worker is another one.
    let shared = json!({"worker": {"podOverrides": {"spec": {"shareProcessNamespace": true}}}});
    let namespace = start("kill-process", &shared);
    let load = Load::numbered(&namespace, MODEL, 16);
    for round in 0..5 {
        let pods = model::workers(&namespace, MODEL, 2, Duration::from_mins(1));
        load.answered(load.so_far() + 50);
        let victim = model::name(&pods[round % 2]).to_owned();
        let before = restarts(&namespace, &victim);
        let kill = "for comm in /proc/[0-9]*/comm; do [[ $(<$comm) == carpool-worker* ]] && pid=${comm#/proc/} && kill -KILL ${pid%/comm} && exit; done; exit 1";
        namespace.kubectl(&[
            "exec",
            &victim,
            "--container=worker",
            "--",
            "bash",
            "-c",
            kill,
        ]);
        load.answered(load.so_far() + 50);
        // The status may be from before the worker's death until then, and the next round would take the only worker
        // left.
        eventually(Duration::from_mins(1), || {
            let now = restarts(&namespace, &victim);
            if now > before {
                Ok(())
            } else {
                Err(format!("{victim} has been started again {now} times"))
            }
        });
    }
    check(&load.stop(), |answer| Affine::FIRST.gave(answer));
}

/// A worker's pod is deleted, gently and by force.
pub fn pod() {
    let namespace = start("kill-pod", &json!({}));
    let load = Load::numbered(&namespace, MODEL, 16);
    for force in [&["--wait=false"][..], &["--grace-period=0", "--force"]] {
        let pods = model::workers(&namespace, MODEL, 2, Duration::from_mins(1));
        load.answered(load.so_far() + 50);
        namespace.kubectl(&[&["delete", "pod", model::name(&pods[0])], force].concat());
        load.answered(load.so_far() + 50);
    }
    check(&load.stop(), |answer| Affine::FIRST.gave(answer));
}

/// Returns the field of every object that tells whether it was touched or replaced.
fn identity(namespace: &Namespace, field: &str) -> Vec<(String, Value)> {
    [
        "deployments",
        "statefulsets",
        "services",
        "configmaps",
        "pods",
        "serviceaccounts",
        "poddisruptionbudgets",
        "networkpolicies",
        "bm",
    ]
    .iter()
    .flat_map(|kind| match namespace.get(&[kind])["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    })
    .filter(|object| object["kind"] != "Pod" || model::name(object) != "load")
    .map(|object| {
        let id = format!(
            "{}/{}/{}",
            object["kind"],
            model::name(&object),
            object["metadata"]["uid"]
        );
        (id, object["metadata"][field].clone())
    })
    .collect()
}

/// The operator dies under load: no child is replaced or changed. An idle operator then writes nothing for two minutes.
pub fn operator() {
    let namespace = start("kill-operator", &json!({}));
    let load = Load::numbered(&namespace, MODEL, 8);
    let before = identity(&namespace, "generation");
    operator::kill();
    load.answered(load.so_far() + 200);
    assert_eq!(
        identity(&namespace, "generation"),
        before,
        "children changed with the operator"
    );
    check(&load.stop(), |answer| Affine::FIRST.gave(answer));

    // The last queue length is written at most 30 s late.
    std::thread::sleep(Duration::from_secs(40));
    assert_eq!(
        identity(&namespace, "generation"),
        before,
        "children changed after the operator came back"
    );
    let before = identity(&namespace, "resourceVersion");
    std::thread::sleep(Duration::from_mins(2));
    assert_eq!(
        identity(&namespace, "resourceVersion"),
        before,
        "an idle operator wrote"
    );
}
