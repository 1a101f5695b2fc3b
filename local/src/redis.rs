//! The redis-server of a run: on a loopback port, behind a password, gone without a trace afterwards.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{net::TcpSocket, process::Command, sync::oneshot, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    console::Console,
    process::{Children, Exit, Handle, ProcessError},
};

/// The words of Redis's log once clients may connect.
const UP: &str = "Ready to accept connections";
/// The most attempts to start Redis: another process may listen on the port on purpose.
const ATTEMPTS: u32 = 3;
const GRACE: Duration = Duration::from_secs(5);
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// A reason why Redis can't be started.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// Redis's files can't be written, or there is no free port.
    #[error("failed to prepare redis-server: {0}")]
    Prepare(#[from] io::Error),
    /// The process can't be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Redis ended at once.
    #[error("failed to start redis-server: {0}")]
    Exit(Exit),
}

/// Reserves a loopback port, which the system gives to nobody else while the socket is held. Redis can neither be
/// handed a socket nor choose a port itself, but it may listen on one that is bound and not listened on, and again
/// after a restart.
fn reserve() -> io::Result<(SocketAddr, TcpSocket)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    Ok((socket.local_addr()?, socket))
}

type Running = (Handle, Pin<Box<dyn Future<Output = Exit> + Send>>);

/// Starts Redis in `folder` and keeps it running until `stop`. Returns the file that holds its URL, and a task that
/// ends when Redis has.
pub async fn start(
    children: Arc<Children>,
    console: Console,
    program: PathBuf,
    folder: &Path,
    stop: CancellationToken,
) -> Result<(PathBuf, JoinHandle<()>), RedisError> {
    let config = folder.join("redis.conf");
    let url_file = folder.join("url");
    let mut attempt = 1;
    let (running, reserved) = loop {
        let (address, reserved) = reserve()?;
        let password = Uuid::new_v4().simple();
        std::fs::write(
            &config,
            configuration(address, &password.to_string(), folder),
        )?;
        std::fs::write(&url_file, format!("redis://:{password}@{address}/0"))?;
        match launch(&children, &program, &config).await {
            Err(RedisError::Exit(_)) if attempt < ATTEMPTS => attempt += 1,
            other => break (other?, reserved),
        }
    };
    let task = tokio::spawn(async move {
        let mut running = running;
        let _reserved = reserved;
        loop {
            let (mut handle, mut ended) = running;
            tokio::select! {
                ended = &mut ended => console.say(format_args!("redis-server ended ({ended}), starting it again")),
                () = stop.cancelled() => {
                    handle.stop(GRACE);
                    ended.await;
                    return;
                }
            }
            running = loop {
                match launch(&children, &program, &config).await {
                    Ok(running) => break running,
                    Err(error) => console.say(error),
                }
                tokio::select! {
                    () = sleep(RESTART_AFTER) => (),
                    () = stop.cancelled() => return,
                }
            };
        }
    });
    Ok((url_file, task))
}

/// Starts Redis and waits until it takes connections.
async fn launch(children: &Children, program: &Path, config: &Path) -> Result<Running, RedisError> {
    let mut command = Command::new(program);
    command.arg(config);
    let (up, is_up) = oneshot::channel();
    let up = Arc::new(Mutex::new(Some(up)));
    let (handle, ended) = children.spawn("redis-server", command, Stdio::null(), move |line| {
        if line.contains(UP)
            && let Some(up) = up.lock().ok().and_then(|mut up| up.take())
        {
            // The receiver is gone once the process has ended.
            let _ = up.send(());
        }
    })?;
    let mut ended: Pin<Box<dyn Future<Output = Exit> + Send>> = Box::pin(ended);
    tokio::select! {
        Ok(()) = is_up => Ok((handle, ended)),
        ended = &mut ended => Err(RedisError::Exit(ended)),
    }
}

/// Returns Redis's configuration. Nothing is kept on disk: proxies enqueue again the requests that an ended Redis has
/// lost.
fn configuration(address: SocketAddr, password: &str, folder: &Path) -> String {
    format!(
        "bind {}\nport {}\nrequirepass {password}\ndir \"{}\"\nsave \"\"\nappendonly no\nmaxmemory-policy noeviction\n",
        address.ip(),
        address.port(),
        folder.display(),
    )
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::{super::process::find, *};

    /// Sends inline commands to Redis and returns its answers.
    async fn ask(url: &str, commands: &str) -> String {
        let (password, address) = url
            .strip_prefix("redis://:")
            .and_then(|rest| rest.strip_suffix("/0"))
            .and_then(|rest| rest.split_once('@'))
            .unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("AUTH {password}\r\n{commands}\r\nQUIT\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_reserved_port_is_given_to_nobody_else_and_can_be_listened_on() {
        let (address, _reserved) = reserve().unwrap();
        let other = TcpSocket::new_v4().unwrap();
        let error = other.bind(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        for _restart in 0..2 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            socket.listen(1).unwrap();
        }
    }

    #[tokio::test]
    async fn redis_runs_is_restarted_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let program = find("redis-server", "install it").unwrap();
        let (url_file, task) = start(
            Arc::new(Children::new().unwrap()),
            Console::new(),
            program,
            folder.path(),
            stop.clone(),
        )
        .await
        .unwrap();
        let url = std::fs::read_to_string(url_file).unwrap();
        assert_eq!(ask(&url, "PING").await, "+OK\r\n+PONG\r\n+OK\r\n");

        ask(&url, "SHUTDOWN NOSAVE").await;
        let address = url
            .split_once('@')
            .unwrap()
            .1
            .trim_end_matches("/0")
            .to_owned();
        tokio::time::timeout(Duration::from_secs(20), async {
            while TcpStream::connect(&address).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("Redis is started again");

        stop.cancel();
        task.await.unwrap();
        assert!(TcpStream::connect(&address).await.is_err());
    }
}
