//! A changed model is a new revision.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, run},
    load::{Answer, Load, check},
    model::{self, Affine},
};

const MODEL: &str = "affine";

/// Room for one worker: an extended resource of one on a node, taken back at the end. The resource stands for a GPU,
/// under a name of its own: a cluster's real GPUs are counted by their device plugin.
struct OneSlot {
    node: String,
}

const RESOURCE: &str = "carpool.dev/test-slot";
/// The resource's place on a node, as a JSON pointer.
const CAPACITY: &str = "/status/capacity/carpool.dev~1test-slot";

impl OneSlot {
    fn create() -> Self {
        let nodes = run("kubectl", &["get", "nodes", "-o", "json"], b"").unwrap();
        let nodes: Value = serde_json::from_str(&nodes).unwrap();
        let node = nodes["items"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|node| takes_pods(node)))
            .expect("a node takes pods");
        let slot = Self {
            node: model::name(node).to_owned(),
        };
        slot.patch(&json!([{"op": "add", "path": CAPACITY, "value": "1"}]).to_string())
            .unwrap();
        eventually(Duration::from_secs(30), || {
            let path = "jsonpath={.status.allocatable.carpool\\.dev/test-slot}";
            match run("kubectl", &["get", "node", &slot.node, "-o", path], b"") {
                Ok(count) if count == "1" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        slot
    }

    fn patch(&self, patch: &str) -> Result<String, String> {
        run(
            "kubectl",
            &[
                "patch",
                "node",
                &self.node,
                "--subresource=status",
                "--type=json",
                "-p",
                patch,
            ],
            b"",
        )
    }
}

impl Drop for OneSlot {
    fn drop(&mut self) {
        let _ = self.patch(&json!([{"op": "remove", "path": CAPACITY}]).to_string());
    }
}

/// Whether a pod without tolerations may run on a node. A node that is not Ready, or cordoned, has a taint that says
/// so.
fn takes_pods(node: &Value) -> bool {
    let only_discourages = |taint: &Value| taint["effect"] == "PreferNoSchedule";
    node["spec"]["taints"]
        .as_array()
        .is_none_or(|taints| taints.iter().all(only_discourages))
}

/// With room for one worker the old revision makes way, the queue holds requests meanwhile, and no request is lost or
/// answered by a model other than the one that its answer names.
pub fn one_slot() {
    let slot = OneSlot::create();
    let namespace = Namespace::create("revision");
    let (first, second) = (
        Affine::FIRST.publish(&namespace),
        Affine::SECOND.publish(&namespace),
    );
    let spec = json!({
        "scaling": {"minReplicas": 1, "maxReplicas": 1},
        "queue": {"timeout": "60s"},
        "worker": {"resources": {"limits": {RESOURCE: 1}}}
    });
    namespace.apply(&Affine::manifest(MODEL, &first, &spec).to_string());
    namespace.wait("bm/affine", "condition=Ready", "120s");
    let revision = || namespace.kubectl(&["get", "bm", MODEL, "-o", "jsonpath={.status.serving}"]);
    let old = revision();

    let load = Load::numbered(&namespace, MODEL, 8);
    load.answered(100);
    namespace.apply(&Affine::manifest(MODEL, &second, &spec).to_string());
    let new = eventually(Duration::from_mins(2), || match revision() {
        now if now != old => Ok(now),
        now => Err(format!("still {now}")),
    });
    load.answered(load.so_far() + 100);
    let answers = load.stop();

    let version = |answer: &Answer| {
        answer.body["model_version"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    check(&answers, |answer| {
        let model = if version(answer) == old {
            Affine::FIRST
        } else {
            Affine::SECOND
        };
        (answer.number_in("y") - model.of(answer.number)).abs() < 1e-4
    });
    let versions: HashSet<String> = answers.iter().map(version).collect();
    assert_eq!(
        versions,
        HashSet::from([old.clone(), new]),
        "both revisions answered, and none else"
    );
    eventually(Duration::from_mins(1), || {
        let left = namespace.list("deployments", &format!("carpool.dev/revision={old}"));
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "the old revision still has {} Deployments",
                left.len()
            ))
        }
    });
    model::workers(&namespace, MODEL, 1, Duration::from_secs(30));
    drop(slot);
}
