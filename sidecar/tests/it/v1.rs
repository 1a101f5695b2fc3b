//! The protocol's first version.

use serde_json::{Value, json};

use crate::rig::{Rig, config, pairs, texts};

const PREDICT: &str = "/v1/models/m:predict";

fn model(tensors: &Value) -> Value {
    json!({"uri": "file://m", "inputs": tensors, "outputs": tensors})
}

#[tokio::test]
async fn rows_come_back_as_rows() {
    let tensor =
        |name: &str, shape: Value| json!({"name": name, "datatype": "FP32", "shape": shape});
    let rows = json!([[[1.5, 2.5], [3.5, 4.5]], [[5.5, 6.5], [7.5, 8.5]]]);
    let numbers = json!([[1.5], [2.5], [3.5]]);
    let named = json!([{"a": [1.5, 2.5], "b": [3.5]}, {"b": [4.5], "a": [5.5, 6.5]}]);
    for (tensors, instances, predictions) in [
        (
            json!([tensor("x", json!([2, 2]))]),
            rows.clone(),
            rows.clone(),
        ),
        (json!([tensor("x", json!([-1, 2]))]), rows.clone(), rows),
        (
            json!([tensor("x", json!([1]))]),
            json!([1.5, 2.5, 3.5]),
            numbers.clone(),
        ),
        (json!([tensor("x", json!([1]))]), numbers.clone(), numbers),
        (
            json!([tensor("a", json!([2])), tensor("b", json!([1]))]),
            named.clone(),
            named,
        ),
    ] {
        let rig = Rig::start(config(&model(&tensors))).await;
        rig.echo();
        let answer = rig.post(PREDICT, json!({"instances": instances})).await;
        assert_eq!(answer.ok(), Ok(json!({"predictions": predictions})));
    }
}

#[tokio::test]
async fn texts_get_labels() {
    let rig = Rig::start(config(&texts())).await;
    rig.echo();
    for instances in [
        json!(["love", "hate"]),
        json!([{"text": "love"}, {"text": "hate"}]),
    ] {
        let answer = rig.post(PREDICT, json!({"instances": instances})).await;
        let predictions = answer.ok().unwrap()["predictions"].clone();
        assert_eq!(predictions[0]["label"], "POSITIVE");
        assert_eq!(predictions[1]["label"], "NEGATIVE");
        assert!(predictions[1]["score"].as_f64().unwrap() > 0.9);
    }
}

#[tokio::test]
async fn mistakes_name_the_row() {
    let tensor = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [2]});
    let two = Rig::start(config(&model(&json!([tensor("a"), tensor("b")])))).await;
    let one = Rig::start(config(&pairs())).await;
    for (rig, body, status, sentence) in [
        (&one, json!({}), 400, "instances: missing: a list of rows"),
        (
            &one,
            json!({"inputs": [[1, 2]]}),
            400,
            "instances: missing: a list of rows; `inputs` are columns, which are not read: give rows",
        ),
        (
            &one,
            json!({"instances": []}),
            422,
            "instances: there are none; at least one is needed",
        ),
        (
            &one,
            json!({"instances": [[1, 2], [3]]}),
            422,
            "tensor `x`: an array 2 deep in its data has 1 items; shape [2, 2] says 2",
        ),
        (
            &one,
            json!({"instances": [[1, 2, 3]]}),
            422,
            "input \"x\": expected shape [-1, 2], given [1, 3]",
        ),
        (
            &two,
            json!({"instances": [[1, 2]]}),
            422,
            "instances[0]: expected an object of a, b, given [1,2]",
        ),
        (
            &two,
            json!({"instances": [{"a": [1, 2], "b": [1, 2]}, {"a": [1, 2]}]}),
            422,
            "instances[1]: input \"b\" is missing",
        ),
        (
            &two,
            json!({"instances": [{"a": [1, 2], "b": [1, 2], "c": 1}]}),
            422,
            "instances[0]: unknown input \"c\"",
        ),
    ] {
        let answer = rig.post(PREDICT, &body).await;
        let (given, told) = answer.ok().unwrap_err();
        assert_eq!((given, &*told), (status, sentence), "{body}");
    }
    // Readers differ in which of two values counts.
    let twice = r#"{"instances": [{"a": [1, 2], "b": [1, 2], "a": [3, 4]}]}"#;
    assert_eq!(
        two.post(PREDICT, twice).await.ok(),
        Err((422, "instances[0]: input \"a\" is given twice".to_owned()))
    );
    let unknown = one
        .post("/v1/models/other:predict", json!({"instances": [[1, 2]]}))
        .await;
    assert_eq!(
        unknown.ok(),
        Err((404, "unknown model other; this is m".to_owned()))
    );
}

#[tokio::test]
async fn the_model_is_listed_and_described() {
    let rig = Rig::start(config(&pairs())).await;
    for (path, told) in [
        ("/v1/models", json!({"models": ["m"]})),
        ("/v2/models", json!({"models": ["m"]})),
        ("/v1/models/m", json!({"name": "m", "ready": true})),
    ] {
        assert_eq!(rig.get(path).await.ok(), Ok(told), "{path}");
    }
    let index = rig.post("/v2/repository/index", "{}").await.ok().unwrap();
    assert_eq!(
        index,
        json!([{"name": "m", "version": "r1", "state": "READY", "reason": ""}])
    );
    let told = rig.get("/v2/models/m/config").await.ok().unwrap();
    assert_eq!(
        told["input"],
        json!([{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}])
    );
    let shared = rig
        .post("/v2/systemsharedmemory/region/a/register", "{}")
        .await;
    let (status, sentence) = shared.ok().unwrap_err();
    assert_eq!(status, 501);
    assert!(
        sentence.contains("shared memory is not served"),
        "{sentence}"
    );
}
