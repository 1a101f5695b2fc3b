//! Requests, each of which gets one answer.

use std::time::Duration;

use carpool_queue::{Failure, FailureKind, Outcome, Submit, SubmitError};
use tokio::time::Instant;

use crate::{
    LEASE, REVISION, answer, consumer, echo, eventually, fetch, fetch_all, producer,
    relay::Relay,
    request,
    server::{Server, key},
    submit,
};

#[tokio::test]
async fn a_worker_is_told_of_clients_that_left_with_its_next_answer() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let tasks = ["stays", "leaves", "leaves too"].map(|body| submit(&producer, request(body)));
    let jobs = fetch_all(&consumer, 3).await;
    let (stays, leaves): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| &*job.body == b"stays");
    let [staying, leaving @ ..] = tasks;
    for task in leaving {
        task.abort();
    }
    eventually("they are cancelled", async || server.length().await == 1).await;
    assert!(consumer.abandoned().is_empty(), "nobody has told it yet");
    consumer.answer(echo(stays)).await.unwrap();
    let abandoned = consumer.abandoned();
    assert!(leaves.iter().all(|job| abandoned.contains(&job.id)));
    assert!(consumer.abandoned().is_empty(), "it was told once");
    assert_eq!(staying.await.unwrap().unwrap(), answer("stays"));
    let told: u64 = server.ask(&["HLEN", &key("left")]).await;
    assert_eq!(told, 0);
}

#[tokio::test]
async fn a_request_arrives_whole_and_its_answer_comes_back() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let body = vec![7; 100_000];
    let waiting = submit(
        &producer,
        Submit {
            rows: 5,
            trace: Some("00-trace".to_owned()),
            client: Some("10.0.0.7".into()),
            ..request(body.clone())
        },
    );
    let mut jobs = fetch(&consumer, 8).await;
    let job = jobs.pop().unwrap();
    assert_eq!((job.body.to_vec(), job.rows), (body, 5));
    assert_eq!(job.trace.as_deref(), Some("00-trace"));
    assert_eq!(job.client.as_deref(), Some("10.0.0.7"));
    assert!(job.age < Duration::from_secs(5), "{:?}", job.age);
    assert!(job.deadline > Duration::from_secs(24), "{:?}", job.deadline);
    assert!(job.quarantine.is_none());
    assert_eq!((producer.in_flight(), server.bytes().await), (1, 100_000));

    consumer
        .answer(vec![(job.id, answer("logits"))])
        .await
        .unwrap();
    let answered = waiting.await.unwrap().unwrap();
    assert_eq!(answered, answer("logits"));
    assert_eq!((producer.in_flight(), server.bytes().await), (0, 0));
    assert_eq!((server.length().await, server.pending().await), (0, vec![]));
    let ttl: i64 = server.ask(&["PTTL", &key("replies:proxy")]).await;
    assert!(ttl > 0, "the replies stream would outlive its proxy");
}

#[tokio::test]
async fn failures_come_back_with_their_kind() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    for kind in [
        FailureKind::Invalid,
        FailureKind::Model,
        FailureKind::Expired,
    ] {
        let waiting = submit(&producer, request("x"));
        let job = fetch(&consumer, 1).await.pop().unwrap();
        let failure = Outcome::Failure(Failure {
            kind,
            message: "no".to_owned(),
        });
        consumer
            .answer(vec![(job.id, failure.clone())])
            .await
            .unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), failure);
    }
}

#[tokio::test]
async fn a_batch_is_one_reply_entry_per_proxy() {
    let server = Server::start();
    let left = producer(&server.endpoint(), "left");
    let right = producer(&server.endpoint(), "right");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting: Vec<_> = (0..6)
        .map(|i| submit(if i % 2 == 0 { &left } else { &right }, request(vec![i])))
        .collect();
    let jobs = fetch_all(&consumer, 6).await;
    consumer.answer(crate::echo(jobs)).await.unwrap();
    for (i, waiting) in (0u8..).zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![i]));
    }
    for proxy in ["left", "right"] {
        // One entry made the stream.
        assert_eq!(added(&server, &key(&format!("replies:{proxy}"))).await, 2);
    }
}

#[tokio::test]
async fn an_answer_brings_the_next_batch() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let first = submit(&producer, request("first"));
    let jobs = fetch(&consumer, 1).await;
    let second = submit(&producer, request("second"));
    eventually("both are queued", async || server.length().await == 2).await;
    let next = consumer.exchange(crate::echo(jobs), 4).await.unwrap();
    assert_eq!(first.await.unwrap().unwrap(), answer("first"));
    assert_eq!(&*next[0].body, b"second");
    consumer.exchange(crate::echo(next), 4).await.unwrap();
    assert_eq!(second.await.unwrap().unwrap(), answer("second"));
}

#[tokio::test]
async fn two_workers_answer_one_request_and_one_answer_arrives() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let slow = consumer(&server.endpoint(), "slow").await;
    let waiting = submit(&producer, request("x"));
    let late = fetch(&slow, 1).await.pop().unwrap();
    let fast = consumer(&server.endpoint(), "fast").await;
    let taken = fetch(&fast, 1).await.pop().unwrap();
    assert!(
        taken.quarantine.is_some(),
        "its first worker may have died of it"
    );
    assert_eq!(taken.id, late.id);

    fast.answer(vec![(taken.id, answer("fast"))]).await.unwrap();
    slow.answer(vec![(late.id, answer("slow"))]).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("fast"));
    // One entry made the stream.
    assert_eq!(added(&server, &key("replies:proxy")).await, 2);
    assert_eq!(server.bytes().await, 0);
}

#[tokio::test]
async fn a_worker_that_lost_a_request_may_still_succeed_but_not_fail() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let first = consumer(&server.endpoint(), "first").await;
    let second = consumer(&server.endpoint(), "second").await;
    for success in [false, true] {
        let waiting = submit(&producer, request("x"));
        let lost = fetch(&first, 1).await.pop().unwrap();
        let taken = fetch(&second, 1).await.pop().unwrap();
        let outcome = if success {
            answer("first")
        } else {
            Outcome::Failure(Failure {
                kind: FailureKind::Model,
                message: "too late".to_owned(),
            })
        };
        first.answer(vec![(lost.id, outcome)]).await.unwrap();
        second
            .answer(vec![(taken.id, answer("second"))])
            .await
            .unwrap();
        let expected = if success { "first" } else { "second" };
        assert_eq!(waiting.await.unwrap().unwrap(), answer(expected));
    }
}

#[tokio::test]
async fn dropping_the_future_removes_the_request() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let queued = submit(&producer, request("queued"));
    eventually("it is queued", async || server.length().await == 1).await;
    queued.abort();
    eventually("it is gone", async || server.length().await == 0).await;

    let running = submit(&producer, request("running"));
    let job = fetch(&consumer, 1).await.pop().unwrap();
    running.abort();
    eventually("it is gone", async || server.length().await == 0).await;
    consumer
        .answer(vec![(job.id, answer("nobody waits"))])
        .await
        .unwrap();
    assert_eq!(server.pending().await, vec![]);
    assert_eq!((producer.in_flight(), server.bytes().await), (0, 0));
    // The entry that made the stream is the only one that was ever added.
    let added = added(&server, &key("replies:proxy")).await;
    assert_eq!(added, 1, "an answer was sent that nobody waits for");
}

#[tokio::test]
async fn a_request_given_up_before_it_is_confirmed_is_removed_too() {
    let server = Server::start();
    let relay = Relay::start(server.port).await;
    let producer = producer(&relay.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    // The first request also loads the script.
    let first = submit(&producer, request("first"));
    let jobs = fetch(&consumer, 1).await;
    consumer.answer(crate::echo(jobs)).await.unwrap();
    first.await.unwrap().unwrap();

    relay.hold();
    let waiting = submit(&producer, request("x"));
    eventually("Redis has it", async || server.length().await == 1).await;
    waiting.abort();
    eventually("it is given up", async || producer.in_flight() == 0).await;
    assert_eq!(server.length().await, 1, "its entry is not known yet");
    relay.let_go();
    eventually("it is gone", async || server.length().await == 0).await;
    assert_eq!(server.bytes().await, 0);
}

#[tokio::test]
async fn the_deadline_is_kept_without_workers() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let deadline = Instant::now() + Duration::from_millis(300);
    let error = producer
        .submit(Submit {
            deadline,
            ..request("x")
        })
        .await
        .unwrap_err();
    assert_eq!(error, SubmitError::DeadlineExceeded);
    assert!(deadline.elapsed() < Duration::from_millis(200));
    eventually("it is gone", async || server.length().await == 0).await;
    assert_eq!(server.bytes().await, 0);
}

#[tokio::test]
async fn the_backlog_counts_per_revision_and_worker() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    assert!(producer.backlog().await.unwrap().revisions.is_empty());
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting: Vec<_> = (0..5)
        .map(|_| submit(&producer, request("12345")))
        .chain([submit(
            &producer,
            Submit {
                revision: "other".into(),
                ..request("123")
            },
        )])
        .collect();
    let jobs = fetch_all(&consumer, 2).await;
    eventually("all are queued", async || server.bytes().await == 28).await;
    let backlog = producer.backlog().await.unwrap();
    let here = &backlog.revisions[REVISION];
    assert_eq!((here.length, here.pending, here.bytes), (5, 2, 25));
    assert_eq!(here.consumers.len(), 1);
    assert_eq!(here.consumers[0].name, "worker");
    assert_eq!(here.consumers[0].pending, 2);
    let there = &backlog.revisions["other"];
    assert_eq!((there.length, there.pending, there.bytes), (1, 0, 3));
    assert_eq!(producer.in_flight(), 6);

    consumer
        .release(jobs.into_iter().map(|job| job.id).collect())
        .await
        .unwrap();
    let backlog = producer.backlog().await.unwrap();
    let here = &backlog.revisions[REVISION];
    assert_eq!((here.length, here.pending), (5, 0), "no worker holds any");
    let names: Vec<_> = here
        .consumers
        .iter()
        .map(|consumer| &*consumer.name)
        .collect();
    assert_eq!(names, ["worker"]);
    for waiting in waiting {
        waiting.abort();
    }
}

#[tokio::test]
async fn shutting_down_waits_for_answers_and_leaves_nothing() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting = submit(&producer, request("x"));
    let jobs = fetch(&consumer, 1).await;
    let closing = tokio::spawn({
        let producer = producer.clone();
        async move { producer.shutdown(LEASE * 20).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(
        producer.submit(request("y")).await.unwrap_err(),
        SubmitError::ShuttingDown
    );
    consumer.answer(crate::echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
    closing.await.unwrap();
    let replies: bool = server.ask(&["EXISTS", &key("replies:proxy")]).await;
    assert!(!replies);
}

#[tokio::test]
async fn shutting_down_cancels_what_nobody_answers() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let waiting = submit(&producer, request("x"));
    eventually("it is queued", async || server.length().await == 1).await;
    producer.shutdown(Duration::from_millis(50)).await;
    assert_eq!(
        waiting.await.unwrap().unwrap_err(),
        SubmitError::ShuttingDown
    );
    assert_eq!((server.length().await, server.bytes().await), (0, 0));
}

/// Returns the number of entries ever added to a stream.
async fn added(server: &Server, stream: &str) -> u64 {
    let info: Vec<redis::Value> = server.ask(&["XINFO", "STREAM", stream]).await;
    let place = info
        .iter()
        .position(|value| *value == redis::Value::BulkString(b"entries-added".to_vec()))
        .unwrap();
    redis::from_redis_value_ref(&info[place + 1]).unwrap()
}
