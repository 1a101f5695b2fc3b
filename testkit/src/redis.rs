//! A redis-server for one test.

use std::{
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{free_port, signal};

/// The words of Redis's log once clients may connect.
const READY: &str = "Ready to accept connections";

/// A redis-server on a loopback port that keeps nothing on disk, unless its arguments say otherwise. Dropped, it is
/// killed.
#[derive(Debug)]
pub struct RedisServer {
    /// The port, also while no process runs.
    pub port: u16,
    program: PathBuf,
    arguments: Vec<String>,
    folder: TempDir,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a server.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with([""; 0])
    }

    /// Starts a server with more arguments.
    #[must_use]
    pub fn start_with(arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut server = Self::stopped(arguments);
        server.run();
        server
    }

    /// Starts a server on a given port.
    #[must_use]
    pub fn start_at(port: u16) -> Self {
        let mut server = Self::stopped([""; 0]);
        server.port = port;
        server.run();
        server
    }

    /// Returns a server that has a port but does not run yet.
    #[must_use]
    pub fn stopped(arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            port: free_port(),
            program: "redis-server".into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            folder: tempfile::tempdir().unwrap(),
            process: None,
        }
    }

    /// Takes another program in place of the `redis-server` of `PATH`.
    #[must_use]
    pub fn with_program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Starts its process and waits until it takes connections.
    pub fn run(&mut self) {
        self.try_run()
            .unwrap_or_else(|error| panic!("{error} (Debian package redis-server)"));
    }

    /// Does what [`run`](Self::run) does, where the caller has something to say about a failure.
    pub fn try_run(&mut self) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command
            .args(["--bind", "127.0.0.1", "--save", "", "--port"])
            .arg(self.port.to_string())
            .args(&self.arguments)
            .current_dir(self.folder.path());
        self.process = Some(spawn_until(&mut command, READY)?);
        Ok(())
    }

    /// Kills its process as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends its process a signal by its short name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        signal(self.process.as_ref().unwrap().id(), name);
    }

    /// Whether the server has been started and not killed.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The URL of its database 0.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The folder that the server writes to.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a process and waits until a line of its standard output holds `words`; later lines are thrown away.
pub fn spawn_until(command: &mut Command, words: &str) -> io::Result<Child> {
    let program = PathBuf::from(command.get_program());
    let failed = |error: &dyn std::fmt::Display| {
        io::Error::other(format!("failed to start {}: {error}", program.display()))
    };
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let output = process.stdout.take().ok_or_else(|| failed(&"no output"))?;
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    if !lines.any(|line| line.contains(words)) {
        let status = process.wait()?;
        return Err(failed(&format!("{status} before it said {words:?}")));
    }
    // A process blocks on a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Ok(process)
}
