//! Lanes: priorities, callers with many requests, and what holds of requests in any lane.

use std::collections::BTreeMap;

use carpool_queue::{Caller, Class, Consumer, Job, Limits, Producer, Submit};

use crate::{
    REVISION, UID, answer, consumer, echo, eventually, fetch, fetch_all, leased, limits, producer,
    request,
    server::{Server, key},
    submit,
};

fn of_class(body: &str, class: Class) -> Submit {
    Submit {
        class,
        ..request(body.to_owned())
    }
}

fn of_caller(body: &str, caller: &str) -> Submit {
    Submit {
        caller: Some(Caller::named(caller.as_bytes())),
        ..request(body.to_owned())
    }
}

/// A producer that lets a caller have so many requests in the common lane beside those of others.
fn narrow(server: &Server, window: usize, max_length: u64) -> Producer {
    let limits = Limits {
        window,
        max_length,
        ..limits()
    };
    Producer::start(server.endpoint(), UID, "proxy", limits).unwrap()
}

/// Returns how many requests each lane but the common one has, by its name.
async fn lengths(server: &Server) -> BTreeMap<String, u64> {
    server.ask(&["HGETALL", &key("lengths")]).await
}

async fn waiting(server: &Server) -> u64 {
    let others: u64 = lengths(server).await.values().sum();
    server.length().await as u64 + others
}

/// Checks that nothing is left of any lane's requests.
async fn nothing_is_left(server: &Server) {
    assert_eq!(lengths(server).await, BTreeMap::new());
    assert_eq!((server.length().await, server.bytes().await), (0, 0));
    let keys: Vec<String> = server.ask(&["KEYS", "*"]).await;
    for key in keys.iter().filter(|key| key.contains("jobs:")) {
        let length: u64 = server.ask(&["XLEN", key]).await;
        assert_eq!(length, 0, "{key}");
    }
    for key in keys.iter().filter(|key| key.contains("index:")) {
        let length: u64 = server.ask(&["ZCARD", key]).await;
        assert_eq!(length, 0, "{key}");
    }
}

fn bodies(jobs: &[Job]) -> Vec<String> {
    let bodies = jobs.iter().map(|job| job.body.to_vec());
    bodies
        .map(|body| String::from_utf8(body).unwrap())
        .collect()
}

/// Serves everything that waits, in fetches of `capacity`, and returns the bodies in the order in which they came.
async fn serve(consumer: &Consumer, count: usize, capacity: usize) -> Vec<String> {
    let mut order = Vec::new();
    let mut jobs = fetch(consumer, capacity).await;
    while order.len() < count {
        order.extend(bodies(&jobs));
        jobs = consumer.exchange(echo(jobs), capacity).await.unwrap();
        if jobs.is_empty() && order.len() < count {
            jobs = fetch(consumer, capacity).await;
        }
    }
    order
}

#[tokio::test]
async fn a_low_priority_is_slowed_and_never_starved() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let classes = [
        ("background", Class::Background),
        ("low", Class::Priority(3)),
        ("default", Class::Default),
        ("high", Class::Priority(1)),
    ];
    let mut tasks = Vec::new();
    for (body, class) in classes {
        tasks.extend((0..200).map(|_| submit(&producer, of_class(body, class))));
    }
    eventually("all wait", async || waiting(&server).await == 800).await;
    let mut options = crate::options("worker");
    options.limits.default_priority = 2;
    let consumer = Consumer::connect(server.endpoint(), options).await.unwrap();
    let order = serve(&consumer, 800, 16).await;
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let among = |first: usize, body: &str| order[..first].iter().filter(|one| *one == body).count();
    let [background, low, default, high] =
        ["background", "low", "default", "high"].map(|body| among(226, body));
    // Of 226 parts, the highest priority has 128, the next 64, the next 32 and the background two.
    assert!((120..=136).contains(&high), "{high}");
    assert!((56..=72).contains(&default), "{default}");
    assert!((24..=40).contains(&low), "{low}");
    assert!((1..=4).contains(&background), "{background}");
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn a_caller_with_few_requests_does_not_wait_for_those_of_one_with_many() {
    let server = Server::start();
    let producer = narrow(&server, 4, 10_000);
    let mut tasks = vec![submit(&producer, of_caller("small", "small"))];
    eventually("the small one is first", async || {
        waiting(&server).await == 1
    })
    .await;
    tasks.extend((0..300).map(|_| submit(&producer, of_caller("noisy", "noisy"))));
    eventually("the noisy one waits", async || {
        waiting(&server).await == 301
    })
    .await;
    tasks.extend((0..5).map(|_| submit(&producer, of_caller("small", "small"))));
    eventually("all wait", async || waiting(&server).await == 306).await;
    assert_eq!(server.length().await, 8, "a window each");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let order = serve(&consumer, 306, 8).await;
    let last = order.iter().rposition(|one| one == "small").unwrap();
    assert!(last < 24, "the small one's last was the {last}th");
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn no_caller_fills_the_queue_and_all_lanes_together_are_bounded() {
    let server = Server::start();
    let producer = narrow(&server, 1, 100);
    let noisy: Vec<_> = (0..100)
        .map(|_| submit(&producer, of_class("noisy", Class::Priority(2))))
        .collect();
    eventually("its share is full", async || {
        waiting(&server).await == 90 && producer.in_flight() == 90
    })
    .await;
    let other = crate::producer(&server.endpoint(), "other");
    other.set_limits(Limits {
        max_length: 100,
        ..limits()
    });
    let small: Vec<_> = (0..11).map(|_| submit(&other, request("small"))).collect();
    eventually("there is room for others", async || other.in_flight() == 10).await;
    assert_eq!(waiting(&server).await, 100);
    for task in noisy.into_iter().chain(small) {
        task.abort();
    }
    eventually("all are cancelled", async || waiting(&server).await == 0).await;
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn requests_in_any_lane_are_found_again_after_flushall() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let tasks = [Class::Priority(1), Class::Default, Class::Background]
        .map(|class| submit(&producer, of_class("body", class)));
    eventually("all wait", async || waiting(&server).await == 3).await;
    server.ask::<()>(&["FLUSHALL"]).await;
    eventually("all wait again", async || waiting(&server).await == 3).await;
    let consumer = consumer(&server.endpoint(), "worker").await;
    let jobs = fetch_all(&consumer, 3).await;
    consumer.answer(echo(jobs)).await.unwrap();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), answer("body"));
    }
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn what_a_worker_died_with_runs_alone_whatever_its_lane() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let tasks: Vec<_> = [Class::Priority(1), Class::Default, Class::Priority(1)]
        .map(|class| submit(&producer, of_class("suspect", class)))
        .into();
    eventually("all wait", async || waiting(&server).await == 3).await;
    let dead = consumer(&server.endpoint(), "dead").await;
    assert_eq!(fetch_all(&dead, 3).await.len(), 3);
    drop(dead);
    let consumer = leased(&server.endpoint(), "worker", crate::LEASE).await;
    let mut left = 3;
    while left > 0 {
        let jobs = fetch(&consumer, 16).await;
        let groups: Vec<_> = jobs.iter().map(|job| job.quarantine).collect();
        assert!(
            groups[0].is_some() && groups.iter().all(|group| *group == groups[0]),
            "{groups:?}"
        );
        left -= jobs.len();
        consumer.answer(echo(jobs)).await.unwrap();
    }
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), answer("suspect"));
    }
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn a_worker_that_leaves_hands_back_what_it_holds_of_any_lane() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let tasks = [Class::Priority(1), Class::Default]
        .map(|class| submit(&producer, of_class("body", class)));
    eventually("both wait", async || waiting(&server).await == 2).await;
    let first = consumer(&server.endpoint(), "first").await;
    assert_eq!(fetch_all(&first, 2).await.len(), 2);
    let second = consumer(&server.endpoint(), "second").await;
    first.leave().await.unwrap();
    let jobs = fetch_all(&second, 2).await;
    assert!(jobs.iter().all(|job| job.quarantine.is_none()));
    second.answer(echo(jobs)).await.unwrap();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert!(second.fetch(8).await.unwrap().is_empty(), "signs to wake");
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn the_backlog_of_a_revision_is_that_of_all_its_lanes() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let consumer = consumer(&server.endpoint(), "worker").await;
    let tasks = [Class::Priority(1), Class::Default, Class::Background]
        .map(|class| submit(&producer, of_class("body", class)));
    let jobs = fetch_all(&consumer, 3).await;
    let backlog = producer.backlog().await.unwrap();
    assert_eq!(backlog.revisions.keys().collect::<Vec<_>>(), [REVISION]);
    let all = &backlog.revisions[REVISION];
    assert_eq!((all.length, all.pending, all.bytes), (3, 3, 12));
    assert_eq!(all.consumers.len(), 1);
    consumer.answer(echo(jobs)).await.unwrap();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(
        producer.backlog().await.unwrap().revisions[REVISION].length,
        0
    );
}
