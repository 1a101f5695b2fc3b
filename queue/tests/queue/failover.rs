//! Failovers: another server becomes the primary, under load.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use carpool_queue::{Endpoint, Outcome, Producer, SubmitError};
use redis::{FromRedisValue, RedisResult, ToRedisArgs};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::{
    answer, consumer, echo, eventually, fetch, producer,
    relay::Relay,
    request,
    server::{Server, free_port},
    submit,
    tls::Authority,
    worker,
};

const NAME: &str = "queue";
const PRODUCERS: usize = 4;
const CLIENTS: usize = 8;
const WORKERS: usize = 3;

/// A process of Sentinel.
struct Sentinel {
    port: u16,
    process: Child,
    _folder: TempDir,
}

impl Sentinel {
    fn start(primary: u16, quorum: usize, more: &str) -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let file = folder.path().join("sentinel.conf");
        let configuration = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\n{more}\n\
             sentinel monitor {NAME} 127.0.0.1 {primary} {quorum}\n\
             sentinel down-after-milliseconds {NAME} 1000\n\
             sentinel failover-timeout {NAME} 4000\n",
            folder.path().display(),
        );
        std::fs::write(&file, configuration).unwrap();
        let mut process = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stdout.take().unwrap());
        let mut lines = log.lines().map_while(Result::ok);
        assert!(
            lines.any(|line| line.contains("+monitor")),
            "a sentinel did not start"
        );
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            port,
            process,
            _folder: folder,
        }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A primary, its replica and the sentinels of both.
struct Set {
    primary: Server,
    replica: Server,
    sentinels: Vec<Sentinel>,
}

impl Set {
    async fn start() -> Self {
        let (primary, replica) = pair().await;
        let sentinels = (0..3)
            .map(|_| Sentinel::start(primary.port, 2, ""))
            .collect();
        let set = Self {
            primary,
            replica,
            sentinels,
        };
        for sentinel in &set.sentinels {
            eventually(
                "the sentinels know the replica and each other",
                async || {
                    let info: String = ask(sentinel.port, &["INFO", "sentinel"]).await.unwrap();
                    info.contains("status=ok") && info.contains("slaves=1,sentinels=3")
                },
            )
            .await;
        }
        set
    }

    fn endpoint(&self) -> Endpoint {
        let sentinels: Vec<_> = self
            .sentinels
            .iter()
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.port))
            .collect();
        Endpoint::from_url(&format!("redis+sentinel://{}/{NAME}", sentinels.join(","))).unwrap()
    }
}

/// Starts a primary and a replica that has caught up.
async fn pair() -> (Server, Server) {
    // A replica that need not wait for others to come along is there at once.
    let primary = Server::start_with(["--repl-diskless-sync-delay", "0"]);
    let port = primary.port.to_string();
    let replica = Server::start_with(["--replicaof", "127.0.0.1", &port]);
    eventually("the replica has caught up", async || {
        let info: String = replica.ask(&["INFO", "replication"]).await;
        info.contains("master_link_status:up")
    })
    .await;
    (primary, replica)
}

async fn ask<T: FromRedisValue>(port: u16, command: &[impl ToRedisArgs]) -> RedisResult<T> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut request = redis::Cmd::new();
    request.arg(command);
    request.query_async(&mut connection).await
}

/// Whether a server says that it has this role. A sentinel cuts all connections to one that it demotes.
async fn is_a(role: &str, server: &Server) -> bool {
    let info: RedisResult<String> = ask(server.port, &["INFO", "replication"]).await;
    info.is_ok_and(|info| info.contains(&format!("role:{role}")))
}

/// Counts of the outcomes of numbered requests.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    sent: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
    answers: Mutex<HashMap<u64, u64>>,
}

impl Tally {
    fn answered(&self) -> usize {
        self.answers.lock().unwrap().len()
    }

    /// Sends one request after another; each holds its number, which its answer repeats.
    async fn client(&self, producer: &Producer) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.sent.fetch_add(1, Ordering::Relaxed);
            match producer.submit(request(number.to_string())).await {
                Ok(Outcome::Answer(body)) => {
                    let number = std::str::from_utf8(&body).unwrap().parse().unwrap();
                    *self.answers.lock().unwrap().entry(number).or_default() += 1;
                }
                Ok(Outcome::Failure(failure)) => panic!("{failure:?}"),
                Err(SubmitError::Unreachable { .. } | SubmitError::Full { .. }) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(_) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Sends numbered requests while `fail` makes the replica the primary.
async fn under_load(what: &str, servers: &mut Set, fail: impl AsyncFnOnce(&mut Set)) {
    let endpoint = servers.endpoint();
    for index in 0..WORKERS {
        worker(consumer(&endpoint, &format!("worker-{index}")).await);
    }
    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for index in 0..PRODUCERS {
        let producer = producer(&endpoint, &format!("proxy-{index}"));
        for _ in 0..CLIENTS {
            let (producer, tally) = (producer.clone(), tally.clone());
            clients.spawn(async move { tally.client(&producer).await });
        }
    }
    eventually("the load flows", async || tally.answered() > 500).await;
    let before = tally.answered();
    fail(servers).await;
    eventually("the servers have changed places", async || {
        is_a("master", &servers.replica).await
            && (!servers.primary.runs() || is_a("slave", &servers.primary).await)
    })
    .await;
    let after = tally.answered();
    eventually("the load flows again", async || {
        tally.answered() > after + 1000
    })
    .await;
    tally.stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let sent = tally.sent.load(Ordering::Relaxed);
    let refused = tally.refused.load(Ordering::Relaxed);
    let overdue = tally.lost.load(Ordering::Relaxed);
    let (accepted, answers) = (sent - refused, tally.answers.lock().unwrap());
    let answered = answers.len() as u64;
    let doubled = answers.values().filter(|count| **count > 1).count();
    let lost = accepted - answered;
    println!(
        "{what}: {accepted} accepted, {answered} answered ({before} before), {refused} refused, {lost} lost \
         ({overdue} of them overdue), {doubled} doubled"
    );
    assert_eq!((lost, overdue, doubled), (0, 0, 0), "{what}");
}

#[tokio::test]
async fn nothing_is_lost_when_the_primary_is_killed() {
    let mut servers = Set::start().await;
    under_load("the primary is killed", &mut servers, async |servers| {
        servers.primary.kill();
    })
    .await;
}

#[tokio::test]
async fn nothing_is_lost_when_the_replica_takes_over() {
    let mut servers = Set::start().await;
    under_load("FAILOVER", &mut servers, async |servers| {
        servers.primary.ask::<()>(&["FAILOVER"]).await;
    })
    .await;
}

#[tokio::test]
async fn nothing_is_lost_when_sentinels_are_told_to_fail_over() {
    let mut servers = Set::start().await;
    under_load("SENTINEL FAILOVER", &mut servers, async |servers| {
        let sentinel = servers.sentinels[0].port;
        // A sentinel refuses until it has heard from the replica itself.
        eventually("a sentinel begins", async || {
            let begun = ask::<()>(sentinel, &["SENTINEL", "FAILOVER", NAME]).await;
            begun.is_ok()
        })
        .await;
    })
    .await;
}

/// Makes the replica the primary, to which new connections are led. Those to the demoted server stay open, and it
/// answers reads as before.
async fn demote(old: &Server, new: &Server, relay: &Relay) {
    relay.lead_to(new.port);
    new.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    old.ask::<()>(&["REPLICAOF", "127.0.0.1", &new.port.to_string()])
        .await;
}

#[tokio::test]
async fn a_server_that_is_demoted_while_all_wait_in_it_is_left() {
    let (old, new) = pair().await;
    let relay = Relay::start(old.port).await;
    let producer = producer(&relay.endpoint(), "proxy");
    let working = worker(consumer(&relay.endpoint(), "worker").await);
    let before = producer.submit(request("before")).await;
    assert_eq!(before, Ok(answer("before")));
    eventually("both wait in Redis", async || old.blocked().await == 2).await;
    demote(&old, &new, &relay).await;
    let answered = async || producer.submit(request("after")).await == Ok(answer("after"));
    eventually("a request is accepted and answered", answered).await;
    eventually("both wait in the new primary", async || {
        new.blocked().await == 2
    })
    .await;
    working.abort();
}

/// The demoted server says so within its replies, and a read that blocks has only one.
#[tokio::test]
async fn a_worker_leaves_a_server_that_was_demoted_between_two_reads() {
    let (old, new) = pair().await;
    let relay = Relay::start(old.port).await;
    let consumer = consumer(&relay.endpoint(), "worker").await;
    // The fetch opens the connection that reads.
    let none = consumer.fetch_within(1, Duration::from_millis(1)).await;
    assert!(none.unwrap().is_empty());
    demote(&old, &new, &relay).await;
    let producer = producer(&relay.endpoint(), "proxy");
    let waiting = submit(&producer, request("x"));
    let mut jobs = Vec::new();
    eventually("the worker is given a request", async || {
        match consumer.fetch(1).await {
            Ok(found) => jobs = found,
            Err(error) => eprintln!("{error}"),
        }
        !jobs.is_empty()
    })
    .await;
    consumer.answer(echo(jobs)).await.unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(answer("x")));
}

/// The demoted server refuses to delete entries, but goes on to wait for more, which come to the new primary.
#[tokio::test]
async fn a_proxy_leaves_a_server_that_was_demoted_between_two_reads() {
    let (old, new) = pair().await;
    let relay = Relay::start(old.port).await;
    let producer = producer(&relay.endpoint(), "proxy");
    let consumer = consumer(&old.endpoint(), "worker").await;
    let waiting = submit(&producer, request("x"));
    let jobs = fetch(&consumer, 1).await;
    eventually("the proxy waits in Redis", async || {
        old.blocked().await == 1
    })
    .await;
    relay.hold();
    consumer.answer(echo(jobs)).await.unwrap();
    eventually("Redis has given it the answer", async || {
        old.blocked().await == 0
    })
    .await;
    eventually("the replica has the answer", async || {
        let acknowledged: i64 = old.ask(&["WAIT", "1", "100"]).await;
        acknowledged == 1
    })
    .await;
    demote(&old, &new, &relay).await;
    relay.let_go();
    assert_eq!(waiting.await.unwrap(), Ok(answer("x")));
    eventually("the proxy waits in the new primary", async || {
        new.blocked().await == 1
    })
    .await;
}

#[tokio::test]
async fn sentinels_are_asked_for_the_primary_over_tls() {
    let authority = Authority::new();
    let (port, sentinel_port) = (free_port(), free_port());
    let _primary = Server::start_with(authority.arguments(port));
    let arguments = authority.arguments(sentinel_port);
    let tls: Vec<_> = arguments
        .chunks(2)
        .map(|pair| pair.join(" ").trim_start_matches('-').to_owned())
        .collect();
    let _sentinel = Sentinel::start(port, 1, &format!("{}\ntls-replication yes", tls.join("\n")));
    let endpoint = |name: &str| {
        let url = format!("rediss+sentinel://127.0.0.1:{sentinel_port}/{name}");
        let file = authority.file("ca.crt");
        Endpoint::from_url(&url)
            .unwrap()
            .with_ca_file(std::path::Path::new(&file))
            .unwrap()
    };
    assert!(producer(&endpoint(NAME), "proxy").ping().await);
    assert!(!producer(&endpoint("unheard-of"), "proxy").ping().await);
}
