//! `carpool local` with the real sidecar, worker, Redis and libtorch. Build the binaries with `hack/build` first, and
//! the model with `examples/digits/build`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is all that can follow"
)]

#[path = "local/harness.rs"]
mod harness;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    time::{Duration, Instant},
};

use carpool_testkit::eventually;
use harness::{Local, Manifest};
use serde_json::Value;
use tokio::task::JoinSet;

#[tokio::test]
async fn a_model_goes_to_zero_wakes_and_leaves_nothing() {
    let manifest = Manifest::new("  scaling: {cooldown: 10s}\n");
    let mut local = Local::start(&manifest);
    local.ready().await;
    let [soft, hard] = local.open_files();
    assert_eq!(soft, hard);
    assert_ne!(soft, "256");
    let (status, answer) = local.infer().await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"][0]["name"], "logits");
    assert_eq!(answer["outputs"][0]["shape"], serde_json::json!([1, 10]));

    let no_workers = async || local.status()["workers"] == serde_json::json!([]);
    eventually("the last worker has gone", no_workers).await;
    let started = Instant::now();
    let (status, answer) = local.infer().await;
    assert_eq!(status, 200, "{answer}");
    let waited = started.elapsed();
    println!("from zero workers to the answer: {waited:?}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");

    let processes = local.processes();
    assert!(
        processes.len() >= 4,
        "a guard, Redis, a sidecar and a worker: {processes:?}"
    );
    let folder = local.folder();
    local.terminate();
    assert!(local.ended().await.success());
    assert_eq!(harness::alive(&processes), [0; 0]);
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_killed_worker_costs_no_request() {
    let manifest =
        Manifest::new("  scaling: {minReplicas: 1, maxReplicas: 1}\n  queue: {lease: 1s}\n");
    let mut local = Local::start(&manifest);
    local.ready().await;
    let pid = |status: &Value| status["workers"][0]["pid"].as_u64();
    let first = pid(&local.status()).unwrap();

    let mut clients = JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for _ in 0..8 {
        let (client, stopped) = (local.client(), stopped.clone());
        clients.spawn(async move {
            let mut statuses = Vec::new();
            while !*stopped.borrow() {
                statuses.push(client.infer().await.0);
            }
            statuses
        });
    }
    harness::kill(first);
    let replaced = async || {
        let status = local.status();
        pid(&status).is_some_and(|pid| pid != first) && status["workers"][0]["ready"] == true
    };
    eventually("another worker is ready", replaced).await;
    let (status, answer) = local.infer().await;
    assert_eq!(status, 200, "{answer}");
    stop.send(true).unwrap();
    let statuses = clients.join_all().await.concat();
    assert!(statuses.len() > 8, "{statuses:?}");
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");

    local.terminate();
    assert!(local.ended().await.success());
}

#[tokio::test]
async fn batching_follows_the_manifest_without_a_restart() {
    let manifest = Manifest::new("");
    let mut local = Local::start(&manifest);
    local.ready().await;
    manifest.write("  batching: {maxBatchSize: 7}\n");
    local.says("the manifest has changed").await;
    let config = std::fs::read_to_string(local.folder().join("digits/config.yaml")).unwrap();
    assert!(config.contains("maxBatchSize: 7"), "{config}");
    local.terminate();
    assert!(local.ended().await.success());
}

#[tokio::test]
async fn a_model_that_cannot_load_ends_with_a_sentence() {
    let pin = format!("    sha256: '{}'\n", "0".repeat(64));
    let manifest = Manifest::new(&pin);
    let mut local = Local::start(&manifest);
    assert_eq!(local.ended().await.code(), Some(1));
    let line = local.says("can't serve: ").await;
    assert!(
        line.contains("model.yaml: digits-worker-0 can't serve: "),
        "{line}"
    );
    assert!(
        line.ends_with("; get the artifact again, or correct spec.model.sha256"),
        "{line}"
    );
}

#[tokio::test]
async fn a_model_that_cannot_load_ends_alone_where_another_serves() {
    let pin = format!("    sha256: '{}'\n", "0".repeat(64));
    let (works, broken) = (Manifest::new(""), Manifest::named("broken", &pin));
    let mut local = Local::start_all(&[&broken, &works]);
    local.ready().await;
    let line = local.says("broken-worker-0 can't serve: ").await;
    assert!(line.ends_with("; the other model is served on"), "{line}");
    let (status, answer) = local.infer().await;
    assert_eq!(status, 200, "{answer}");

    let status = std::fs::read(local.folder().join("broken/status.json")).unwrap();
    let status: Value = serde_json::from_slice(&status).unwrap();
    let error = status["error"].as_str().unwrap();
    assert!(error.contains("spec.model.sha256"), "{status}");
    assert_eq!(status["workers"], serde_json::json!([]));
    assert_eq!(local.running("carpool-sidecar").len(), 1);
    local.terminate();
    assert!(local.ended().await.success());
}

#[tokio::test]
async fn a_worker_that_is_killed_before_it_is_ready_is_given_up_with_a_hint_at_memory() {
    let manifest = Manifest::new("");
    let mut local = Local::start(&manifest);
    let killed = RefCell::new(BTreeSet::new());
    eventually("three workers are killed", async || {
        for worker in local.running("carpool-worker") {
            if killed.borrow_mut().insert(worker) {
                harness::kill(worker);
            }
        }
        killed.borrow().len() >= 3
    })
    .await;
    assert_eq!(local.ended().await.code(), Some(1));
    let line = local.says("can't serve: ").await;
    let expected = "digits-worker-0 can't serve: it ended 3 times in a row, the last time so: killed by SIGKILL: \
        probably out of memory";
    assert!(line.contains(expected), "{line}");
}

#[tokio::test]
async fn clients_of_a_killed_sidecar_wait_for_the_next_at_the_same_address() {
    let manifest = Manifest::new("");
    let mut local = Local::start(&manifest);
    local.ready().await;
    let before = local.status();
    let sidecar = before["proxy"]["pid"].as_u64().unwrap();
    harness::kill(sidecar);
    eventually("the sidecar is gone", async || {
        harness::alive(&[sidecar]).is_empty()
    })
    .await;
    let (status, answer) = local.infer().await;
    assert_eq!(status, 200, "{answer}");
    eventually("its successor is ready", async || {
        let now = local.status();
        now["proxy"]["name"] == "digits-proxy-2" && now["proxy"]["ready"] == true
    })
    .await;
    let now = local.status();
    assert_eq!(now["url"], before["url"]);
    assert_ne!(now["proxy"]["admin"], now["workers"][0]["admin"]);
    local.terminate();
    assert!(local.ended().await.success());
}

#[tokio::test]
async fn there_are_never_more_workers_than_cpus() {
    let cpus = std::thread::available_parallelism().unwrap();
    let manifest = Manifest::new("  scaling: {minReplicas: 900, maxReplicas: 900}\n");
    let mut local = Local::start(&manifest);
    local.ready().await;
    let line = local.says("spec.scaling.maxReplicas").await;
    let expected =
        format!("digits: at most {cpus} of the 900 workers of spec.scaling.maxReplicas: ");
    assert!(line.starts_with(&expected), "{line}");
    eventually("all workers are asked for", async || {
        local.status()["wanted"] == cpus.get()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(local.status()["wanted"], cpus.get());
    local.terminate();
    assert!(local.ended().await.success());
}

#[tokio::test]
async fn children_do_not_outlive_a_killed_carpool() {
    let manifest = Manifest::new("");
    let mut local = Local::start(&manifest);
    local.ready().await;
    let processes = local.processes();
    assert!(processes.len() >= 4, "{processes:?}");
    local.kill();
    assert!(!local.ended().await.success());
    // The shell that leads the group ends last, after the time that the others may take.
    eventually("only the guard is left", async || {
        harness::alive(&processes).len() <= 1
    })
    .await;
    let left = harness::alive(&processes);
    left.into_iter().for_each(harness::kill);
    std::fs::remove_dir_all(local.folder()).unwrap();
}
