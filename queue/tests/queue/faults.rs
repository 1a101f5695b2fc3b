//! Faults of Redis: it forgets, restarts and falls silent.

use std::time::Duration;

use carpool_queue::{Consumer, Producer, Submit, SubmitError};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    LEASE, answer, consumer, echo, eventually, fetch, fetch_all, producer,
    relay::Relay,
    request,
    server::{Leftover, Server, jobs, key},
    submit, worker,
};

type Waiting = Vec<JoinHandle<Result<carpool_queue::Outcome, SubmitError>>>;

/// Submits many numbered requests, some of which a worker takes.
async fn under_way(producer: &Producer, consumer: &Consumer) -> (Waiting, Vec<carpool_queue::Job>) {
    let waiting = (0..40u8)
        .map(|i| submit(producer, request(vec![i])))
        .collect();
    (waiting, fetch_all(consumer, 10).await)
}

/// Checks that all are answered, each with its own number.
async fn all_answered(server: &Server, producer: &Producer, waiting: Waiting) {
    for (i, waiting) in (0..).zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![i]));
    }
    assert_eq!(producer.in_flight(), 0);
    eventually("nothing is left", async || {
        server.length().await == 0 && server.bytes().await == 0 && server.pending().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn everything_open_is_answered_after_flushall() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let (waiting, running) = under_way(&producer, &consumer).await;
    eventually("all are queued", async || server.length().await == 40).await;
    server.ask::<String>(&["FLUSHALL"]).await;
    consumer.answer(echo(running)).await.unwrap();
    let worker = worker(consumer);
    all_answered(&server, &producer, waiting).await;
    worker.abort();
}

#[tokio::test]
async fn everything_open_is_answered_after_a_restart_that_lost_all() {
    restart(false).await;
}

#[tokio::test]
async fn everything_open_is_answered_after_a_restart_that_kept_all() {
    restart(true).await;
}

async fn restart(append_only: bool) {
    let mut server = Server::stopped(append_only);
    server.run();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let (waiting, running) = under_way(&producer, &consumer).await;
    eventually("all are queued", async || server.length().await == 40).await;
    server.kill();
    eventually("new requests are refused", async || {
        let request = Submit {
            deadline: Instant::now() + LEASE / 10,
            ..request("x")
        };
        matches!(
            producer.submit(request).await,
            Err(SubmitError::Unreachable { .. })
        )
    })
    .await;
    assert!(!producer.ping().await);
    assert!(producer.backlog().await.is_err());
    assert_eq!(producer.in_flight(), 40, "what was accepted is kept");
    server.run();
    // The worker had finished meanwhile.
    consumer.answer(echo(running)).await.unwrap();
    let worker = worker(consumer);
    all_answered(&server, &producer, waiting).await;
    worker.abort();
}

#[tokio::test]
async fn large_requests_are_answered_after_flushall() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting: Vec<_> = (0..16u8)
        .map(|i| submit(&producer, request(vec![i; 700_000])))
        .collect();
    eventually("all are queued", async || server.length().await == 16).await;
    server.ask::<String>(&["FLUSHALL"]).await;
    eventually("all are queued again", async || {
        server.length().await == 16 && server.bytes().await == 16 * 700_000
    })
    .await;
    let mut left = 16;
    while left > 0 {
        let jobs = fetch(&consumer, 16).await;
        left -= jobs.len();
        let answers = jobs
            .into_iter()
            .map(|job| (job.id, answer(job.body.slice(..1))));
        consumer.answer(answers.collect()).await.unwrap();
    }
    all_answered(&server, &producer, waiting).await;
}

#[tokio::test]
async fn a_redis_that_is_back_is_used_at_once() {
    let mut server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    for _ in 0..2 {
        eventually("Redis is reached", async || producer.ping().await).await;
        server.kill();
        // The pauses between attempts to connect are long by then.
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.run();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let waiting = submit(&producer, request("y"));
        eventually("it is queued", async || {
            assert!(!waiting.is_finished(), "it was refused");
            server.length().await == 1
        })
        .await;
        waiting.abort();
    }
}

#[tokio::test]
async fn proxy_and_worker_wait_for_a_redis_that_starts_late() {
    let mut server = Server::stopped(false);
    let producer = producer(&server.endpoint(), "proxy");
    let error = producer.submit(request("x")).await.unwrap_err();
    assert!(
        matches!(error, SubmitError::Unreachable { .. }),
        "{error:?}"
    );
    let endpoint = server.endpoint();
    let starting = tokio::spawn(async move { consumer(&endpoint, "worker").await });
    server.run();
    let worker = worker(starting.await.unwrap());
    eventually("Redis is reached", async || producer.ping().await).await;
    eventually("requests are answered", async || {
        producer.submit(request("x")).await.is_ok()
    })
    .await;
    worker.abort();
}

#[tokio::test]
async fn forgotten_scripts_are_loaded_again() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    for _ in 0..3 {
        let waiting = submit(&producer, request("x"));
        let jobs = fetch(&consumer, 1).await;
        server.ask::<String>(&["SCRIPT", "FLUSH"]).await;
        consumer.exchange(echo(jobs), 4).await.unwrap();
        waiting.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn replies_are_found_although_the_clock_was_set_back() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let replies = key("replies:proxy");
    server
        .ask::<String>(&["XADD", &replies, "99999999999999-0", "from", "the future"])
        .await;
    eventually("it was read", async || {
        server.ask::<usize>(&["XLEN", &replies]).await == 0
    })
    .await;
    server.ask::<usize>(&["DEL", &replies]).await;
    eventually("the proxy is there again", async || {
        server.ask(&["EXISTS", &replies]).await
    })
    .await;

    // The cursor is ahead of every reply to come, until the check sets it back.
    let waiting = submit(&producer, request("x"));
    let jobs = fetch(&consumer, 1).await;
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
    assert_eq!(server.length().await, 0, "it ran once");
    let begun = Instant::now();
    let waiting = submit(&producer, request("y"));
    let jobs = fetch(&consumer, 1).await;
    consumer.answer(echo(jobs)).await.unwrap();
    waiting.await.unwrap().unwrap();
    // One blocking read still has the old cursor.
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn requests_enqueue_although_the_clock_was_set_back() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let future = "99999999999999-5";
    server
        .ask::<String>(&["XADD", &jobs(), future, "wake", ""])
        .await;
    server.ask::<usize>(&["XDEL", &jobs(), future]).await;
    let waiting: Waiting = (0..40u8)
        .map(|i| submit(&producer, request(vec![i])))
        .collect();
    let worker = worker(consumer);
    all_answered(&server, &producer, waiting).await;
    worker.abort();
}

#[tokio::test]
async fn an_enqueue_without_confirmation_is_not_repeated() {
    let server = Server::start();
    let relay = Relay::start(server.port).await;
    let producer = producer(&relay.endpoint(), "proxy");
    // The first request also loads the script.
    let first = submit(&producer, request("first"));
    eventually("Redis has it", async || server.length().await == 1).await;
    first.abort();
    eventually("it is gone", async || server.length().await == 0).await;
    relay.hold();
    let waiting = submit(&producer, request("x"));
    eventually("Redis has it", async || server.length().await == 1).await;
    relay.cut();
    eventually("Redis is reached", async || producer.ping().await).await;
    let consumer = consumer(&server.endpoint(), "worker").await;
    let jobs = fetch(&consumer, 8).await;
    assert_eq!(jobs.len(), 1);
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
    assert_eq!(server.length().await, 0, "there was a second copy");
}

#[tokio::test]
async fn an_enqueue_that_never_arrived_is_repeated() {
    let server = Server::start();
    let relay = Relay::start(server.port).await;
    let producer = producer(&relay.endpoint(), "proxy");
    // The heartbeat must not be what is paused: a connection that breaks with its first write has its requests refused.
    eventually("the proxy has said that it is there", async || {
        server.ask(&["EXISTS", &key("replies:proxy")]).await
    })
    .await;
    server
        .ask::<String>(&["CLIENT", "PAUSE", "60000", "WRITE"])
        .await;
    let waiting = submit(&producer, request("x"));
    // The enqueue waits beside the read of replies.
    eventually("it waits in Redis", async || server.blocked().await == 2).await;
    relay.cut();
    server.ask::<String>(&["CLIENT", "UNPAUSE"]).await;
    let consumer = consumer(&server.endpoint(), "worker").await;
    let jobs = fetch(&consumer, 8).await;
    assert_eq!(jobs.len(), 1);
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
}

#[tokio::test]
async fn what_a_cut_off_read_was_given_is_taken_back() {
    let server = Server::start();
    let relay = Relay::start(server.port).await;
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&relay.endpoint(), "worker").await;
    let reading = tokio::spawn(async move {
        let first = consumer.fetch(4).await;
        (consumer, first)
    });
    eventually("the worker waits", async || server.blocked().await == 2).await;
    relay.hold();
    let waiting = submit(&producer, request("x"));
    eventually("Redis gave it to the worker", async || {
        server.pending().await.len() == 1
    })
    .await;
    relay.cut();
    let (consumer, first) = reading.await.unwrap();
    assert!(first.is_err(), "the read was cut off");
    let jobs = fetch(&consumer, 4).await;
    assert_eq!(jobs.len(), 1);
    assert!(jobs[0].quarantine.is_none(), "it never ran");
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
}

#[tokio::test]
async fn all_that_a_cut_off_read_was_given_is_taken_back_although_some_has_expired() {
    let server = Server::start();
    let relay = Relay::start(server.port).await;
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&relay.endpoint(), "worker").await;
    for _ in 0..3 {
        let expired = Leftover {
            ttl_ms: 1,
            ..Leftover::default()
        };
        expired.add(&server).await;
    }
    let waiting: Waiting = (0..5u8)
        .map(|i| submit(&producer, request(vec![i])))
        .collect();
    eventually("all are queued", async || server.length().await == 8).await;
    relay.hold_from("XREADGROUP");
    let reading = tokio::spawn(async move {
        let first = consumer.fetch(8).await;
        (consumer, first)
    });
    eventually("Redis gave them to the worker", async || {
        server.pending().await.len() == 8
    })
    .await;
    relay.cut();
    let (consumer, first) = reading.await.unwrap();
    assert!(first.is_err(), "the read was cut off");
    let mut left = 5;
    while left > 0 {
        let jobs = fetch(&consumer, 5).await;
        assert!(
            jobs.iter().all(|job| job.quarantine.is_none()),
            "none of them ever ran"
        );
        left -= jobs.len();
        consumer.answer(echo(jobs)).await.unwrap();
    }
    all_answered(&server, &producer, waiting).await;
}

#[tokio::test]
async fn a_request_that_redis_lost_is_answered_by_its_deadline_or_not_at_all() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let waiting = submit(
        &producer,
        Submit {
            deadline: Instant::now() + LEASE * 3,
            ..request("x")
        },
    );
    eventually("it is queued", async || server.length().await == 1).await;
    server.ask::<String>(&["FLUSHALL"]).await;
    eventually("it is queued again", async || server.length().await == 1).await;
    assert_eq!(
        waiting.await.unwrap().unwrap_err(),
        SubmitError::DeadlineExceeded
    );
    eventually("it is gone", async || server.length().await == 0).await;
}
