//! A real Redis, real worker processes and a real producer.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use carpool_crds::Config;
use carpool_protocol::{InferRequest, InferResponse};
use carpool_queue::{Endpoint, Failure, Limits, Outcome, Producer, RevisionBacklog, Submit};
use carpool_testkit::RedisServer;
use futures::future::join_all;
use serde_json::Value;
use tokio::{sync::mpsc as channel, task::JoinHandle, time::Instant};

pub const REVISION: &str = "r1";

/// A Redis of the test's own.
pub struct Redis(RedisServer);

impl Redis {
    pub fn start() -> Self {
        Self(RedisServer::start())
    }

    /// Sends the process a signal: `STOP` makes it silent, connections and all, until `CONT`.
    pub fn signal(&self, signal: &str) {
        self.0.signal(signal);
    }

    pub fn producer(&self) -> Producer {
        let limits = Limits {
            max_length: 10_000,
            max_bytes: 1 << 30,
            max_request_bytes: 4 << 20,
            lease: Duration::from_secs(5),
            result_ttl: Duration::from_mins(1),
            window: 32,
        };
        Producer::start(
            Endpoint::from_url(&self.0.url()).unwrap(),
            "uid",
            "proxy",
            limits,
        )
        .unwrap()
    }
}

/// A model in a folder, with the configuration that serves it.
pub struct Served {
    pub folder: tempfile::TempDir,
    pub config: PathBuf,
}

/// Writes a configuration as the operator does, whose strings are quoted where they must be; `model` and `rest` are YAML.
pub fn served(model: &str, rest: &str, write: impl Fn(&Path)) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let artifact = folder.path().join("artifact");
    std::fs::create_dir(&artifact).unwrap();
    write(&artifact);
    let config = folder.path().join("config.yaml");
    let indented = model.trim().replace('\n', "\n    ");
    let text = format!(
        "name: m\nnamespace: n\nuid: uid\nserving: {REVISION}\ndevice: cpu\nmodels:\n  {REVISION}:\n    {indented}\n{rest}\n"
    );
    let parsed: Config = serde_yaml::from_str(&text).unwrap();
    std::fs::write(&config, serde_yaml::to_string(&parsed).unwrap()).unwrap();
    Served { folder, config }
}

impl Served {
    pub fn artifact(&self) -> PathBuf {
        self.folder.path().join("artifact")
    }

    /// The command `carpool-worker COMMAND` with the arguments that both commands need.
    pub fn command(&self, command: &str) -> Command {
        let mut worker = Command::new(env!("CARGO_BIN_EXE_carpool-worker"));
        worker
            .args([
                command,
                "--log-format",
                "json",
                "--revision",
                REVISION,
                "--config",
            ])
            .arg(&self.config);
        worker
    }

    pub fn serve(&self, redis: &Redis, name: &str) -> Command {
        let mut worker = self.command("serve");
        worker
            .args([
                "--redis-url",
                &redis.0.url(),
                "--name",
                name,
                "--admin-listen",
                "127.0.0.1:0",
                "--model",
            ])
            .arg(self.artifact())
            .args(["--threads", "1"]);
        worker
    }

    /// Starts a worker and waits until it serves.
    pub fn worker(&self, redis: &Redis, name: &str) -> Worker {
        Worker::start(self.serve(redis, name))
    }
}

/// A worker's process.
pub struct Worker {
    process: Child,
    log: mpsc::Receiver<Value>,
    pub admin: SocketAddr,
}

impl Worker {
    /// Starts a worker by this command and waits until it serves.
    pub fn start(command: Command) -> Self {
        let worker = Self::launch(command);
        worker.logged("serving");
        worker
    }

    /// Starts a worker by this command and waits until its admin port listens.
    pub fn launch(mut command: Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = mpsc::channel();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(entry) = serde_json::from_str::<Value>(&line) else {
                    panic!("the worker wrote {line}");
                };
                if sender.send(entry["fields"].clone()).is_err() {
                    break;
                }
            }
        });
        let mut worker = Worker {
            process,
            log,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let listening = worker.logged("listening");
        worker.admin = listening["address"].as_str().unwrap().parse().unwrap();
        worker
    }

    /// Waits for a message in the worker's log; gives the message's fields.
    pub fn logged(&self, message: &str) -> Value {
        loop {
            let fields = self.log.recv_timeout(Duration::from_mins(1)).unwrap();
            if fields["message"] == message {
                return fields;
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, signal: &str) {
        carpool_testkit::signal(self.process.id(), signal);
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    /// The admin port's answer to GET: the status and the body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.ask("GET", path);
        (status, body)
    }

    /// The name under which its admin port answers.
    pub fn name(&self) -> String {
        let head = self.ask("GET", "/readyz").1;
        let name = head
            .lines()
            .find_map(|line| line.strip_prefix("carpool-name: "));
        name.unwrap().to_owned()
    }

    /// The admin port's answer: the status, the head and the body.
    pub fn ask(&self, method: &str, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            head.to_owned(),
            body.to_owned(),
        )
    }

    /// The value of one of the worker's metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, metrics) = self.get("/metrics");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}"))
            .parse()
            .unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Queues a request and waits for a worker's answer.
pub async fn submit(producer: &Producer, request: &InferRequest) -> Result<InferResponse, Failure> {
    let rows = u32::try_from(request.inputs[0].shape[0]).unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let submit = Submit::new(Arc::from(REVISION), request.encode(), rows, deadline);
    match producer.submit(submit).await.unwrap() {
        Outcome::Answer(answer) => Ok(InferResponse::decode(answer).unwrap()),
        Outcome::Failure(failure) => Err(failure),
    }
}

/// Waits until the queue is in a state.
async fn backlog(producer: &Producer, reached: impl Fn(&RevisionBacklog) -> bool) {
    let there = async || {
        producer
            .backlog()
            .await
            .unwrap()
            .revisions
            .get(REVISION)
            .is_some_and(&reached)
    };
    while !there().await {}
}

/// Waits until the queue holds so many requests.
pub async fn queued(producer: &Producer, count: u64) {
    backlog(producer, |queued| queued.length >= count).await;
}

/// Waits until workers hold so many requests.
pub async fn held(producer: &Producer, count: u64) {
    backlog(producer, |queued| queued.pending >= count).await;
}

/// Requests that are not yet answered.
pub struct Open {
    pub tasks: Vec<JoinHandle<Result<InferResponse, Failure>>>,
    answered: channel::UnboundedReceiver<()>,
}

impl Open {
    pub fn submit(producer: &Producer, requests: &[InferRequest]) -> Self {
        let (done, answered) = channel::unbounded_channel();
        let tasks = requests
            .iter()
            .cloned()
            .map(|request| {
                let (producer, done) = (producer.clone(), done.clone());
                tokio::spawn(async move {
                    let answer = submit(&producer, &request).await;
                    done.send(()).unwrap();
                    answer
                })
            })
            .collect();
        Self { tasks, answered }
    }

    /// Submits requests and makes sure that they are in the queue. No worker must run.
    pub async fn queued(producer: &Producer, requests: &[InferRequest]) -> Self {
        let open = Self::submit(producer, requests);
        queued(producer, u64::try_from(requests.len()).unwrap()).await;
        open
    }

    /// Waits until one request is answered.
    pub async fn first(&mut self) {
        self.answered.recv().await.unwrap();
    }

    /// Waits until all requests are answered.
    pub async fn all(self) -> Vec<Result<InferResponse, Failure>> {
        join_all(self.tasks)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect()
    }
}
