//! The real binary between a real Redis and a real producer.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "helpers belong to the tests"
)]

use std::sync::Arc;

use carpool_protocol::{InferRequest, InferResponse};
use carpool_queue::FailureKind;
use carpool_worker::{assemble::Assembler, backend::TorchScript, executor::Executor, item::Slice};
use common::{
    MLP, TEXT, WORDS, assert_close, declared, floats, numbers,
    serving::{Open, Redis, Served, held, queued, served, submit},
    texts, words,
};

#[path = "../common/mod.rs"]
mod common;
mod process;
mod texts;

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
    killed.signal("KILL");
    let _survivor = served.worker(&redis, "survivor");
    assert!(open.all().await.iter().all(Result::is_ok));
}
