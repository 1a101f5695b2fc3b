//! A redis-server for one test.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use carpool_queue::Endpoint;
use prost::Message;
use redis::{FromRedisValue, ToRedisArgs, aio::MultiplexedConnection};
use tempfile::TempDir;

use crate::{REVISION, UID};

pub struct Server {
    pub port: u16,
    folder: TempDir,
    append_only: bool,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Server {
    /// Starts a server that keeps nothing on disk.
    pub fn start() -> Self {
        let mut server = Self::stopped(false);
        server.run();
        server
    }

    /// Starts a server with arguments of its own.
    pub fn start_with(arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut server = Self::stopped(false);
        server.arguments = arguments.into_iter().map(Into::into).collect();
        server.run();
        server
    }

    /// Returns a server that has a port but does not run yet.
    pub fn stopped(append_only: bool) -> Self {
        Self {
            port: free_port(),
            folder: tempfile::tempdir().unwrap(),
            append_only,
            arguments: Vec::new(),
            process: None,
        }
    }

    /// Starts the server and waits until it says that it is ready.
    pub fn run(&mut self) {
        let mut process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--port"])
            .arg(self.port.to_string())
            .args(["--appendonly", if self.append_only { "yes" } else { "no" }])
            .args(["--appendfsync", "always"])
            .args(&self.arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("these tests need redis-server (Debian package redis-server): {error}")
            });
        let log = BufReader::new(process.stdout.take().unwrap());
        let mut lines = log.lines().map_while(Result::ok);
        assert!(
            lines.any(|line| line.contains("Ready to accept connections")),
            "redis-server did not start"
        );
        // The server must not block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        self.process = Some(process);
    }

    /// Kills the server as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends the server a signal.
    pub fn signal(&self, signal: &str) {
        let process = self.process.as_ref().unwrap().id().to_string();
        let done = Command::new("kill").args(["-s", signal, &process]).status();
        assert!(done.unwrap().success());
    }

    /// Whether the server has been started and not killed.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::from_url(&format!("redis://127.0.0.1:{}", self.port)).unwrap()
    }

    /// Sends the server a command, past the queue.
    pub async fn ask<T: FromRedisValue>(&self, command: &[impl ToRedisArgs]) -> T {
        let mut connection: MultiplexedConnection =
            redis::Client::open(format!("redis://127.0.0.1:{}", self.port))
                .unwrap()
                .get_multiplexed_async_connection()
                .await
                .unwrap();
        let mut request = redis::Cmd::new();
        request.arg(command);
        request.query_async(&mut connection).await.unwrap()
    }

    pub async fn length(&self) -> usize {
        self.ask(&["XLEN", &jobs()]).await
    }

    /// Returns the bytes of request bodies that the scripts believe are held.
    pub async fn bytes(&self) -> i64 {
        self.ask(&["EVAL", "local n = 0 for _, b in ipairs(redis.call('HVALS', KEYS[1])) do n = n + b end return n", "1", &key("bytes")]).await
    }

    /// Returns the number of clients that wait in Redis.
    pub async fn blocked(&self) -> u32 {
        let clients: String = self.ask(&["INFO", "clients"]).await;
        clients
            .lines()
            .find_map(|line| line.strip_prefix("blocked_clients:")?.parse().ok())
            .unwrap()
    }

    pub async fn pending(&self) -> Vec<(String, String, u64, u64)> {
        self.ask(&["XPENDING", &jobs(), "workers", "-", "+", "1000"])
            .await
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The header of a request's entry.
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bytes = "vec", tag = "2")]
    uuid: Vec<u8>,
    #[prost(string, tag = "3")]
    to: String,
    #[prost(uint64, tag = "4")]
    ttl: u64,
    #[prost(uint32, tag = "5")]
    rows: u32,
}

/// A request of a proxy that died, `dead`, which does not wait for its answer.
pub struct Leftover {
    pub revision: &'static str,
    pub format: u32,
    pub ttl_ms: u64,
}

impl Default for Leftover {
    fn default() -> Self {
        Self {
            revision: REVISION,
            format: 2,
            ttl_ms: 60_000,
        }
    }
}

impl Leftover {
    /// Adds the request with a body of five bytes.
    pub async fn add(self, server: &Server) {
        let [stream, index] =
            ["jobs", "index"].map(|kind| key(&format!("{kind}:{}", self.revision)));
        let header = Header {
            format: self.format,
            uuid: vec![7; 16],
            to: "dead".to_owned(),
            ttl: self.ttl_ms,
            rows: 1,
        };
        let header = header.encode_to_vec();
        let fields: [&[u8]; 4] = [b"h", &header, b"b", b"12345"];
        let add: [&[u8]; 3] = [b"XADD", stream.as_bytes(), b"*"];
        let entry: String = server.ask(&[&add[..], &fields].concat()).await;
        let (added, _) = entry.split_once('-').unwrap();
        let expires = (added.parse::<u64>().unwrap() + self.ttl_ms).to_string();
        server
            .ask::<usize>(&["ZADD", &index, &expires, &entry])
            .await;
        server
            .ask::<i64>(&["HINCRBY", &key("bytes"), self.revision, "5"])
            .await;
    }
}

pub fn key(name: &str) -> String {
    format!("carpool:{{{UID}}}:{name}")
}

pub fn jobs() -> String {
    key(&format!("jobs:{REVISION}"))
}
