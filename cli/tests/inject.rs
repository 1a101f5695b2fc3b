//! `carpool inject` as a process, where no cluster can be reached.

#![expect(clippy::unwrap_used, reason = "a failed test is all that can follow")]

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;

const POD: &str = "{kind: Pod, metadata: {name: app, annotations: {carpool.dev/model: sentiment}}, spec: {containers: [{name: app}]}}";

/// The pod with its sidecar.
fn inject(arguments: &[&str]) -> Value {
    let mut process = Command::new(env!("CARGO_BIN_EXE_carpool"))
        .env_clear()
        .env("HOME", "/nonexistent")
        .args(["inject", "--file=-"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(POD.as_bytes()).unwrap();
    drop(stdin);
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_yaml::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_manifest_needs_neither_a_cluster_nor_a_model() {
    for (arguments, secret) in [
        (&[][..], "sentiment-redis"),
        (&["--redis-secret=mine"], "mine"),
    ] {
        let pod = inject(arguments);
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let sources = &volumes[1]["projected"]["sources"];
        assert_eq!(sources[0]["configMap"]["name"], "sentiment-config");
        assert_eq!(sources[1]["secret"]["name"], secret);
        assert_eq!(
            sources[1]["secret"]["optional"],
            Value::Null,
            "pods wait for it"
        );
        let flag = format!("--redis-secret={secret}");
        let args = pod["spec"]["initContainers"][0]["args"].as_array().unwrap();
        assert!(args.contains(&Value::String(flag)), "{args:?}");
    }
}
