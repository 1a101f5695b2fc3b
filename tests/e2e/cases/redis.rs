//! The Redis of a queue: one that moves under load, and a managed one whose Secret was deleted.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually},
    load::{Load, check, check_after_outage},
    model::{self, Affine, merge},
};

const MODEL: &str = "affine";
/// The Secret, Service and StatefulSet of the operator's Redis.
const MANAGED: &str = "affine-redis";
/// The Secret, Service and pod of the user's.
const EXTERNAL: &str = "mine";

fn spec(redis: &Value) -> Value {
    json!({
        "scaling": {"minReplicas": 1, "maxReplicas": 1},
        "queue": {"timeout": "60s", "redis": redis},
        "proxy": {"replicas": 2}
    })
}

/// Starts a Redis as a user has one: with a password, in a pod that the operator knows nothing of.
fn external(namespace: &Namespace) {
    let password = "correct-horse-battery-staple";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": EXTERNAL, "labels": {"app": EXTERNAL}},
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 999, "seccompProfile": {"type": "RuntimeDefault"}
            },
            "containers": [{
                "name": "redis", "image": "docker.io/carpool/redis:7.0", "imagePullPolicy": "IfNotPresent",
                "command": ["redis-server"],
                "args": ["--requirepass", password, "--save", "", "--dir", "/tmp"],
                "ports": [{"containerPort": 6379}],
                "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}
            }]
        }
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": EXTERNAL},
        "spec": {"selector": {"app": EXTERNAL}, "ports": [{"port": 6379}]}
    });
    let url = format!("redis://:{password}@{EXTERNAL}:6379");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": EXTERNAL}, "stringData": {"url": url}
    });
    for object in [pod, service, secret] {
        namespace.apply(&object.to_string());
    }
    namespace.wait(&format!("pod/{EXTERNAL}"), "condition=Ready", "30s");
}

/// The Secret with the Redis URL that a pod mounts.
fn place(pod: &Value) -> Option<&str> {
    let volumes = pod["spec"]["volumes"].as_array()?;
    let volume = volumes
        .iter()
        .find(|volume| volume["name"] == "carpool-config")?;
    let sources = volume["projected"]["sources"].as_array()?;
    sources
        .iter()
        .find_map(|source| source["secret"]["name"].as_str())
}

fn component(pod: &Value) -> &str {
    let label = &pod["metadata"]["labels"]["app.kubernetes.io/component"];
    label.as_str().unwrap_or_default()
}

fn status(namespace: &Namespace, field: &str) -> String {
    let path = format!("jsonpath={{.status.{field}}}");
    namespace.kubectl(&["get", "bm", MODEL, "-o", &path])
}

/// Moves the queue and returns the revision that serves at the new place, once nothing is left at the old one.
fn move_to(namespace: &Namespace, uri: &str, redis: &Value, from: &str, to: &str) -> String {
    let before = status(namespace, "serving");
    let begin = Instant::now();
    let pods = namespace.watch("pods");
    namespace.apply(&Affine::manifest(MODEL, uri, &spec(redis)).to_string());
    namespace.wait("bm/affine", "condition=Ready", "180s");
    let (serving, latest) = (status(namespace, "serving"), status(namespace, "latest"));
    assert_eq!(serving, latest);
    assert_ne!(serving, before, "a place has a revision of its own");
    let proxies = model::pods(namespace, MODEL, "proxy");
    println!("{from} to {to}: Ready after {:?}", begin.elapsed());
    for proxy in &proxies {
        assert_eq!(place(proxy), Some(to), "Ready before the proxies had moved");
    }
    eventually(Duration::from_mins(3), || {
        let proxies = model::pods(namespace, MODEL, "proxy");
        let all = namespace.list("pods", "app.kubernetes.io/instance=affine");
        let old: Vec<&str> = all
            .iter()
            .filter(|pod| place(pod) == Some(from))
            .map(model::name)
            .collect();
        if proxies.len() == 2 && proxies.iter().all(model::is_ready) && old.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "{} proxies; still at {from}: {old:?}",
                proxies.len()
            ))
        }
    });
    println!(
        "{from} to {to}: nothing is left after {:?}",
        begin.elapsed()
    );
    in_order(&pods.events(), from, to);
    serving
}

/// Checks the order of a move: a worker is Ready at the new place, then proxies are made there, and a managed Redis goes
/// after the last pod that uses it.
fn in_order(events: &[(Instant, Value)], from: &str, to: &str) {
    let (mut ready, mut old) = (false, BTreeSet::new());
    for (_, event) in events {
        let pod = &event["object"];
        let gone = event["type"] == "DELETED"
            || ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""));
        if place(pod) == Some(from) {
            if gone {
                old.remove(model::name(pod));
            } else {
                old.insert(model::name(pod).to_owned());
            }
        }
        match component(pod) {
            "worker" if place(pod) == Some(to) => ready |= model::is_ready(pod),
            "proxy" if place(pod) == Some(to) => {
                assert!(ready, "a proxy moved before a worker was Ready");
            }
            "redis" if from == MANAGED && !pod["metadata"]["deletionTimestamp"].is_null() => {
                assert!(old.is_empty(), "Redis went before {old:?}");
            }
            _ => {}
        }
    }
}

/// The managed Redis is there or, in time, gone.
fn managed(namespace: &Namespace, wanted: bool) {
    eventually(Duration::from_mins(1), || {
        let found = namespace.try_kubectl(
            &[
                "get",
                "statefulset",
                MANAGED,
                "--ignore-not-found",
                "-o",
                "name",
            ],
            b"",
        )?;
        if found.is_empty() == wanted {
            Err(format!("the StatefulSet: '{found}'"))
        } else {
            Ok(())
        }
    });
}

/// A queue moves to another Redis and back under load, and no request is lost.
pub fn moves() {
    let namespace = Namespace::create("redis-moves");
    let uri = Affine::FIRST.publish(&namespace);
    external(&namespace);
    let own = json!({});
    let theirs = json!({"external": {"urlSecretName": EXTERNAL}});
    namespace.apply(&Affine::manifest(MODEL, &uri, &spec(&own)).to_string());
    namespace.wait("bm/affine", "condition=Ready", "120s");
    let first = status(&namespace, "serving");
    let load = Load::numbered(&namespace, MODEL, 4);
    load.answered(50);

    let second = move_to(&namespace, &uri, &theirs, MANAGED, EXTERNAL);
    managed(&namespace, false);
    load.answered(load.so_far() + 50);

    // A server-side apply that says nothing of the external one takes it back.
    let third = move_to(&namespace, &uri, &own, EXTERNAL, MANAGED);
    managed(&namespace, true);
    load.answered(load.so_far() + 50);

    let answers = load.stop();
    check(&answers, |answer| Affine::FIRST.gave(answer));
    let by = |revision: &String| {
        let gave = answers
            .iter()
            .filter(|answer| answer.body["model_version"] == **revision);
        gave.count()
    };
    let revisions = BTreeSet::from([&first, &second, &third]);
    let counts: Vec<String> = revisions
        .iter()
        .map(|revision| format!("{revision}: {}", by(revision)))
        .collect();
    let slowest = answers
        .iter()
        .map(|answer| answer.millis)
        .fold(0.0, f64::max);
    println!(
        "{} answers ({}), the slowest after {slowest:.0} ms",
        answers.len(),
        counts.join(", ")
    );
    assert_eq!(revisions.len(), 2, "two places, two revisions");
}

/// The Secret of a managed Redis is made again once a pod waits for it, and everything works as before.
pub fn lost_secret() {
    let namespace = Namespace::create("redis-secret");
    let uri = Affine::FIRST.publish(&namespace);
    let mut whole = spec(&json!({}));
    merge(&mut whole, &json!({"queue": {"timeout": "2m"}}));
    namespace.apply(&Affine::manifest(MODEL, &uri, &whole).to_string());
    namespace.wait("bm/affine", "condition=Ready", "120s");
    eventually(Duration::from_mins(1), || {
        match model::pods(&namespace, MODEL, "proxy") {
            proxies if proxies.len() == 2 && proxies.iter().all(model::is_ready) => Ok(()),
            proxies => Err(format!("{} proxies", proxies.len())),
        }
    });
    let load = Load::numbered(&namespace, MODEL, 4);
    load.answered(20);
    namespace.kubectl(&["delete", "secret", MANAGED]);
    let proxies = model::pods(&namespace, MODEL, "proxy");
    let begin = Instant::now();
    namespace.kubectl(&["delete", "pod", model::name(&proxies[0]), "--wait=false"]);
    eventually(Duration::from_mins(2), || {
        namespace.try_kubectl(&["get", "secret", MANAGED], b"")
    });
    println!("the Secret is there again after {:?}", begin.elapsed());
    let ready = eventually(Duration::from_mins(2), || {
        let pods: Vec<Value> = ["proxy", "worker", "redis"]
            .iter()
            .flat_map(|component| model::pods(&namespace, MODEL, component))
            .collect();
        let unready: Vec<&str> = pods
            .iter()
            .filter(|pod| !model::is_ready(pod))
            .map(model::name)
            .collect();
        if pods.len() == 4 && unready.is_empty() {
            Ok(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
        } else {
            Err(format!("{} pods, not Ready: {unready:?}", pods.len()))
        }
    });
    println!("every pod is Ready after {:?}", begin.elapsed());
    namespace.wait("bm/affine", "condition=Ready", "60s");
    load.answered(load.so_far() + 50);
    println!("it answers after {:?}", begin.elapsed());
    let answers = load.stop();
    let refused = check_after_outage(&answers, ready, |answer| Affine::FIRST.gave(answer));
    println!(
        "{} answers, {refused} refused before all pods were Ready",
        answers.len() - refused
    );
}
