//! The worker's process: its start and its end, its settings, its artifact and its admin port.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
};

use carpool_queue::Submit;
use sha2::Digest;

use crate::{
    DEFAULTS, alone, assert_same,
    common::{
        self, MLP, numbers,
        serving::{Open, REVISION, Redis, Worker, served, submit},
    },
};

/// Settings with which requests run one at a time, slowly enough to be met at work. A request that waits until the
/// lease is over gets no answer: the lease is longer than the deadline.
const SLOW: &str = "batching: {maxBatchSize: 1}\nqueue: {lease: 90s, timeout: 60s}";

#[tokio::test]
async fn told_to_stop_it_answers_what_runs_and_hands_back_the_rest() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, SLOW, |folder| common::write_mlp(folder, 100)),
    );
    let requests: Vec<_> = (0..40).map(|index| numbers(&[index as f32; 4])).collect();
    let producer = redis.producer();
    let mut open = Open::queued(&producer, &requests).await;
    let mut first = served.worker(&redis, "first");
    open.first().await;
    first.signal("TERM");
    assert!(first.wait().success());
    assert!(
        open.tasks.iter().any(|task| !task.is_finished()),
        "all was answered before it was told to stop"
    );
    let _second = served.worker(&redis, "second");
    let answers = open.all().await;
    for (answer, expected) in answers.into_iter().zip(alone(&served, MLP, &requests)) {
        assert_same(&answer.unwrap(), &expected);
    }
    let backlog = producer.backlog().await.unwrap();
    let names: Vec<_> = backlog.revisions["r1"]
        .consumers
        .iter()
        .map(|consumer| consumer.name.as_str())
        .collect();
    assert_eq!(names, ["second"]);
}

#[tokio::test]
async fn its_admin_port_is_one_of_ipv6_and_of_ipv4() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, DEFAULTS, |folder| common::write_mlp(folder, 1)),
    );
    let serve = served.serve(&redis, "w");
    let mut every = Command::new(serve.get_program());
    every.args(serve.get_args().map(|arg| {
        if arg == "127.0.0.1:0" {
            ":0".as_ref()
        } else {
            arg
        }
    }));
    let mut worker = Worker::start(every);
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        worker.admin.set_ip(ip);
        assert_eq!(worker.get("/livez").0, 200, "{ip}");
    }
}

#[tokio::test]
async fn it_may_open_as_many_files_as_the_system_lets_it_and_takes_every_method_that_reads() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, DEFAULTS, |folder| common::write_mlp(folder, 1)),
    );
    let serve = served.serve(&redis, "w");
    let mut low = Command::new("sh");
    low.args(["-c", "ulimit -S -n 256; exec \"$0\" \"$@\""])
        .arg(serve.get_program())
        .args(serve.get_args());
    let worker = Worker::start(low);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", worker.id())).unwrap();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap();
    let [soft, hard, ..] = files.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{files}")
    };
    assert_eq!(soft, hard);
    assert_ne!(soft, "256");

    for path in ["/livez", "/readyz", "/model", "/nowhere"] {
        let (status, body) = worker.get(path);
        let (of_head, head, none) = worker.ask("HEAD", path);
        assert_eq!((of_head, &*none), (status, ""), "{path}");
        let length = format!("content-length: {}", body.len());
        assert!(head.lines().any(|line| line == length), "{head}");
    }
    for (method, status) in [("OPTIONS", 204), ("POST", 405), ("DELETE", 405)] {
        let (given, head, _) = worker.ask(method, "/metrics");
        assert_eq!(given, status, "{method}");
        let allow = "allow: GET, HEAD, OPTIONS";
        assert!(head.lines().any(|line| line == allow), "{head}");
    }
}

#[tokio::test]
async fn one_of_two_is_killed_and_everything_is_answered() {
    let lease = "batching: {maxBatchSize: 4}\nqueue: {lease: 1s, timeout: 60s}";
    let (redis, served) = (
        Redis::start(),
        served(MLP, lease, |folder| common::write_mlp(folder, 40)),
    );
    let requests: Vec<_> = (0..200).map(|index| numbers(&[index as f32; 4])).collect();
    let producer = redis.producer();
    let (mut killed, _survivor) = (
        served.worker(&redis, "killed"),
        served.worker(&redis, "survivor"),
    );
    let mut open = Open::submit(&producer, &requests);
    open.first().await;
    killed.signal("KILL");
    assert!(!killed.wait().success());
    for (answer, expected) in open
        .all()
        .await
        .into_iter()
        .zip(alone(&served, MLP, &requests))
    {
        assert_same(&answer.unwrap(), &expected);
    }
}

#[tokio::test]
async fn a_pinned_artifact_must_be_the_one() {
    let zeros = "0".repeat(64);
    let served = served(&format!("{MLP}sha256: '{zeros}'\n"), DEFAULTS, |folder| {
        common::write_mlp(folder, 0);
    });
    let redis = Redis::start();
    let log = served.folder.path().join("termination");
    let to = served.folder.path().join("to");
    let mut fetch = served.command("fetch");
    fetch
        .arg("--source")
        .arg(served.artifact())
        .arg("--to")
        .arg(&to);
    for mut command in [fetch, served.serve(&redis, "w")] {
        let output = command.arg("--termination-log").arg(&log).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let message: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&log).unwrap()).unwrap();
        assert_eq!(message["reason"], "ChecksumMismatch");
        assert!(
            message["message"].as_str().unwrap().contains(&zeros),
            "{message}"
        );
        assert!(String::from_utf8(output.stderr).unwrap().contains(&zeros));
        std::fs::remove_file(&log).unwrap();
    }
}

#[tokio::test]
async fn a_worker_that_finds_another_artifact_than_the_first_one_is_refused() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, DEFAULTS, |folder| common::write_mlp(folder, 0)),
    );
    let producer = redis.producer();
    let first = served.worker(&redis, "first");
    let sha256 = || {
        let bytes = std::fs::read(served.artifact().join("model.pt")).unwrap();
        hex::encode(sha2::Sha256::digest(bytes))
    };
    let (before, original) = (
        sha256(),
        std::fs::read(served.artifact().join("model.pt")).unwrap(),
    );
    // The new model takes the same requests and gives the same answers, but it is another file.
    common::write_mlp(&served.artifact(), 1);
    let after = sha256();
    let log = served.folder.path().join("termination");
    let refused = served
        .serve(&redis, "second")
        .arg("--termination-log")
        .arg(&log)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let message: serde_json::Value = serde_json::from_slice(&std::fs::read(&log).unwrap()).unwrap();
    assert_eq!(message["reason"], "ArtifactChanged");
    let words = message["message"].as_str().unwrap();
    for part in ["r1", &before, &after, "spec.model.sha256", "another path"] {
        assert!(words.contains(part), "{part}: {words}");
    }

    // The first one serves on, and whoever finds its artifact joins it.
    assert_eq!(first.get("/readyz").0, 200);
    submit(&producer, &numbers(&[1.0; 4])).await.unwrap();
    std::fs::write(served.artifact().join("model.pt"), original).unwrap();
    let _third = served.worker(&redis, "third");
}

#[test]
fn every_bad_setting_is_reported_at_once() {
    let served = served(MLP, DEFAULTS, |_| {});
    let mut command = served.command("serve");
    command.args([
        "--name",
        "w",
        "--model",
        "none",
        "--redis-url",
        "http://nowhere",
    ]);
    std::fs::write(&served.config, "name: m").unwrap();
    let output = command.stdout(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("config.yaml") && stderr.contains("Redis URL"),
        "{stderr}"
    );
    let output = served.command("sing").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn libtorch_takes_its_memory_from_the_worker_s_allocator() {
    let worker = env!("CARGO_BIN_EXE_carpool-worker");
    // The loader tells what it binds to what.
    let output = Command::new(worker)
        .arg("--version")
        .envs([("LD_DEBUG", "bindings"), ("LD_BIND_NOW", "1")])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    for function in ["`posix_memalign'", "`malloc'", "`free'"] {
        let of_libtorch = told
            .lines()
            .filter(|line| line.contains(function))
            .filter(|line| {
                line.contains("libc10.so [0] to") || line.contains("libtorch_cpu.so [0] to")
            });
        let bound: Vec<&str> = of_libtorch.collect();
        assert!(!bound.is_empty(), "{function}: {told}");
        assert!(bound.iter().all(|line| line.contains(worker)), "{bound:?}");
    }
}

#[tokio::test]
async fn the_log_tells_by_its_id_that_a_request_runs_or_fails() {
    let (redis, served) = (
        Redis::start(),
        served(MLP, DEFAULTS, |folder| common::write_mlp(folder, 0)),
    );
    let mut command = served.serve(&redis, "w");
    command.env("RUST_LOG", "info,carpool_worker=debug");
    let worker = Worker::start(command);
    let producer = redis.producer();
    for (request, message) in [
        (numbers(&[1.0; 4]), "request runs"),
        (common::words(&[1]), "request failed"),
    ] {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_mins(1);
        let submit = Submit::new(REVISION.into(), request.encode(), 1, deadline);
        let ticket = producer.enqueue(submit).unwrap();
        let id = ticket.id().to_string();
        ticket.outcome().await.unwrap();
        assert_eq!(worker.logged(message)["id"], id);
    }
}
