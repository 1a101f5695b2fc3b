//! The CEL rules, as an API server evaluates them: what is accepted, and what each refusal says.

use serde_json::{Value, json};

use crate::BatchedModel;

fn resource(name: &str, spec: &Value) -> BatchedModel {
    let mut manifest = json!({
        "apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "metadata": {"name": name},
        "spec": {"model": {
            "uri": "pvc://models/sentiment",
            "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1]}, {"name": "attention_mask", "datatype": "INT64", "shape": [-1]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2]}]
        }}
    });
    merge(&mut manifest["spec"], spec);
    serde_json::from_value(manifest).unwrap()
}

fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

fn refusal(name: &str, spec: &Value) -> Option<String> {
    resource(name, spec)
        .validate_cel()
        .err()
        .map(|errors| errors.to_string())
}

fn assert_refused(spec: &Value, says: &str) {
    let refusal = refusal("sentiment", spec).unwrap_or_else(|| panic!("accepted: {spec}"));
    assert!(refusal.contains(says), "{spec}: {refusal}");
}

#[test]
fn good_ones_are_accepted() {
    let text = json!({"tokenizer": "tokenizer.json", "labels": ["NEGATIVE", "POSITIVE"]});
    let tensor =
        |name: &str, length: i64| json!({"name": name, "datatype": "INT64", "shape": [length]});
    let named = |length: &str| json!({"name": "input_ids", "datatype": "INT64", "shape": [length]});
    for spec in [
        json!({}),
        json!({"model": {"text": text}}),
        json!({"model": {"text": text, "inputs": [tensor("input_ids", 128), tensor("attention_mask", 128)]}}),
        json!({"model": {"text": text, "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [200], "pad": 1}]}}),
        json!({"model": {"uri": "file://artifact"}}),
        json!({"model": {"uri": "pvc://models"}}),
        json!({"scaling": {"minReplicas": 2, "maxReplicas": 2}}),
        json!({"queue": {"lease": "10s", "timeout": "30s"}}),
        json!({"queue": {"redis": {"external": {"urlSecretName": "mine"}}}}),
        json!({"worker": {"rollout": {"maxSurge": 1, "maxUnavailable": 0}}}),
        json!({"replicas": 1}),
        json!({"proxy": {"corsAllowOrigins": ["*"]}}),
        json!({"proxy": {"tls": {"secretName": "sentiment-tls.v2"}}}),
        json!({"proxy": {"corsAllowOrigins": ["https://app.example.com", "http://localhost:3000", "http://[::1]:80443"]}}),
        json!({"model": {"inputs": [{"name": "x", "datatype": "FP16", "shape": [1]}], "outputs": [{"name": "y", "datatype": "BF16", "shape": [2]}]}}),
        json!({"model": {"outputs": [{"name": "y", "datatype": "FP32", "shape": ["seq", -1, 2]}]}}),
        json!({"model": {"text": text, "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": ["seq"]}]}}),
        json!({"model": {"example": {"file": "example.json"}}}),
        json!({"model": {"inputs": [{"name": "ids", "datatype": "INT64", "shape": [-1], "minimum": 0, "maximum": 30521}]}}),
        json!({"model": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1], "minimum": -0.5, "maximum": 1}]}}),
        json!({"queue": {"runTimeout": "10m", "maxRowsPerRequest": 5}}),
        json!({"model": {"example": {"request": {"inputs": []}}}}),
        json!({"model": {"text": {"tokenizer": "t.json", "task": "Embed", "normalize": true}}}),
        json!({"model": {"text": {"tokenizer": "t.json", "task": "Embed", "pooling": "Mean"}, "inputs": [named("seq")], "outputs": vectors(&json!(["seq", 384]))}}),
        json!({"model": {"text": {"tokenizer": "t.json", "task": "Embed", "pooling": "Cls"}, "inputs": [tensor("input_ids", 128)], "outputs": vectors(&json!([128, 384]))}}),
        json!({"model": {"text": {"tokenizer": "t.json", "task": "Rerank", "activation": "None"}, "outputs": vectors(&json!([1]))}}),
        json!({"nodeSelector": {"pool": "gpu"}, "imagePullSecrets": [{"name": "pull"}], "priorityClassName": "high"}),
        json!({"nodeSelector": {}, "tolerations": [], "imagePullSecrets": [], "priorityClassName": ""}),
        json!({"tolerations": [{"operator": "Exists"}, {"key": "gpu", "value": "a100", "effect": "NoSchedule"},
            {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]}),
        json!({"proxy": {"replicas": 3}}),
        json!({"worker": {"gpuResource": "amd.com/gpu", "resources": {"limits": {"amd.com/gpu": 1}}}}),
        json!({"networkPolicies": "None", "proxy": {"allowFrom": [{"podSelector": {}, "namespaceSelector": {}},
            {"ipBlock": {"cidr": "::/0"}}, {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "In", "values": ["c"]}]}}]}}),
    ] {
        assert_eq!(refusal("sentiment", &spec), None, "{spec}");
    }
    assert_eq!(refusal(&"a".repeat(40), &json!({})), None);
}

#[test]
fn bad_models_are_refused_by_the_fields_name() {
    let tensor =
        |name: &str, shape: Value| json!({"name": name, "datatype": "INT64", "shape": shape});
    let text =
        json!({"tokenizer": "tokenizer.json", "labels": ["NEGATIVE", "NEUTRAL", "POSITIVE"]});
    let labelled = json!({"tokenizer": "tokenizer.json", "labels": ["NEGATIVE", "POSITIVE"]});
    for (spec, says) in [
        (
            json!({"model": {"uri": "s3://acme/7"}}),
            "uri: allowed are pvc://CLAIM/PATH",
        ),
        (
            json!({"model": {"uri": "pvc://UPPER/x"}}),
            "uri: allowed are pvc://CLAIM/PATH",
        ),
        (
            json!({"model": {"inputs": [tensor("x", json!([1])), tensor("x", json!([1]))]}}),
            "inputs: every name must be given once",
        ),
        (
            json!({"model": {"outputs": [tensor("x", json!([1])), tensor("x", json!([1]))]}}),
            "outputs: every name must be given once",
        ),
        (
            json!({"model": {"inputs": [tensor("x", json!(["seq", 0]))]}}),
            "shape: a dimension is -1",
        ),
        (
            json!({"model": {"inputs": [{"name": "x", "datatype": "INT64", "shape": [-1], "minimum": 2, "maximum": 1}]}}),
            "minimum must not be above maximum",
        ),
        (
            json!({"model": {"inputs": [{"name": "x", "datatype": "BOOL", "shape": [-1], "minimum": 0}]}}),
            "inputs: a BOOL has no minimum or maximum",
        ),
        (
            json!({"model": {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "maximum": 1}]}}),
            "outputs: minimum and maximum are for inputs",
        ),
        (
            json!({"model": {"example": {}}}),
            "example: either file or request",
        ),
        (
            json!({"model": {"example": {"file": "example.json", "request": {}}}}),
            "example: either file or request",
        ),
        (
            json!({"model": {"text": text}}),
            "outputs: with text the first must hold one FP32 for each of text.labels",
        ),
        (
            json!({"model": {"text": text, "inputs": [tensor("x", json!([-1]))]}}),
            "inputs: with text they are what the tokenizer makes",
        ),
        (
            json!({"model": {"text": labelled, "inputs": [tensor("input_ids", json!([-1])), tensor("attention_mask", json!([128]))]}}),
            "inputs: with text all have one and the same dimension",
        ),
        (
            json!({"model": {"text": labelled, "inputs": [tensor("input_ids", json!([1, -1]))]}}),
            "inputs: with text all have one and the same dimension",
        ),
        (
            json!({"model": {"text": labelled, "inputs": [tensor("input_ids", json!([-1])), {"name": "attention_mask", "datatype": "INT64", "shape": [-1], "pad": 1}]}}),
            "its pad may only be 0",
        ),
    ] {
        assert_refused(&spec, says);
    }
}

/// An output of vectors of this shape.
fn vectors(shape: &Value) -> Value {
    json!([{"name": "vectors", "datatype": "FP32", "shape": shape}])
}

#[test]
fn a_text_has_what_its_task_needs_and_nothing_else() {
    let ids = json!([{"name": "input_ids", "datatype": "INT64", "shape": ["seq"]}]);
    for (text, outputs, says) in [
        (
            json!({}),
            json!([2]),
            "labels: the task Classify needs a name for each value of the first output",
        ),
        (
            json!({"task": "Embed", "labels": ["A", "B"]}),
            json!([2]),
            "labels: are for the task Classify alone",
        ),
        (
            json!({"labels": ["A", "B"], "pooling": "Mean"}),
            json!([2]),
            "pooling: is for the task Embed alone",
        ),
        (
            json!({"task": "Rerank", "normalize": true}),
            json!([1]),
            "normalize: is for the task Embed alone",
        ),
        (
            json!({"task": "Embed", "activation": "None"}),
            json!([2]),
            "activation: is for the task Rerank alone",
        ),
        (
            json!({"task": "Rerank"}),
            json!([2]),
            "outputs: with the task Rerank the first must hold the score",
        ),
        (
            json!({"task": "Embed"}),
            json!(["seq", 384]),
            "outputs: with the task Embed the first must hold the embedding",
        ),
        (
            json!({"task": "Embed"}),
            json!(["d"]),
            "outputs: with the task Embed the first must hold the embedding",
        ),
        (
            json!({"task": "Embed"}),
            json!([-1]),
            "outputs: with the task Embed the first must hold the embedding",
        ),
        (
            json!({"task": "Embed", "pooling": "Mean"}),
            json!([384]),
            "outputs: with pooling the first must hold one vector a token",
        ),
        (
            json!({"task": "Embed", "pooling": "Cls"}),
            json!(["other", 384]),
            "outputs: with pooling the first must hold one vector a token",
        ),
        (
            json!({"task": "Embed", "pooling": "Cls"}),
            json!(["seq", "d"]),
            "outputs: with pooling the first must hold one vector a token",
        ),
    ] {
        let mut text = text;
        text["tokenizer"] = json!("t.json");
        assert_refused(
            &json!({"model": {"text": text, "inputs": ids, "outputs": vectors(&outputs)}}),
            says,
        );
    }
    let unnamed = json!({"text": {"tokenizer": "t.json", "task": "Embed", "pooling": "Mean"}, "outputs": vectors(&json!([-1, 384]))});
    assert_refused(
        &json!({"model": unnamed}),
        "with pooling the first must hold one vector a token",
    );
    let taken = json!({"text": {"tokenizer": "t.json", "task": "Embed"}, "outputs": [
        {"name": "x", "datatype": "FP32", "shape": [4]}, {"name": "tokens", "datatype": "FP32", "shape": [4]}]});
    assert_refused(
        &json!({"model": taken}),
        "the names tokens and truncated are taken",
    );
}

#[test]
fn bad_settings_are_refused_by_the_fields_name() {
    for (spec, says) in [
        (
            json!({"replicas": 3}),
            "replicas: allowed is 1; the queue decides",
        ),
        (
            json!({"replicas": 0}),
            "replicas: allowed is 1; the queue decides",
        ),
        (
            json!({"scaling": {"minReplicas": 5, "maxReplicas": 2}}),
            "minReplicas must not be above maxReplicas",
        ),
        (
            json!({"scaling": {"cooldown": "25h"}}),
            "cooldown: at most 24h",
        ),
        (
            json!({"batching": {"maxDelay": "11s"}}),
            "maxDelay: at most 10s",
        ),
        (
            json!({"queue": {"lease": "11s", "timeout": "30s"}}),
            "lease must be at least 1s and at most a third of timeout",
        ),
        (
            json!({"queue": {"lease": "500ms"}}),
            "lease must be at least 1s",
        ),
        (
            json!({"queue": {"runTimeout": "100ms"}}),
            "runTimeout: between 1s and 24h",
        ),
        (
            json!({"queue": {"timeout": "2h"}}),
            "timeout: between 3s and 1h",
        ),
        (
            json!({"queue": {"redis": {"managed": {}, "external": {"urlSecretName": "mine"}}}}),
            "redis: either managed or external, not both",
        ),
        (
            json!({"worker": {"rollout": {"maxSurge": 0, "maxUnavailable": 0}}}),
            "maxSurge and maxUnavailable must not both be 0",
        ),
        (
            json!({"worker": {"gpuResource": "amd.com/gpu", "resources": {"limits": {"memory": "1Gi"}}}}),
            "gpuResource: resources.limits must ask for this resource",
        ),
        (
            json!({"worker": {"gpuResource": "amd.com/gpu"}}),
            "gpuResource: resources.limits must ask for this resource",
        ),
        (
            json!({"tolerations": [{"effect": "NoSchedule"}]}),
            "tolerations: without a key",
        ),
        (
            json!({"tolerations": [{"key": "gpu", "operator": "Exists", "value": "x"}]}),
            "tolerations: with the operator Exists there must be no value",
        ),
        (
            json!({"tolerations": [{"key": "gpu", "tolerationSeconds": 5}]}),
            "tolerations: tolerationSeconds is for the effect NoExecute",
        ),
        (
            json!({"proxy": {"tls": {"secretName": "Sentiment/tls"}}}),
            "tls.secretName: the name of a Secret is lower-case letters",
        ),
        (
            json!({"proxy": {"allowFrom": [{"podSelector": {}, "ipBlock": {"cidr": "::/0"}}]}}),
            "allowFrom: either ipBlock, or podSelector",
        ),
        (
            json!({"proxy": {"allowFrom": [{}]}}),
            "allowFrom: either ipBlock, or podSelector",
        ),
        (
            json!({"proxy": {"allowFrom": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}}),
            "matchExpressions: In and NotIn need values",
        ),
        (
            json!({"proxy": {"allowFrom": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}]}}),
            "matchExpressions: In and NotIn need values",
        ),
    ] {
        assert_refused(&spec, says);
    }
    for name in [&"a".repeat(41), "9lives", "Upper", "dot.ted", "ends-"] {
        let refusal = refusal(name, &json!({})).unwrap_or_else(|| panic!("accepted: {name}"));
        assert!(refusal.contains("metadata.name"), "{refusal}");
    }
}

#[test]
fn an_origin_is_what_a_browser_sends() {
    for origin in [
        "https://app.example.com/",
        "app.example.com",
        "https://*.example.com",
        "https://App.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://a.example.com, https://b.example.com",
        "",
    ] {
        let spec = json!({"proxy": {"corsAllowOrigins": ["*", origin]}});
        let refusal = refusal("sentiment", &spec).unwrap_or_else(|| panic!("accepted: {spec}"));
        let says = "corsAllowOrigins: an origin is SCHEME://HOST";
        assert!(refusal.contains(says), "{spec}: {refusal}");
    }
}
