//! The artifact of a revision: the one that its first worker loaded.

use carpool_queue::{Consumer, ConsumerOptions, QueueError};

use crate::{
    REVISION, answer, echo, eventually, fetch, options, producer, request,
    server::{Server, key},
    submit,
};

const FIRST: &str = "a1a1a1";
const OTHER: &str = "b2b2b2";

async fn join(server: &Server, name: &str, artifact: &str) -> Result<Consumer, QueueError> {
    join_as(server, REVISION, name, artifact).await
}

async fn join_as(
    server: &Server,
    revision: &str,
    name: &str,
    artifact: &str,
) -> Result<Consumer, QueueError> {
    let options = ConsumerOptions {
        revision: revision.to_owned(),
        artifact: Some(artifact.to_owned()),
        ..options(name)
    };
    Consumer::connect(server.endpoint(), options).await
}

fn assert_refused(error: &QueueError, given: &str, by: &str) {
    assert!(
        matches!(error, QueueError::ArtifactChanged { revision, recorded, given: theirs }
            if revision == REVISION && recorded == by && theirs == given),
        "{error:?}"
    );
    let words = error.to_string();
    for part in [REVISION, given, by] {
        assert!(words.contains(part), "{words}");
    }
}

/// Returns the checksum that is recorded of a revision.
async fn recorded(server: &Server, revision: &str) -> Option<String> {
    let value: Option<String> = server.ask(&["HGET", &key("artifacts"), revision]).await;
    let (digest, since) = value.as_ref()?.split_once(' ')?;
    assert!(since.parse::<u64>().unwrap() > 1_600_000_000_000, "{since}");
    Some(digest.to_owned())
}

#[tokio::test]
async fn another_artifact_of_a_revision_is_refused_and_changes_nothing() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let first = join(&server, "first", FIRST).await.unwrap();
    let waiting = submit(&producer, request("x"));
    eventually("it is queued", async || server.length().await == 1).await;
    assert_refused(
        &join(&server, "other", OTHER).await.err().unwrap(),
        OTHER,
        FIRST,
    );
    let backlog = producer.backlog().await.unwrap();
    let workers = &backlog.revisions[REVISION].consumers;
    assert_eq!(workers.len(), 1, "{workers:?}");

    // The same artifact may join as often as it likes, and another one under another revision.
    let second = join(&server, "second", FIRST).await.unwrap();
    join_as(&server, "rev2", "other", OTHER).await.unwrap();
    let jobs = fetch(&second, 1).await;
    second.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
    drop(first);
}

#[tokio::test]
async fn the_record_outlives_the_last_worker() {
    let server = Server::start();
    let worker = join(&server, "first", FIRST).await.unwrap();
    worker.leave().await.unwrap();
    let stream: usize = server.ask(&["EXISTS", &crate::server::jobs()]).await;
    assert_eq!(stream, 0, "the last one takes the stream along");
    assert_refused(
        &join(&server, "woken", OTHER).await.err().unwrap(),
        OTHER,
        FIRST,
    );
    join(&server, "woken", FIRST).await.unwrap();
}

#[tokio::test]
async fn a_record_that_redis_lost_is_restored_by_the_workers_alive() {
    for lose in [
        &["FLUSHALL"][..],
        // The stream and its group are still there, so nothing else makes a worker join again.
        &["DEL", &key("artifacts")],
    ] {
        let server = Server::start();
        let worker = join(&server, "first", FIRST).await.unwrap();
        server.ask::<redis::Value>(lose).await;
        eventually("it is recorded again", async || {
            drop(worker.fetch(1).await);
            recorded(&server, REVISION).await.as_deref() == Some(FIRST)
        })
        .await;
        assert_refused(
            &join(&server, "other", OTHER).await.err().unwrap(),
            OTHER,
            FIRST,
        );
    }
}

#[tokio::test]
async fn of_two_artifacts_only_one_is_served_although_redis_lost_the_record() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let before = join(&server, "before", FIRST).await.unwrap();
    server.ask::<usize>(&["DEL", &key("artifacts")]).await;
    let after = join(&server, "after", OTHER).await.unwrap();
    eventually("the other one is told", async || {
        match before.fetch(1).await {
            Ok(_) => false,
            Err(error) => {
                assert_refused(&error, FIRST, OTHER);
                true
            }
        }
    })
    .await;
    let waiting = submit(&producer, request("x"));
    let jobs = fetch(&after, 1).await;
    after.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), answer("x"));
}

#[tokio::test]
async fn a_worker_under_load_is_told_too() {
    let server = Server::start();
    let producer = producer(&server.endpoint(), "proxy");
    let before = join(&server, "before", FIRST).await.unwrap();
    server.ask::<usize>(&["DEL", &key("artifacts")]).await;
    let _after = join(&server, "after", OTHER).await.unwrap();
    // Each read finds one request, and the next goes along with its answer.
    let mut waiting = vec![submit(&producer, request("x"))];
    let mut jobs = fetch(&before, 1).await;
    let give_up = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !jobs.is_empty() {
        assert!(tokio::time::Instant::now() < give_up, "it serves on");
        waiting.push(submit(&producer, request("x")));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        jobs = before.exchange(echo(jobs), 1).await.unwrap();
    }
    let error = loop {
        if let Err(error) = before.fetch(1).await {
            break error;
        }
    };
    assert_refused(&error, FIRST, OTHER);
    for waiting in waiting {
        waiting.abort();
    }
}

#[tokio::test]
async fn records_of_old_revisions_are_forgotten_those_longest_without_a_worker_first() {
    let server = Server::start();
    join(&server, "first", FIRST).await.unwrap();
    for index in 0..32 {
        let revision = format!("old{index}");
        join_as(&server, &revision, "w", OTHER).await.unwrap();
        if index == 30 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            // A revision that is used is not old.
            join(&server, "again", FIRST).await.unwrap();
        }
        if index == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    let records: usize = server.ask(&["HLEN", &key("artifacts")]).await;
    assert_eq!(records, 32);
    assert_eq!(recorded(&server, REVISION).await.as_deref(), Some(FIRST));
    assert_eq!(recorded(&server, "old0").await, None);
    // A forgotten revision may come back with whatever artifact it has then.
    join_as(&server, "old0", "w", FIRST).await.unwrap();
}
