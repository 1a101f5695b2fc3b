//! The binary itself, as a process.

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use carpool_crds::AdminAddress;
use carpool_testkit::{RedisServer, free_port, signal};
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::net::TcpStream;

use crate::{
    client::{get, post, send, until},
    rig::{INFER, config, pair, pairs},
};

fn sidecar() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carpool-sidecar"));
    command.env_clear().stderr(Stdio::piped());
    command
}

#[test]
fn bad_settings_are_all_told_and_end_with_64() {
    let output = sidecar()
        .args([
            "--redis-url",
            "http://user:secret@redis",
            "--listen",
            "here",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).unwrap();
    for part in [
        "--config is missing",
        "--name is missing",
        "Redis URL",
        "--listen must be :PORT, for every address, or IP:PORT",
    ] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(told.lines().count(), 4, "{told}");
    assert!(!told.contains("secret"), "{told}");

    let unknown = sidecar().arg("--frobnicate").output().unwrap();
    assert_eq!(unknown.status.code(), Some(64));
    let help = sidecar().arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
}

#[tokio::test]
async fn sigterm_drains_and_ends_with_0() {
    let redis = RedisServer::start();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config(&pairs()).to_string()).unwrap();
    let [address, admin] =
        [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut process = sidecar()
        .arg("--config")
        .arg(file.path())
        .args([
            "--listen",
            &address.to_string(),
            "--admin-listen",
            &admin.to_string(),
        ])
        .env("CARPOOL_REDIS_URL", redis.url())
        .env("CARPOOL_NAME", "p1")
        .env("CARPOOL_LOG_FORMAT", "json")
        .spawn()
        .unwrap();
    let mut logs = BufReader::new(process.stderr.take().unwrap());
    let mut line = String::new();
    logs.read_line(&mut line).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["fields"]["message"], "serving");
    until(async || {
        send(get(admin, "/readyz"))
            .await
            .status
            .is_success()
            .then_some(())
    })
    .await;

    let open = tokio::spawn(send(post(address, INFER, pair())));
    until(async || {
        let backlog = send(get(admin, "/backlog")).await.json();
        (backlog["open"] == 1).then_some(())
    })
    .await;
    signal(process.id(), "TERM");
    let url = redis.url();
    let connection = carpool_queue::Endpoint::from_url(&url).unwrap();
    tokio::spawn(crate::worker::work(connection, "r1", crate::worker::echo));
    open.await.unwrap().ok().unwrap();

    let ended = tokio::task::spawn_blocking(move || {
        let mut rest = String::new();
        logs.read_to_string(&mut rest).unwrap();
        process.wait().unwrap()
    });
    assert_eq!(ended.await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_port_of_every_address_is_one_of_ipv6_and_of_ipv4() {
    let redis = RedisServer::start();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config(&pairs()).to_string()).unwrap();
    let ports = [free_port(), free_port()];
    let mut process = sidecar()
        .arg("--config")
        .arg(file.path())
        .arg(format!("--listen=:{}", ports[0]))
        .arg(format!("--admin-listen=:{}", ports[1]))
        .env("CARPOOL_REDIS_URL", redis.url())
        .env("CARPOOL_NAME", "p1")
        .spawn()
        .unwrap();
    let mut logs = BufReader::new(process.stderr.take().unwrap());
    logs.read_line(&mut String::new()).unwrap();
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        for (port, path) in ports.into_iter().zip(["/v2/health/live", "/livez"]) {
            let answer = send(get(SocketAddr::new(ip, port), path)).await;
            assert!(answer.status.is_success(), "{ip} {port}: {}", answer.status);
        }
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

/// The process has a low limit of open files, which may be raised a little.
#[tokio::test]
async fn out_of_files_it_says_so_once_and_goes_on() {
    let redis = RedisServer::start();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config(&pairs()).to_string()).unwrap();
    let [address, admin] =
        [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -n 32; ulimit -H -n 64; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_carpool-sidecar"))
        .arg("--config")
        .arg(file.path())
        .args(["--listen", &address.to_string()])
        .args(["--admin-listen", &admin.to_string()])
        .args(["--name", "p1", "--log-format", "json", "--redis-url"])
        .arg(redis.url())
        .stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let logs = BufReader::new(process.stderr.take().unwrap());
    let said = Arc::new(Mutex::new(Vec::<Value>::new()));
    let lines = Arc::clone(&said);
    let reader = thread::spawn(move || {
        for line in logs.lines() {
            let line = serde_json::from_str(&line.unwrap()).unwrap();
            lines.lock().unwrap().push(line);
        }
    });
    let times = |part: &str| {
        let about = |line: &&Value| line["fields"]["message"].as_str().unwrap().contains(part);
        said.lock().unwrap().iter().filter(about).count()
    };
    let (begun, over) = (
        "this process has as many files open as it may",
        "new connections are taken again",
    );

    until(async || (times("serving") == 1).then_some(())).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let soft_and_hard: Vec<_> = files.split_whitespace().skip(3).take(2).collect();
    assert_eq!(soft_and_hard, ["64", "64"], "{files}");

    let mut clients = Vec::new();
    for _ in 0..96 {
        clients.push(TcpStream::connect(address).await.unwrap());
    }
    until(async || (times(begun) == 1).then_some(())).await;
    // Clients that come and go let others in, which is neither an end nor a new beginning.
    for _ in 0..20 {
        clients.remove(0);
        clients.push(TcpStream::connect(address).await.unwrap());
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!((times(begun), times(over)), (1, 0));
    let line = said
        .lock()
        .unwrap()
        .iter()
        .find(|line| line["level"] == "WARN")
        .cloned()
        .unwrap();
    assert_eq!(line["fields"]["limit"], "64");
    assert_eq!(line["fields"]["address"], address.to_string());

    drop(clients);
    until(async || (times(over) == 1).then_some(())).await;
    send(get(address, "/v2")).await.ok().unwrap();
    assert_eq!(times(begun), 1);
    process.kill().unwrap();
    process.wait().unwrap();
    reader.join().unwrap();
}

#[tokio::test]
async fn it_takes_requests_on_the_socket_it_is_given_and_tells_where_its_admin_port_is() {
    let redis = RedisServer::start();
    let folder = tempfile::tempdir().unwrap();
    let (config_file, told_file) = (folder.path().join("config"), folder.path().join("p7.admin"));
    std::fs::write(&config_file, config(&pairs()).to_string()).unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let start = |stdin: Stdio| {
        sidecar()
            .arg("--config")
            .arg(&config_file)
            .arg("--admin-address-file")
            .arg(&told_file)
            .args(["--listen", "stdin", "--admin-listen", "127.0.0.1:0"])
            .args(["--redis-url", &redis.url()])
            .args(["--name", "p7"])
            .stdin(stdin)
            .spawn()
            .unwrap()
    };

    let mut first = start(OwnedFd::from(socket.try_clone().unwrap()).into());
    until(async || AdminAddress::read(&told_file).map(drop)).await;
    let told = AdminAddress::read(&told_file).unwrap();
    assert_eq!(told.name, "p7");
    let ready = async || {
        let answer = send(get(told.address, "/readyz")).await;
        assert_eq!(answer.headers["carpool-name"], "p7", "{answer:?}");
        answer.status.is_success().then_some(())
    };
    until(ready).await;
    let unknown = send(get(told.address, "/nothing")).await;
    assert_eq!(unknown.headers["carpool-name"], "p7");
    assert!(
        send(get(address, "/v2/health/live"))
            .await
            .status
            .is_success()
    );

    // A client waits in the socket, which outlives the proxies, while none is there.
    first.kill().unwrap();
    first.wait().unwrap();
    let waiting = tokio::spawn(send(get(address, "/v2/health/live")));
    let mut second = start(OwnedFd::from(socket).into());
    assert!(waiting.await.unwrap().status.is_success());
    second.kill().unwrap();
    second.wait().unwrap();

    let ended = start(Stdio::null()).wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8(ended.stderr).unwrap();
    let expected = "carpool-sidecar: --listen stdin: standard input is no listening socket: ";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn an_address_that_is_taken_is_told_in_one_sentence() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config(&pairs()).to_string()).unwrap();
    let output = sidecar()
        .arg("--config")
        .arg(file.path())
        .args([
            "--listen",
            &address,
            "--redis-url",
            "redis://127.0.0.1:1",
            "--name",
            "p1",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.starts_with(&format!("carpool-sidecar: failed to listen on {address}: ")),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1, "{told}");
}
