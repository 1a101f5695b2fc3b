//! The queue's bounds.

use std::time::Duration;

use carpool_queue::{Limits, Producer, SubmitError};

use crate::{
    UID, answer, consumer, echo, eventually, fetch, limits, producer,
    relay::Relay,
    request,
    server::{Leftover, Server, jobs, key},
    submit,
};

fn bounded(server: &Server, name: &str, max_length: u64, max_bytes: u64) -> Producer {
    Producer::start(
        server.endpoint(),
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
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting = [submit(&first, request("a")), submit(&first, request("b"))];
    eventually("it is full", async || server.length().await == 2).await;

    let error = second.submit(request("c")).await.unwrap_err();
    assert!(is_full(error), "Redis holds as many as it may: {error:?}");
    let error = first.submit(request("c")).await.unwrap_err();
    assert!(
        is_full(error),
        "this proxy alone has as many open: {error:?}"
    );
    assert_eq!(second.in_flight(), 0);

    let jobs = fetch(&consumer, 1).await;
    consumer.answer(echo(jobs)).await.unwrap();
    let accepted = submit(&second, request("c"));
    for _ in 0..2 {
        let jobs = fetch(&consumer, 1).await;
        consumer.answer(echo(jobs)).await.unwrap();
    }
    assert_eq!(accepted.await.unwrap().unwrap(), answer("c"));
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    assert_eq!(server.bytes().await, 0);
}

#[tokio::test]
async fn a_queue_full_of_bytes_refuses_and_recovers() {
    let server = Server::start();
    let producer = bounded(&server, "proxy", 100, 1000);
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting = submit(&producer, request(vec![0; 900]));
    eventually("it is full", async || server.bytes().await == 900).await;
    let error = producer.submit(request(vec![0; 101])).await.unwrap_err();
    assert!(is_full(error), "{error:?}");
    let small = submit(&producer, request(vec![1; 100]));
    eventually("the smaller one has room", async || {
        server.bytes().await == 1000
    })
    .await;

    while producer.in_flight() > 0 {
        let jobs = fetch(&consumer, 4).await;
        consumer.answer(echo(jobs)).await.unwrap();
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
    let other = bounded(&server, "other", 100, 1000);
    let before = submit(&other, request(vec![0; 500]));
    let producer = bounded(&server, "proxy", 100, 1000);
    eventually("Redis is reached", async || {
        producer.ping().await && server.bytes().await == 500
    })
    .await;
    // All three would fit into this proxy alone.
    let sizes = [300, 300, 200];
    let waiting = sizes.map(|size| submit(&producer, request(vec![0; size])));
    eventually("two of them are queued", async || {
        server.bytes().await == 1000 && producer.in_flight() == 2
    })
    .await;
    let [first, second, third] = waiting;
    assert!(is_full(second.await.unwrap().unwrap_err()));
    let entries: Vec<(String, redis::Value)> = server.ask(&["XRANGE", &jobs(), "-", "+"]).await;
    let [.., (left, _), (right, _)] = &entries[..] else {
        panic!("{entries:?}");
    };
    // An entry id without its last 13 digits counts on within one script call, and jumps between two.
    let counts = [left, right].map(|id| {
        let (millis, sequence) = id.split_once('-').unwrap();
        let count: u64 = sequence[..sequence.len() - 13].parse().unwrap();
        (millis.to_owned(), count)
    });
    assert_eq!(
        counts[1],
        (counts[0].0.clone(), counts[0].1 + 1),
        "one call carried them"
    );
    for waiting in [before, first, third] {
        waiting.abort();
    }
}

#[tokio::test]
async fn a_proxy_holds_no_more_bytes_than_the_queue_may() {
    let server = Server::start();
    let relay = Relay::start(server.port).await;
    let limits = Limits {
        max_bytes: 1000,
        ..limits()
    };
    let producer = Producer::start(relay.endpoint(), UID, "proxy", limits).unwrap();
    eventually("Redis is reached", async || producer.ping().await).await;
    relay.hold();
    let waiting = submit(&producer, request(vec![0; 600]));
    eventually("it is open", async || producer.in_flight() == 1).await;
    let error = producer.submit(request(vec![0; 401])).await.unwrap_err();
    assert!(is_full(error), "{error:?}");
    waiting.abort();
    eventually("it is given up", async || producer.in_flight() == 0).await;
    let waiting = submit(&producer, request(vec![0; 1000]));
    eventually("there is room again", async || producer.in_flight() == 1).await;
    waiting.abort();
}

#[tokio::test]
async fn what_expired_where_no_workers_are_left_makes_room() {
    let server = Server::start();
    let old = Leftover {
        revision: "old",
        ..expired()
    };
    old.add(&server).await;
    let producer = bounded(&server, "proxy", 100, 5);
    let error = producer.submit(request("1")).await.unwrap_err();
    assert!(is_full(error), "{error:?}");
    let backlog = producer.backlog().await.unwrap();
    assert_eq!(backlog.revisions["old"].bytes, 5);
    let waiting = submit(&producer, request("12345"));
    eventually("it is queued", async || server.length().await == 1).await;
    let backlog = producer.backlog().await.unwrap();
    assert!(!backlog.revisions.contains_key("old"), "{backlog:?}");
    let stream: bool = server.ask(&["EXISTS", &key("jobs:old")]).await;
    assert!(!stream, "nobody would ever take it away");
    waiting.abort();
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

/// Returns an expired request that a proxy which died has left behind.
fn expired() -> Leftover {
    Leftover {
        ttl_ms: 1,
        ..Leftover::default()
    }
}

#[tokio::test]
async fn a_full_queue_first_forgets_what_has_expired() {
    let server = Server::start();
    expired().add(&server).await;
    Leftover::default().add(&server).await;
    expired().add(&server).await;
    // Redis' clock is in milliseconds.
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
async fn what_has_expired_is_found_behind_any_number_that_has_not() {
    let server = Server::start();
    for _ in 0..200 {
        Leftover::default().add(&server).await;
    }
    expired().add(&server).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let producer = bounded(&server, "proxy", 201, 1 << 20);
    let waiting = submit(&producer, request("123"));
    eventually("it has the place of the expired", async || {
        server.length().await == 201 && server.bytes().await == 200 * 5 + 3
    })
    .await;
    waiting.abort();
}

#[tokio::test]
async fn workers_drop_what_has_expired() {
    let server = Server::start();
    expired().add(&server).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting = submit(&producer, request("live"));
    let jobs = fetch(&consumer, 8).await;
    assert_eq!(jobs.len(), 1);
    assert_eq!(&*jobs[0].body, b"live");
    consumer.answer(echo(jobs)).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!((server.length().await, server.bytes().await), (0, 0));
    assert_eq!(server.pending().await, vec![]);
}

#[tokio::test]
async fn a_redis_out_of_memory_is_a_full_queue() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting = submit(&producer, request("x"));
    let jobs = fetch(&consumer, 1).await;
    server
        .ask::<String>(&["CONFIG", "SET", "maxmemory", "1"])
        .await;
    let error = producer.submit(request("y")).await.unwrap_err();
    assert!(is_full(error), "{error:?}");
    // Answers make room, so they are let through.
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
}
