//! A Redis that is there but may not write, as when its disk is full or its replicas are gone.

use std::time::Duration;

use crate::{answer, consumer, echo, eventually, fetch, producer, request, server::Server, submit};

/// Lets Redis write only if it has so many replicas; it has none.
async fn want_replicas(server: &Server, count: &str) {
    server
        .ask::<String>(&["CONFIG", "SET", "min-replicas-to-write", count])
        .await;
}

async fn a_write_is_refused(server: &Server) {
    eventually("a write is refused", async || {
        let errors: String = server.ask(&["INFO", "errorstats"]).await;
        errors.contains("NOREPLICAS")
    })
    .await;
}

#[tokio::test]
async fn an_answer_waits_until_redis_may_write() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting = submit(&producer, request("x"));
    let jobs = fetch(&consumer, 1).await;
    want_replicas(&server, "1").await;
    let answering = tokio::spawn(async move { consumer.exchange(echo(jobs), 4).await });
    a_write_is_refused(&server).await;
    want_replicas(&server, "0").await;
    assert!(answering.await.unwrap().unwrap().is_empty());
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
}

#[tokio::test]
async fn a_worker_outlives_a_redis_that_may_not_write() {
    let server = Server::start();
    want_replicas(&server, "1").await;
    let endpoint = server.endpoint();
    let starting = tokio::spawn(async move { consumer(&endpoint, "worker").await });
    a_write_is_refused(&server).await;
    want_replicas(&server, "0").await;
    let worker = starting.await.unwrap();
    let none = worker.fetch_within(1, Duration::ZERO).await.unwrap();
    assert!(none.is_empty());

    // The read goes along with answers, of which there may be none.
    want_replicas(&server, "1").await;
    assert!(worker.exchange(Vec::new(), 4).await.unwrap().is_empty());
}
