//! Workers that die, hang, leave and come back.

use std::{collections::BTreeSet, time::Duration};

use carpool_queue::{FailureKind, Outcome, Submit};
use tokio::time::{Instant, timeout};

use crate::{
    FOREVER, LEASE, answer, consumer, echo, eventually, fetch, fetch_all, leased, producer,
    relay::Relay,
    request,
    server::{Leftover, Server, jobs, key},
    submit,
};

#[tokio::test]
async fn another_takes_over_from_a_dead_worker_within_two_leases() {
    let lease = LEASE * 2;
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let doomed = leased(&server.endpoint(), "doomed", lease).await;
    let other = leased(&server.endpoint(), "other", lease).await;
    let waiting: Vec<_> = (0..3u8)
        .map(|i| submit(&producer, request(vec![i])))
        .collect();
    let lost = fetch_all(&doomed, 3).await;
    assert_eq!(lost.len(), 3);
    let died = Instant::now();
    drop(doomed);
    let mut left = 3;
    while left > 0 {
        let jobs = fetch(&other, 8).await;
        assert!(jobs.iter().all(|job| job.quarantine.is_some()));
        left -= jobs.len();
        other.answer(echo(jobs)).await.unwrap();
    }
    assert!(died.elapsed() < lease * 2, "{:?}", died.elapsed());
    for (i, waiting) in (0u8..).zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![i]));
    }
}

#[tokio::test]
async fn a_dead_worker_is_noticed_although_each_read_finds_more_than_there_is_room_for() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let doomed = consumer(&server.endpoint(), "doomed").await;
    let lost = submit(&producer, request("lost"));
    fetch(&doomed, 1).await;
    drop(doomed);
    let other = consumer(&server.endpoint(), "other").await;
    let give_up = Instant::now() + LEASE * 20;
    let mut waiting = Vec::new();
    let mut jobs = Vec::new();
    while !lost.is_finished() {
        assert!(
            Instant::now() < give_up,
            "its requests were never taken over"
        );
        while producer.in_flight() < 100 {
            waiting.push(submit(&producer, request("more")));
            tokio::task::yield_now().await;
        }
        jobs = if jobs.is_empty() {
            fetch(&other, 4).await
        } else {
            other.exchange(echo(jobs), 4).await.unwrap()
        };
    }
    assert_eq!(lost.await.unwrap().unwrap(), answer("lost"));
    for waiting in waiting {
        waiting.abort();
    }
}

#[tokio::test]
async fn nothing_else_comes_while_a_suspect_runs() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let doomed = consumer(&server.endpoint(), "doomed").await;
    let waiting = submit(&producer, request("suspect"));
    fetch(&doomed, 1).await;
    drop(doomed);
    let other = consumer(&server.endpoint(), "other").await;
    let suspect = fetch(&other, 8).await;
    assert!(suspect[0].quarantine.is_some());
    let handed_back = submit(&producer, request("handed back"));
    // The leaving worker takes nothing over.
    let leaving = leased(&server.endpoint(), "leaving", FOREVER).await;
    let held = fetch(&leaving, 1).await;
    leaving
        .release(held.into_iter().map(|job| job.id).collect())
        .await
        .unwrap();
    let next = submit(&producer, request("next"));
    eventually("all are queued", async || server.length().await == 4).await;
    // Handed back requests are looked for once a second, and so long does a fetch wait.
    for _ in 0..2 {
        assert!(other.fetch(8).await.unwrap().is_empty());
    }

    // A fetch that waits goes on as soon as the suspect is answered.
    let (jobs, _) = tokio::join!(fetch_all(&other, 2), other.answer(echo(suspect)));
    let bodies: BTreeSet<_> = jobs.iter().map(|job| &*job.body).collect();
    assert_eq!(bodies, BTreeSet::from([&b"handed back"[..], b"next"]));
    assert!(jobs.iter().all(|job| job.quarantine.is_none()));
    other.answer(echo(jobs)).await.unwrap();
    for waiting in [waiting, handed_back, next] {
        waiting.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_turn_counts_once_although_the_reply_was_lost() {
    let server = Server::start();
    let relay = Relay::start(server.port).await;
    let producer = producer(&server.endpoint(), "proxy");
    let doomed = consumer(&server.endpoint(), "doomed").await;
    let _waiting = ["first", "second"].map(|body| submit(&producer, request(body)));
    fetch_all(&doomed, 2).await;
    drop(doomed);
    let other = consumer(&relay.endpoint(), "other").await;
    // The first turn also loads the script.
    let first = fetch(&other, 1).await;
    other.answer(echo(first)).await.unwrap();
    // The entry is read after the turn is counted.
    relay.hold_from("XRANGE");
    let turn = tokio::spawn(async move {
        while other.fetch(1).await.is_ok() {}
        other
    });
    eventually("the turn is counted", async || {
        let pending = server.pending().await;
        relay.holds() && pending.len() == 1 && pending[0].3 == 2
    })
    .await;
    relay.cut();
    let other = turn.await.unwrap();
    assert!(fetch(&other, 1).await[0].quarantine.is_some());
    assert_eq!(server.pending().await[0].3, 2, "one death, one turn");
}

#[tokio::test]
async fn a_renewed_lease_holds_for_as_long_as_the_process_lives() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    // The lease is long enough for a slow machine that stalls.
    let lease = LEASE * 3;
    let busy = leased(&server.endpoint(), "busy", lease).await;
    let other = leased(&server.endpoint(), "other", lease).await;
    let _waiting = submit(&producer, request("x"));
    let held = fetch(&busy, 1).await;
    let renewal = tokio::spawn(busy.renewer().run());
    let until = Instant::now() + lease * 2;
    while Instant::now() < until {
        assert!(other.fetch(1).await.unwrap().is_empty(), "it was stolen");
    }
    renewal.abort();
    let taken = fetch(&other, 1).await;
    assert_eq!(taken[0].id, held[0].id);
}

#[tokio::test]
async fn renewal_never_steals_back() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let paused = consumer(&server.endpoint(), "paused").await;
    let other = consumer(&server.endpoint(), "other").await;
    let _waiting = submit(&producer, request("x"));
    fetch(&paused, 1).await;
    fetch(&other, 1).await;
    let renewal = tokio::spawn(paused.renewer().run());
    tokio::time::sleep(LEASE).await;
    let owners: Vec<_> = server.pending().await;
    assert_eq!(owners[0].1, "other");
    drop(paused);
    renewal.await.unwrap();
}

#[tokio::test]
async fn released_requests_reach_a_waiting_worker_at_once() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let leaving = consumer(&server.endpoint(), "leaving").await;
    let waiting: Vec<_> = (0..4u8)
        .map(|i| submit(&producer, request(vec![i])))
        .collect();
    let held = fetch_all(&leaving, 4).await;
    tokio::spawn(leaving.renewer().run());
    let other = consumer(&server.endpoint(), "other").await;
    assert!(other.fetch(8).await.unwrap().is_empty());
    let fetching = tokio::spawn(async move {
        let jobs = fetch(&other, 8).await;
        (other, jobs, Instant::now())
    });
    eventually("the other one waits", async || server.blocked().await == 2).await;
    let released = Instant::now();
    leaving
        .release(held.into_iter().map(|job| job.id).collect())
        .await
        .unwrap();
    let (other, jobs, came) = fetching.await.unwrap();
    assert!(came - released < Duration::from_millis(500));
    assert_eq!(jobs.len(), 4);
    assert!(jobs.iter().all(|job| job.quarantine.is_none()));
    assert!(
        server.pending().await.iter().all(|pending| pending.3 == 1),
        "a release was counted as a delivery"
    );
    other.answer(echo(jobs)).await.unwrap();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    eventually("nothing is left", async || server.length().await == 0).await;
}

#[tokio::test]
async fn released_requests_may_wait_longer_than_a_lease_and_are_no_suspects() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let leaving = consumer(&server.endpoint(), "leaving").await;
    let other = consumer(&server.endpoint(), "other").await;
    let waiting: Vec<_> = (0..6u8)
        .map(|i| submit(&producer, request(vec![i])))
        .collect();
    let held = fetch_all(&leaving, 6).await;
    leaving
        .release(held.into_iter().map(|job| job.id).collect())
        .await
        .unwrap();
    tokio::time::sleep(LEASE + LEASE / 5).await;
    for _ in 0..3 {
        let jobs = fetch(&other, 2).await;
        assert_eq!(jobs.len(), 2);
        assert!(
            jobs.iter().all(|job| job.quarantine.is_none()),
            "no worker died of them"
        );
        other.answer(echo(jobs)).await.unwrap();
    }
    for (i, waiting) in (0u8..).zip(waiting) {
        assert_eq!(waiting.await.unwrap().unwrap(), answer(vec![i]));
    }
}

#[tokio::test]
async fn a_request_of_a_newer_format_is_left_to_newer_workers() {
    let server = Server::start();
    let old = consumer(&server.endpoint(), "old").await;
    let newer = Leftover {
        format: 4,
        ..Leftover::default()
    };
    newer.add(&server).await;
    eventually("it is handed back", async || {
        assert!(old.fetch(1).await.unwrap().is_empty(), "it can't be read");
        server
            .pending()
            .await
            .first()
            .is_some_and(|pending| pending.1 == "~format-4")
    })
    .await;
    // The worker doesn't take the request again, however often it looks.
    for _ in 0..3 {
        assert!(old.fetch(1).await.unwrap().is_empty());
    }
    let pending = server.pending().await;
    assert_eq!((&*pending[0].1, pending[0].3), ("~format-4", 1));
    assert_eq!(server.length().await, 1, "it was answered or dropped");
}

#[tokio::test]
async fn a_released_suspect_stays_one_and_its_turn_does_not_count() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let doomed = consumer(&server.endpoint(), "doomed").await;
    let waiting = submit(&producer, request("x"));
    fetch(&doomed, 1).await;
    drop(doomed);
    for name in ["first", "second", "third", "fourth"] {
        let worker = consumer(&server.endpoint(), name).await;
        let job = fetch(&worker, 1).await.pop().unwrap();
        assert!(job.quarantine.is_some());
        assert_eq!(server.pending().await[0].3, 2, "one death, one turn");
        worker.release(vec![job.id]).await.unwrap();
    }
    let worker = consumer(&server.endpoint(), "last").await;
    let jobs = fetch(&worker, 1).await;
    worker.answer(echo(jobs)).await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn leaving_hands_everything_over_and_the_last_one_cleans_up() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let first = consumer(&server.endpoint(), "first").await;
    let second = consumer(&server.endpoint(), "second").await;
    let waiting = submit(&producer, request("x"));
    fetch(&first, 1).await;
    first.leave().await.unwrap();
    let consumers: Vec<Vec<redis::Value>> = server
        .ask(&["XINFO", "CONSUMERS", &jobs(), "workers"])
        .await;
    let names: BTreeSet<String> = consumers
        .iter()
        .map(|info| redis::from_redis_value_ref(&info[1]).unwrap())
        .collect();
    assert!(!names.contains("first"), "{names:?}");

    let jobs_left = fetch(&second, 1).await;
    second.exchange(echo(jobs_left), 1).await.unwrap();
    waiting.await.unwrap().unwrap();
    eventually("the wake-up is read", async || {
        second.fetch(1).await.unwrap();
        server.length().await == 0
    })
    .await;
    second.leave().await.unwrap();
    producer.shutdown(LEASE).await;
    let mut keys: Vec<String> = server.ask(&["KEYS", "*"]).await;
    // The pulse expires.
    keys.retain(|name| *name != key("pulse"));
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn a_restarted_worker_takes_its_own_requests_at_once() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let before = consumer(&server.endpoint(), "same").await;
    let waiting = submit(&producer, request("x"));
    fetch(&before, 1).await;
    drop(before);
    let after = consumer(&server.endpoint(), "same").await;
    let jobs = timeout(LEASE / 2, fetch(&after, 1)).await.unwrap();
    assert!(jobs[0].quarantine.is_some(), "its process ended with it");
    after.answer(echo(jobs)).await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn poison_is_given_up_and_its_neighbours_are_answered() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let bodies = ["a", "b", "poison", "c"];
    let waiting = bodies.map(|body| {
        let client = Some("10.0.0.7".into());
        submit(
            &producer,
            Submit {
                client,
                ..request(body)
            },
        )
    });
    eventually("all are queued", async || server.length().await == 4).await;
    let mut deaths = 0;
    let mut life = 0;
    let mut worker = consumer(&server.endpoint(), "worker-0").await;
    while producer.in_flight() > 0 {
        let jobs = worker.fetch(8).await.unwrap();
        if jobs.iter().any(|job| &*job.body == b"poison") {
            deaths += 1;
            life += 1;
            worker = consumer(&server.endpoint(), &format!("worker-{life}")).await;
        } else if !jobs.is_empty() {
            worker.answer(echo(jobs)).await.unwrap();
        }
    }
    assert_eq!(deaths, 3, "it was run as often as it may, no more");
    for (body, waiting) in bodies.into_iter().zip(waiting) {
        let outcome = waiting.await.unwrap().unwrap();
        if body == "poison" {
            assert!(
                matches!(&outcome, Outcome::Failure(failure)
                    if failure.kind == FailureKind::TooManyDeliveries),
                "{outcome:?}"
            );
        } else {
            assert_eq!(outcome, answer(body));
        }
    }
    let dead: Vec<(String, Vec<Vec<u8>>)> = server.ask(&["XRANGE", &key("dead"), "-", "+"]).await;
    assert_eq!(dead.len(), 1);
    for part in ["poison", "worker-3", "10.0.0.7"] {
        assert!(dead[0].1.contains(&part.into()), "{part}: {dead:?}");
    }
    assert_eq!((server.length().await, server.bytes().await), (0, 0));
}
