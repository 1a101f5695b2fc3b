//! The queue's bounds.

use std::time::Duration;

use carpool_queue::{Limits, Producer, SubmitError};

use crate::{
    UID, answer, consumer, echo, eventually, fetch, limits, producer, request,
    server::{Server, jobs, key},
    submit,
};

fn bounded(server: &Server, name: &str, max_length: u64, max_bytes: u64) -> Producer {
    Producer::start(
        server.connection(),
        UID,
        name,
        Limits {
            max_length,
            max_bytes,
            ..limits()
        },
    )
    .unwrap()
}

fn is_full(error: SubmitError) -> bool {
    matches!(error, SubmitError::Full { retry_after } if retry_after >= Duration::from_secs(1))
}

#[tokio::test]
async fn a_queue_full_of_requests_refuses_and_recovers() {
    let server = Server::start();
    let first = bounded(&server, "first", 2, 1 << 20);
    let second = bounded(&server, "second", 2, 1 << 20);
    let consumer = consumer(&server.connection(), "worker").await;
    let waiting = [submit(&first, request("a")), submit(&first, request("b"))];
    eventually("it is full", async || server.length().await == 2).await;

    let error = second.submit(request("c")).await.unwrap_err();
    assert!(is_full(error), "Redis holds as many as it may: {error:?}");
    let error = first.submit(request("c")).await.unwrap_err();
    assert!(
        is_full(error),
        "this proxy alone has as many open: {error:?}"
    );
    assert_eq!(second.open(), 0);

    let jobs = fetch(&consumer, 1).await;
    consumer.answer(echo(jobs), 0).await.unwrap();
    let accepted = submit(&second, request("c"));
    for _ in 0..2 {
        let jobs = fetch(&consumer, 1).await;
        consumer.answer(echo(jobs), 0).await.unwrap();
    }
    assert_eq!(accepted.await.unwrap().unwrap().outcome, answer("c"));
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    assert_eq!(server.bytes().await, 0);
}

#[tokio::test]
async fn a_queue_full_of_bytes_refuses_and_recovers() {
    let server = Server::start();
    let producer = bounded(&server, "proxy", 100, 1000);
    let consumer = consumer(&server.connection(), "worker").await;
    let waiting = submit(&producer, request(vec![0; 900]));
    eventually("it is full", async || server.bytes().await == 900).await;
    let error = producer.submit(request(vec![0; 101])).await.unwrap_err();
    assert!(is_full(error), "{error:?}");
    let small = submit(&producer, request(vec![1; 100]));
    eventually("the smaller one has room", async || {
        server.bytes().await == 1000
    })
    .await;

    while producer.open() > 0 {
        let jobs = fetch(&consumer, 4).await;
        consumer.answer(echo(jobs), 0).await.unwrap();
        tokio::task::yield_now().await;
        if server.length().await == 0 {
            break;
        }
    }
    waiting.await.unwrap().unwrap();
    small.await.unwrap().unwrap();
    assert_eq!(server.bytes().await, 0);
    let big = submit(&producer, request(vec![0; 1000]));
    eventually("there is room again", async || server.bytes().await == 1000).await;
    big.abort();
}

#[tokio::test]
async fn one_that_does_not_fit_leaves_its_neighbours_alone() {
    let server = Server::start();
    let producer = bounded(&server, "proxy", 100, 1000);
    eventually("Redis is reached", async || producer.ping().await).await;
    // They arrive together, so one script call carries all three.
    let sizes = [600, 600, 300];
    let waiting = sizes.map(|size| submit(&producer, request(vec![0; size])));
    eventually("two of them are queued", async || {
        server.bytes().await == 900 && producer.open() == 2
    })
    .await;
    let [first, second, third] = waiting;
    assert!(is_full(second.await.unwrap().unwrap_err()));
    first.abort();
    third.abort();
}

#[tokio::test]
async fn raised_bounds_apply_at_once() {
    let server = Server::start();
    let producer = bounded(&server, "proxy", 100, 10);
    let error = producer.submit(request(vec![0; 11])).await.unwrap_err();
    assert!(is_full(error), "{error:?}");
    producer.set_limits(limits());
    let waiting = submit(&producer, request(vec![0; 11]));
    eventually("it is queued", async || server.length().await == 1).await;
    waiting.abort();
}

/// Adds what a proxy that died has left behind.
async fn leave_behind(server: &Server, ttl_ms: u64) {
    server
        .ask::<String>(&[
            "XADD",
            &jobs(),
            "*",
            "v",
            "1",
            "id",
            "01234567-89ab-4def-8123-456789abcdef",
            "to",
            "dead",
            "ttl",
            &ttl_ms.to_string(),
            "rows",
            "1",
            "trace",
            "",
            "body",
            "12345",
        ])
        .await;
    server
        .ask::<i64>(&["HINCRBY", &key("bytes"), crate::REVISION, "5"])
        .await;
}

#[tokio::test]
async fn a_full_queue_first_forgets_what_has_expired() {
    let server = Server::start();
    leave_behind(&server, 1).await;
    leave_behind(&server, 60_000).await;
    leave_behind(&server, 1).await;
    // The clock is in milliseconds.
    tokio::time::sleep(Duration::from_millis(10)).await;
    let producer = bounded(&server, "proxy", 3, 1 << 20);
    let waiting = submit(&producer, request("123"));
    eventually("it has the place of the expired", async || {
        server.length().await == 2 && server.bytes().await == 8
    })
    .await;
    waiting.abort();
}

#[tokio::test]
async fn workers_drop_what_has_expired() {
    let server = Server::start();
    leave_behind(&server, 1).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let producer = producer(&server.connection(), "proxy");
    let consumer = consumer(&server.connection(), "worker").await;
    let waiting = submit(&producer, request("live"));
    let jobs = fetch(&consumer, 8).await;
    assert_eq!(jobs.len(), 1);
    assert_eq!(&*jobs[0].body, b"live");
    consumer.answer(echo(jobs), 0).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!((server.length().await, server.bytes().await), (0, 0));
    assert_eq!(server.pending().await, vec![]);
}

#[tokio::test]
async fn a_redis_out_of_memory_is_a_full_queue() {
    let server = Server::start();
    let producer = producer(&server.connection(), "proxy");
    let consumer = consumer(&server.connection(), "worker").await;
    let waiting = submit(&producer, request("x"));
    let jobs = fetch(&consumer, 1).await;
    server
        .ask::<String>(&["CONFIG", "SET", "maxmemory", "1"])
        .await;
    let error = producer.submit(request("y")).await.unwrap_err();
    assert!(is_full(error), "{error:?}");
    // Answers make room, so they are let through.
    consumer.answer(echo(jobs), 0).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().outcome, answer("x"));
}
