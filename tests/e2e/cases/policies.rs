//! Network policies: who reaches a model's proxies, and a cluster that refuses policies.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually},
    load,
    model::Affine,
};

/// A pod that waits to be told whom to reach.
fn client(namespace: &Namespace) {
    let mut pod = load::pod("client", &[], None);
    pod["spec"]["containers"][0]["command"] = json!(["sleep", "600"]);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    namespace.apply(&pod.to_string());
    namespace.wait("pod/client", "condition=Ready", "60s");
}

/// Tries to connect from the client's pod to a Service.
fn reaches(namespace: &Namespace, service: &str) -> Result<String, String> {
    let connect = format!("timeout 3 bash -c '</dev/tcp/{service}/80'");
    namespace.try_kubectl(&["exec", "client", "--", "bash", "-c", &connect], b"")
}

/// The status and the message of a condition of the model.
fn condition(namespace: &Namespace, type_: &str) -> (String, String) {
    let model = namespace.get(&["bm", "affine"]);
    let conditions = model["status"]["conditions"].as_array().cloned();
    let found = conditions
        .unwrap_or_default()
        .into_iter()
        .find(|condition| condition["type"] == type_)
        .unwrap_or(Value::Null);
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("message"))
}

/// Pods of other namespaces reach a model's proxies only where `proxy.allowFrom` names them.
pub fn enforced() {
    let (namespace, other) = (
        Namespace::create("policies"),
        Namespace::create("elsewhere"),
    );
    let uri = Affine::FIRST.publish(&namespace);
    let apply = |spec: &Value| namespace.apply(&Affine::manifest("affine", &uri, spec).to_string());
    apply(&json!({}));
    client(&namespace);
    client(&other);
    namespace.wait("bm/affine", "condition=Ready", "120s");
    let service = format!("affine.{}", namespace.name());
    eventually(Duration::from_secs(30), || reaches(&namespace, &service));
    reaches(&other, &service).expect_err("another namespace's pod reaches the proxies");
    assert_eq!(condition(&namespace, "NetworkPoliciesReady").0, "True");

    let names = json!({"matchLabels": {"kubernetes.io/metadata.name": other.name()}});
    apply(&json!({"proxy": {"allowFrom": [{"namespaceSelector": names}]}}));
    eventually(Duration::from_secs(30), || reaches(&other, &service));
    reaches(&namespace, &service).unwrap();
}

/// A cluster that refuses network policies gets the rest, and the status says so until it takes them.
pub fn refused() {
    let namespace = Namespace::create("no-policies");
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
        "spec": {"hard": {"count/networkpolicies.networking.k8s.io": "0"}}
    });
    namespace.apply(&quota.to_string());
    // A quota holds once it has been counted.
    eventually(Duration::from_secs(30), || {
        let quota = namespace.get(&["resourcequota", "none"]);
        let counted = &quota["status"]["hard"]["count/networkpolicies.networking.k8s.io"];
        if counted == "0" {
            Ok(())
        } else {
            Err(quota.to_string())
        }
    });
    let uri = Affine::FIRST.publish(&namespace);
    namespace.apply(&Affine::manifest("affine", &uri, &json!({})).to_string());
    namespace.wait("bm/affine", "condition=Ready", "120s");
    let load = load::Load::numbered(&namespace, "affine", 1);
    load.answered(10);
    load::check(&load.stop(), |answer| Affine::FIRST.gave(answer));
    let (status, message) = condition(&namespace, "NetworkPoliciesReady");
    assert_eq!(status, "False", "{message}");
    assert!(message.contains("exceeded quota"), "{message}");

    namespace.kubectl(&["delete", "resourcequota", "none"]);
    eventually(Duration::from_mins(2), || {
        match condition(&namespace, "NetworkPoliciesReady") {
            (status, _) if status == "True" => Ok(()),
            (status, message) => Err(format!("{status}: {message}")),
        }
    });
    let policies = namespace.list("networkpolicies", "carpool.dev/model=affine");
    assert_eq!(policies.len(), 3);
}
