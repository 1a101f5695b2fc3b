//! Requests of dead workers: the sharing of them, and silences that are no death.

use std::{collections::BTreeSet, time::Duration};

use carpool_queue::Consumer;
use tokio::time::Instant;

use crate::{
    LEASE, answer, consumer, echo, eventually, fetch, fetch_all, leased, producer, request,
    server::Server, submit,
};

/// Takes requests with a worker that dies with them.
async fn dead(server: &Server, count: usize) {
    let doomed = consumer(&server.endpoint(), "doomed").await;
    assert_eq!(fetch_all(&doomed, count).await.len(), count);
}

/// Fetches until requests of dead workers come.
async fn quarantined(consumer: &Consumer) -> Vec<carpool_queue::Job> {
    loop {
        let jobs = fetch(consumer, 64).await;
        if jobs[0].quarantine.is_some() {
            return jobs;
        }
        consumer.answer(echo(jobs)).await.unwrap();
    }
}

#[tokio::test]
async fn workers_share_what_a_dead_one_held() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let waiting: Vec<_> = (0..32u8)
        .map(|i| submit(&producer, request(vec![i])))
        .collect();
    dead(&server, 32).await;
    let first = consumer(&server.endpoint(), "first").await;
    let second = consumer(&server.endpoint(), "second").await;
    let taken = quarantined(&first).await;
    let others = quarantined(&second).await;
    assert_eq!(
        (taken.len(), others.len()),
        (16, 8),
        "half of what is there"
    );
    let group: BTreeSet<_> = taken.iter().map(|job| job.quarantine).collect();
    assert_eq!(group.len(), 1, "they run together");
    for (worker, jobs) in [(&first, taken), (&second, others)] {
        worker.answer(echo(jobs)).await.unwrap();
    }
    let mut left = 8;
    while left > 0 {
        let jobs = quarantined(&first).await;
        left -= jobs.len();
        first.answer(echo(jobs)).await.unwrap();
    }
    for (i, waiting) in (0u8..).zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![i]));
    }
}

#[tokio::test]
async fn ordinary_requests_have_their_turn_between_those_of_dead_workers() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let mut waiting: Vec<_> = (0..16)
        .map(|_| submit(&producer, request("suspect")))
        .collect();
    dead(&server, 16).await;
    let other = consumer(&server.endpoint(), "other").await;
    let mut jobs = quarantined(&other).await;
    waiting.extend((0..64).map(|_| submit(&producer, request("ordinary"))));
    eventually("all are queued", async || server.length().await == 80).await;
    let mut turns = Vec::new();
    while turns.len() < 5 {
        turns.push(jobs[0].quarantine.is_some());
        let alike = jobs.iter().all(|job| job.quarantine == jobs[0].quarantine);
        assert!(alike, "an ordinary one came beside suspects");
        let next = other.exchange(echo(jobs), 4).await.unwrap();
        jobs = if next.is_empty() {
            fetch(&other, 4).await
        } else {
            next
        };
    }
    assert_eq!(turns, [true, false, true, false, true]);
    for waiting in waiting {
        waiting.abort();
    }
}

#[tokio::test]
async fn those_with_one_delivery_left_come_alone() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let waiting: Vec<_> = (0..4).map(|_| submit(&producer, request("x"))).collect();
    dead(&server, 4).await;
    let second = consumer(&server.endpoint(), "second").await;
    assert_eq!(quarantined(&second).await.len(), 2);
    drop(second);
    let third = consumer(&server.endpoint(), "third").await;
    for _ in 0..4 {
        let jobs = quarantined(&third).await;
        assert_eq!(jobs.len(), 1);
        third.answer(echo(jobs)).await.unwrap();
    }
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
    }
}

#[tokio::test]
async fn a_redis_that_stood_still_is_no_workers_death() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let lease = LEASE * 3;
    let busy = leased(&server.endpoint(), "busy", lease).await;
    let other = leased(&server.endpoint(), "other", lease).await;
    let renewal = tokio::spawn(busy.renewer().run());
    let waiting: Vec<_> = (0..8u8)
        .map(|i| submit(&producer, request(vec![i])))
        .collect();
    let held = fetch_all(&busy, 8).await;
    assert!(other.fetch(1).await.unwrap().is_empty());
    server.signal("STOP");
    tokio::time::sleep(lease + LEASE / 2).await;
    server.signal("CONT");
    let until = Instant::now() + lease;
    while Instant::now() < until {
        // A read that was cut off is an error, and the next one works.
        let jobs = other.fetch(8).await.unwrap_or_default();
        assert!(jobs.is_empty(), "it was taken for dead");
    }
    assert!(
        server
            .pending()
            .await
            .iter()
            .all(|pending| pending.1 == "busy")
    );
    busy.answer(echo(held)).await.unwrap();
    for (i, waiting) in (0u8..).zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![i]));
    }
    renewal.abort();
}

#[tokio::test]
async fn a_worker_that_dies_while_redis_stands_still_is_taken_over_all_the_same() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let waiting = submit(&producer, request("x"));
    dead(&server, 1).await;
    server.signal("STOP");
    tokio::time::sleep(LEASE * 2).await;
    server.signal("CONT");
    let other = consumer(&server.endpoint(), "other").await;
    let jobs = tokio::time::timeout(LEASE * 5, quarantined(&other));
    other.answer(echo(jobs.await.unwrap())).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
}

#[tokio::test]
async fn an_answer_waits_for_redis_only_as_long_as_somebody_waits_for_it() {
    let mut server = Server::stopped(true);
    server.run();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let short = carpool_queue::Submit {
        deadline: Instant::now() + LEASE * 2,
        ..request("short")
    };
    let (short, long) = (submit(&producer, short), submit(&producer, request("long")));
    let jobs = fetch_all(&consumer, 2).await;
    server.kill();
    assert!(short.await.unwrap().is_err(), "nobody is there to bring it");
    let answering = tokio::spawn(async move {
        let next = consumer.exchange(echo(jobs), 4).await;
        (consumer, next)
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!answering.is_finished(), "somebody waits for the other one");
    server.run();
    let (consumer, next) = answering.await.unwrap();
    assert!(next.unwrap().is_empty());
    assert_eq!(long.await.unwrap().unwrap(), answer("long"));
    let waiting = submit(&producer, request("next"));
    let jobs = fetch(&consumer, 4).await;
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("next"));
}
