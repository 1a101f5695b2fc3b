//! What a worker under strain must not do: take a slow pass for a hung one, lose its model with its Redis, or let one large
//! request keep all others waiting. Real processes, a real Redis and real libtorch.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "helpers belong to the tests"
)]

use std::time::{Duration, Instant};

use carpool_protocol::InferRequest;
use common::{
    MLP, numbers,
    serving::{Open, Redis, held, served, submit},
};

mod common;

/// A request for the heavy model of so many rows.
fn heavy(rows: usize) -> InferRequest {
    numbers(&vec![0.5; rows * 4])
}

#[tokio::test]
async fn a_pass_longer_than_the_lease_is_answered_and_one_that_hangs_ends_the_worker() {
    let settings = "batching: {maxBatchSize: 65536}\nqueue: {lease: 1s";
    let redis = Redis::start();
    let producer = redis.producer();
    let slow = served(MLP, &format!("{settings}}}"), common::write_heavy);
    let worker = slow.worker(&redis, "slow");
    // Longer than the lease, on whatever machine.
    let mut rows = 8;
    loop {
        let begun = Instant::now();
        let answer = submit(&producer, &heavy(rows)).await.unwrap();
        assert_eq!(answer.outputs[0].shape, [i64::try_from(rows).unwrap(), 3]);
        if begun.elapsed() > Duration::from_secs(2) {
            break;
        }
        rows *= 2;
    }
    // It has lived through them: another process would count anew.
    let runs = f64::from(u32::try_from(rows / 8).unwrap().ilog2() + 1);
    assert!((worker.metric("carpool_worker_batch_size_rows_count") - runs).abs() < 0.1);
    assert_eq!(worker.get("/livez").0, 200);
    drop(worker);

    // The same model and a larger request, where such a pass is declared to hang.
    let rows = 2 * rows;
    let hangs = served(
        MLP,
        &format!("{settings}, runTimeout: 1s}}"),
        common::write_heavy,
    );
    let log = hangs.folder.path().join("termination");
    let mut command = hangs.serve(&redis, "hangs");
    command.arg("--termination-log").arg(&log);
    let mut worker = common::serving::Worker::start(command);
    let open = Open::submit(&producer, &[heavy(rows)]);
    let ended = tokio::task::spawn_blocking(move || worker.wait());
    assert_eq!(ended.await.unwrap().code(), Some(1));
    let message: serde_json::Value = serde_json::from_slice(&std::fs::read(&log).unwrap()).unwrap();
    assert_eq!(message["reason"], "DeviceUnavailable");
    let words = message["message"].as_str().unwrap();
    println!("{words}");
    for part in [&*format!("of {rows} rows"), "queue.runTimeout, 1s"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // Its request is there for whoever takes it over.
    held(&producer, 1).await;
    let _taker = slow.worker(&redis, "taker");
    assert!(open.all().await.iter().all(Result::is_ok));
}
