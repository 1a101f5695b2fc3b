//! Manifests that are refused, and objects that aren't ours.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually},
    model::{Affine, merge},
};

/// Thirteen mistakes are refused, each with a message that names the field.
pub fn bad_ones() {
    let namespace = Namespace::create("manifests");
    let tensor = |name: &str, datatype: &str, shape: Value| json!([{"name": name, "datatype": datatype, "shape": shape}]);
    let long = "a".repeat(41);
    let cases: [(&str, Value, &str); 13] = [
        (&long, json!({}), "metadata.name"),
        (
            "bad",
            json!({"model": {"uri": "ftp://models/1"}}),
            "spec.model.uri",
        ),
        (
            "bad",
            json!({"model": {"uri": "s3://acme/sentiment/7"}}),
            "spec.model.uri",
        ),
        (
            "bad",
            json!({"model": {"format": "AOTInductor"}}),
            "spec.model.format",
        ),
        (
            "bad",
            json!({"model": {"sha256": "abc"}}),
            "spec.model.sha256",
        ),
        (
            "bad",
            json!({"model": {"inputs": tensor("x", "FLOAT", json!([1]))}}),
            "spec.model.inputs[0].datatype",
        ),
        (
            "bad",
            json!({"model": {"inputs": tensor("x", "FP32", json!([0]))}}),
            "spec.model.inputs[0].shape",
        ),
        (
            "bad",
            json!({"model": {"outputs": tensor("y", "FP32", json!(["1st"]))}}),
            "spec.model.outputs[0].shape",
        ),
        (
            "bad",
            json!({"batching": {"maxBatchSize": 0}}),
            "spec.batching.maxBatchSize",
        ),
        (
            "bad",
            json!({"scaling": {"minReplicas": 5, "maxReplicas": 2}}),
            "spec.scaling",
        ),
        (
            "bad",
            json!({"scaling": {"mode": "KEDA"}}),
            "spec.scaling.mode",
        ),
        (
            "bad",
            json!({"queue": {"lease": "20s", "timeout": "30s"}}),
            "spec.queue",
        ),
        ("bad", json!({"queue": {"maxBites": "1Gi"}}), "maxBites"),
    ];
    for (name, over, field) in cases {
        let mut manifest = Affine::manifest(name, "pvc://models/x", &json!({}));
        merge(&mut manifest["spec"], &over);
        let refused = namespace
            .try_kubectl(&["apply", "-f", "-"], manifest.to_string().as_bytes())
            .unwrap_err();
        assert!(
            refused.contains(field),
            "the message does not name {field}: {refused}"
        );
    }
    // The API server bounds the cost of its own rules, and must let this through.
    let named = json!({"model": {
        "inputs": tensor("x", "FP32", json!(["seq", 2, -1])),
        "example": {"request": {"inputs": []}}
    }});
    let mut manifest = Affine::manifest("good", "pvc://models/x", &json!({}));
    merge(&mut manifest["spec"], &named);
    namespace
        .try_kubectl(
            &["apply", "--dry-run=server", "-f", "-"],
            manifest.to_string().as_bytes(),
        )
        .unwrap();
    assert_eq!(
        namespace.get(&["bm"])["items"],
        json!([]),
        "a bad manifest was accepted"
    );
}

/// An object of the user's that has a child's name is left alone, and the resource says so; deleting the resource
/// leaves it, and nothing else.
pub fn name_conflict() {
    let namespace = Namespace::create("conflict");
    let uri = Affine::FIRST.publish(&namespace);
    let objects = namespace.objects();
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "affine"},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 1234}]}
    });
    namespace.apply(&theirs.to_string());
    let before = namespace.get(&["service", "affine"]);
    namespace.apply(&Affine::manifest("affine", &uri, &json!({})).to_string());
    namespace.wait(
        "bm/affine",
        "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}=NameConflict",
        "60s",
    );
    let message = "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}";
    assert!(
        namespace
            .kubectl(&["get", "bm", "affine", "-o", message])
            .contains("Service"),
        "the message names the object"
    );
    assert_eq!(
        namespace.get(&["service", "affine"]),
        before,
        "the user's Service was touched"
    );

    namespace.kubectl(&["delete", "service", "affine"]);
    namespace.wait("bm/affine", "condition=Ready", "120s");
    namespace.kubectl(&["delete", "bm", "affine"]);
    eventually(Duration::from_secs(90), || match namespace.objects() {
        left if left == objects => Ok(()),
        left => Err(format!("before: {objects:?}\nafter: {left:?}")),
    });
}
