//! A redis-server with the settings of a managed one, and the resources that it uses.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use carpool_queue::Endpoint;
use carpool_testkit::RedisServer;
use tokio::task::spawn_blocking;

use crate::Error;

const ANSWERED_WITHIN: Duration = Duration::from_mins(1);

pub struct Redis {
    server: RedisServer,
    program: PathBuf,
    max_memory: String,
}

/// The resources that Redis has used so far.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Seconds of processor time since the server started.
    pub cpu: f64,
    /// The most bytes that the server held.
    pub peak: u64,
    /// The bytes that the server holds.
    pub memory: u64,
    /// The longest command of the slow log: microseconds, and its name.
    pub slowest: (u64, String),
    /// Microseconds spent in each command.
    pub commands: BTreeMap<String, u64>,
}

impl Redis {
    /// Starts the server, and waits until it serves.
    pub fn start(program: &Path, max_memory: &str) -> Result<Self, Error> {
        let mut redis = Self::stopped(program, max_memory);
        redis.run()?;
        Ok(redis)
    }

    fn stopped(program: &Path, max_memory: &str) -> Self {
        let server = RedisServer::stopped([
            "--maxmemory",
            max_memory,
            "--maxmemory-policy",
            "noeviction",
            "--appendonly",
            "yes",
            "--auto-aof-rewrite-min-size",
            "1gb",
            "--slowlog-log-slower-than",
            "500",
            "--slowlog-max-len",
            "10000",
        ]);
        Self {
            server: server.with_program(program),
            program: program.to_owned(),
            max_memory: max_memory.to_owned(),
        }
    }

    /// Starts the server again with the content of its log, and waits until it serves.
    pub fn run(&mut self) -> Result<(), Error> {
        self.server
            .try_run()
            .map_err(|error| error.to_string().into())
    }

    /// Pauses the server: commands from now on stay unanswered.
    pub async fn pause(&self) -> Result<(), Error> {
        self.ask(&["CLIENT", "PAUSE", "60000"]).await.map(drop)
    }

    /// Kills the server as a crash would.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Returns the processor time that loading this server's log takes, measured on another server.
    pub async fn cpu_to_load(&self) -> Result<f64, Error> {
        let mut other = Self::stopped(&self.program, &self.max_memory);
        let log = Path::new("appendonlydir");
        std::fs::create_dir(other.server.folder().join(log))?;
        for file in std::fs::read_dir(self.server.folder().join(log))? {
            let file = file?;
            let to = other.server.folder().join(log).join(file.file_name());
            std::fs::copy(file.path(), to)?;
        }
        other.run()?;
        Ok(other.usage().await?.cpu)
    }

    pub fn connection(&self) -> Result<Endpoint, Error> {
        Ok(Endpoint::from_url(&self.server.url())?)
    }

    /// Resets the slow log and the times of all commands.
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
        let port = self.server.port;
        let words = words
            .iter()
            .map(|word| format!("${}\r\n{word}\r\n", word.len()));
        let command = format!("*{}\r\n{}", words.len(), words.collect::<String>());
        spawn_blocking(move || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(ANSWERED_WITHIN))?;
            stream.write_all(command.as_bytes())?;
            reply(&mut BufReader::new(stream))
        })
        .await?
    }
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

/// Returns the name of a command, and the beginning of the digest of a script.
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
