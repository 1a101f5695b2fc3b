//! One request, followed by its identifiers.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use carpool_queue::FailureKind;
use carpool_testkit::{RedisServer, free_port};
use http::Request;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::{
    client::{self, get, send, until},
    rig::{INFER, Rig, config, pair, pairs},
    worker,
};

/// A request for [`pairs`] that has an identifier of the client's own.
fn identified(address: SocketAddr, body: &Value) -> Request<http_body_util::Full<bytes::Bytes>> {
    let mut request = client::post(address, INFER, body);
    let headers = request.headers_mut();
    headers.insert("x-request-id", "abc/7".parse().unwrap());
    request
}

#[tokio::test]
async fn an_answer_has_the_id_that_its_request_has_in_the_queue() {
    let rig = Rig::start(config(&pairs())).await;
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let jobs = Arc::clone(&seen);
    rig.work("r1", move |job, request| {
        jobs.lock().unwrap().push(job.id.to_string());
        if request.id == "bad" {
            worker::failure(FailureKind::Model, "it is bad")
        } else {
            worker::answer(request.inputs)
        }
    });
    let mut bad = pair();
    bad["id"] = json!("bad");
    for (body, status) in [(pair(), 200), (bad, 500)] {
        let answer = send(identified(rig.address, &body)).await;
        assert_eq!(answer.status, status);
        let id = answer.headers["carpool-request-id"].to_str().unwrap();
        assert_eq!(*seen.lock().unwrap(), [id]);
        assert_eq!(answer.headers["x-request-id"], "abc/7");
        seen.lock().unwrap().clear();
    }
    // A request that is refused is never in the queue.
    let refused = send(identified(rig.address, &json!({}))).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.headers["x-request-id"], "abc/7");
    assert!(!refused.headers.contains_key("carpool-request-id"));
    let own = rig.post(INFER, pair()).await;
    assert!(!own.headers.contains_key("x-request-id"));
}

/// A process that is killed when the test ends, however it does.
struct Killed(Child);

impl Killed {
    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.end();
    }
}

#[tokio::test]
async fn the_log_tells_each_step_of_a_request_with_both_its_ids() {
    let redis = RedisServer::start();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config(&pairs()).to_string()).unwrap();
    let [address, admin] =
        [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let url = redis.url();
    let mut process = Command::new(env!("CARGO_BIN_EXE_carpool-sidecar"))
        .env_clear()
        .args(["--name", "p1", "--log-format", "json", "--redis-url", &url])
        .args(["--listen", &address.to_string()])
        .args(["--admin-listen", &admin.to_string()])
        .arg("--config")
        .arg(file.path())
        .env("RUST_LOG", "info,carpool_queue=debug,carpool_sidecar=debug")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut logs = BufReader::new(process.stderr.take().unwrap()).lines();
    let mut process = Killed(process);
    let serving = logs.find(|line| line.as_ref().unwrap().contains("\"serving\""));
    assert!(serving.is_some());
    until(async || {
        let ready = send(get(admin, "/readyz")).await;
        ready.status.is_success().then_some(())
    })
    .await;
    let endpoint = carpool_queue::Endpoint::from_url(&url).unwrap();
    tokio::spawn(worker::work(endpoint, "r1", worker::echo));

    let answer = send(identified(address, &pair())).await;
    assert_eq!(answer.status, 200);
    let id = answer.headers["carpool-request-id"].to_str().unwrap();
    // The log is read once the process has ended, so that a missing line is found missing.
    process.end();
    let lines: Vec<Value> = logs
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    for step in ["request enqueued", "answer received", "request served"] {
        let line = lines.iter().find(|line| line["fields"]["message"] == step);
        let span = &line.unwrap_or_else(|| panic!("no {step} in {lines:?}"))["span"];
        assert_eq!(
            (&span["id"], &span["x_request_id"], &span["path"]),
            (&json!(id), &json!("abc/7"), &json!(INFER)),
            "{step}"
        );
        assert_eq!(span["method"], "POST", "{step}");
    }
}
