//! The bounds of a request beside the model's shapes: its number of rows, and its elements' values.

use serde_json::{Value, json};

use crate::rig::{INFER, Rig, config, texts};

const PREDICT: &str = "/predict";

/// A request of `rows` texts.
fn texts_of(rows: usize) -> Value {
    json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [rows, 1], "data": vec!["love"; rows]}]})
}

#[tokio::test]
async fn more_rows_than_a_request_may_have_are_refused_before_they_are_read() {
    let mut config = config(&texts());
    let told = |given, limit| {
        let sentence = format!(
            "the request has {given} rows, queue.maxRowsPerRequest allows {limit}; send them in several requests"
        );
        Err((413, sentence))
    };
    let rig = Rig::start(config.clone()).await;
    rig.echo();
    rig.post(INFER, texts_of(1024)).await.ok().unwrap();
    let answer = rig.post(INFER, texts_of(1025)).await;
    assert_eq!(answer.ok(), told(1025, 1024));

    config["queue"]["maxRowsPerRequest"] = json!(1);
    rig.configure(&config);
    rig.measures(r#"carpool_proxy_config_reloads_total{result="applied"} 1"#)
        .await;
    let ids = |data: Value| json!({"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [2, 1], "data": data}]});
    for body in [texts_of(2), ids(json!([1, 2])), ids(json!(["no", "ids"]))] {
        let answer = rig.post(INFER, body).await;
        assert_eq!(answer.ok(), told(2, 1));
    }
    rig.post(INFER, texts_of(1)).await.ok().unwrap();
    let text = json!({"text": "love"});
    rig.post(PREDICT, text).await.ok().unwrap();
    rig.measures(r#"carpool_proxy_refusals_total{reason="too_many_rows"} 4"#)
        .await;
}

#[tokio::test]
async fn elements_outside_of_their_bounds_never_reach_the_queue() {
    let mut model = texts();
    model["inputs"][0]["minimum"] = json!(0);
    model["inputs"][0]["maximum"] = json!(30521);
    let rig = Rig::start(config(&model)).await;
    let ids = |data: Value| json!({"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [2, 2], "data": data}]});
    for (data, sentence) in [
        (
            json!([[101, 0], [30521, 30522]]),
            r#"input "input_ids": element 3 is 30522, above the maximum 30521"#,
        ),
        (
            json!([101, -1, 102, 30522]),
            r#"input "input_ids": element 1 is -1, below the minimum 0"#,
        ),
    ] {
        let answer = rig.post(INFER, ids(data)).await;
        assert_eq!(answer.ok(), Err((422, sentence.to_owned())));
    }
    rig.length("r1", 0).await;
    rig.echo();
    let good = ids(json!([101, 0, 30521, 102]));
    rig.post(INFER, good).await.ok().unwrap();
    // The ids of a text are the tokenizer's own affair.
    rig.post(INFER, texts_of(1)).await.ok().unwrap();
}
