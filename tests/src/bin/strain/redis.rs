//! A redis-server with the settings of a managed one, and what it says of itself.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use carpool_queue::Endpoint;
use tempfile::TempDir;
use tokio::{task::spawn_blocking, time::sleep};

use crate::Error;

const STARTED_WITHIN: Duration = Duration::from_mins(1);

pub struct Redis {
    program: PathBuf,
    port: u16,
    folder: TempDir,
    max_memory: String,
    process: Option<Child>,
}

/// What Redis has spent and held so far.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Seconds of processor time since it started.
    pub cpu: f64,
    /// The most bytes it held.
    pub peak: u64,
    /// The bytes it holds.
    pub memory: u64,
    /// The longest command that its slow log knows, in microseconds, and which it was.
    pub slowest: (u64, String),
    /// Microseconds spent in each command.
    pub commands: BTreeMap<String, u64>,
}

impl Redis {
    /// Starts it, and waits until it serves.
    pub async fn start(program: &Path, max_memory: &str) -> Result<Self, Error> {
        let mut redis = Self {
            program: program.to_owned(),
            port: free_port()?,
            folder: tempfile::tempdir()?,
            max_memory: max_memory.to_owned(),
            process: None,
        };
        redis.run().await?;
        Ok(redis)
    }

    /// Starts it again with what its log holds, and waits until it serves.
    pub async fn run(&mut self) -> Result<(), Error> {
        let process = Command::new(&self.program)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--maxmemory", &self.max_memory])
            .args(["--maxmemory-policy", "noeviction", "--save", ""])
            .args(["--appendonly", "yes", "--auto-aof-rewrite-min-size", "1gb"])
            .args(["--slowlog-log-slower-than", "500"])
            .args(["--slowlog-max-len", "10000"])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("failed to start {}: {error}", self.program.display()))?;
        self.process = Some(process);
        let give_up = Instant::now() + STARTED_WITHIN;
        while let Err(error) = self.ask(&["PING"]).await {
            if Instant::now() > give_up {
                return Err(error);
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Leaves everything that is asked of it from now on unanswered.
    pub async fn pause(&self) -> Result<(), Error> {
        self.ask(&["CLIENT", "PAUSE", "60000"]).await.map(drop)
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) -> Result<(), Error> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// The processor time that it takes to load what this one's log holds, which a server of its own finds out.
    pub async fn cpu_to_load(&self) -> Result<f64, Error> {
        let mut other = Self {
            program: self.program.clone(),
            port: free_port()?,
            folder: tempfile::tempdir()?,
            max_memory: self.max_memory.clone(),
            process: None,
        };
        let log = Path::new("appendonlydir");
        std::fs::create_dir(other.folder.path().join(log))?;
        for file in std::fs::read_dir(self.folder.path().join(log))? {
            let file = file?;
            let to = other.folder.path().join(log).join(file.file_name());
            std::fs::copy(file.path(), to)?;
        }
        other.run().await?;
        Ok(other.usage().await?.cpu)
    }

    pub fn connection(&self) -> Result<Endpoint, Error> {
        let url = format!("redis://127.0.0.1:{}", self.port);
        Ok(Endpoint::from_url(&url)?)
    }

    /// Forgets which commands were long, and how long all took.
    pub async fn reset(&self) -> Result<(), Error> {
        self.ask(&["SLOWLOG", "RESET"]).await?;
        self.ask(&["CONFIG", "RESETSTAT"]).await?;
        Ok(())
    }

    pub async fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for line in self.info("everything").await?.lines() {
            let Some((name, value)) = line.trim().split_once(':') else {
                continue;
            };
            match name {
                "used_cpu_user" | "used_cpu_sys" => usage.cpu += value.parse::<f64>()?,
                "used_memory" => usage.memory = value.parse()?,
                "used_memory_peak" => usage.peak = value.parse()?,
                _ => {
                    let micros = value.split(',').find_map(|part| part.strip_prefix("usec="));
                    if let (Some(command), Some(micros)) = (name.strip_prefix("cmdstat_"), micros) {
                        usage.commands.insert(command.to_owned(), micros.parse()?);
                    }
                }
            }
        }
        if let Reply::List(entries) = self.ask(&["SLOWLOG", "GET", "-1"]).await? {
            for entry in entries {
                if let Reply::List(entry) = entry
                    && let [_, _, Reply::Number(micros), Reply::List(words), ..] = &*entry
                    && let Ok(micros) = u64::try_from(*micros)
                    && micros > usage.slowest.0
                {
                    usage.slowest = (micros, name_of(words));
                }
            }
        }
        Ok(usage)
    }

    async fn info(&self, section: &str) -> Result<String, Error> {
        match self.ask(&["INFO", section]).await? {
            Reply::Text(text) => Ok(text),
            other => Err(format!("INFO gave {other:?}").into()),
        }
    }

    async fn ask(&self, words: &[&str]) -> Result<Reply, Error> {
        let port = self.port;
        let words = words
            .iter()
            .map(|word| format!("${}\r\n{word}\r\n", word.len()));
        let command = format!("*{}\r\n{}", words.len(), words.collect::<String>());
        spawn_blocking(move || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(STARTED_WITHIN))?;
            stream.write_all(command.as_bytes())?;
            reply(&mut BufReader::new(stream))
        })
        .await?
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.kill();
    }
}

fn free_port() -> Result<u16, Error> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

#[derive(Debug)]
enum Reply {
    Nil,
    Number(i64),
    Text(String),
    List(Vec<Reply>),
}

/// Reads one reply of RESP2.
fn reply(stream: &mut impl BufRead) -> Result<Reply, Error> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).ok_or("Redis hung up")?;
    Ok(match kind {
        "+" => Reply::Text(rest.to_owned()),
        ":" => Reply::Number(rest.parse()?),
        "$" => match usize::try_from(rest.parse::<i64>()?) {
            Ok(length) => {
                let mut text = vec![0; length + 2];
                stream.read_exact(&mut text)?;
                text.truncate(length);
                Reply::Text(String::from_utf8_lossy(&text).into_owned())
            }
            Err(_) => Reply::Nil,
        },
        "*" => Reply::List(
            (0..rest.parse::<i64>()?)
                .map(|_| reply(stream))
                .collect::<Result<_, _>>()?,
        ),
        _ => return Err(rest.into()),
    })
}

/// A command by its name, and a script by the beginning of its digest.
fn name_of(words: &[Reply]) -> String {
    let mut words = words.iter().map_while(|word| match word {
        Reply::Text(text) => Some(text.as_str()),
        _ => None,
    });
    let name = words.next().unwrap_or_default();
    match words.next().and_then(|digest| digest.get(..6)) {
        Some(digest) if name == "EVALSHA" => format!("{name} {digest}"),
        _ => name.to_owned(),
    }
}
