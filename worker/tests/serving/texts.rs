//! Embeddings and scores of texts, and the telling of those that were cut.

use carpool_protocol::{InferResponse, Parameter, Tensor};
use carpool_queue::FailureKind;

use crate::{
    DEFAULTS, alone,
    common::{
        self, EMBEDDINGS, RERANKER, TEXT, assert_close, floats, pairs,
        serving::{Open, Redis, served, submit},
        texts, words,
    },
};

fn output<'a>(answer: &'a InferResponse, name: &str) -> &'a Tensor {
    let mut outputs = answer.outputs.iter();
    outputs.find(|output| output.name == name).unwrap()
}

fn whole(tensor: &Tensor) -> Vec<i64> {
    let (elements, _) = tensor.data.as_chunks();
    elements
        .iter()
        .map(|bytes| i64::from_le_bytes(*bytes))
        .collect()
}

fn is_truncated(answer: &InferResponse) -> bool {
    let told = answer.outputs.iter().map(|output| {
        let told = output.parameters.get("truncated");
        told.is_some_and(|told| *told == Parameter::Bool(true))
    });
    let told: Vec<bool> = told.collect();
    assert!(told.iter().all(|one| *one == told[0]), "{answer:?}");
    told[0]
}

#[tokio::test]
async fn a_text_that_was_cut_is_told_of_whoever_shares_its_batch() {
    let (redis, served) = (Redis::start(), served(TEXT, DEFAULTS, common::write_text));
    let (short, long) = ("w1 w2", "w1 w2 w3 w4 w5 w6 w7");
    let told = &["label", "tokens", "truncated"];
    let requests = [
        texts(&[short], &[]),
        texts(&[long], &[]),
        texts(&[short, long, "w9 w8 w7 w6 w5 w4"], told),
        texts(&[short, short], told),
    ];
    let producer = redis.producer();
    let open = Open::queued(&producer, &requests).await;
    let worker = served.worker(&redis, "w");
    let answers = open.all().await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert!(worker.metric("carpool_worker_batch_size_rows_count") < 1.5);
    let cut: Vec<bool> = answers.iter().map(is_truncated).collect();
    assert_eq!(cut, [false, true, true, false]);
    assert_eq!(whole(output(&answers[2], "tokens")), [2, 6, 6]);
    assert_eq!(&*output(&answers[2], "truncated").data, [0, 1, 0]);
    assert_eq!(output(&answers[2], "truncated").shape, [3, 1]);
    assert_eq!(whole(output(&answers[3], "tokens")), [2, 2]);
    // Tensors have no texts to tell of.
    let mut tensors = words(&[1, 2]);
    tensors.outputs = texts(&[], &["tokens"]).outputs;
    let failure = submit(&producer, &tensors).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Invalid);
}

#[tokio::test]
async fn embeddings_are_those_of_each_text_alone() {
    let (redis, served) = (
        Redis::start(),
        served(EMBEDDINGS, DEFAULTS, common::write_embeddings),
    );
    let requests = [
        texts(&["w1"], &[]),
        texts(&["w7 w3 w20 w9 w1"], &["embedding", "tokens"]),
        texts(
            &["w1", "w7 w3 w20 w9 w1", "w4 w4"],
            &["embedding", "hidden"],
        ),
        // The model's own inputs and outputs are reachable, too, and what is made of them.
        words(&[7, 3]),
    ];
    let producer = redis.producer();
    let open = Open::queued(&producer, &requests[..3]).await;
    let worker = served.worker(&redis, "w");
    let answers = open.all().await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert!(worker.metric("carpool_worker_batch_size_rows_count") < 1.5);
    for (answer, expected) in answers.iter().zip(alone(&served, EMBEDDINGS, &requests)) {
        let [given, expected] = [answer, &expected].map(|one| floats(output(one, "embedding")));
        assert_close(&given, &expected);
    }
    let vectors = output(&answers[2], "embedding");
    assert_eq!(vectors.shape, [3, 4]);
    let vectors = floats(vectors);
    for (index, answer) in answers[..2].iter().enumerate() {
        let vector = floats(output(answer, "embedding"));
        assert_close(&vector, &vectors[index * 4..][..4]);
        let length: f32 = vector.iter().map(|value| value * value).sum();
        assert_close(&[length], &[1.0]);
    }
    assert_eq!(whole(output(&answers[1], "tokens")), [5]);
    // The mean of the token vectors, by hand.
    let hidden = floats(output(&answers[2], "hidden"));
    let mean: Vec<f32> = (0..4)
        .map(|column| {
            (0..5)
                .map(|token| hidden[20 + token * 4 + column])
                .sum::<f32>()
                / 5.0
        })
        .collect();
    let length = mean.iter().map(|value| value * value).sum::<f32>().sqrt();
    let mean: Vec<f32> = mean.iter().map(|value| value / length).collect();
    assert_close(&vectors[4..8], &mean);
    let own = submit(&producer, &requests[3]).await.unwrap();
    assert_eq!(
        (&*own.outputs[0].name, &own.outputs[0].shape[..]),
        ("hidden", &[1, 2, 4][..])
    );
}

#[tokio::test]
async fn documents_are_scored_each_with_the_query() {
    let (redis, served) = (
        Redis::start(),
        served(RERANKER, DEFAULTS, common::write_reranker),
    );
    let documents = ["w6", "w1 w1", "w3 w4 w5 w6 w7 w8"];
    let told = &["score", "tokens", "truncated"];
    let requests = [
        pairs("w2", &documents, told),
        pairs("w2", &["w6"], &[]),
        pairs("w30 w40", &["w1 w2 w3"], &[]),
    ];
    let producer = redis.producer();
    let open = Open::queued(&producer, &requests).await;
    let worker = served.worker(&redis, "w");
    let answers = open.all().await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert!(worker.metric("carpool_worker_batch_size_rows_count") < 1.5);
    let scores = output(&answers[0], "score");
    assert_eq!(scores.shape, [3, 1]);
    // Six tokens hold the query and five of the last document.
    let expected = [6.0 / 8.0, 2.0 / 4.0, 25.0 / 27.0];
    assert_close(&floats(scores), &expected);
    assert_eq!(whole(output(&answers[0], "tokens")), [2, 3, 6]);
    assert_eq!(&*output(&answers[0], "truncated").data, [0, 0, 1]);
    assert_close(&floats(&answers[1].outputs[0]), &expected[..1]);
    assert_close(&floats(&answers[2].outputs[0]), &[6.0 / 76.0]);
    let mut uneven = pairs("w1", &documents, &[]);
    uneven.inputs[0] = Tensor::from_strings("query", [2, 1], ["w1", "w2"]).unwrap();
    let failure = submit(&producer, &uneven).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Invalid);
    assert!(
        failure.message.contains("2 of the input query for 3"),
        "{}",
        failure.message
    );
}
