//! The cluster as a user meets it: through `kubectl` and `helm`.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root")
        .to_owned()
}

/// Runs a command and returns its output, or everything one needs to see why it failed.
pub fn run(program: &str, arguments: &[&str], stdin: &[u8]) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{program} {}: {error}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut pipe = child.stdin.take().expect("stdin is piped");
    let input = stdin.to_vec();
    let writer = thread::spawn(move || pipe.write_all(&input));
    let output = child.wait_with_output().map_err(failed)?;
    // A command that fails early closes its end first; its own message says more.
    let _ = writer.join().expect("the writer does not panic");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(stdout)
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{program} {}: {}\n{stdout}{stderr}",
            arguments.join(" "),
            output.status
        ))
    }
}

/// Calls `check` until it gives a value, or fails the test with its last error.
pub fn eventually<T>(within: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + within;
    loop {
        match check() {
            Ok(value) => return value,
            Err(error) if Instant::now() > end => panic!("not within {within:?}: {error}"),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// A namespace of one test, deleted with this value.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates `carpool-test-NAME` where the `restricted` Pod Security Standard is enforced.
    pub fn create(name: &str) -> Self {
        let name = format!("carpool-test-{name}");
        run(
            "kubectl",
            &[
                "delete",
                "namespace",
                &name,
                "--ignore-not-found",
                "--timeout=120s",
            ],
            b"",
        )
        .unwrap();
        run("kubectl", &["create", "namespace", &name], b"").unwrap();
        run(
            "kubectl",
            &[
                "label",
                "namespace",
                &name,
                "pod-security.kubernetes.io/enforce=restricted",
            ],
            b"",
        )
        .unwrap();
        Self { name }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn try_kubectl(&self, arguments: &[&str], stdin: &[u8]) -> Result<String, String> {
        run(
            "kubectl",
            &[&["--namespace", &self.name], arguments].concat(),
            stdin,
        )
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments, b"").unwrap()
    }

    pub fn apply(&self, manifest: &str) {
        self.try_kubectl(&["apply", "--server-side", "-f", "-"], manifest.as_bytes())
            .unwrap();
    }

    pub fn get(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[&["get", "-o", "json"], arguments].concat())).unwrap()
    }

    /// Returns the objects of a kind that carry a label.
    pub fn list(&self, kind: &str, selector: &str) -> Vec<Value> {
        match self.get(&[kind, "--selector", selector])["items"].take() {
            Value::Array(items) => items,
            other => panic!("no list of {kind}: {other}"),
        }
    }

    /// Returns the name of every object of every kind, events left out.
    pub fn objects(&self) -> BTreeSet<String> {
        let kinds = run(
            "kubectl",
            &[
                "api-resources",
                "--namespaced",
                "--verbs=list",
                "--output=name",
            ],
            b"",
        )
        .unwrap();
        let kinds: Vec<&str> = kinds
            .lines()
            .filter(|kind| !kind.starts_with("events"))
            .collect();
        let names = self.kubectl(&["get", &kinds.join(","), "--output=name"]);
        names.lines().map(str::to_owned).collect()
    }

    pub fn wait(&self, object: &str, condition: &str, timeout: &str) {
        let arguments = [
            "wait",
            object,
            &format!("--for={condition}"),
            &format!("--timeout={timeout}"),
        ];
        if let Err(error) = self.try_kubectl(&arguments, b"") {
            panic!("{error}\n{}", self.describe());
        }
    }

    /// Starts a watch of a kind: every version of every object, in order.
    pub fn watch(&self, kind: &str) -> Watch {
        Watch::start(&self.name, kind)
    }

    /// Returns everything that says why a test failed in this namespace.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for arguments in [
            &["get", "bm,deploy,sts,pods,pvc", "-o", "wide"][..],
            &["get", "bm", "-o", "yaml"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "--selector=app.kubernetes.io/name=carpool",
                "--all-containers",
                "--tail=15",
                "--prefix",
            ],
        ] {
            let _ = writeln!(text, "--- kubectl {}", arguments.join(" "));
            text += &self
                .try_kubectl(arguments, b"")
                .unwrap_or_else(|error| error);
        }
        text
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.describe());
        }
        let deleted = run(
            "kubectl",
            &["delete", "namespace", &self.name, "--timeout=120s"],
            b"",
        );
        if !thread::panicking() {
            deleted.unwrap();
        }
    }
}

/// The events of a watch.
pub struct Watch {
    child: Child,
    seen: Arc<Mutex<Vec<(Instant, Value)>>>,
}

impl Watch {
    /// Starts a watch of a kind in any namespace: every version of every object, in order.
    pub fn start(namespace: &str, kind: &str) -> Self {
        let mut child = Command::new("kubectl")
            .args([
                "--namespace",
                namespace,
                "get",
                kind,
                "--watch",
                "--output=json",
                "--output-watch-events",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let sink = Arc::clone(&seen);
        thread::spawn(move || {
            let events = serde_json::Deserializer::from_reader(output).into_iter::<Value>();
            for event in events.map_while(Result::ok) {
                sink.lock().unwrap().push((Instant::now(), event));
            }
        });
        Self { child, seen }
    }

    /// Returns every event so far: `type` and `object`.
    pub fn events(&self) -> Vec<(Instant, Value)> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the JSON lines of a file or a log.
pub fn lines(text: &str) -> impl Iterator<Item = Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
}

/// Returns a file's text.
pub fn read(path: &Path) -> String {
    let file =
        std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    BufReader::new(file)
        .lines()
        .map_while(Result::ok)
        .fold(String::new(), |text, line| text + &line + "\n")
}

/// Returns a manifest as a value.
pub fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}
