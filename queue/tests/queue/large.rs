//! Large bodies and large answers, which are kept beside the streams.

use std::time::Duration;

use carpool_queue::{ConsumerLimits, Limits, Outcome, Producer, SubmitError};

use crate::{
    LEASE, UID, answer, consumer, echo, eventually, fetch, fetch_all, limits, options, producer,
    relay::Relay,
    request,
    server::{Server, key},
    submit,
};

const MIB: usize = 1 << 20;

async fn keys(server: &Server, kind: &str) -> usize {
    let keys: Vec<String> = server.ask(&["KEYS", &key(&format!("{kind}:*"))]).await;
    keys.len()
}

/// Returns how often Redis was given a command.
async fn calls(server: &Server, command: &str) -> u64 {
    let stats: String = server.ask(&["INFO", "commandstats"]).await;
    let line = format!("cmdstat_{command}:calls=");
    stats
        .lines()
        .find_map(|stat| stat.strip_prefix(&line)?.split(',').next()?.parse().ok())
        .unwrap_or_default()
}

#[tokio::test]
async fn they_come_whole_and_leave_nothing() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let bodies = [0, 16 << 10, (16 << 10) + 1, MIB, 4 * MIB].map(|size| vec![7; size]);
    let waiting: Vec<_> = bodies
        .iter()
        .map(|body| submit(&producer, request(body.clone())))
        .collect();
    let jobs = fetch_all(&consumer, bodies.len()).await;
    assert_eq!(keys(&server, "body").await, 3);
    consumer.answer(echo(jobs)).await.unwrap();
    for (body, waiting) in bodies.into_iter().zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), answer(body));
    }
    eventually("nothing is left", async || {
        keys(&server, "body").await + keys(&server, "reply").await == 0
            && server.bytes().await == 0
            && !server.ask::<bool>(&["EXISTS", &key("unread")]).await
    })
    .await;
}

#[tokio::test]
async fn nobody_reads_a_body_to_know_that_it_is_there() {
    let server = Server::start();
    let relay = Relay::start(server.port).await;
    let producer = producer(&relay.endpoint(), "proxy");
    let waiting: Vec<_> = (0..20u8)
        .map(|i| {
            submit(
                &producer,
                request(vec![i; if i < 10 { MIB } else { 4_000 }]),
            )
        })
        .collect();
    eventually("all are queued", async || server.length().await == 20).await;
    relay.hold();
    let unsure = submit(&producer, request(vec![20; MIB]));
    eventually("Redis has it", async || server.length().await == 21).await;
    relay.cut();
    eventually("Redis is reached", async || producer.ping().await).await;
    eventually("all were looked for", async || {
        calls(&server, "zmscore").await > 0
    })
    .await;
    assert_eq!(
        calls(&server, "xrange").await + calls(&server, "get").await,
        0
    );
    let consumer = consumer(&server.endpoint(), "worker").await;
    let jobs = fetch_all(&consumer, 21).await;
    consumer.answer(echo(jobs)).await.unwrap();
    for (i, waiting) in (0u8..).zip(waiting.into_iter().chain([unsure])) {
        let size = if (10..20).contains(&i) { 4_000 } else { MIB };
        assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![i; size]));
    }
    assert_eq!(server.length().await, 0, "there was a second copy");
}

#[tokio::test]
async fn one_fetch_brings_no_more_than_memory_should_hold() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let first = consumer(&server.endpoint(), "first").await;
    let second = consumer(&server.endpoint(), "second").await;
    let waiting: Vec<_> = (0..24u8)
        .map(|i| submit(&producer, request(vec![i; 4 * MIB])))
        .collect();
    eventually("all are queued", async || server.length().await == 24).await;
    let jobs = fetch(&first, 24).await;
    assert_eq!(jobs.len(), 16, "64 MiB of bodies");
    // The others are not the first worker's own any more.
    let others = fetch_all(&second, 8).await;
    assert!(others.iter().all(|job| job.quarantine.is_none()));
    for (worker, jobs) in [(first, jobs), (second, others)] {
        let answers = jobs
            .into_iter()
            .map(|job| (job.id, answer(job.body.slice(..1))));
        worker.answer(answers.collect()).await.unwrap();
    }
    for (i, waiting) in (0u8..).zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![i]));
    }
}

#[tokio::test]
async fn a_body_that_redis_lost_is_written_again() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting = submit(&producer, request(vec![7; MIB]));
    eventually("it is queued", async || server.length().await == 1).await;
    let bodies: Vec<String> = server.ask(&["KEYS", &key("body:*")]).await;
    server.ask::<usize>(&["DEL", &bodies[0]]).await;
    let jobs = fetch(&consumer, 1).await;
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![7; MIB]));
}

/// Runs a proxy of this name that ends without a word, as its process would, once so many requests are queued.
fn dies(server: &Server, name: &'static str, requests: usize) {
    let endpoint = server.endpoint();
    let length = server.port;
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let producer = producer(&endpoint, name);
            let waiting: Vec<_> = (0..requests)
                .map(|_| submit(&producer, request("x")))
                .collect();
            eventually("all are queued", async || {
                let client = redis::Client::open(format!("redis://127.0.0.1:{length}")).unwrap();
                let mut connection = client.get_multiplexed_async_connection().await.unwrap();
                let queued: usize = redis::cmd("XLEN")
                    .arg(crate::server::jobs())
                    .query_async(&mut connection)
                    .await
                    .unwrap();
                queued >= requests
            })
            .await;
            // The end of the runtime ends the tasks.
            std::mem::forget(waiting);
        });
    })
    .join()
    .unwrap();
}

#[tokio::test]
async fn a_proxy_that_is_gone_gets_no_more_than_its_share_and_then_nothing() {
    let server = Server::start();
    server
        .ask::<String>(&["CONFIG", "SET", "maxmemory", "64mb"])
        .await;
    dies(&server, "gone", 200);
    let limits = ConsumerLimits {
        max_bytes: 32 << 20,
        ..options("worker").limits
    };
    let options = carpool_queue::ConsumerOptions {
        limits,
        ..options("worker")
    };
    let worker = carpool_queue::Consumer::connect(server.endpoint(), options)
        .await
        .unwrap();
    let mut left = 200;
    while left > 0 {
        let jobs = fetch(&worker, 32).await;
        left -= jobs.len();
        let answers = jobs
            .into_iter()
            .map(|job| (job.id, answer(vec![7; MIB])))
            .collect();
        worker.answer(answers).await.unwrap();
        let info: String = server.ask(&["INFO", "memory"]).await;
        let used = info
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"))
            .unwrap();
        assert!(used.parse::<usize>().unwrap() < 32 * MIB, "{used}");
    }
    let producer = bounded(&server, 32 << 20);
    let waiting = submit(&producer, request("y"));
    let jobs = fetch(&worker, 1).await;
    worker.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("y"));
    eventually("nothing is left of it", async || {
        worker.fetch_within(1, Duration::ZERO).await.unwrap();
        server.length().await == 0 && server.bytes().await == 0
    })
    .await;
    assert_eq!(keys(&server, "reply").await, 0);
}

fn bounded(server: &Server, max_bytes: u64) -> Producer {
    let limits = Limits {
        max_bytes,
        ..limits()
    };
    Producer::start(server.endpoint(), UID, "proxy", limits).unwrap()
}

#[tokio::test]
async fn large_answers_of_a_redis_without_memory_arrive_all_the_same() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let waiting: Vec<_> = (0..4u8)
        .map(|i| submit(&producer, request(vec![i])))
        .collect();
    let jobs = fetch_all(&consumer, 4).await;
    server
        .ask::<String>(&["CONFIG", "SET", "maxmemory", "1"])
        .await;
    let answers = jobs
        .into_iter()
        .map(|job| (job.id, answer(vec![job.body[0]; MIB])));
    consumer.answer(answers.collect()).await.unwrap();
    let serving = tokio::spawn(async move {
        loop {
            consumer.fetch(1).await.unwrap();
        }
    });
    for (i, waiting) in (0u8..).zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![i; MIB]));
    }
    serving.abort();
}

#[tokio::test]
async fn a_body_that_would_end_the_connection_is_refused() {
    let server = Server::start();
    server
        .ask::<String>(&["CONFIG", "SET", "proto-max-bulk-len", "1mb"])
        .await;
    let producer = producer(&server.endpoint(), "proxy");
    eventually("Redis is reached", async || producer.ping().await).await;
    eventually("it was asked", async || {
        calls(&server, "config|get").await > 0
    })
    .await;
    let error = producer
        .submit(request(vec![0; MIB + 1]))
        .await
        .unwrap_err();
    assert_eq!(error, SubmitError::TooLarge { most: MIB as u64 });
}

#[tokio::test]
async fn what_breaks_connections_hurts_nobody_else_and_is_given_up() {
    let server = Server::start();
    let relay = Relay::start(server.port).await;
    let producer = producer(&relay.endpoint(), "proxy");
    eventually("Redis is reached", async || producer.ping().await).await;
    // A connection that breaks at once says that Redis is away.
    tokio::time::sleep(LEASE + LEASE / 10).await;
    relay.cut_at("breaker");
    let mut waiting: Vec<_> = (0..5)
        .map(|_| submit(&producer, request("neighbour")))
        .collect();
    let breaker = submit(&producer, request("breaker"));
    waiting.extend((0..5).map(|_| submit(&producer, request("neighbour"))));
    let consumer = consumer(&server.endpoint(), "worker").await;
    let serving = crate::worker(consumer);
    let error = breaker.await.unwrap().unwrap_err();
    assert_eq!(error, SubmitError::Breaks { times: 3 });
    for waiting in waiting {
        let outcome: Outcome = waiting.await.unwrap().unwrap();
        assert_eq!(outcome, answer("neighbour"));
    }
    serving.abort();
}
