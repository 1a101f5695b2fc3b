//! The real binary between a real Redis and a real producer.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "helpers belong to the tests"
)]

use std::{
    process::{Command, Stdio},
    sync::Arc,
};

use carpool_protocol::{InferRequest, InferResponse};
use carpool_queue::FailureKind;
use carpool_worker::{assemble::Assembler, backend::TorchScript, executor::Executor, item::Slice};
use common::{
    MLP, TEXT, WORDS, assert_close, declared, floats, numbers,
    serving::{Open, Redis, Served, Worker, held, queued, served, submit},
    texts, words,
};
use sha2::Digest;

mod common;

const DEFAULTS: &str = "batching: {}\nqueue: {}";

/// The model's answers to requests that run alone.
fn alone(served: &Served, model: &str, requests: &[InferRequest]) -> Vec<InferResponse> {
    let model = declared(model);
    let folder = served.artifact();
    let assembler = Assembler::load("m", "r1", &model, &folder).unwrap();
    let backend =
        TorchScript::load(&folder.join("model.pt"), &model, carpool_crds::Device::Cpu).unwrap();
    let mut executor = Executor::new(Box::new(backend), model, 1);
    requests
        .iter()
        .map(|request| {
            let item = Arc::new(assembler.item(request.encode()).unwrap());
            let outputs = executor
                .run(&[Slice::whole(Arc::clone(&item))])
                .unwrap()
                .remove(0);
            InferResponse::decode(assembler.answer(&item, outputs.unwrap()).unwrap()).unwrap()
        })
        .collect()
}

fn assert_same(given: &InferResponse, expected: &InferResponse) {
    assert_eq!(
        (&given.model_name, &given.model_version),
        (&expected.model_name, &expected.model_version)
    );
    assert_eq!(given.id, expected.id);
    assert_eq!(given.outputs.len(), expected.outputs.len());
    for (given, expected) in given.outputs.iter().zip(&expected.outputs) {
        assert_eq!(
            (&given.name, &given.shape),
            (&expected.name, &expected.shape)
        );
        assert_close(&floats(given), &floats(expected));
    }
}

#[tokio::test]
async fn what_waits_runs_in_batches_and_is_answered_as_if_alone() {
    let (redis, served) = (Redis::start(), served(WORDS, DEFAULTS, common::write_words));
    let requests: Vec<_> = (0..40)
        .map(|index| {
            words(
                &(0..=index % 9)
                    .map(|step| (index * 3 + step) % 50)
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    let producer = redis.producer();
    let open = Open::queued(&producer, &requests).await;
    let worker = served.worker(&redis, "w");
    let answers = open.all().await;
    for (answer, expected) in answers.into_iter().zip(alone(&served, WORDS, &requests)) {
        assert_same(&answer.unwrap(), &expected);
    }
    // The two batches are of 32 and 8 rows; warming up doesn't count.
    assert!((worker.metric("carpool_worker_batch_size_rows_sum") - 40.0).abs() < 0.1);
    assert!(worker.metric("carpool_worker_batch_size_rows_count") <= 3.0);
    assert!(
        (worker.metric("carpool_worker_requests_total{result=\"answered\"}") - 40.0).abs() < 0.1
    );
    assert_eq!(worker.get("/readyz").0, 200);
    assert_eq!(worker.name(), "w");
    assert_eq!(worker.get("/livez").0, 200);
    let (status, model) = worker.get("/model");
    assert_eq!(status, 200);
    let model: serde_json::Value = serde_json::from_str(&model).unwrap();
    assert_eq!(model["revision"], "r1");
    assert_eq!(model["sha256"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn a_bad_request_hurts_only_itself() {
    let (redis, served) = (Redis::start(), served(WORDS, DEFAULTS, common::write_words));
    let mut requests: Vec<_> = (0..10).map(|id| words(&[id, 1])).collect();
    requests[3] = words(&[999]);
    // The proxy would have refused this request.
    requests[7] = numbers(&[0.0; 4]);
    let producer = redis.producer();
    let open = Open::queued(&producer, &requests).await;
    let _worker = served.worker(&redis, "w");
    for (index, answer) in open.all().await.into_iter().enumerate() {
        match (index, answer) {
            (3, answer) => {
                let failure = answer.unwrap_err();
                assert_eq!(failure.kind, FailureKind::Model);
                assert!(
                    failure.message.contains("index out of range"),
                    "{}",
                    failure.message
                );
            }
            (7, answer) => assert_eq!(answer.unwrap_err().kind, FailureKind::Invalid),
            (_, answer) => assert_eq!(answer.unwrap().outputs[0].shape, [1, 2]),
        }
    }
}

#[tokio::test]
async fn a_request_larger_than_a_batch_is_answered_whole() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, "batching: {maxBatchSize: 8}\nqueue: {}", |folder| {
            common::write_mlp(folder, 0);
        }),
    );
    let values: Vec<f32> = (0..100 * 4).map(|index| index as f32 / 200.0).collect();
    let mut requests = vec![numbers(&values)];
    requests.extend(values.chunks(12).map(numbers));
    let producer = redis.producer();
    let open = Open::queued(&producer, &requests).await;
    let worker = served.worker(&redis, "w");
    let answers = open.all().await;
    for (answer, expected) in answers.into_iter().zip(alone(&served, MLP, &requests)) {
        assert_same(&answer.unwrap(), &expected);
    }
    let (runs, full) = (
        worker.metric("carpool_worker_batch_size_rows_count"),
        worker.metric("carpool_worker_batch_size_rows_bucket{le=\"8.0\"}"),
    );
    assert!(
        (runs - full).abs() < 0.1 && runs >= 25.0,
        "{full} of {runs} had at most 8 rows"
    );
}

#[tokio::test]
async fn a_text_of_which_the_model_says_nothing_fails_alone() {
    let (redis, served) = (Redis::start(), served(TEXT, DEFAULTS, common::write_text));
    let producer = redis.producer();
    // A mean over no tokens is not a number.
    let open = Open::queued(&producer, &[texts(&[""], &[]), texts(&["w1"], &[])]).await;
    let _worker = served.worker(&redis, "w");
    let [nothing, word] = open.all().await.try_into().unwrap();
    let failure = nothing.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Model);
    assert_eq!(failure.message, "the model gave no finite score");
    word.unwrap();
}

#[tokio::test]
async fn short_texts_do_not_wait_for_long_ones() {
    let batches = "batching: {maxBatchSize: 1024}\nqueue: {}";
    let (redis, served) = (Redis::start(), served(TEXT, batches, common::write_text));
    let producer = redis.producer();
    // A long request fills less than a batch, so it is the time to read it that counts.
    let row = "w1 ".repeat(1300);
    let long = texts(&vec![&*row; 900], &[]);
    let long: Vec<_> = vec![long; 4];
    let before = Open::queued(&producer, &long).await;
    let short: Vec<_> = (1..8)
        .map(|index| texts(&[&format!("w{index}")], &[]))
        .collect();
    let after = Open::submit(&producer, &short);
    queued(&producer, 11).await;
    let _worker = served.worker(&redis, "w");
    let answers = after.all().await;
    // The long texts came first.
    assert!(before.tasks.iter().all(|task| !task.is_finished()));
    let expected = alone(&served, TEXT, &short);
    for (answer, expected) in answers.iter().zip(&expected) {
        assert_eq!(
            answer.as_ref().unwrap().outputs[0].strings().unwrap(),
            expected.outputs[0].strings().unwrap()
        );
    }
    for answer in before.all().await {
        assert_eq!(answer.unwrap().outputs[0].shape, [900, 1]);
    }
}

#[tokio::test]
async fn text_is_labelled() {
    let (redis, served) = (Redis::start(), served(TEXT, DEFAULTS, common::write_text));
    let producer = redis.producer();
    let _worker = served.worker(&redis, "w");
    let long = "w7 ".repeat(2000);
    let texts = [
        texts(&["w1 w2 w3"], &[]),
        texts(&["w9"], &[]),
        texts(&[&long, "w4"], &["logits", "label"]),
    ];
    let [first, second, third] = &texts;
    let (first, second, third) = tokio::join!(
        submit(&producer, first),
        submit(&producer, second),
        submit(&producer, third)
    );
    for answer in [first, second] {
        let [label, score] = answer.unwrap().outputs.try_into().unwrap();
        assert_eq!(
            (label.name.as_str(), score.name.as_str()),
            ("label", "score")
        );
        assert_eq!((&label.shape, &score.shape), (&vec![1, 1], &vec![1, 1]));
        assert!(["NEGATIVE", "POSITIVE"].contains(&label.strings().unwrap()[0]));
        assert!((0.5..=1.0).contains(&floats(&score)[0]));
    }
    let [logits, labels] = third.unwrap().outputs.try_into().unwrap();
    assert_eq!((logits.shape, labels.shape), (vec![2, 2], vec![2, 1]));
}

/// Settings with which requests run one at a time, slowly enough to be met at work. A request that waits until the
/// lease is over gets no answer: the lease is longer than the deadline.
const SLOW: &str = "batching: {maxBatchSize: 1}\nqueue: {lease: 90s, timeout: 60s}";

#[tokio::test]
async fn told_to_stop_it_answers_what_runs_and_hands_back_the_rest() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, SLOW, |folder| common::write_mlp(folder, 100)),
    );
    let requests: Vec<_> = (0..40).map(|index| numbers(&[index as f32; 4])).collect();
    let producer = redis.producer();
    let mut open = Open::queued(&producer, &requests).await;
    let mut first = served.worker(&redis, "first");
    open.first().await;
    first.signal("-TERM");
    assert!(first.wait().success());
    assert!(
        open.tasks.iter().any(|task| !task.is_finished()),
        "all was answered before it was told to stop"
    );
    let _second = served.worker(&redis, "second");
    let answers = open.all().await;
    for (answer, expected) in answers.into_iter().zip(alone(&served, MLP, &requests)) {
        assert_same(&answer.unwrap(), &expected);
    }
    let backlog = producer.backlog().await.unwrap();
    let names: Vec<_> = backlog.revisions["r1"]
        .consumers
        .iter()
        .map(|consumer| consumer.name.as_str())
        .collect();
    assert_eq!(names, ["second"]);
}

#[tokio::test]
async fn it_may_open_as_many_files_as_the_system_lets_it_and_takes_every_method_that_reads() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, DEFAULTS, |folder| common::write_mlp(folder, 1)),
    );
    let serve = served.serve(&redis, "w");
    let mut low = Command::new("sh");
    low.args(["-c", "ulimit -S -n 256; exec \"$0\" \"$@\""])
        .arg(serve.get_program())
        .args(serve.get_args());
    let worker = Worker::start(low);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", worker.id())).unwrap();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap();
    let [soft, hard, ..] = files.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{files}")
    };
    assert_eq!(soft, hard);
    assert_ne!(soft, "256");

    for path in ["/livez", "/readyz", "/model", "/nowhere"] {
        let (status, body) = worker.get(path);
        let (of_head, head, none) = worker.ask("HEAD", path);
        assert_eq!((of_head, &*none), (status, ""), "{path}");
        let length = format!("content-length: {}", body.len());
        assert!(head.lines().any(|line| line == length), "{head}");
    }
    for (method, status) in [("OPTIONS", 204), ("POST", 405), ("DELETE", 405)] {
        let (given, head, _) = worker.ask(method, "/metrics");
        assert_eq!(given, status, "{method}");
        let allow = "allow: GET, HEAD, OPTIONS";
        assert!(head.lines().any(|line| line == allow), "{head}");
    }
}

#[tokio::test]
async fn one_of_two_is_killed_and_everything_is_answered() {
    let lease = "batching: {maxBatchSize: 4}\nqueue: {lease: 1s, timeout: 60s}";
    let (redis, served) = (
        Redis::start(),
        served(MLP, lease, |folder| common::write_mlp(folder, 40)),
    );
    let requests: Vec<_> = (0..200).map(|index| numbers(&[index as f32; 4])).collect();
    let producer = redis.producer();
    let (mut killed, _survivor) = (
        served.worker(&redis, "killed"),
        served.worker(&redis, "survivor"),
    );
    let mut open = Open::submit(&producer, &requests);
    open.first().await;
    killed.signal("-KILL");
    assert!(!killed.wait().success());
    for (answer, expected) in open
        .all()
        .await
        .into_iter()
        .zip(alone(&served, MLP, &requests))
    {
        assert_same(&answer.unwrap(), &expected);
    }
}

/// Settings with which a request that waits until the delay is over gets no answer: the delay is longer than the
/// deadline.
const PATIENT: &str =
    "batching: {maxBatchSize: 32, maxDelay: 90s}\nqueue: {lease: 1s, timeout: 60s}";

#[tokio::test]
async fn a_smaller_batch_size_holds_for_the_batch_that_waits() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, PATIENT, |folder| common::write_mlp(folder, 0)),
    );
    let requests: Vec<_> = (0..8).map(|index| numbers(&[index as f32; 4])).collect();
    let producer = redis.producer();
    let _worker = served.worker(&redis, "w");
    let open = Open::submit(&producer, &requests);
    held(&producer, 8).await;
    let config = std::fs::read_to_string(&served.config).unwrap();
    std::fs::write(
        &served.config,
        config.replace("maxBatchSize: 32", "maxBatchSize: 4"),
    )
    .unwrap();
    assert!(open.all().await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_suspect_is_not_kept_waiting_for_company() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, PATIENT, |folder| common::write_mlp(folder, 0)),
    );
    let producer = redis.producer();
    let killed = served.worker(&redis, "killed");
    let open = Open::submit(&producer, &[numbers(&[1.0; 4])]);
    held(&producer, 1).await;
    killed.signal("-KILL");
    let _survivor = served.worker(&redis, "survivor");
    assert!(open.all().await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_pinned_artifact_must_be_the_one() {
    let zeros = "0".repeat(64);
    let served = served(&format!("{MLP}sha256: '{zeros}'\n"), DEFAULTS, |folder| {
        common::write_mlp(folder, 0);
    });
    let redis = Redis::start();
    let log = served.folder.path().join("termination");
    let to = served.folder.path().join("to");
    let mut fetch = served.command("fetch");
    fetch
        .arg("--source")
        .arg(served.artifact())
        .arg("--to")
        .arg(&to);
    for mut command in [fetch, served.serve(&redis, "w")] {
        let output = command.arg("--termination-log").arg(&log).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let message: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&log).unwrap()).unwrap();
        assert_eq!(message["reason"], "ChecksumMismatch");
        assert!(
            message["message"].as_str().unwrap().contains(&zeros),
            "{message}"
        );
        assert!(String::from_utf8(output.stderr).unwrap().contains(&zeros));
        std::fs::remove_file(&log).unwrap();
    }
}

#[tokio::test]
async fn a_worker_that_finds_another_artifact_than_the_first_one_is_refused() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, DEFAULTS, |folder| common::write_mlp(folder, 0)),
    );
    let producer = redis.producer();
    let first = served.worker(&redis, "first");
    let sha256 = || {
        let bytes = std::fs::read(served.artifact().join("model.pt")).unwrap();
        hex::encode(sha2::Sha256::digest(bytes))
    };
    let (before, original) = (
        sha256(),
        std::fs::read(served.artifact().join("model.pt")).unwrap(),
    );
    // The new model takes the same requests and gives the same answers, but it is another file.
    common::write_mlp(&served.artifact(), 1);
    let after = sha256();
    let log = served.folder.path().join("termination");
    let refused = served
        .serve(&redis, "second")
        .arg("--termination-log")
        .arg(&log)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let message: serde_json::Value = serde_json::from_slice(&std::fs::read(&log).unwrap()).unwrap();
    assert_eq!(message["reason"], "ArtifactChanged");
    let words = message["message"].as_str().unwrap();
    for part in ["r1", &before, &after, "spec.model.sha256", "another path"] {
        assert!(words.contains(part), "{part}: {words}");
    }

    // The first one serves on, and whoever finds its artifact joins it.
    assert_eq!(first.get("/readyz").0, 200);
    submit(&producer, &numbers(&[1.0; 4])).await.unwrap();
    std::fs::write(served.artifact().join("model.pt"), original).unwrap();
    let _third = served.worker(&redis, "third");
}

#[test]
fn every_bad_setting_is_reported_at_once() {
    let served = served(MLP, DEFAULTS, |_| {});
    let mut command = served.command("serve");
    command.args([
        "--name",
        "w",
        "--model",
        "none",
        "--redis-url",
        "http://nowhere",
    ]);
    std::fs::write(&served.config, "name: m").unwrap();
    let output = command.stdout(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("config.yaml") && stderr.contains("Redis URL"),
        "{stderr}"
    );
    let output = served.command("sing").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn libtorch_takes_its_memory_from_the_worker_s_allocator() {
    let worker = env!("CARGO_BIN_EXE_carpool-worker");
    // The loader tells what it binds to what.
    let output = Command::new(worker)
        .arg("--version")
        .envs([("LD_DEBUG", "bindings"), ("LD_BIND_NOW", "1")])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    for function in ["`posix_memalign'", "`malloc'", "`free'"] {
        let of_libtorch = told
            .lines()
            .filter(|line| line.contains(function))
            .filter(|line| {
                line.contains("libc10.so [0] to") || line.contains("libtorch_cpu.so [0] to")
            });
        let bound: Vec<&str> = of_libtorch.collect();
        assert!(!bound.is_empty(), "{function}: {told}");
        assert!(bound.iter().all(|line| line.contains(worker)), "{bound:?}");
    }
}
