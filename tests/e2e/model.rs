//! Models and the claim they lie on.

use std::{path::Path, time::Duration};

use carpool_testkit::cache;
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, root, run},
    load::{Answer, image},
};

/// Whether a file is missing, or older than one that it is made from.
pub fn stale(output: &Path, sources: &[&Path]) -> bool {
    let made = |path: &Path| {
        std::fs::metadata(path)
            .and_then(|data| data.modified())
            .ok()
    };
    sources.iter().any(|source| made(output) < made(source))
}

/// Runs one of `tests/models/*.py`.
pub fn python(script: &str, arguments: &[&str]) {
    let interpreter = carpool_testkit::python();
    let script = root().join("tests/models").join(script);
    let script = script.to_str().expect("a path in UTF-8");
    run(
        interpreter.to_str().expect("a path in UTF-8"),
        &[&[script], arguments].concat(),
        b"",
    )
    .unwrap();
}

/// The model `y = factor x + offset`, which works for some milliseconds first.
#[derive(Clone, Copy)]
pub struct Affine {
    pub factor: f64,
    pub offset: f64,
}

impl Affine {
    /// The factor and the offset are small whole numbers, so every answer is exact in FP32 and says which model gave
    /// it.
    pub const FIRST: Self = Self {
        factor: 2.0,
        offset: 1.0,
    };
    pub const SECOND: Self = Self {
        factor: 3.0,
        offset: 5.0,
    };

    pub fn of(self, number: u64) -> f64 {
        f64::from(u32::try_from(number).expect("few requests")) * self.factor + self.offset
    }

    /// Whether an answer is this model's to the request of its number.
    pub fn gave(self, answer: &Answer) -> bool {
        (answer.number_in("y") - self.of(answer.number)).abs() < 1e-4
    }

    fn name(self) -> String {
        format!("affine-{}-{}", self.factor, self.offset)
    }

    /// Builds the model and puts it on the claim `models`. Returns its URI.
    pub fn publish(self, namespace: &Namespace) -> String {
        let name = self.name();
        let folder = cache().join("models").join(&name);
        let script = root().join("tests/models/build.py");
        if stale(&folder.join("model.pt"), &[&script]) {
            let (factor, offset) = (self.factor.to_string(), self.offset.to_string());
            let folder = folder.to_str().expect("a path in UTF-8");
            python(
                "build.py",
                &[folder, "--factor", &factor, "--offset", &offset],
            );
        }
        publish(namespace, &name, &folder)
    }

    /// Returns a BatchedModel at `uri`, with `spec` laid over the default.
    pub fn manifest(name: &str, uri: &str, spec: &Value) -> Value {
        let mut manifest = json!({
            "apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "metadata": {"name": name},
            "spec": {"model": {
                "uri": uri,
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}]
            }}
        });
        merge(&mut manifest["spec"], spec);
        manifest
    }
}

/// Lays `over` on `base`, objects key by key.
pub fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// Puts a folder on the claim `models` under `name`, and makes the claim where there is none. Returns the artifact's
/// URI.
pub fn publish(namespace: &Namespace, name: &str, folder: &Path) -> String {
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "publish"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "tar", "image": image(), "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "600"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "models", "mountPath": "/models"}]
            }],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}]
        }
    });
    namespace.apply(&claim.to_string());
    namespace.apply(&pod.to_string());
    namespace.wait("pod/publish", "condition=Ready", "60s");
    let path = folder.to_str().expect("a path in UTF-8");
    let target = format!(
        "mkdir -p /models/{name} && tar --extract --no-same-owner --directory /models/{name}"
    );
    let copy = "tar --create --dereference --directory \"$1\" . | kubectl --namespace \"$2\" exec --stdin publish -- bash -c \"$3\"";
    run(
        "bash",
        &[
            "-o",
            "pipefail",
            "-c",
            copy,
            "bash",
            path,
            namespace.name(),
            &target,
        ],
        b"",
    )
    .unwrap();
    namespace.kubectl(&["delete", "pod", "publish"]);
    format!("pvc://models/{name}")
}

fn selector(model: &str, component: &str) -> String {
    format!("app.kubernetes.io/instance={model},app.kubernetes.io/component={component}")
}

/// Returns the model's pods of one component, without those that are going.
pub fn pods(namespace: &Namespace, model: &str, component: &str) -> Vec<Value> {
    let mut pods = namespace.list("pods", &selector(model, component));
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    pods
}

/// Returns the name of an object.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"]
        .as_str()
        .expect("an object has a name")
}

/// Whether a pod is Ready.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Waits until the model has exactly this many Ready workers.
pub fn workers(namespace: &Namespace, model: &str, count: usize, within: Duration) -> Vec<Value> {
    eventually(within, || {
        let pods = pods(namespace, model, "worker");
        if pods.len() == count && pods.iter().all(is_ready) {
            Ok(pods)
        } else {
            Err(format!("{} workers, wanted {count} Ready ones", pods.len()))
        }
    })
}

/// Waits until the last worker's pod is gone, with every answer that it may still give.
pub fn no_workers(namespace: &Namespace, model: &str, within: Duration) {
    eventually(within, || {
        match namespace.list("pods", &selector(model, "worker")).len() {
            0 => Ok(()),
            left => Err(format!("{left} pods of workers are still there")),
        }
    });
}

/// Returns the sum over the model's workers of one of their metrics, read through the API server.
pub fn worker_metric(namespace: &Namespace, model: &str, metric: &str) -> f64 {
    let space = namespace.name();
    pods(namespace, model, "worker")
        .iter()
        .map(|pod| {
            let path = format!(
                "/api/v1/namespaces/{space}/pods/{}:9090/proxy/metrics",
                name(pod)
            );
            let text = namespace.kubectl(&["get", "--raw", &path]);
            text.lines()
                .filter_map(|line| line.strip_prefix(metric)?.rsplit_once(' '))
                .filter_map(|(_, value)| value.parse::<f64>().ok())
                .sum::<f64>()
        })
        .sum()
}
