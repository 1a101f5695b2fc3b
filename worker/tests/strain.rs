//! The worker under strain: it must not take a slow pass for a hung one, lose its model with its Redis, or let one
//! large request keep all others waiting. Real processes, a real Redis and real libtorch.

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
    serving::{Open, Redis, Worker, held, served, submit},
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
    // The run takes longer than the lease, on whatever machine.
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
    // The same process has lived through the runs: another one would count anew.
    let runs = f64::from(u32::try_from(rows / 8).unwrap().ilog2() + 1);
    assert!((worker.metric("carpool_worker_batch_size_rows_count") - runs).abs() < 0.1);
    assert_eq!(worker.get("/livez").0, 200);
    drop(worker);

    // The request is larger than before, and such a pass is declared to hang.
    let rows = 2 * rows;
    let hangs = served(
        MLP,
        &format!("{settings}, runTimeout: 1s}}"),
        common::write_heavy,
    );
    let log = hangs.folder.path().join("termination");
    let mut command = hangs.serve(&redis, "hangs");
    command.arg("--termination-log").arg(&log);
    let mut worker = Worker::start(command);
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
    // The request is there for whoever takes it over.
    held(&producer, 1).await;
    let _taker = slow.worker(&redis, "taker");
    assert!(open.all().await.iter().all(Result::is_ok));
}

/// Much longer than a lease, and than Redis is waited for in one call.
const OUTAGE: Duration = Duration::from_secs(35);

#[tokio::test]
async fn an_outage_of_redis_ends_no_worker_and_fails_no_start() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, "batching: {}\nqueue: {}", |folder| {
            common::write_mlp(folder, 1000);
        }),
    );
    let producer = redis.producer();
    let busy = served.worker(&redis, "busy");
    let open = Open::submit(&producer, &[numbers(&[1.0; 4])]);
    held(&producer, 1).await;
    redis.signal("STOP");
    let begun = Instant::now();
    let new = Worker::launch(served.serve(&redis, "new"));
    new.logged("waiting for Redis");
    assert_eq!((new.get("/readyz").0, new.get("/livez").0), (503, 200));
    // The worker "stopped" is told to stop while it waits.
    let mut stopped = Worker::launch(served.serve(&redis, "stopped"));
    stopped.logged("waiting for Redis");
    stopped.signal("TERM");
    assert!(stopped.wait().success());
    // The length of the outage is what is tested.
    tokio::time::sleep(OUTAGE.saturating_sub(begun.elapsed())).await;
    redis.signal("CONT");
    assert!(open.all().await.iter().all(Result::is_ok));
    new.logged("serving");
    assert_eq!(new.get("/readyz").0, 200);
    // The same process serves: another one would count anew, or have no port.
    assert!(busy.metric("carpool_worker_batch_size_rows_count") >= 1.0);
    submit(&producer, &numbers(&[2.0; 4])).await.unwrap();
}

#[tokio::test]
async fn one_request_of_many_rows_keeps_no_other_waiting() {
    // The rounds make runs that are over before a fetch beside them would be, and longer ones.
    for rounds in [0, 200] {
        let (redis, served) = (
            Redis::start(),
            served(MLP, "batching: {}\nqueue: {}", |folder| {
                common::write_mlp(folder, rounds);
            }),
        );
        let producer = redis.producer();
        let rows = if rounds == 0 { 400_000 } else { 20_000 };
        let large = Open::queued(&producer, &[heavy(rows)]).await;
        let worker = served.worker(&redis, "w");
        held(&producer, 1).await;
        let batches = || worker.metric("carpool_worker_batch_size_rows_count");
        while batches() < 2.0 {
            tokio::task::yield_now().await;
        }
        let before = batches();
        for index in 0..5 {
            let small: Vec<_> = (0..20).map(|_| numbers(&[index as f32; 4])).collect();
            let answers = Open::submit(&producer, &small).all().await;
            assert!(answers.iter().all(Result::is_ok));
        }
        let between = batches() - before;
        println!("{rounds} rounds: {between} batches for 5 x 20 small requests");
        assert!(!large.tasks[0].is_finished(), "{between} batches");
        let all = rows as f64 / 32.0;
        assert!(between < all / 4.0, "{between} of {all} batches");
    }
}
