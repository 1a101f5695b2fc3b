//! The refusals, each with its status and its sentence.

use bytes::Bytes;
use carpool_queue::FailureKind;
use carpool_testkit::{RedisServer, free_port};
use http::Method;
use serde_json::{Value, json};

use crate::{
    client::{JSON, post, request, send, until},
    rig::{INFER, Rig, config, pair, pairs, texts},
    worker,
};

const PREDICT: &str = "/predict";

/// A request of one row for [`pairs`], with one field of its input changed.
fn pair_with(field: &str, value: Value) -> String {
    let mut body = pair();
    body["inputs"][0][field] = value;
    body.to_string()
}

/// A request of one row for [`pairs`], with this `timeout`.
fn pair_within(timeout: Value) -> String {
    let mut body = pair();
    body["parameters"] = json!({"timeout": timeout});
    body.to_string()
}

#[tokio::test]
async fn what_can_not_be_read_is_told() {
    let rig = Rig::start(config(&pairs())).await;
    for body in ["", "{", "[]", "{}", r#"{"inputs": 5}"#] {
        let answer = rig.post(INFER, body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert_eq!(answer.headers["content-type"], "application/json");
        let error = answer.error();
        assert!(
            error.starts_with("failed to parse JSON: "),
            "{body}: {error}"
        );
    }
    for timeout in [json!(0), json!(-5), json!("1s"), json!(0.5)] {
        let answer = rig.post(INFER, pair_within(timeout)).await;
        let sentence = "parameter \"timeout\" must be a whole number of microseconds, at least 1";
        assert_eq!(answer.ok(), Err((400, sentence.to_owned())));
    }
    let answer = send(request(
        Method::POST,
        rig.address,
        INFER,
        Some("text/plain"),
        "x",
    ))
    .await;
    let sentence = "the body must be application/json, or application/octet-stream with binary tensor data, it is text/plain";
    assert_eq!(answer.ok(), Err((415, sentence.to_owned())));
}

#[tokio::test]
async fn what_is_not_served_is_told() {
    let rig = Rig::start(config(&pairs())).await;
    let model = "unknown model other; this is m";
    let version = "unknown version 7 of m; the one served is r1";
    let text = "m takes no text; POST its tensors to /v2/models/m/infer";
    for (path, sentence) in [
        ("/v2/models/other/infer", model),
        ("/v2/models/m/versions/7/infer", version),
        ("/predict", text),
    ] {
        let answer = rig.post(path, pair()).await;
        assert_eq!(answer.ok(), Err((404, sentence.to_owned())), "{path}");
    }
    let answer = rig.post("/v3/models/m/infer", pair()).await;
    assert_eq!(answer.status, 404);
    let sentence = answer.error();
    for part in ["/v3/models/m/infer;", "/infer", ":predict", "/predict"] {
        assert!(sentence.contains(part), "{sentence}");
    }
    for (path, sentence) in [
        ("/v2/models/other", model),
        ("/v2/models/other/ready", model),
        ("/v2/models/m/versions/7", version),
        ("/v2/models/m/versions/7/ready", version),
    ] {
        assert_eq!(
            rig.get(path).await.ok(),
            Err((404, sentence.to_owned())),
            "{path}"
        );
    }
    let answer = rig.get(INFER).await;
    assert_eq!(answer.headers["allow"], "POST, OPTIONS");
    let sentence = "method GET is not allowed here; allowed are POST, OPTIONS";
    assert_eq!(answer.ok(), Err((405, sentence.to_owned())));
    let answer = rig.post("/v2", pair()).await;
    assert_eq!(answer.headers["allow"], "GET, HEAD, OPTIONS");
    let sentence = "method POST is not allowed here; allowed are GET, HEAD, OPTIONS";
    assert_eq!(answer.ok(), Err((405, sentence.to_owned())));
}

#[tokio::test]
async fn what_the_model_does_not_take_never_reaches_the_queue() {
    let rig = Rig::start(config(&pairs())).await;
    let datatype = pair_with("datatype", json!("INT64")).replace("1.5,-2.0", "1,2");
    for (body, sentence) in [
        (
            pair_with("name", json!("y")),
            r#"unknown input "y"; the model takes "x""#,
        ),
        (
            datatype,
            r#"input "x": expected datatype FP32, given INT64"#,
        ),
        (
            pair_with("shape", json!([2, 1])),
            r#"input "x": expected shape [-1, 2], given [2, 1]"#,
        ),
        (
            pair_with("shape", json!([2])),
            r#"input "x": expected shape [-1, 2], given [2]; add the batch dimension: [1, 2]"#,
        ),
        (
            pair_with("shape", json!([0, 2])).replace("1.5,-2.0", ""),
            r#"input "x": expected shape [-1, 2], given [0, 2]; it has no rows; send at least one: [1, 2]"#,
        ),
        // The protocol tells how a tensor's data misses its shape.
        (
            pair_with("shape", json!([2, 2])),
            "tensor `x`: shape [2, 2] has 4 elements; 2 given: change the shape or the data",
        ),
    ] {
        let answer = rig.post(INFER, &body).await;
        let expected = Err((422, sentence.to_owned()));
        assert_eq!(answer.ok(), expected, "{body}");
    }
    rig.length("r1", 0).await;
}

#[tokio::test]
async fn a_text_must_be_one() {
    let rig = Rig::start(config(&texts())).await;
    let form = Some("application/x-www-form-urlencoded");
    for (media_type, body, status, sentence) in [
        (
            JSON,
            "{",
            400,
            "failed to parse JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            JSON,
            r#"["love"]"#,
            400,
            "failed to parse JSON: invalid type: sequence, expected an object at line 1 column 0",
        ),
        (
            JSON,
            r#"{"text": "love", "text": "hate"}"#,
            400,
            "failed to parse JSON: duplicate field `text` at line 1 column 23",
        ),
        (
            JSON,
            r#"{"text": null}"#,
            422,
            "text: expected a string, given null",
        ),
        (
            JSON,
            r#"{"text": "\ud83d"}"#,
            400,
            "failed to parse JSON: text: unexpected end of hex escape at line 1 column 17; half of a surrogate pair is \
             no character; write both halves, as in \\ud83d\\ude00, or the character itself in UTF-8",
        ),
        (
            JSON,
            r#"{"text": NaN}"#,
            400,
            "failed to parse JSON: text: expected value at line 1 column 10; `NaN` is not JSON: numbers in JSON are \
             finite; in tensors of FP32 and FP64 null stands for NaN, and nothing for an infinity",
        ),
        (
            form,
            "text=love&x=1&text=hate",
            400,
            "text: given 2 times; send one, and each other in a request of its own",
        ),
        (JSON, "{}", 422, "text: missing"),
        (
            JSON,
            r#"{"text": 5}"#,
            422,
            "text: expected a string, given a number",
        ),
        (form, "x=1", 422, "text: missing"),
        (
            Some("multipart/form-data; boundary=x"),
            "--x",
            415,
            "the body must be application/json or application/x-www-form-urlencoded, it is multipart/form-data",
        ),
        (
            None,
            "text=love",
            415,
            "the body must be application/json or application/x-www-form-urlencoded, it is of no type",
        ),
    ] {
        let answer = send(request(
            Method::POST,
            rig.address,
            PREDICT,
            media_type,
            body,
        ))
        .await;
        assert_eq!(answer.ok(), Err((status, sentence.to_owned())), "{body}");
    }
}

#[tokio::test]
async fn an_answer_of_another_kind_is_refused_by_name() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let mut body = pair();
    body["outputs"] = json!([{"name": "x", "parameters": {"classification": 2}}]);
    let answer = rig.post(INFER, body).await;
    let sentence = "output \"x\": the parameter \"classification\" is not built yet; leave it out and rank the \
                    output's numbers in the client";
    assert_eq!(answer.ok(), Err((501, sentence.to_owned())));
    rig.measures(r#"carpool_proxy_refusals_total{reason="not_built"} 1"#)
        .await;
}

#[tokio::test]
async fn an_answer_for_later_is_refused_by_name_where_none_can_be_had() {
    let rig = Rig::start(config(&texts())).await;
    rig.echo();
    let body = json!({"text": "love"});
    let mut request = post(rig.address, PREDICT, &body);
    let prefer = "handling=strict, Respond-Async; wait=10".parse().unwrap();
    request.headers_mut().insert("prefer", prefer);
    let sentence = "asynchronous requests are taken at /v2/models/NAME/infer alone: send it there, or without the header \
        Prefer: respond-async";
    assert_eq!(send(request).await.ok(), Err((501, sentence.to_owned())));

    let mut request = post(rig.address, PREDICT, &body);
    let prefer = "return=minimal".parse().unwrap();
    request.headers_mut().insert("prefer", prefer);
    send(request).await.ok().unwrap();
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let mut config = config(&pairs());
    config["queue"]["maxLength"] = json!(1);
    let rig = Rig::start(config).await;
    let first = rig.post_later(INFER, pair());
    rig.length("r1", 1).await;
    let second = rig.post(INFER, pair()).await;
    assert!(second.retry_after() >= Some(1), "{second:?}");
    let sentence = "the queue is full; try again later";
    assert_eq!(second.ok(), Err((429, sentence.to_owned())));
    rig.echo();
    first.await.unwrap().ok().unwrap();
}

#[tokio::test]
async fn a_request_ends_at_its_own_deadline() {
    let rig = Rig::start(config(&pairs())).await;
    let sentence = "the deadline passed before an answer came";
    let answer = rig.post(INFER, pair_within(json!(50_000))).await;
    assert_eq!(answer.ok(), Err((504, sentence.to_owned())));
    rig.length("r1", 0).await;
}

#[tokio::test]
async fn a_client_can_not_ask_for_more_time_than_there_is() {
    let mut config = config(&pairs());
    config["queue"]["timeout"] = json!("200ms");
    let rig = Rig::start(config).await;
    let answer = rig.post(INFER, pair_within(json!(3_600_000_000_u64))).await;
    assert_eq!(answer.status, 504);
}

#[tokio::test]
async fn without_redis_a_request_is_refused_and_the_proxy_is_not_ready() {
    let mut rig = Rig::without_redis(config(&pairs()), free_port()).await;
    let sentence = "the queue can't be reached; try again later".to_owned();
    for answer in [
        rig.post(INFER, pair()).await,
        rig.get("/v2/health/ready").await,
        rig.get("/v2/models/m/ready").await,
        rig.admin("/readyz").await,
        rig.admin("/backlog").await,
    ] {
        assert!(answer.retry_after() >= Some(1), "{answer:?}");
        assert_eq!(answer.ok(), Err((503, sentence.clone())));
    }
    assert_eq!(rig.get("/v2/health/live").await.status, 200);
    assert_eq!(rig.admin("/livez").await.status, 200);

    rig.redis = Some(RedisServer::start_at(rig.port));
    rig.is_ready().await;
    rig.echo();
    until(async || rig.post(INFER, pair()).await.ok().ok().map(drop)).await;
}

#[tokio::test]
async fn what_the_worker_says_reaches_the_client() {
    for (kind, status) in [
        (FailureKind::Invalid, 422),
        (FailureKind::Model, 500),
        (FailureKind::TooManyDeliveries, 500),
    ] {
        let rig = Rig::start(config(&pairs())).await;
        rig.work("r1", move |_, _| {
            worker::failure(kind, "the tokens are too many")
        });
        let answer = rig.post(INFER, pair()).await;
        assert_eq!(
            answer.ok(),
            Err((status, "the tokens are too many".to_owned()))
        );
    }
}

#[tokio::test]
async fn an_answer_that_can_not_be_read_is_the_servers_fault() {
    let rig = Rig::start(config(&pairs())).await;
    rig.work("r1", |_, _| {
        carpool_queue::Outcome::Answer(Bytes::from_static(b"\xff"))
    });
    let answer = rig.post(INFER, pair()).await;
    assert_eq!(answer.status, 500);
    assert!(
        answer
            .error()
            .starts_with("failed to read the worker's answer"),
        "{}",
        answer.error()
    );
}

#[tokio::test]
async fn the_admin_port_serves_what_it_should_and_nothing_else() {
    let rig = Rig::start(config(&pairs())).await;
    assert_eq!(rig.admin("/livez").await.status, 200);
    assert_eq!(rig.admin("/readyz").await.status, 200);
    assert_eq!(rig.admin(INFER).await.status, 404);
    assert_eq!(rig.get("/metrics").await.status, 404);
    let metrics = rig.admin("/metrics").await;
    assert!(metrics.body.ends_with(b"# EOF\n"));
    let posted = send(request(Method::POST, rig.admin, "/metrics", None, "")).await;
    let sentence = "method POST is not allowed here; allowed are GET, HEAD, OPTIONS";
    assert_eq!(posted.ok(), Err((405, sentence.to_owned())));
}
