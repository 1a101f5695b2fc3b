//! The binary itself.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Command, Stdio},
};

use tempfile::NamedTempFile;

use crate::{
    client::{get, post, send, until},
    redis::{Redis, free_port},
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
        "--listen must be IP:PORT",
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
    let redis = Redis::start(free_port());
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
        .env(
            "CARPOOL_REDIS_URL",
            format!("redis://127.0.0.1:{}", redis.port),
        )
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
    let told = Command::new("kill")
        .arg(process.id().to_string())
        .status()
        .unwrap();
    assert!(told.success());
    let url = format!("redis://127.0.0.1:{}", redis.port);
    let connection = carpool_queue::Connection::from_url(&url).unwrap();
    tokio::spawn(crate::worker::work(connection, "r1", crate::worker::echo));
    open.await.unwrap().ok().unwrap();

    let ended = tokio::task::spawn_blocking(move || {
        let mut rest = String::new();
        logs.read_to_string(&mut rest).unwrap();
        process.wait().unwrap()
    });
    assert_eq!(ended.await.unwrap().code(), Some(0));
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
