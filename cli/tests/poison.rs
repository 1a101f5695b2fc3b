//! `carpool local` with a model that ends its process on one input, and with one whose artifact changes. Build the
//! binaries with `hack/build` first.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is all that can follow"
)]

#[path = "local/harness.rs"]
mod harness;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use carpool_testkit::{eventually, python};
use futures::future::join_all;
use harness::{Client, Local, Manifest};
use serde_json::{Value, json};

/// Builds `y = factor x`, which crashes above a million, as an artifact in a folder.
fn build(folder: &Path, factor: u32) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/build.py");
    let built = Command::new(python())
        .arg(script)
        .arg(folder.join("artifact"))
        .args(["--factor", &factor.to_string(), "--offset", "0"])
        .args(["--rounds", "1", "--crash-above", "1e6"])
        .output()
        .expect("the Python of hack/env.sh");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    folder.join("artifact")
}

fn manifest(artifact: &Path, rest: &str) -> Manifest {
    Manifest::holding(&format!(
        "apiVersion: carpool.dev/v1alpha1
kind: BatchedModel
metadata: {{name: affine}}
spec:
  model:
    uri: file://{}
    inputs: [{{name: x, datatype: FP32, shape: [1]}}]
    outputs: [{{name: \"y\", datatype: FP32, shape: [1]}}]
{rest}",
        artifact.display()
    ))
}

async fn infer(client: &Client, x: f32) -> (u16, Value) {
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [x]});
    client.post("affine", &json!({"inputs": [input]})).await
}

#[tokio::test]
async fn what_crashes_its_worker_fails_alone_and_its_neighbours_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = build(folder.path(), 2);
    // With the delay all requests share one batch.
    let rest = "  batching: {maxBatchSize: 64, maxDelay: 500ms}\n  scaling: {minReplicas: 1, maxReplicas: 1}\n";
    let manifest = manifest(&artifact, rest);
    let mut local = Local::start(&manifest);
    local.ready_as("affine").await;
    let client = local.client();
    let (poison_at, sent) = (16, Instant::now());
    let answers = join_all((0..33_u8).map(async |number| {
        let x = if number == poison_at {
            2e6
        } else {
            f32::from(number)
        };
        let answer = infer(&client, x).await;
        (answer, sent.elapsed())
    }))
    .await;
    let mut slowest = Duration::ZERO;
    for (number, ((status, answer), took)) in (0_u8..).zip(answers) {
        println!("request {number}: {status} {answer} after {took:?}");
        if number == poison_at {
            assert_eq!(status, 500);
            let error = answer["error"].as_str().unwrap();
            assert!(
                error.contains("workers died each of the 3 times"),
                "{error}"
            );
        } else {
            assert_eq!(status, 200, "{answer}");
            assert_eq!(
                answer["outputs"][0]["data"],
                json!([2.0 * f32::from(number)])
            );
            slowest = slowest.max(took);
        }
    }
    println!("the slowest neighbour was answered after {slowest:?}");
    let (status, answer) = infer(&client, 1.0).await;
    assert_eq!(status, 200, "it serves on: {answer}");
    local.terminate();
    assert!(local.ended().await.success());
}

#[tokio::test]
async fn a_worker_that_finds_another_model_than_the_first_one_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = build(folder.path(), 2);
    let rest = "  batching: {maxBatchSize: 1}
  scaling: {minReplicas: 1, maxReplicas: 2, targetQueueLength: 1, cooldown: 60s}\n";
    let manifest = manifest(&artifact, rest);
    let mut local = Local::start(&manifest);
    local.ready_as("affine").await;
    build(folder.path(), 3);
    // Eight clients make a queue that needs a second worker.
    let client = local.client();
    let stop = tokio::sync::watch::channel(false).0;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (client, stopped) = (client.clone(), stop.subscribe());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while !*stopped.borrow() {
                    answers.push(infer(&client, 1.0).await);
                }
                answers
            })
        })
        .collect();
    let line = local.says("the artifact has changed").await;
    println!("{line}");
    stop.send(true).unwrap();
    for answers in join_all(clients).await {
        for (status, answer) in answers.unwrap() {
            assert_eq!(
                (status, &answer["outputs"][0]["data"]),
                (200, &json!([2.0]))
            );
        }
    }
    eventually("it serves on", async || infer(&client, 1.0).await.0 == 200).await;
    local.terminate();
    assert!(local.ended().await.success());
}
