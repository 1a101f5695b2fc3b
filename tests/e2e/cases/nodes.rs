//! A node that is drained under load.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, root, run},
    load::{Load, check_after_outage},
    model::{self, Affine},
};

const MODEL: &str = "affine";
const NODE: &str = "kit-node-2";
/// The taint that keeps the pods of other tests from the node.
const TAINT: &str = "carpool.dev/drained";

/// A second node of the test cluster, removed with this value.
struct Node;

fn cluster(arguments: &[&str]) -> Result<String, String> {
    let program = root().join("tests/cluster/cluster");
    run(program.to_str().expect("a path in UTF-8"), arguments, b"")
}

impl Node {
    /// Adds the node, which only pods that tolerate its taint get.
    fn add() -> Self {
        // A node is removed also when only a part of it comes up.
        let node = Self;
        cluster(&["node", "add", "2"]).unwrap();
        let taint = format!("{TAINT}=:NoSchedule");
        run(
            "kubectl",
            &["taint", "node", NODE, &taint, "--overwrite"],
            b"",
        )
        .unwrap();
        node
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = cluster(&["node", "remove", "2"]) {
            eprintln!("{error}");
        }
    }
}

/// The nodes of the model's pods of a component.
fn nodes(pods: &[Value]) -> BTreeSet<String> {
    let names = pods
        .iter()
        .map(|pod| pod["spec"]["nodeName"].as_str().unwrap_or_default());
    names.map(str::to_owned).collect()
}

/// Whether this cluster is the one of `tests/cluster`, which can be given a node.
fn can_grow() -> bool {
    run("kubectl", &["get", "node", "kit-node"], b"").is_ok()
}

/// Waits until there are just so many Ready pods of a component.
fn ready(namespace: &Namespace, component: &str, count: usize) -> Vec<Value> {
    eventually(Duration::from_mins(2), || {
        let pods = model::pods(namespace, MODEL, component);
        if pods.len() == count && pods.iter().all(model::is_ready) {
            Ok(pods)
        } else {
            Err(format!("{} pods of {component}", pods.len()))
        }
    })
}

pub fn drained() {
    if !can_grow() {
        println!("left out: only the cluster of tests/cluster can be given a node");
        return;
    }
    let _node = Node::add();
    let namespace = Namespace::create("drained");
    let uri = Affine::FIRST.publish(&namespace);
    let spec = json!({
        "scaling": {"minReplicas": 2, "maxReplicas": 2},
        "queue": {"timeout": "60s"},
        "proxy": {"replicas": 2},
        "tolerations": [{"key": TAINT, "operator": "Exists"}],
        "worker": {"podOverrides": {"spec": {"topologySpreadConstraints": [{
            "topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            // A node that takes no pods doesn't count, or the one it leaves would be over-full.
            "nodeTaintsPolicy": "Honor",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "worker"}}
        }]}}}
    });
    namespace.apply(&Affine::manifest(MODEL, &uri, &spec).to_string());
    namespace.wait("bm/affine", "condition=Ready", "120s");
    for component in ["worker", "proxy"] {
        assert_eq!(
            nodes(&ready(&namespace, component, 2)).len(),
            2,
            "{component}"
        );
    }
    let redis = nodes(&model::pods(&namespace, MODEL, "redis"));
    println!("Redis is on {redis:?}");

    let load = Load::numbered(&namespace, MODEL, 4);
    load.answered(50);
    let begin = Instant::now();
    let drain = [
        "drain",
        NODE,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=180s",
    ];
    println!("{}", run("kubectl", &drain, b"").unwrap());
    println!("drained after {:?}", begin.elapsed());
    for (component, count) in [("redis", 1), ("worker", 2), ("proxy", 2)] {
        assert!(!nodes(&ready(&namespace, component, count)).contains(NODE));
    }
    namespace.wait("bm/affine", "condition=Ready", "120s");
    let over = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    println!("Ready after {:?}", begin.elapsed());
    load.answered(load.so_far() + 50);
    let answers = load.stop();
    let slowest = answers
        .iter()
        .map(|answer| answer.millis)
        .fold(0.0, f64::max);
    // Redis has a single replica: a drain of its node is an outage, and one of another node is none.
    let over = if redis.contains(NODE) {
        over
    } else {
        Duration::ZERO
    };
    let refused = check_after_outage(&answers, over, |answer| Affine::FIRST.gave(answer));
    println!(
        "{} answers, {refused} refused without Redis, the slowest after {slowest:.0} ms",
        answers.len() - refused
    );
}
