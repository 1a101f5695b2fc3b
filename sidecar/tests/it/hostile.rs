//! Clients that mean harm, or are as slow as if they did. After each of them an ordinary request is answered, and the
//! process holds little more memory than before.

use std::{
    net::SocketAddr,
    process::{Child, Command},
    time::Duration,
};

use carpool_protocol::{Datatype, InferRequest, Tensor};
use carpool_queue::{Endpoint, Job, Outcome};
use carpool_testkit::{RedisServer, free_port};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::AbortHandle,
    time::timeout,
};

use crate::{
    client::{get, post, send, until},
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, frame, head, header, parse, preface,
    },
    rig::{INFER, config, pair, pairs},
    worker,
};

/// The bytes that an attack sends, if it is let.
const FLOOD: usize = 32 << 20;

/// The bytes that the process may grow by: less than any flood, and more than what it needs for its first requests.
const GROWTH: usize = 24 << 20;

/// The time after which a server that takes nothing more counts as one that has stopped reading.
const BLOCKED: Duration = Duration::from_secs(1);

/// A proxy in a process of its own, with its Redis and a worker that echoes.
struct Target {
    process: Child,
    address: SocketAddr,
    admin: SocketAddr,
    worker: AbortHandle,
    before: usize,
    _redis: RedisServer,
    _folder: TempDir,
}

impl Target {
    async fn start(config: &Value) -> Self {
        Self::start_with(config, worker::echo).await
    }

    async fn start_with(
        config: &Value,
        model: impl Fn(&Job, InferRequest) -> Outcome + Send + 'static,
    ) -> Self {
        let redis = RedisServer::start();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let [address, admin] =
            [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let process = Command::new(env!("CARGO_BIN_EXE_carpool-sidecar"))
            .env_clear()
            .args(["--name", "p1", "--redis-url", &redis.url()])
            .args(["--listen", &address.to_string()])
            .args(["--admin-listen", &admin.to_string()])
            .arg("--config")
            .arg(file)
            .spawn()
            .unwrap();
        until(async || TcpStream::connect(admin).await.map(drop).ok()).await;
        let endpoint = Endpoint::from_url(&redis.url()).unwrap();
        let worker = tokio::spawn(worker::work(endpoint, "r1", model)).abort_handle();
        let mut target = Self {
            process,
            address,
            admin,
            worker,
            before: 0,
            _redis: redis,
            _folder: folder,
        };
        target.serves().await;
        target.before = target.memory("VmRSS:");
        target
    }

    async fn serves(&self) {
        until(async || {
            let answer = send(post(self.address, INFER, pair())).await;
            answer.status.is_success().then_some(())
        })
        .await;
    }

    /// A line of the process's memory, in bytes.
    fn memory(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kibibytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kibibytes << 10
    }

    /// Checks that an ordinary request is answered, and that the process has never held much.
    async fn survives(&self) {
        let answer = send(post(self.address, INFER, pair())).await;
        answer.ok().unwrap();
        let grown = self.memory("VmHWM:").saturating_sub(self.before);
        assert!(grown < GROWTH, "the process grew by {} KiB", grown >> 10);
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The value of a metric without labels, whose name ends in a space.
    async fn metric(&self, name: &str) -> u64 {
        let metrics = send(get(self.admin, "/metrics")).await.body;
        let mut lines = str::from_utf8(&metrics).unwrap().lines();
        let value = lines.find_map(|line| line.strip_prefix(name));
        value.unwrap().parse().unwrap()
    }

    /// Waits until no request is open.
    async fn is_idle(&self) {
        until(async || {
            let open = self.metric("carpool_proxy_open_requests ").await;
            (open == 0).then_some(())
        })
        .await;
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.worker.abort();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes `begin` and then one part after another without reading, until all of a flood is written, the server takes
/// nothing more, or it has closed the connection.
async fn flood(client: &mut TcpStream, begin: &[u8], mut part: impl FnMut(u32) -> Vec<u8>) {
    client.write_all(begin).await.unwrap();
    let (mut written, mut number) = (0, 0);
    while written < FLOOD {
        let mut parts = Vec::new();
        while parts.len() < 64 << 10 {
            parts.extend(part(number));
            number += 1;
        }
        match timeout(BLOCKED, client.write_all(&parts)).await {
            Ok(Ok(())) => written += parts.len(),
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// The frames that a server sends until it closes the connection.
async fn told(client: &mut TcpStream) -> Vec<(u8, u32, Vec<u8>)> {
    let mut bytes = Vec::new();
    // A reset ends it as well, and may come before what was sent.
    let end = timeout(Duration::from_secs(20), client.read_to_end(&mut bytes));
    let _ = end.await.expect("the connection is to be closed");
    parse(&bytes)
}

/// Whether one of the frames closes the connection for too much of something: `ENHANCE_YOUR_CALM`.
fn is_calmed(frames: &[(u8, u32, Vec<u8>)]) -> bool {
    frames
        .iter()
        .any(|(kind, _, payload)| *kind == GOAWAY && payload[4..8] == 11_u32.to_be_bytes())
}

#[tokio::test]
async fn heads_that_come_byte_by_byte() {
    let target = Target::start(&config(&pairs())).await;
    let mut clients = Vec::new();
    for number in 0..200 {
        let mut client = target.connect().await;
        // Half of them have been answered before.
        if number % 2 == 0 {
            let asked = b"GET /v2/health/live HTTP/1.1\r\nhost: m\r\n\r\n";
            client.write_all(asked).await.unwrap();
        }
        clients.push(client);
    }
    for byte in b"POST /v2/models/m/infer HTTP/1.1\r\nhost: m\r\nx: " {
        for client in &mut clients {
            client.write_all(&[*byte]).await.unwrap();
        }
    }
    // Each may fill the buffer of a head, and no more: then the server closes.
    let rest = vec![b'x'; 256 << 10];
    for client in &mut clients {
        let _ = timeout(BLOCKED, client.write_all(&rest)).await;
    }
    target.survives().await;
}

#[tokio::test]
async fn heads_without_end() {
    let target = Target::start(&config(&pairs())).await;
    let begin = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: m\r\n";
    let many = |number: u32| format!("x-{number}: x\r\n").into_bytes();
    let huge = |number: u32| match number {
        0 => b"x: ".to_vec(),
        _ => vec![b'x'; 1024],
    };
    for kind in ["many", "huge"] {
        let mut client = target.connect().await;
        match kind {
            "many" => flood(&mut client, begin, many).await,
            _ => flood(&mut client, begin, huge).await,
        }
        let mut answer = Vec::new();
        let end = timeout(BLOCKED * 20, client.read_to_end(&mut answer));
        // Bytes that were not read may make it a reset before the answer is read.
        let _ = end.await.expect("the connection is to be closed");
        target.survives().await;
    }
    // A head that is only a little too large is told.
    for header in [
        format!("x: {}\r\n", "x".repeat(64 << 10)),
        "x: x\r\n".repeat(101),
    ] {
        let mut client = target.connect().await;
        let asked = format!("GET /v2 HTTP/1.1\r\nhost: m\r\n{header}\r\n");
        client.write_all(asked.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 431 "), "{answer:?}");
    }
    let mut client = target.connect().await;
    let asked = format!(
        "GET /v2 HTTP/1.1\r\nhost: m\r\nx: {}\r\nconnection: close\r\n\r\n",
        "x".repeat(60 << 10)
    );
    client.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{answer:?}");
}

#[tokio::test]
async fn heads_without_end_by_http2() {
    let target = Target::start(&config(&pairs())).await;
    // CVE-2024-27316.
    let mut client = target.connect().await;
    let mut begin = preface(&[]);
    begin.extend(frame(HEADERS, 0, 1, &head("GET", "/v2")));
    let value = [b'x'; 1024];
    flood(&mut client, &begin, |number| {
        frame(CONTINUATION, 0, 1, &header(&format!("x-{number}"), &value))
    })
    .await;
    told(&mut client).await;
    target.survives().await;

    // Heads that are whole and too large are refused, each for itself.
    let mut client = target.connect().await;
    client.write_all(&preface(&[])).await.unwrap();
    for stream in [1, 3] {
        let mut block = head("GET", "/v2");
        for number in 0..70 {
            block.extend(header(&format!("x-{number}"), &value));
        }
        let parts: Vec<&[u8]> = block.chunks(16 << 10).collect();
        for (index, part) in parts.iter().enumerate() {
            let kind = if index == 0 { HEADERS } else { CONTINUATION };
            let begins = if index == 0 { END_STREAM } else { 0 };
            let ends = if index + 1 == parts.len() {
                END_HEADERS
            } else {
                0
            };
            let flags = begins | ends;
            client
                .write_all(&frame(kind, flags, stream, part))
                .await
                .unwrap();
        }
    }
    let mut bytes = vec![0; 16 << 10];
    let mut read = 0;
    until_frames(&mut client, &mut bytes, &mut read, |frames| {
        [1, 3].iter().all(|stream| {
            frames
                .iter()
                .any(|(kind, of, _)| of == stream && (*kind == HEADERS || *kind == RST_STREAM))
        })
    })
    .await;
    target.survives().await;
}

/// Reads until the frames that a server sent are what is wanted.
async fn until_frames(
    client: &mut TcpStream,
    bytes: &mut [u8],
    read: &mut usize,
    wanted: impl Fn(&[(u8, u32, Vec<u8>)]) -> bool,
) {
    let reading = async {
        while !wanted(&parse(&bytes[..*read])) {
            let more = client.read(&mut bytes[*read..]).await.unwrap();
            assert!(more > 0, "closed after {:?}", parse(&bytes[..*read]));
            *read += more;
        }
    };
    timeout(Duration::from_secs(20), reading).await.unwrap();
}

#[tokio::test]
async fn streams_that_are_reset_as_soon_as_they_are_opened() {
    let target = Target::start(&config(&pairs())).await;
    // CVE-2023-44487.
    let mut client = target.connect().await;
    let block = head("POST", INFER);
    let cancel = 8_u32.to_be_bytes();
    flood(&mut client, &preface(&[]), |number| {
        let stream = number * 2 + 1;
        let mut both = frame(HEADERS, END_HEADERS, stream, &block);
        both.extend(frame(RST_STREAM, 0, stream, &cancel));
        both
    })
    .await;
    told(&mut client).await;
    target.is_idle().await;
    target.survives().await;

    // Streams that the client makes the server reset, by a mistake in each.
    let mut client = target.connect().await;
    flood(&mut client, &preface(&[]), |number| {
        let stream = number * 2 + 1;
        let mut both = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
        // A window that is increased by nothing is an error of its stream.
        both.extend(frame(WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes()));
        both
    })
    .await;
    told(&mut client).await;
    target.is_idle().await;
    target.survives().await;
}

#[tokio::test]
async fn frames_that_cost_nothing() {
    let target = Target::start(&config(&pairs())).await;
    let begin = preface(&[]);
    let mut opened = begin.clone();
    opened.extend(frame(HEADERS, END_HEADERS, 1, &head("POST", INFER)));
    let setting = [&4_u16.to_be_bytes()[..], &65535_u32.to_be_bytes()].concat();
    // The client never reads, so that answers to these would pile up.
    for (begin, part) in [
        (&begin, frame(PING, 0, 0, &[7; 8])),
        (&begin, frame(SETTINGS, 0, 0, &[])),
        (&begin, frame(SETTINGS, 0, 0, &setting)),
        (&opened, frame(DATA, 0, 1, &[])),
        (&opened, frame(CONTINUATION, 0, 1, &[])),
        (&begin, frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        // A frame of no known kind.
        (&begin, frame(0xf0, 0, 0, &[7; 8])),
    ] {
        let mut client = target.connect().await;
        flood(&mut client, begin, |_| part.clone()).await;
        target.survives().await;
    }
    target.is_idle().await;
}

#[tokio::test]
async fn more_streams_than_are_allowed() {
    let target = Target::start(&config(&pairs())).await;
    target.worker.abort();
    let mut client = target.connect().await;
    let mut bytes = preface(&[]);
    let block = head("POST", INFER);
    let body = pair().to_string();
    for number in 0..1000_u32 {
        let stream = number * 2 + 1;
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &block));
        bytes.extend(frame(DATA, END_STREAM, stream, body.as_bytes()));
    }
    client.write_all(&bytes).await.unwrap();
    // Streams beyond the limit are refused or end the connection; in no case are there more.
    let mut bytes = vec![0; 1 << 20];
    let mut read = 0;
    let refused = 7_u32.to_be_bytes();
    until_frames(&mut client, &mut bytes, &mut read, |frames| {
        let refusals = frames
            .iter()
            .filter(|(kind, _, payload)| *kind == RST_STREAM && payload[..] == refused);
        refusals.count() == 600 || is_calmed(frames)
    })
    .await;
    let backlog = send(get(target.admin, "/backlog")).await.json();
    assert!(backlog["open"].as_u64().unwrap() <= 400, "{backlog}");
    drop(client);
    target.is_idle().await;
}

/// A model whose answers are of any length.
fn lists() -> Value {
    let mut model = pairs();
    for tensors in ["inputs", "outputs"] {
        model[tensors][0]["shape"] = json!([-1]);
    }
    model
}

/// Answers with some hundred kilobytes, whatever is asked.
fn at_length(_: &Job, _: InferRequest) -> Outcome {
    let bytes = vec![0; 1 << 18];
    let tensor = Tensor::new("x", Datatype::Fp32, [1, 1 << 16], bytes).unwrap();
    worker::answer(vec![tensor])
}

#[tokio::test]
async fn answers_that_nobody_reads() {
    let mut config = config(&lists());
    config["queue"]["maxBytes"] = json!("4Mi");
    let target = Target::start_with(&config, at_length).await;
    let mut clients = Vec::new();
    // By HTTP/2 the window for answers is closed: nothing may be sent.
    for _ in 0..5 {
        let mut client = target.connect().await;
        let mut bytes = preface(&[(4, 0)]);
        for number in 0..100_u32 {
            let stream = number * 2 + 1;
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &head("POST", INFER)));
            let body = pair().to_string();
            bytes.extend(frame(DATA, END_STREAM, stream, body.as_bytes()));
        }
        client.write_all(&bytes).await.unwrap();
        clients.push(client);
    }
    // By HTTP/1.1 they are asked for one after another.
    for _ in 0..4 {
        let mut client = target.connect().await;
        client
            .write_all(whole().repeat(64).as_bytes())
            .await
            .unwrap();
        clients.push(client);
    }
    target.is_idle().await;
    // The bound, and of each client one answer, of 4 bytes an element.
    let held = target.metric("carpool_proxy_unread_answers_bytes ").await;
    assert!((1..(4 << 20) + 9 * 300_000).contains(&held), "{held}");
    let answer = send(post(target.address, INFER, pair())).await;
    answer.ok().unwrap();
    drop(clients);
    until(async || {
        let held = target.metric("carpool_proxy_unread_answers_bytes ").await;
        (held == 0).then_some(())
    })
    .await;
}

/// A request whose answer is of two numbers.
fn whole() -> String {
    let body = pair().to_string();
    let length = body.len();
    format!("POST {INFER} HTTP/1.1\r\nhost: m\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn a_client_that_shuts_its_side_is_answered_and_one_that_is_gone_is_not_waited_for() {
    let rig = crate::rig::Rig::start(config(&pairs())).await;
    let mut client = TcpStream::connect(rig.address).await.unwrap();
    client.write_all(whole().as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    rig.length("r1", 1).await;
    // The interim answer, for which those that are gone have none, comes at once.
    let mut interim = [0; 25];
    client.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    let gone = {
        let mut client = TcpStream::connect(rig.address).await.unwrap();
        client.write_all(whole().as_bytes()).await.unwrap();
        client
    };
    rig.length("r1", 2).await;
    drop(gone);
    rig.length("r1", 1).await;
    rig.echo();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("[1.5,-2.0]"), "{answer}");
    rig.measures(r#"carpool_proxy_requests_total{route="infer",code="499"} 1"#)
        .await;

    // A client of HTTP/1.0 must not be sent an interim answer, so its shut side is its end.
    let mut client = TcpStream::connect(rig.address).await.unwrap();
    let old = "GET /v2 HTTP/1.0\r\nhost: m\r\n\r\n";
    client.write_all(old.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.contains("100 Continue"), "{answer}");
}

#[tokio::test]
async fn a_client_that_shuts_its_side_reads_a_long_answer_to_its_end() {
    let mut config = config(&lists());
    config["queue"]["maxRequestBytes"] = json!("32Mi");
    let rig = crate::rig::Rig::start(config).await;
    rig.echo();
    let length = 2 << 20;
    let mut body =
        format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,{length}],"data":["#);
    body.push_str(&vec!["1.5"; length].join(","));
    body.push_str("]}]}");
    let head = format!(
        "POST {INFER} HTTP/1.1\r\nhost: m\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = TcpStream::connect(rig.address).await.unwrap();
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(body.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    // The answer is more than the system's buffers hold, and waits.
    rig.measures(r#"carpool_proxy_requests_total{route="infer",code="200"} 1"#)
        .await;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (_, answer) = answer.split_once("HTTP/1.1 200 OK\r\n").unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let answer: Value = serde_json::from_str(body).unwrap();
    let data = answer["outputs"][0]["data"].as_array().unwrap();
    assert_eq!(data.len(), length);
}
