//! Jobs, from the request to the answer that its client comes back for.

use bytes::Bytes;
use carpool_queue::FailureKind;
use http::{HeaderMap, Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    client::{Answer, JSON, request, send},
    rig::{INFER, Rig, config, pair, pairs},
    worker,
};

/// Makes a request with headers.
fn with(
    rig: &Rig,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Request<Full<Bytes>> {
    let mut request = request(method, rig.address, path, JSON, body.to_string());
    let headers = headers.iter();
    let headers: HeaderMap = headers
        .map(|(name, value)| {
            (
                name.parse::<http::HeaderName>().unwrap(),
                value.parse().unwrap(),
            )
        })
        .collect();
    request.headers_mut().extend(headers);
    request
}

/// Submits a request, and returns the place of its job.
async fn submit(rig: &Rig, headers: &[(&str, &str)], body: &Value) -> String {
    let headers = [&[("prefer", "respond-async")], headers].concat();
    let answer = send(with(rig, Method::POST, INFER, &headers, body)).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.headers["preference-applied"], "respond-async");
    let place = answer.headers["location"].to_str().unwrap().to_owned();
    assert_eq!(
        place,
        format!("/v2/jobs/{}", answer.json()["id"].as_str().unwrap())
    );
    place
}

async fn wait(rig: &Rig, path: &str) -> Answer {
    let headers = [("prefer", "wait=15")];
    let answer = send(with(rig, Method::GET, path, &headers, &Value::Null)).await;
    assert_eq!(answer.headers["preference-applied"], "wait=15");
    answer
}

fn state(answer: Answer) -> String {
    answer.ok().unwrap()["state"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_client_comes_back_for_its_answer_to_any_proxy() {
    let rig = Rig::start(config(&pairs())).await;
    let mut body = pair();
    body["id"] = "mine".into();
    let place = submit(&rig, &[], &body).await;
    let queued = rig.get(&place).await.ok().unwrap();
    assert_eq!(
        (&queued["state"], &queued["ahead"]),
        (&json!("queued"), &json!(0))
    );
    let early = rig.get(&format!("{place}/result")).await;
    assert_eq!(
        (early.status.as_u16(), &early.json()["state"]),
        (202, &json!("queued"))
    );

    let other = rig.beside().await;
    let waiting = wait(&other, &place);
    rig.echo();
    let done = waiting.await.ok().unwrap();
    let response = json!({
        "model_name": "m", "model_version": "r1", "id": "mine",
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}]
    });
    let id = place.strip_prefix("/v2/jobs/").unwrap();
    assert_eq!(
        done,
        json!({"id": id, "state": "done", "response": response})
    );
    assert_eq!(
        rig.get(&format!("{place}/result")).await.ok().unwrap(),
        response
    );
}

#[tokio::test]
async fn a_result_is_in_the_form_that_the_request_asked_for() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let mut body = pair();
    body["outputs"] = json!([{"name": "x", "parameters": {"binary_data": true}}]);
    let place = submit(&rig, &[], &body).await;
    let answer = wait(&rig, &format!("{place}/result")).await;
    let length: usize = answer.headers["inference-header-content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let numbers: Vec<u8> = [1.5_f32, -2.0]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    assert_eq!(answer.body[length..], numbers);
}

#[tokio::test]
async fn failures_cancellations_and_unknown_jobs_are_told_apart() {
    let rig = Rig::start(config(&pairs())).await;
    let cancelled = submit(&rig, &[], &pair()).await;
    let delete = with(&rig, Method::DELETE, &cancelled, &[], &Value::Null);
    assert_eq!(state(send(delete).await), "cancelled");
    assert_eq!(state(rig.get(&cancelled).await), "cancelled");
    assert_eq!(rig.get(&format!("{cancelled}/result")).await.status, 410);

    let failed = submit(&rig, &[], &pair()).await;
    rig.work("r1", |_, _| {
        worker::failure(FailureKind::Invalid, "tensor `x`: no")
    });
    let told = wait(&rig, &failed).await.ok().unwrap();
    assert_eq!(
        (&told["state"], &told["error"], &told["status"]),
        (&json!("failed"), &json!("tensor `x`: no"), &json!(422))
    );
    let result = rig.get(&format!("{failed}/result")).await;
    assert_eq!(
        (result.status.as_u16(), result.error()),
        (422, "tensor `x`: no".to_owned())
    );
    let delete = with(&rig, Method::DELETE, &failed, &[], &Value::Null);
    assert_eq!(state(send(delete).await), "failed");

    for id in ["00000000-0000-4000-8000-000000000000", "nonsense"] {
        for path in [format!("/v2/jobs/{id}"), format!("/v2/jobs/{id}/result")] {
            let answer = rig.get(&path).await;
            assert_eq!(answer.status, 404);
            assert_eq!(
                answer.error(),
                format!("unknown job {id}: there never was one, or its result has expired")
            );
        }
    }
    let wrong = submit_raw(&rig, "/v1/models/m:predict").await;
    assert_eq!(wrong.status, 501);
    let wrong = rig.post("/v2/jobs/7", "").await;
    assert_eq!(
        (wrong.status.as_u16(), &wrong.headers["allow"]),
        (405, &"GET, HEAD, DELETE, OPTIONS".parse().unwrap())
    );
}

async fn submit_raw(rig: &Rig, path: &str) -> Answer {
    let headers = [("prefer", "respond-async")];
    send(with(
        rig,
        Method::POST,
        path,
        &headers,
        &json!({"instances": [[1, 2]]}),
    ))
    .await
}

#[tokio::test]
async fn a_request_sent_again_under_its_name_is_one_job() {
    let rig = Rig::start(config(&pairs())).await;
    let named = [("idempotency-key", "order {7}")];
    let first = submit(&rig, &named, &pair()).await;
    assert_eq!(submit(&rig, &named, &pair()).await, first);
    assert_ne!(
        submit(&rig, &[("idempotency-key", "order 8")], &pair()).await,
        first
    );
    let other =
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]});
    let headers = [("prefer", "respond-async"), named[0]];
    let refused = send(with(&rig, Method::POST, INFER, &headers, &other)).await;
    assert_eq!(refused.status, 422);
    assert!(refused.error().contains("Idempotency-Key"), "{refused:?}");
    rig.length("r1", 2).await;
}

#[tokio::test]
async fn bad_input_is_refused_before_it_is_a_job() {
    let rig = Rig::start(config(&pairs())).await;
    let wrong =
        json!({"inputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]});
    let headers = [("prefer", "respond-async")];
    let refused = send(with(&rig, Method::POST, INFER, &headers, &wrong)).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    rig.length("r1", 0).await;
}
