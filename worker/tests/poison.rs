//! A model that ends its process on one input: real processes end by SIGSEGV and are started again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "helpers belong to the tests"
)]

use std::{
    os::unix::process::ExitStatusExt,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use carpool_protocol::InferRequest;
use carpool_queue::FailureKind;
use common::{
    CRASHING, POISON, floats, numbers,
    serving::{Redis, Served, held, served, submit},
};
use futures::future::join_all;
use tokio::{process::Command, task::JoinHandle};

mod common;

/// A worker that is started again whenever it ends, as a kubelet does the first time, and the ends so far.
struct Supervised {
    ends: Arc<Mutex<Vec<Option<i32>>>>,
    task: JoinHandle<()>,
}

impl Supervised {
    fn start(served: &Served, redis: &Redis, name: &str) -> Self {
        let ends = Arc::<Mutex<Vec<_>>>::default();
        let task = tokio::spawn({
            let (served, ends) = (served.serve(redis, name), Arc::clone(&ends));
            async move {
                let mut command = Command::from(served);
                command.stderr(Stdio::null()).kill_on_drop(true);
                loop {
                    let end = command.spawn().unwrap().wait().await.unwrap();
                    ends.lock().unwrap().push(end.signal());
                }
            }
        });
        Self { ends, task }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// 32 requests with the poison among them.
fn requests(poison_at: usize) -> Vec<InferRequest> {
    let mut requests: Vec<_> = (0..32).map(|index| numbers(&[index as f32; 4])).collect();
    requests.insert(poison_at, numbers(&[0.0, POISON, 0.0, 0.0]));
    requests
}

#[tokio::test]
async fn what_ends_the_process_fails_alone_and_all_around_it_are_answered() {
    // The delay makes one batch of all requests.
    let (redis, served) = (
        Redis::start(),
        served(
            CRASHING,
            "batching: {maxBatchSize: 64, maxDelay: 500ms}\nqueue: {}",
            common::write_crashing,
        ),
    );
    let producer = redis.producer();
    // The second worker has been started and waits, so that loading does not count.
    let worker = Supervised::start(&served, &redis, "w");
    submit(&producer, &numbers(&[1.0; 4])).await.unwrap();
    let sent = Instant::now();
    let poison_at = 16;
    let requests = requests(poison_at);
    let answers = join_all(requests.iter().map(async |request| {
        let answer = submit(&producer, request).await;
        (answer, sent.elapsed())
    }));
    let (answers, ()) = tokio::join!(answers, held(&producer, 33));
    let ends = worker.ends.lock().unwrap().clone();
    let mut slowest = Duration::ZERO;
    for (index, (answer, took)) in answers.into_iter().enumerate() {
        println!("request {index}: {answer:?} after {took:?}");
        if index == poison_at {
            let failure = answer.unwrap_err();
            assert_eq!(failure.kind, FailureKind::TooManyDeliveries);
            assert_eq!(
                failure.message,
                "workers died each of the 3 times they ran this request"
            );
        } else {
            slowest = slowest.max(took);
            let number = (index - usize::from(index > poison_at)) as f32;
            assert_eq!(floats(&answer.unwrap().outputs[0]), [2.0 * number; 4]);
        }
    }
    println!("the slowest neighbour was answered after {slowest:?}");
    let segv = Some(11);
    assert_eq!(ends, [segv, segv, segv], "as often as it may, no more");
    // A request that comes after finds a worker that serves.
    let after = submit(&producer, &numbers(&[3.0; 4])).await.unwrap();
    assert_eq!(floats(&after.outputs[0]), [6.0; 4]);
}
