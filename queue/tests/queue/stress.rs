//! Many proxies and many workers, some of which die.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
};

use crate::{answer, consumer, eventually, fetch, producer, request, server::Server, worker};

const REQUESTS: u32 = 6_000;
const PROXIES: usize = 3;
const WORKERS: usize = 4;

/// Returns a body that names its request and varies in size.
fn body(number: u32) -> Vec<u8> {
    number
        .to_le_bytes()
        .repeat(1 + (number % 97) as usize * usize::from(number.is_multiple_of(10)))
}

#[tokio::test]
async fn each_of_many_requests_is_answered_once_with_its_own_answer() {
    let server = Server::start();
    let producers: Vec<_> = (0..PROXIES)
        .map(|i| producer(&server.endpoint(), &format!("proxy-{i}")))
        .collect();
    let mut workers = Vec::new();
    for i in 0..WORKERS {
        workers.push(worker(
            consumer(&server.endpoint(), &format!("worker-{i}")).await,
        ));
    }
    // The doomed worker dies with the requests that it holds.
    let doomed = consumer(&server.endpoint(), "doomed").await;
    for producer in &producers {
        eventually("Redis is reached", async || producer.ping().await).await;
    }

    let answers = Arc::new(Mutex::new(HashMap::<u32, u32>::new()));
    let clients = Arc::new(Semaphore::new(200));
    let mut requests = JoinSet::new();
    for number in 0..REQUESTS {
        let producer = producers[number as usize % PROXIES].clone();
        let (answers, clients) = (answers.clone(), clients.clone());
        requests.spawn(async move {
            let _client = clients.acquire().await.unwrap();
            let answered = producer.submit(request(body(number))).await.unwrap();
            assert_eq!(answered, answer(body(number)));
            *answers.lock().await.entry(number).or_default() += 1;
        });
        if number == REQUESTS / 2 {
            // The await lets the others run, so that the doomed one gets hold of some.
            fetch(&doomed, 5).await;
        }
    }
    drop(doomed);
    while let Some(done) = requests.join_next().await {
        done.unwrap();
    }
    let answers = answers.lock().await;
    assert_eq!(answers.len(), REQUESTS as usize);
    assert!(answers.values().all(|count| *count == 1));
    for producer in &producers {
        assert_eq!(producer.in_flight(), 0);
    }
    eventually("nothing is left", async || {
        server.length().await == 0 && server.bytes().await == 0 && server.pending().await.is_empty()
    })
    .await;
    for worker in workers {
        worker.abort();
    }
}
