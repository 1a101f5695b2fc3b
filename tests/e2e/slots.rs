//! Room for a number of workers, which a test can change while it runs.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cluster::{eventually, run},
    model,
};

/// An extended resource on a node, taken back at the end. It stands for GPUs, under a name of its own: a cluster's real
/// GPUs are counted by their device plugin. Tests run at the same time, so each names its own.
pub struct Slots {
    node: String,
    resource: String,
}

impl Slots {
    /// Gives a node this many of `carpool.dev/test-slot-NAME`.
    pub fn create(name: &str, count: u32) -> Self {
        let nodes = run("kubectl", &["get", "nodes", "-o", "json"], b"").unwrap();
        let nodes: Value = serde_json::from_str(&nodes).unwrap();
        let node = nodes["items"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|node| takes_pods(node)))
            .expect("a node takes pods");
        let slots = Self {
            node: model::name(node).to_owned(),
            resource: format!("carpool.dev/test-slot-{name}"),
        };
        slots.set(count);
        slots
    }

    /// Returns the `resources` of a worker that takes one.
    pub fn one(&self) -> Value {
        json!({"limits": {self.resource.clone(): 1}})
    }

    /// Changes their number, at once: the kubelet would take a new capacity over only at its next look.
    pub fn set(&self, count: u32) {
        let count = count.to_string();
        let places = ["capacity", "allocatable"].map(|part| self.place(part));
        self.patch(&places.map(|path| json!({"op": "add", "path": path, "value": count})))
            .unwrap();
        eventually(Duration::from_secs(30), || {
            let path = format!(
                "jsonpath={{.status.allocatable.{}}}",
                self.resource.replace('.', "\\.")
            );
            match run("kubectl", &["get", "node", &self.node, "-o", &path], b"") {
                Ok(now) if now == count => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// The resource's place on a node, as a JSON pointer.
    fn place(&self, part: &str) -> String {
        format!("/status/{part}/{}", self.resource.replace('/', "~1"))
    }

    fn patch(&self, operations: &[Value]) -> Result<String, String> {
        run(
            "kubectl",
            &[
                "patch",
                "node",
                &self.node,
                "--subresource=status",
                "--type=json",
                "-p",
                &json!(operations).to_string(),
            ],
            b"",
        )
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for part in ["capacity", "allocatable"] {
            let _ = self.patch(&[json!({"op": "remove", "path": self.place(part)})]);
        }
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
