//! Jobs: requests that nobody waits for.

use std::time::Duration;

use carpool_queue::{
    Class, Consumer, Failure, FailureKind, JobName, JobState, Limits, Outcome, Producer, Submit,
    SubmitError, Submitted,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    FOREVER, UID, answer, consumer, echo, eventually, fetch, fetch_all, leased, limits, options,
    producer, request,
    server::{Server, key},
    submit,
};

async fn submitted(producer: &Producer, body: &str) -> Uuid {
    let new = producer
        .submit_job(request(body.to_owned()), b"note", None)
        .await
        .unwrap();
    assert!(new.is_new);
    new.uuid
}

async fn state(producer: &Producer, uuid: Uuid) -> JobState {
    producer.job(uuid, Instant::now()).await.unwrap().state
}

fn later() -> Instant {
    Instant::now() + FOREVER
}

async fn serve(consumer: &Consumer, count: usize) {
    let jobs = fetch_all(consumer, count).await;
    consumer.answer(echo(jobs)).await.unwrap();
}

#[tokio::test]
async fn a_job_is_queued_then_runs_and_is_done_and_any_proxy_tells() {
    let server = Server::start();
    let (proxy, other) = (
        producer(&server.endpoint(), "proxy"),
        producer(&server.endpoint(), "other"),
    );
    let [first, second] = [
        submitted(&proxy, "first").await,
        submitted(&proxy, "second").await,
    ];
    assert_eq!(
        state(&other, first).await,
        JobState::Queued {
            ahead: 0,
            wait: None
        }
    );
    assert_eq!(
        state(&other, second).await,
        JobState::Queued {
            ahead: 1,
            wait: None
        }
    );
    let consumer = consumer(&server.endpoint(), "worker").await;
    let jobs = fetch(&consumer, 1).await;
    assert_eq!(
        (&*jobs[0].body, jobs[0].id.class()),
        (&b"first"[..], Class::Background)
    );
    assert_eq!(state(&other, first).await, JobState::Running);
    consumer.answer(echo(jobs)).await.unwrap();
    let view = other.job(first, Instant::now()).await.unwrap();
    assert_eq!(
        (view.state, &*view.note),
        (JobState::Done(answer("first")), &b"note"[..])
    );
    assert!(
        matches!(
            state(&other, second).await,
            JobState::Queued {
                ahead: 0,
                wait: Some(_)
            }
        ),
        "by the first it is known how long one takes"
    );
    assert_eq!(state(&proxy, Uuid::nil()).await, JobState::Unknown);
    serve(&consumer, 1).await;
    assert_eq!(
        state(&proxy, second).await,
        JobState::Done(answer("second"))
    );
}

#[tokio::test]
async fn a_job_outlives_the_proxy_that_took_it_and_the_worker_that_had_it() {
    let server = Server::start();
    let proxy = producer(&server.endpoint(), "proxy");
    let uuid = submitted(&proxy, "job").await;
    proxy.shutdown(Duration::ZERO).await;
    drop(proxy);
    let dead = consumer(&server.endpoint(), "dead").await;
    assert_eq!(fetch(&dead, 1).await.len(), 1);
    drop(dead);
    let other = producer(&server.endpoint(), "other");
    let second = leased(&server.endpoint(), "worker", crate::LEASE).await;
    serve(&second, 1).await;
    assert_eq!(state(&other, uuid).await, JobState::Done(answer("job")));
}

#[tokio::test]
async fn who_waits_for_a_job_is_told_when_it_is_done() {
    let server = Server::start();
    let proxy = producer(&server.endpoint(), "proxy");
    let uuids = [submitted(&proxy, "a").await, submitted(&proxy, "b").await];
    let waiting = uuids.map(|uuid| {
        let proxy = producer(&server.endpoint(), "other");
        tokio::spawn(async move { proxy.job(uuid, later()).await.unwrap().state })
    });
    eventually("both wait in Redis", async || server.blocked().await >= 4).await;
    let consumer = consumer(&server.endpoint(), "worker").await;
    serve(&consumer, 2).await;
    for (waiting, expected) in waiting.into_iter().zip(["a", "b"]) {
        assert_eq!(waiting.await.unwrap(), JobState::Done(answer(expected)));
    }
    let soon = Instant::now() + Duration::from_millis(20);
    let open = submitted(&proxy, "c").await;
    assert!(proxy.job(open, soon).await.unwrap().state.is_open());
}

#[tokio::test]
async fn a_request_of_the_same_name_is_the_same_job() {
    let server = Server::start();
    let proxy = producer(&server.endpoint(), "proxy");
    let other = producer(&server.endpoint(), "other");
    let name = |name: &str, digest: &str| {
        Some(JobName {
            name: name.to_owned(),
            digest: digest.to_owned(),
        })
    };
    let submit = async |proxy: &Producer, name| proxy.submit_job(request("job"), b"", name).await;
    let first = submit(&proxy, name("order {7}", "1")).await.unwrap();
    let again = submit(&other, name("order {7}", "1")).await.unwrap();
    assert_eq!(
        again,
        Submitted {
            uuid: first.uuid,
            is_new: false
        }
    );
    assert_eq!(
        submit(&other, name("order {7}", "2")).await,
        Err(SubmitError::NameTaken)
    );
    let another = submit(&other, name("order 8", "1")).await.unwrap();
    assert_ne!(another.uuid, first.uuid);
    let consumer = consumer(&server.endpoint(), "worker").await;
    serve(&consumer, 2).await;
    let again = submit(&other, name("order {7}", "1")).await.unwrap();
    assert!(!again.is_new);
    assert_eq!(
        state(&proxy, again.uuid).await,
        JobState::Done(answer("job"))
    );
}

#[tokio::test]
async fn a_cancelled_job_does_not_run_and_gets_no_answer() {
    let server = Server::start();
    let proxy = producer(&server.endpoint(), "proxy");
    let [waiting, fetched, done] = [
        submitted(&proxy, "waiting").await,
        submitted(&proxy, "fetched").await,
        submitted(&proxy, "done").await,
    ];
    assert_eq!(
        proxy.cancel_job(waiting).await.unwrap().state,
        JobState::Cancelled
    );
    let consumer = consumer(&server.endpoint(), "worker").await;
    let jobs = fetch_all(&consumer, 2).await;
    assert_eq!(
        proxy.cancel_job(fetched).await.unwrap().state,
        JobState::Cancelled
    );
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(state(&proxy, fetched).await, JobState::Cancelled);
    let too_late = proxy.cancel_job(done).await.unwrap().state;
    assert_eq!(too_late, JobState::Done(answer("done")));
    assert_eq!(
        proxy.cancel_job(Uuid::nil()).await.unwrap().state,
        JobState::Unknown
    );
    assert_eq!(server.bytes().await, 4, "the one result");
}

#[tokio::test]
async fn a_failure_is_kept_and_what_expired_or_is_lost_is_told_apart() {
    let server = Server::start();
    let proxy = producer(&server.endpoint(), "proxy");
    let failed = submitted(&proxy, "fails").await;
    let consumer = consumer(&server.endpoint(), "worker").await;
    let failure = Outcome::Failure(Failure {
        kind: FailureKind::Model,
        message: "no".to_owned(),
    });
    let jobs = fetch(&consumer, 1).await;
    let answers = jobs.into_iter().map(|job| (job.id, failure.clone()));
    consumer.answer(answers.collect()).await.unwrap();
    assert_eq!(state(&proxy, failed).await, JobState::Done(failure));

    let brief = Submit {
        deadline: Instant::now() + Duration::from_millis(50),
        ..request("brief")
    };
    let expired = proxy.submit_job(brief, b"", None).await.unwrap().uuid;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(consumer.fetch(1).await.unwrap().is_empty());
    eventually("a worker drops it", async || {
        let _ = consumer.fetch_within(1, Duration::from_millis(10)).await;
        matches!(
            state(&proxy, expired).await,
            JobState::Done(Outcome::Failure(Failure {
                kind: FailureKind::Expired,
                ..
            }))
        )
    })
    .await;

    let lost = submitted(&proxy, "lost").await;
    let lanes: Vec<String> = server
        .ask(&["KEYS", &key("index:*~b.*").replace(['{', '}'], "?")])
        .await;
    for index in lanes {
        server.ask::<u64>(&["DEL", &index]).await;
    }
    assert_eq!(state(&proxy, lost).await, JobState::Lost);
}

#[tokio::test]
async fn large_bodies_and_answers_come_whole_and_expire() {
    let server = Server::start();
    let proxy = producer(&server.endpoint(), "proxy");
    let mut options = options("worker");
    options.limits.result_ttl = Duration::from_millis(300);
    let consumer = Consumer::connect(server.endpoint(), options).await.unwrap();
    let large = "x".repeat(100_000);
    let uuid = submitted(&proxy, &large).await;
    serve(&consumer, 1).await;
    assert_eq!(state(&proxy, uuid).await, JobState::Done(answer(large)));
    assert_eq!(server.bytes().await, 100_000);
    eventually("the result expires and counts no more", async || {
        state(&proxy, uuid).await == JobState::Unknown && server.bytes().await == 0
    })
    .await;
    let keys: Vec<String> = server.ask(&["KEYS", "*"]).await;
    let left = |kind: &str| keys.iter().any(|key| key.contains(kind));
    assert!(
        !left("}:answer:") && !left("}:body:") && !left("}:job:"),
        "{keys:?}"
    );
}

#[tokio::test]
async fn jobs_leave_half_of_the_bytes_to_others() {
    let server = Server::start();
    let limits = Limits {
        max_bytes: 1000,
        ..limits()
    };
    let proxy = Producer::start(server.endpoint(), UID, "proxy", limits).unwrap();
    let job = async |size: usize| proxy.submit_job(request(vec![0; size]), b"", None).await;
    job(300).await.unwrap();
    assert!(matches!(job(201).await, Err(SubmitError::Full { .. })));
    job(200).await.unwrap();
    let live = submit(&proxy, request(vec![1; 500]));
    eventually("the rest is for others", async || {
        server.bytes().await == 1000
    })
    .await;
    let consumer = consumer(&server.endpoint(), "worker").await;
    let mut left = 3;
    while left > 0 {
        let jobs = fetch(&consumer, 3).await;
        left -= jobs.len();
        let answers = jobs.into_iter().map(|job| (job.id, answer("1234567890")));
        consumer.answer(answers.collect()).await.unwrap();
    }
    live.await.unwrap().unwrap();
    assert_eq!(server.bytes().await, 20, "two results");
}
