//! Child processes that never outlive this one.
//!
//! The children share a process group that a small shell leads. The shell waits for the end of its standard input,
//! which this process holds: however this one ends, SIGKILL included, the shell then ends the group. The group also
//! keeps a terminal's Ctrl-C away from the children, so that they are stopped in order.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::oneshot,
};

const GUARD: &str =
    "while read -r _; do :; done; trap '' TERM; kill -TERM 0; sleep 10; kill -KILL 0";

/// A reason why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program is neither beside `carpool` nor in `PATH`.
    #[error("failed to find {name} beside carpool or in PATH; {hint}")]
    Missing {
        /// The program's name.
        name: &'static str,
        /// Advice to the user.
        hint: &'static str,
    },
    /// The system refused to start it.
    #[error("failed to start {name}: {source}")]
    Start {
        /// The process's name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
}

/// Returns the path of a program: beside this one, or in `PATH`.
pub fn find(name: &'static str, hint: &'static str) -> Result<PathBuf, ProcessError> {
    let beside = std::env::current_exe()
        .and_then(|own| own.canonicalize())
        .ok()
        .and_then(|own| own.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or(ProcessError::Missing { name, hint })
}

/// The process group of all children and the shell that ends it with this process.
#[derive(Debug)]
pub struct Children {
    group: i32,
    guard: Child,
}

impl Children {
    /// Starts the shell that leads the group.
    pub fn new() -> Result<Self, ProcessError> {
        let start = |source| ProcessError::Start {
            name: "sh".to_owned(),
            source,
        };
        let guard = Command::new("sh")
            .args(["-c", GUARD])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let group = guard
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .ok_or_else(|| start(io::ErrorKind::NotFound.into()))?;
        Ok(Self { group, guard })
    }

    /// Ends the shell that leads the group, once every other child has ended.
    pub async fn close(mut self) {
        // The shell ends with this process in any case.
        let _ = self.guard.kill().await;
    }

    /// Starts a process. Returns a handle to stop it and a future that runs it to its end. Each line that it writes is
    /// passed to `on_line`.
    pub fn spawn<F: FnMut(&str) + Clone + Send + 'static>(
        &self,
        name: &str,
        mut command: Command,
        stdin: Stdio,
        on_line: F,
    ) -> Result<(Handle, impl Future<Output = Exit> + Send + use<F>), ProcessError> {
        let start = |source| ProcessError::Start {
            name: name.to_owned(),
            source,
        };
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(self.group)
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let pid = child
            .id()
            .ok_or_else(|| start(io::ErrorKind::NotFound.into()))?;
        let out = child.stdout.take();
        let err = child.stderr.take();
        let (stop, stopped) = oneshot::channel();
        let handle = Handle {
            pid,
            stop: Some(stop),
        };
        let ended = async move {
            let (status, out, err) = tokio::join!(
                wait_or_stop(child, stopped),
                lines(out, on_line.clone()),
                lines(err, on_line)
            );
            Exit {
                status,
                last_line: err.or(out),
            }
        };
        Ok((handle, ended))
    }
}

/// A handle to stop a process that runs.
#[derive(Debug)]
pub struct Handle {
    /// The process id.
    pub pid: u32,
    stop: Option<oneshot::Sender<Duration>>,
}

impl Handle {
    /// Sends SIGTERM and, if that has not ended it within `grace`, SIGKILL. A second call does nothing.
    pub fn stop(&mut self, grace: Duration) {
        if let Some(stop) = self.stop.take() {
            // A process that has just ended takes no message.
            let _ = stop.send(grace);
        }
    }

    /// Whether the process was told to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_none()
    }

    /// Returns a handle without a process.
    #[cfg(test)]
    pub fn of_nobody() -> Self {
        let (stop, _) = oneshot::channel();
        Self {
            pid: 0,
            stop: Some(stop),
        }
    }
}

/// The end of a process.
#[derive(Debug)]
pub struct Exit {
    /// The exit status, or why the system does not tell it.
    pub status: io::Result<ExitStatus>,
    /// The last line that the process wrote.
    pub last_line: Option<String>,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.status {
            // This program asks with SIGTERM first, and a process that the kernel kills can't say why.
            Ok(status) if status.signal() == Some(Signal::KILL.as_raw()) => f.write_str(
                "killed by SIGKILL: probably out of memory; free some, or lower spec.scaling.maxReplicas or \
                 spec.batching.maxBatchSize",
            )?,
            Ok(status) => write!(f, "{status}")?,
            Err(error) => write!(f, "{error}")?,
        }
        match &self.last_line {
            Some(line) => write!(f, "; it said: {line}"),
            None => Ok(()),
        }
    }
}

async fn wait_or_stop(
    mut child: Child,
    stop: oneshot::Receiver<Duration>,
) -> io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        Ok(grace) = stop => {
            terminate(&child);
            if let Ok(status) = tokio::time::timeout(grace, child.wait()).await {
                return status;
            }
            child.start_kill()?;
        }
    }
    child.wait().await
}

/// Sends SIGTERM. The id stands for this child as long as nobody has waited for it.
fn terminate(child: &Child) {
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // The process may have ended already, which is all that is asked for.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Passes lines on until the stream ends, and returns the last one.
async fn lines(
    stream: Option<impl AsyncRead + Unpin>,
    mut on_line: impl FnMut(&str),
) -> Option<String> {
    let mut stream = BufReader::new(stream?);
    let mut last = None;
    let mut line = Vec::new();
    while let Ok(1..) = stream.read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !text.is_empty() {
            on_line(&text);
            last = Some(text);
        }
        line.clear();
    }
    last
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_process_tells_how_it_ended_and_what_it_said() {
        let children = Children::new().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&said);
        let (_handle, ended) = children
            .spawn(
                "test",
                shell("echo out; sleep 0.1; echo bad >&2; exit 3"),
                Stdio::null(),
                move |line| {
                    listener.lock().unwrap().push(line.to_owned());
                },
            )
            .unwrap();
        let ended = ended.await;
        assert_eq!(ended.status.as_ref().unwrap().code(), Some(3));
        assert_eq!(ended.to_string(), "exit status: 3; it said: bad");
        assert_eq!(*said.lock().unwrap(), ["out", "bad"]);
    }

    #[tokio::test]
    async fn a_process_that_was_killed_hints_at_memory() {
        let children = Children::new().unwrap();
        let killed = shell("echo loading; kill -KILL $$");
        let (_handle, ended) = children
            .spawn("test", killed, Stdio::null(), |_| ())
            .unwrap();
        let ended = ended.await.to_string();
        assert!(
            ended.starts_with("killed by SIGKILL: probably out of memory; "),
            "{ended}"
        );
        assert!(ended.ends_with("; it said: loading"), "{ended}");
    }

    #[tokio::test]
    async fn a_process_is_asked_first_and_killed_after_its_grace() {
        let children = Children::new().unwrap();
        for (script, grace, code) in [
            (
                "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done",
                30,
                Some(7),
            ),
            (
                "trap '' TERM; echo up; while :; do sleep 0.05; done",
                0,
                None,
            ),
        ] {
            let (up, is_up) = oneshot::channel();
            let up = Arc::new(Mutex::new(Some(up)));
            let (mut handle, ended) = children
                .spawn("test", shell(script), Stdio::null(), move |_| {
                    up.lock().unwrap().take().map(|up| up.send(()));
                })
                .unwrap();
            let ended = tokio::spawn(ended);
            is_up.await.unwrap();
            assert!(!handle.is_stopping());
            handle.stop(Duration::from_secs(grace));
            assert!(handle.is_stopping());
            assert_eq!(ended.await.unwrap().status.unwrap().code(), code);
        }
    }

    #[tokio::test]
    async fn when_the_guard_loses_its_parent_the_group_ends() {
        let mut children = Children::new().unwrap();
        let (_handle, ended) = children
            .spawn("test", shell("sleep 600"), Stdio::null(), |_| ())
            .unwrap();
        drop(children.guard.stdin.take());
        let ended = ended.await;
        assert!(!ended.status.unwrap().success());
    }

    #[test]
    fn programs_are_found_or_named() {
        assert!(find("sh", "").unwrap().is_file());
        assert_eq!(
            find("no-such-program", "install it")
                .unwrap_err()
                .to_string(),
            "failed to find no-such-program beside carpool or in PATH; install it"
        );
    }
}
