//! Two operators, of which one leads.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::rollouts::slow;
use crate::{
    cluster::{Namespace, Watch, eventually, run},
    load::{Answer, Load, check, image},
    model::{self, Affine},
    operator,
};

const MODEL: &str = "affine";
/// The time for which a Lease is its holder's without being renewed.
const LENGTH: Duration = Duration::from_secs(15);

/// Two operators, one again once this value is dropped.
struct Two;

impl Two {
    fn start() -> Self {
        let two = Self;
        operator::upgrade(&["replicas=2"]);
        eventually(Duration::from_mins(1), || match operators().len() {
            2 => Ok(()),
            count => Err(format!("{count} operators")),
        });
        two
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        if !thread::panicking() {
            operator::upgrade(&["replicas=1"]);
        }
    }
}

fn kubectl(arguments: &[&str]) -> Result<String, String> {
    let namespace = ["--namespace", operator::NAMESPACE];
    run("kubectl", &[&namespace, arguments].concat(), b"")
}

/// The names of the operators' pods that are Ready.
fn operators() -> Vec<String> {
    let pods = kubectl(&["get", "pods", "--output=json"]).unwrap();
    let pods: Value = serde_json::from_str(&pods).unwrap();
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let stays =
        |pod: &&Value| model::is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null();
    let pods = pods.iter().filter(stays);
    pods.map(|pod| model::name(pod).to_owned()).collect()
}

/// Whether an operator says of itself that it leads; `None` where it doesn't answer.
fn leads(pod: &str) -> Option<bool> {
    let space = operator::NAMESPACE;
    let path = format!("/api/v1/namespaces/{space}/pods/{pod}:9090/proxy/metrics");
    let metrics = kubectl(&["get", "--raw", &path]).ok()?;
    let leading = metrics
        .lines()
        .find_map(|line| line.strip_prefix("carpool_operator_leading "))?;
    Some(leading.trim() == "1")
}

/// Sets a flag when dropped, also by a test that fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks every operator again and again whether it leads, until `over`. Returns how often it asked.
fn never_two(over: &AtomicBool) -> usize {
    let mut asked = 0;
    while !over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let leading: Vec<String> = operators()
            .into_iter()
            .filter(|pod| leads(pod) == Some(true))
            .collect();
        // The operators are asked one after another, and the Lease may go from one to the next in between; it does so once.
        let again: Vec<&String> = leading
            .iter()
            .filter(|pod| leads(pod) == Some(true))
            .collect();
        assert!(
            again.len() <= 1,
            "{again:?} lead after {:?}",
            begin.elapsed()
        );
        asked += 1;
    }
    asked
}

/// Checks that a Lease goes to another only once its holder gave it back or let it run out. Returns the holders.
fn holders(leases: &Watch) -> Vec<String> {
    let time = |lease: &Value, field: &str| -> Option<f64> {
        let text = lease["spec"][field].as_str()?;
        let seconds = text.split_once('T')?.1.trim_end_matches('Z');
        let mut parts = seconds.split(':').map(str::parse::<f64>);
        let mut next = || parts.next()?.ok();
        Some(next()? * 3600.0 + next()? * 60.0 + next()?)
    };
    let mut holders = Vec::<String>::new();
    let mut before = Value::Null;
    for (_, event) in leases.events() {
        let lease = &event["object"];
        if model::name(lease) != "carpool-operator" {
            continue;
        }
        let holder = |lease: &Value| lease["spec"]["holderIdentity"].as_str().map(str::to_owned);
        let (now, then) = (
            holder(lease),
            holder(&before).filter(|name| !name.is_empty()),
        );
        if let Some(now) = now.filter(|name| !name.is_empty()) {
            if let Some(then) = then.filter(|then| *then != now) {
                let renewed = time(&before, "renewTime").expect("a held Lease has been renewed");
                let taken = time(lease, "acquireTime").expect("a Lease that was taken");
                // Both are times of a day, and a day may end in between.
                assert!(
                    (taken - renewed).rem_euclid(86400.0) >= LENGTH.as_secs_f64(),
                    "{now} took the Lease that was still {then}'s: {before} {lease}"
                );
            }
            if holders.last() != Some(&now) {
                holders.push(now);
            }
        }
        before = lease.clone();
    }
    holders
}

/// A pod that can stop any process of its node, as a virtual machine that is paused would. It is in the operator's
/// namespace, as those of tests hold pods to the restricted standard.
struct Freezer {
    pod: &'static str,
}

impl Freezer {
    fn start() -> Self {
        let freezer = Self { pod: "freezer" };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": freezer.pod},
            "spec": {
                "hostPID": true, "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "freezer", "image": image(), "imagePullPolicy": "IfNotPresent", "command": ["sleep", "600"],
                    "securityContext": {"runAsUser": 0, "runAsNonRoot": false, "privileged": true}
                }]
            }
        });
        let apply = ["--namespace", operator::NAMESPACE, "apply", "-f", "-"];
        run("kubectl", &apply, pod.to_string().as_bytes()).unwrap();
        kubectl(&[
            "wait",
            "pod/freezer",
            "--for=condition=Ready",
            "--timeout=60s",
        ])
        .unwrap();
        freezer
    }

    /// Stops the operator's process of a pod: it hears no signal any more, and gives no Lease back.
    fn freeze(&self, pod: &str) {
        let uid = kubectl(&["get", "pod", pod, "--output=jsonpath={.metadata.uid}"]).unwrap();
        // A cgroup's name has the UID of its pod, with other separators where systemd makes it.
        let pattern = uid.replace('-', "[-_]");
        let stop = format!(
            "for process in /proc/[0-9]*; do grep --quiet '{pattern}' $process/cgroup && \
             [[ $(<$process/comm) == carpool-operato* ]] && kill -STOP ${{process#/proc/}} && echo stopped; done; true"
        );
        let stopped = kubectl(&["exec", self.pod, "--", "bash", "-c", &stop]).unwrap();
        assert!(
            stopped.contains("stopped"),
            "no process of {pod} was found: {stopped}"
        );
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if let Err(error) = kubectl(&["delete", "pod", self.pod, "--ignore-not-found"]) {
            eprintln!("{error}");
        }
    }
}

/// The leader freezes in the middle of a rollout under load, and its pod is deleted; the other one leads on once the Lease
/// has run out, and nothing is lost.
pub fn one_freezes() {
    let two = Two::start();
    let namespace = Namespace::create("leaders");
    let uris = [Affine::FIRST, Affine::SECOND].map(|model| model.publish(&namespace));
    let spec = json!({
        "scaling": {"minReplicas": 2, "maxReplicas": 2},
        "queue": {"timeout": "60s"},
        "batching": {"maxBatchSize": 4},
        "worker": {"podOverrides": slow()}
    });
    let apply = |uri: &str| namespace.apply(&Affine::manifest(MODEL, uri, &spec).to_string());
    let status = |field: &str| {
        let path = format!("jsonpath={{.status.{field}}}");
        namespace.kubectl(&["get", "bm", MODEL, "-o", &path])
    };
    apply(&uris[0]);
    namespace.wait("bm/affine", "condition=Ready", "120s");
    model::workers(&namespace, MODEL, 2, Duration::from_mins(1));
    let old = status("serving");

    let freezer = Freezer::start();
    let leases = Watch::start(operator::NAMESPACE, "leases");
    let load = Load::numbered(&namespace, MODEL, 4);
    load.answered(50);
    let over = AtomicBool::new(false);
    let answers = thread::scope(|scope| {
        let asking = scope.spawn(|| never_two(&over));
        let end = End(&over);
        let answers = roll_out(&namespace, &freezer, load, &old, || apply(&uris[1]));
        drop(end);
        println!("asked {} times who leads", asking.join().unwrap());
        answers
    });
    let new = status("serving");
    check(&answers, |answer| {
        let first = answer.body["model_version"] == old;
        let model = if first { Affine::FIRST } else { Affine::SECOND };
        model.gave(answer)
    });
    let versions: HashSet<&str> = answers
        .iter()
        .filter_map(|answer| answer.body["model_version"].as_str())
        .collect();
    assert_eq!(versions, HashSet::from([&*old, &*new]));
    let holders = holders(&leases);
    println!("{} answers; leaders: {holders:?}", answers.len());
    assert_eq!(holders.len(), 2, "{holders:?}");
    drop(namespace);
    drop(two);
}

/// Applies the second model and freezes the leader once workers of it are there, none of them Ready.
fn roll_out(
    namespace: &Namespace,
    freezer: &Freezer,
    load: Load<'_>,
    old: &str,
    apply: impl FnOnce(),
) -> Vec<Answer> {
    apply();
    let status = |field: &str| {
        let path = format!("jsonpath={{.status.{field}}}");
        namespace.kubectl(&["get", "bm", MODEL, "-o", &path])
    };
    eventually(Duration::from_mins(1), || {
        let latest = status("latest");
        let selector = format!("carpool.dev/revision={latest}");
        if latest != old && !namespace.list("pods", &selector).is_empty() {
            Ok(())
        } else {
            Err(format!("no workers of {latest}, beside {old}"))
        }
    });
    assert_eq!(status("serving"), old, "the rollout was over too soon");
    let leader = operator::leader().unwrap();
    freezer.freeze(&leader);
    let frozen = Instant::now();
    kubectl(&["delete", "pod", &leader, "--grace-period=0", "--force"]).unwrap();
    let next = operator::another_leads(&leader);
    println!(
        "{next} leads {:?} after {leader} was frozen",
        frozen.elapsed()
    );
    // The Lease was renewed at most some seconds before.
    assert!(frozen.elapsed() > LENGTH / 2, "the Lease was given back");
    namespace.wait("bm/affine", "condition=Ready", "180s");
    println!("rolled out {:?} after it", frozen.elapsed());
    eventually(Duration::from_mins(1), || {
        let selector = format!("carpool.dev/revision={old}");
        match namespace.list("deployments", &selector).len() {
            0 => Ok(()),
            left => Err(format!("revision {old} still has {left} Deployments")),
        }
    });
    load.answered(load.so_far() + 50);
    load.stop()
}
