//! `carpool local` as a child process, and its output.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use carpool_testkit::cache;
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::Notify,
};

const PATIENCE: Duration = Duration::from_mins(1);

fn pid(process: u64) -> Pid {
    Pid::from_raw(i32::try_from(process).unwrap()).unwrap()
}

/// Sends a process SIGKILL.
pub fn kill(process: u64) {
    kill_process(pid(process), Signal::KILL).unwrap();
}

/// Returns those of these processes that still exist.
pub fn alive(processes: &[u64]) -> Vec<u64> {
    let exists = |process: &&u64| test_kill_process(pid(**process)).is_ok();
    processes.iter().filter(exists).copied().collect()
}

/// A manifest of a model in a folder of its own.
pub struct Manifest {
    folder: tempfile::TempDir,
    name: &'static str,
}

impl Manifest {
    /// Writes a manifest of the digits model with more lines of `spec` or, deeper indented, of `spec.model`.
    pub fn new(rest: &str) -> Self {
        Self::named("digits", rest)
    }

    /// Writes the same manifest under another name.
    pub fn named(name: &'static str, rest: &str) -> Self {
        let manifest = Self {
            folder: tempfile::tempdir().unwrap(),
            name,
        };
        manifest.write(rest);
        manifest
    }

    /// Writes a manifest of this text.
    pub fn holding(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manifest = Self {
            folder,
            name: "held",
        };
        std::fs::write(manifest.path(), text).unwrap();
        manifest
    }

    /// Replaces the lines that follow the model's own.
    pub fn write(&self, rest: &str) {
        let artifact = cache().join("models/digits/artifact");
        assert!(
            artifact.exists(),
            "there is no model at {}: run examples/digits/build",
            artifact.display()
        );
        let text = format!(
            "apiVersion: carpool.dev/v1alpha1
kind: BatchedModel
metadata: {{name: {}}}
spec:
  model:
    uri: file://{}
    inputs: [{{name: image, datatype: FP32, shape: [1, 8, 8]}}]
    outputs: [{{name: logits, datatype: FP32, shape: [10]}}]
{rest}",
            self.name,
            artifact.display()
        );
        std::fs::write(self.path(), text).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.yaml")
    }
}

/// The lines that a process has written.
#[derive(Default)]
struct Output {
    lines: Mutex<Vec<String>>,
    more: Notify,
}

impl Output {
    fn listen(self: &Arc<Self>, stream: impl AsyncRead + Unpin + Send + 'static) {
        let output = Arc::clone(self);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                println!("{line}");
                output.lines.lock().unwrap().push(line);
                output.more.notify_waiters();
            }
        });
    }

    /// Waits for the first line that contains `part`.
    async fn find(&self, part: &str) -> String {
        let found = async {
            loop {
                let more = self.more.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                let lines = self.lines.lock().unwrap().clone();
                if let Some(line) = lines.into_iter().find(|line| line.contains(part)) {
                    return line;
                }
                more.await;
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .unwrap_or_else(|_| panic!("nobody said {part:?}"))
    }
}

/// A client of the model.
#[derive(Clone)]
pub struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Client {
    /// Sends one image. Returns the status and the answer.
    pub async fn infer(&self) -> (u16, Value) {
        let image = json!({"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": vec![0; 64]});
        self.post("digits", &json!({"inputs": [image]})).await
    }

    /// Sends a request to a model. Returns the status and the answer.
    pub async fn post(&self, model: &str, body: &Value) -> (u16, Value) {
        let request = Request::post(format!("{}/v2/models/{model}/infer", self.url))
            .header("content-type", "application/json")
            .body(body.to_string().into())
            .unwrap();
        let response = self.http.request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }
}

/// A running `carpool local`.
pub struct Local {
    child: Child,
    out: Arc<Output>,
    err: Arc<Output>,
    client: Option<Client>,
    status_file: PathBuf,
}

impl Local {
    /// Starts `carpool local` on a free port.
    pub fn start(manifest: &Manifest) -> Self {
        Self::start_all(&[manifest])
    }

    /// Starts `carpool local` with several models.
    pub fn start_all(manifests: &[&Manifest]) -> Self {
        let carpool = Path::new(env!("CARGO_BIN_EXE_carpool"));
        for beside in ["carpool-sidecar", "carpool-worker"] {
            let file = carpool.with_file_name(beside);
            assert!(
                file.exists(),
                "there is no {}: run hack/build",
                file.display()
            );
        }
        // The process starts with a low soft limit of open files, as most shells have one.
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -S -n 256; exec \"$0\" \"$@\""])
            .arg(carpool)
            .args(["local", "--http", "localhost:0"])
            .args(manifests.iter().map(|manifest| manifest.path()))
            .env_remove("CARPOOL_REDIS_URL")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (out, err) = (Arc::<Output>::default(), Arc::<Output>::default());
        out.listen(child.stdout.take().unwrap());
        err.listen(child.stderr.take().unwrap());
        Self {
            child,
            out,
            err,
            client: None,
            status_file: PathBuf::new(),
        }
    }

    /// Waits until the digits model is loaded.
    pub async fn ready(&mut self) {
        self.ready_as("digits").await;
    }

    /// Waits until the model of this name is loaded.
    pub async fn ready_as(&mut self, name: &str) {
        let line = self.out.find(&format!("{name}: http")).await;
        self.client = Some(Client {
            http: HttpClient::builder(TokioExecutor::new()).build_http(),
            url: line.split_once(": ").unwrap().1.to_owned(),
        });
        let line = self.out.find("status: ").await;
        self.status_file = line.split_once("status: ").unwrap().1.into();
        self.says("the model is loaded").await;
        self.out.find("try:    curl http").await;
    }

    /// Waits until `carpool local` says this on standard error, and returns the whole line.
    pub async fn says(&self, part: &str) -> String {
        self.err.find(part).await
    }

    /// A client of the model.
    pub fn client(&self) -> Client {
        self.client.clone().unwrap()
    }

    /// Sends one image.
    pub async fn infer(&self) -> (u16, Value) {
        self.client().infer().await
    }

    /// The content of the model's status file.
    pub fn status(&self) -> Value {
        serde_json::from_slice(&std::fs::read(&self.status_file).unwrap()).unwrap()
    }

    /// The temporary folder of the run.
    pub fn folder(&self) -> PathBuf {
        self.status_file
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .to_owned()
    }

    /// The ids of the children that run this program.
    pub fn running(&self, program: &str) -> Vec<u64> {
        let mut processes = self.processes();
        processes.retain(|process| {
            let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
            name.is_ok_and(|name| name.trim() == program)
        });
        processes
    }

    /// The ids of all children.
    pub fn processes(&self) -> Vec<u64> {
        let own = format!("PPid:\t{}", self.child.id().unwrap());
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| {
                let entry = entry.unwrap();
                let process = entry.file_name().to_str()?.parse().ok()?;
                // The process may have ended since.
                let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
                status.lines().any(|line| line == own).then_some(process)
            })
            .collect()
    }

    /// The limits of open files that the process has: the soft one and the hard one.
    pub fn open_files(&self) -> [String; 2] {
        let limits = format!("/proc/{}/limits", self.child.id().unwrap());
        let limits = std::fs::read_to_string(limits).unwrap();
        let files = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .unwrap();
        let mut files = files.split_whitespace().map(str::to_owned);
        [files.next().unwrap(), files.next().unwrap()]
    }

    /// Sends `carpool local` SIGTERM.
    pub fn terminate(&self) {
        kill_process(pid(self.child.id().unwrap().into()), Signal::TERM).unwrap();
    }

    /// Sends `carpool local` SIGKILL.
    pub fn kill(&self) {
        kill(self.child.id().unwrap().into());
    }

    /// Waits for the end of `carpool local`.
    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .expect("it ends")
            .unwrap()
    }
}
