//! Requests from inside the cluster: a pod that runs `carpool-load`, and the answers that it got.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};

use crate::cluster::{Namespace, eventually, lines};

/// A pod that sends requests.
pub struct Load<'a> {
    namespace: &'a Namespace,
    pod: String,
}

/// One answer.
pub struct Answer {
    pub number: u64,
    pub status: u64,
    pub millis: f64,
    /// The time at which it came, since 1970.
    pub at: Duration,
    pub body: Value,
}

impl Answer {
    /// Returns the data of an output.
    pub fn output(&self, name: &str) -> &Value {
        let outputs = self.body["outputs"]
            .as_array()
            .unwrap_or_else(|| panic!("no outputs in {}", self.body));
        let output = outputs.iter().find(|output| output["name"] == name);
        &output.unwrap_or_else(|| panic!("no output {name} in {}", self.body))["data"]
    }

    pub fn number_in(&self, name: &str) -> f64 {
        self.output(name)[0]
            .as_f64()
            .unwrap_or_else(|| panic!("no number in {name}: {}", self.body))
    }
}

/// The image of `carpool-load`, as `make images` names it.
pub fn image() -> String {
    format!("docker.io/carpool/load:{}", env!("CARGO_PKG_VERSION"))
}

/// Returns the pod's manifest. `inputs` is the name of a ConfigMap whose key `inputs.json` holds the requests' inputs.
pub fn pod(name: &str, arguments: &[&str], inputs: Option<&str>) -> Value {
    let mut arguments: Vec<Value> = arguments.iter().map(|argument| json!(argument)).collect();
    let (mut volumes, mut mounts) = (json!([]), json!([]));
    if let Some(config_map) = inputs {
        arguments.extend([json!("--inputs"), json!("/inputs/inputs.json")]);
        volumes = json!([{"name": "inputs", "configMap": {"name": config_map}}]);
        mounts = json!([{"name": "inputs", "mountPath": "/inputs"}]);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "load", "image": image(), "imagePullPolicy": "IfNotPresent", "args": arguments,
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": mounts
            }],
            "volumes": volumes
        }
    })
}

impl<'a> Load<'a> {
    /// Starts the pod of a manifest made by [`pod`], injected or not.
    pub fn start(namespace: &'a Namespace, manifest: &str) -> Self {
        namespace.apply(manifest);
        let pod: Value = crate::cluster::yaml(manifest);
        Self {
            namespace,
            pod: pod["metadata"]["name"]
                .as_str()
                .expect("a pod has a name")
                .to_owned(),
        }
    }

    /// Sends numbered requests to a model's Service until stopped.
    pub fn numbered(namespace: &'a Namespace, model: &str, clients: u32) -> Self {
        Self::named("load", namespace, model, clients)
    }

    /// Does the same from a pod of another name, beside others.
    pub fn named(name: &str, namespace: &'a Namespace, model: &str, clients: u32) -> Self {
        let url = format!("http://{model}");
        let clients = clients.to_string();
        let manifest = pod(
            name,
            &["--url", &url, "--model", model, "--clients", &clients],
            None,
        );
        let load = Self::start(namespace, &manifest.to_string());
        load.answered(1);
        load
    }

    /// Waits until at least this many have been answered.
    pub fn answered(&self, count: usize) {
        eventually(Duration::from_mins(5), || match self.log() {
            Ok(log) if log.lines().count() >= count => Ok(()),
            Ok(log) => Err(format!("{} answers of {count}", log.lines().count())),
            Err(error) => Err(error),
        });
    }

    pub fn so_far(&self) -> usize {
        self.log().unwrap().lines().count()
    }

    fn log(&self) -> Result<String, String> {
        self.namespace
            .try_kubectl(&["logs", &self.pod, "--container=load"], b"")
    }

    /// Lets open requests end and returns every answer.
    pub fn stop(self) -> Vec<Answer> {
        // The client is process 1 of its container and ends once every open request has been answered. Where that is at
        // once, this command ends with its container; `finish` tells whether the client has ended well.
        let kill = [
            "exec",
            &self.pod,
            "--container=load",
            "--",
            "bash",
            "-c",
            "kill -TERM 1",
        ];
        let _ = self.namespace.try_kubectl(&kill, b"");
        self.finish(Duration::from_mins(1))
    }

    /// Waits until the pod has sent all its requests, and returns every answer.
    pub fn finish(self, within: Duration) -> Vec<Answer> {
        eventually(within, || {
            let pod = self.namespace.get(&["pod", &self.pod]);
            let statuses = pod["status"]["containerStatuses"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            match statuses.iter().find(|status| status["name"] == "load") {
                Some(status) if status["state"]["terminated"]["exitCode"] == 0 => Ok(()),
                other => Err(format!("the load has not ended well: {other:?}")),
            }
        });
        let answers: Vec<Answer> = lines(&self.log().unwrap())
            .map(|mut line| Answer {
                number: line["number"].as_u64().expect("a number"),
                status: line["status"].as_u64().expect("a status"),
                millis: line["millis"].as_f64().expect("a time"),
                at: Duration::from_secs_f64(line["at"].as_f64().expect("a time")),
                body: line["answer"].take(),
            })
            .collect();
        // The next load may have the same name.
        self.namespace.kubectl(&["delete", "pod", &self.pod]);
        answers
    }
}

/// Checks that every request has one answer, with status 200, and that `right` holds of each.
pub fn check(answers: &[Answer], right: impl Fn(&Answer) -> bool) {
    check_after_outage(answers, Duration::ZERO, right);
}

/// Checks the same of a load that has met an outage of Redis, which was over at a time since 1970: a proxy that can't
/// reach Redis refuses new requests, with status 503, until then. Returns the number of refusals.
pub fn check_after_outage(
    answers: &[Answer],
    over: Duration,
    right: impl Fn(&Answer) -> bool,
) -> usize {
    assert!(!answers.is_empty(), "nothing was sent");
    let (refused, rest): (Vec<&Answer>, Vec<&Answer>) = answers
        .iter()
        .partition(|answer| answer.status == 503 && answer.at < over);
    for answer in &rest {
        assert_eq!(
            answer.status, 200,
            "request {}: {}",
            answer.number, answer.body
        );
        assert_eq!(
            answer.body["id"],
            answer.number.to_string(),
            "another request's answer: {}",
            answer.body
        );
        assert!(right(answer), "request {}: {}", answer.number, answer.body);
    }
    assert!(
        rest.iter().any(|answer| answer.at > over),
        "no answer after the outage"
    );
    let numbers: HashSet<u64> = answers.iter().map(|answer| answer.number).collect();
    assert_eq!(numbers.len(), answers.len(), "a request was answered twice");
    assert_eq!(
        numbers.iter().max(),
        Some(&(answers.len() as u64 - 1)),
        "a request has no answer"
    );
    refused.len()
}
