//! URLs in files that change while connections are open.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use carpool_queue::Endpoint;
use carpool_testkit::eventually;
use tempfile::TempDir;

use crate::{
    answer, consumer, producer, request,
    server::{Server, free_port},
    submit, worker,
};

/// A file with a URL, replaced as kubelets replace those of a Secret.
struct UrlFile {
    folder: TempDir,
}

impl UrlFile {
    fn new(url: &str) -> Self {
        let file = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        file.write(url);
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("url")
    }

    fn write(&self, url: &str) {
        let next = self.folder.path().join("next");
        fs::write(&next, url).unwrap();
        fs::rename(next, self.path()).unwrap();
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from_file(&self.path()).unwrap()
    }
}

fn url(password: &str, port: u16) -> String {
    format!("redis://:{password}@127.0.0.1:{port}")
}

/// Starts a server on a port that wants this password.
fn server(password: &str, port: u16) -> Server {
    let port = port.to_string();
    Server::start_with(["--requirepass", password, "--port", &port])
}

/// Asks a server that wants a password, past the queue.
async fn ask(url: &str, command: &[&str]) -> String {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut request = redis::Cmd::new();
    request.arg(command);
    request.query_async(&mut connection).await.unwrap()
}

/// The ids of the connections that the server has, but for the one that asks.
async fn connections(url: &str) -> BTreeSet<String> {
    let clients = ask(url, &["CLIENT", "LIST"]).await;
    let others = clients
        .lines()
        .filter(|line| !line.contains("cmd=client|list"));
    others
        .filter_map(|line| {
            line.strip_prefix("id=")?
                .split(' ')
                .next()
                .map(str::to_owned)
        })
        .collect()
}

#[tokio::test]
async fn a_changed_login_reaches_open_connections_once_it_works() {
    let port = free_port();
    let _server = server("one", port);
    let file = UrlFile::new(&url("one", port));
    let producer = producer(&file.endpoint(), "proxy");
    let working = worker(consumer(&file.endpoint(), "worker").await);
    let answers = async || {
        let outcome = producer.submit(request("x")).await;
        outcome.unwrap() == answer("x")
    };
    assert!(answers().await);
    let before = connections(&url("one", port)).await;
    assert!(before.len() >= 4, "two of each side: {before:?}");

    // The file is ahead of the server, which takes the password before for a while.
    file.write(&url("two", port));
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        assert!(answers().await, "what works is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(connections(&url("one", port)).await, before);

    let set = ask(&url("one", port), &["CONFIG", "SET", "requirepass", "two"]).await;
    assert_eq!(set, "OK");
    eventually("all connections are new", async || {
        assert!(answers().await, "none is lost on the way");
        let now = connections(&url("two", port)).await;
        now.len() >= 4 && !now.iter().any(|id| before.contains(id))
    })
    .await;
    working.abort();
}

#[tokio::test]
async fn a_server_that_comes_back_with_another_password_is_found_again() {
    let port = free_port();
    let mut old = server("one", port);
    let file = UrlFile::new(&url("one", port));
    let producer = producer(&file.endpoint(), "proxy");
    let open = submit(&producer, request("x"));
    eventually("it is queued", async || {
        producer
            .backlog()
            .await
            .is_ok_and(|b| b.revisions.len() == 1)
    })
    .await;
    old.kill();
    let _new = server("two", port);
    // Redis refuses the password for as long as a kubelet needs to bring the other one.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(producer.backlog().await.is_err());
    file.write(&url("two", port));
    let working = worker(consumer(&file.endpoint(), "worker").await);
    assert_eq!(open.await.unwrap().unwrap(), answer("x"));
    working.abort();
}

#[tokio::test]
async fn what_waits_in_a_queue_follows_the_url_to_another_server() {
    let (from, to) = (free_port(), free_port());
    let (_old, _new) = (server("one", from), server("two", to));
    let file = UrlFile::new(&url("one", from));
    let producer = producer(&file.endpoint(), "proxy");
    let open = submit(&producer, request("x"));
    eventually("it is queued", async || {
        producer
            .backlog()
            .await
            .is_ok_and(|b| b.revisions.len() == 1)
    })
    .await;
    file.write(&url("two", to));
    let working = worker(consumer(&file.endpoint(), "worker").await);
    assert_eq!(open.await.unwrap().unwrap(), answer("x"));
    working.abort();
}
