//! The processes of one model: which are started, which are stopped, and what the end of one means.

use std::{os::fd::OwnedFd, process::Stdio, time::Instant};

use carpool_scaling::backlog::RevisionBacklog;
use tokio::process::Command;

use super::{Child, PROXY_GRACE, Served, WORKER_GRACE};
use crate::{
    LocalError,
    process::Exit,
    restart::{Crash, decide},
    supervised::{Running, Supervised},
};

impl Served {
    /// Brings the number of workers to `replicas`. The workers that go are those that lose least.
    pub(super) fn scale_to(&mut self, replicas: u32, queue: Option<&RevisionBacklog>) {
        let replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
        while self.wanted() < replicas {
            let Some(slot) = (0..u32::MAX).find(|slot| !self.workers.contains_key(slot)) else {
                return;
            };
            self.workers.insert(slot, Supervised::new(Instant::now()));
        }
        while self.wanted() > replicas {
            // Workers that don't run go first, then idle ones, then the youngest.
            let leaves = self
                .workers
                .iter()
                .filter(|(_, worker)| !worker.is_stopping())
                .min_by_key(|(slot, worker)| {
                    let idle = |name| queue.is_some_and(|queue| queue.is_idle(name));
                    let busy = worker
                        .running()
                        .map_or(0, |running| 2 - u32::from(idle(&running.name)));
                    (busy, std::cmp::Reverse(**slot))
                })
                .map(|(slot, _)| *slot);
            let Some(slot) = leaves else { return };
            match self
                .workers
                .get_mut(&slot)
                .and_then(Supervised::running_mut)
            {
                Some(running) => running.handle.stop(WORKER_GRACE),
                None => drop(self.workers.remove(&slot)),
            }
        }
    }

    /// Starts every process that is due.
    pub(super) fn start_due(&mut self) -> Result<(), LocalError> {
        let now = Instant::now();
        if self.proxy.is_due(now) && !self.stopping {
            self.proxies_started += 1;
            // A proxy's name is part of its replies' key, and answers to an earlier proxy are not for the next.
            let name = format!("{}-proxy-{}", self.manifest.name, self.proxies_started);
            let mut command = Command::new(&self.shared.programs.sidecar);
            command.args(["--listen", "stdin"]);
            if let Some(folder) = &self.shared.tls_dir {
                command.arg("--tls-dir").arg(folder);
            }
            if let Some(listener) = &self.listener {
                let socket = listener.try_clone().map_err(|source| LocalError::Pass {
                    name: name.clone(),
                    source,
                })?;
                let socket = Stdio::from(OwnedFd::from(socket));
                let running = self.start(Child::Proxy, name, command, socket)?;
                self.proxy.started(running);
            }
        }
        let due: Vec<u32> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.is_due(now))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in due {
            let name = format!("{}-worker-{slot}", self.manifest.name);
            let log = self.files.clear_termination_log(slot)?;
            let mut command = Command::new(&self.shared.programs.worker);
            // Threads of a forward pass that wait sleep: spinning, they would take the cores from the other processes.
            command.env("OMP_WAIT_POLICY", "passive");
            command.args(["serve", "--revision", &self.revision]);
            command.arg("--model").arg(&self.manifest.artifact);
            command.arg("--termination-log").arg(log);
            let running = self.start(Child::Worker(slot), name, command, Stdio::null())?;
            if let Some(worker) = self.workers.get_mut(&slot) {
                worker.started(running);
            }
        }
        Ok(())
    }

    fn start(
        &mut self,
        child: Child,
        name: String,
        mut command: Command,
        stdin: Stdio,
    ) -> Result<Running, LocalError> {
        // Only the process that listens on a port knows that nobody else does, so it chooses the port and tells it.
        let address_file = self.files.clear_address(&name)?;
        command.args(["--name", &name]);
        command.args(["--admin-listen", "127.0.0.1:0"]);
        command.arg("--admin-address-file").arg(&address_file);
        command.arg("--config").arg(&self.files.config);
        command
            .arg("--redis-url-file")
            .arg(&self.shared.redis_url_file);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        // The process writes to a pipe, not to a terminal.
        command.env("NO_COLOR", "1");
        let console = self.shared.console.clone();
        let prefix = name.clone();
        let on_line = move |line: &str| console.say(format_args!("{prefix}: {line}"));
        let spawned = self.shared.children.spawn(&name, command, stdin, on_line);
        let (handle, exit) = spawned?;
        self.children.spawn(async move { (child, exit.await) });
        Ok(Running::new(handle, name, address_file))
    }

    /// Handles the end of a process: expected, to be started again, or the end of the model.
    pub(super) fn on_end(&mut self, child: Child, exit: &Exit) -> Result<(), LocalError> {
        let now = Instant::now();
        let (end, proven, termination) = match child {
            Child::Proxy => (self.proxy.ended(now), self.announced, None),
            Child::Worker(slot) => {
                let Some(worker) = self.workers.get_mut(&slot) else {
                    return Ok(());
                };
                let end = worker.ended(now);
                if end.expected {
                    self.workers.remove(&slot);
                }
                (end, self.proven, self.files.termination(slot))
            }
        };
        if end.expected {
            return Ok(());
        }
        let others_ready = match child {
            Child::Proxy => false,
            Child::Worker(_) => self.workers.values().any(Supervised::ready),
        };
        let crash = Crash {
            consecutive: end.crashes,
            proven,
            others_ready,
        };
        let message =
            decide(crash, termination.as_ref(), exit).map_err(|message| LocalError::Child {
                file: self.manifest.file.clone(),
                name: end.name.clone(),
                message,
            })?;
        self.shared.console.say(format_args!(
            "{} ended ({message}), starting it again",
            end.name
        ));
        Ok(())
    }

    /// Stops every process that still runs, and waits for its end.
    pub(super) async fn stop_all(&mut self) {
        let proxy = std::iter::once((&mut self.proxy, PROXY_GRACE));
        let workers = self.workers.values_mut();
        for (process, grace) in proxy.chain(workers.map(|worker| (worker, WORKER_GRACE))) {
            if let Some(running) = process.running_mut() {
                running.handle.stop(grace);
            }
        }
        while self.children.join_next().await.is_some() {}
    }
}
