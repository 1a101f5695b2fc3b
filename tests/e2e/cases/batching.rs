//! A model whose rows change each other's answers.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, read, root},
    load::{Load, check, pod},
    model,
};

const REQUESTS: usize = 200;

/// The model gives `x` less the mean over its batch: 0 for a row that runs alone, and for no other. The status says
/// that rows run alone, and every answer of eight clients at once is right.
pub fn rows_that_mix_run_alone() {
    let namespace = Namespace::create("batching");
    let folder = carpool_testkit::cache().join("models/strangers");
    let script = root().join("tests/models/strangers.py");
    let stranger = folder.join("batch-mean");
    if model::stale(&stranger.join("model.pt"), &[&script]) {
        let folder = folder.to_str().expect("a path in UTF-8");
        model::python("strangers.py", &[folder]);
    }
    let uri = model::publish(&namespace, "batch-mean", &stranger);
    let case: Value =
        serde_json::from_str(&read(&stranger.join("case.json"))).expect("a case is JSON");
    let mut spec = json!({"model": case["model"], "batching": {"maxDelay": "50ms"}});
    spec["model"]["uri"] = uri.into();
    let manifest = json!({
        "apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "metadata": {"name": "mean"}, "spec": spec
    });
    namespace.apply(&manifest.to_string());
    namespace.wait("bm/mean", "condition=Ready", "120s");
    let loaded = eventually(Duration::from_mins(1), || {
        let status = namespace.get(&["bm", "mean"])["status"].clone();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .into_iter()
            .find(|condition| {
                condition["type"] == "ModelLoaded" && condition["reason"] == "Unbatched"
            })
            .ok_or_else(|| format!("ModelLoaded is not Unbatched: {status}"))
    });
    println!("ModelLoaded: {}", loaded["message"]);
    assert_eq!(loaded["status"], "True");
    let message = loaded["message"].as_str().unwrap_or_default();
    assert!(message.contains("served unbatched"), "{message}");

    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rows"},
        "data": {"inputs.json": case["requests"].to_string()}
    });
    namespace.apply(&config_map.to_string());
    let count = REQUESTS.to_string();
    let arguments = [
        "--model",
        "mean",
        "--clients",
        "8",
        "--url",
        "http://mean",
        "--count",
        &count,
    ];
    let load = Load::start(
        &namespace,
        &pod("rows", &arguments, Some("rows")).to_string(),
    );
    let answers = load.finish(Duration::from_mins(2));
    check(&answers, |answer| {
        let zero = |value: &Value| value.as_f64() == Some(0.0);
        answer
            .output("y")
            .as_array()
            .is_some_and(|row| row.iter().all(zero))
    });
    assert_eq!(answers.len(), REQUESTS);
}
