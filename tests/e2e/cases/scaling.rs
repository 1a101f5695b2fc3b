//! Workers follow the queue's length, from zero and back.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, Watch, eventually},
    load::{Load, check, pod},
    model::{self, Affine},
    operator,
};

const MODEL: &str = "affine";

/// Returns the wanted numbers of workers that a watch saw, one after another, and since when.
fn wanted(watch: &Watch) -> Vec<(Instant, i64)> {
    let mut wanted: Vec<(Instant, i64)> = watch
        .events()
        .iter()
        .map(|(seen, event)| (*seen, &event["object"]))
        .filter(|(_, deployment)| model::name(deployment).starts_with("affine-worker-"))
        .filter_map(|(seen, deployment)| Some((seen, deployment["spec"]["replicas"].as_i64()?)))
        .collect();
    wanted.dedup_by_key(|(_, count)| *count);
    wanted
}

/// Returns the number of times that a sequence turns from rising to falling or back.
fn reversals(sequence: &[(Instant, i64)]) -> usize {
    let rises: Vec<bool> = sequence
        .windows(2)
        .map(|pair| pair[1].1 > pair[0].1)
        .collect();
    rises.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

/// Prints the model as `kubectl get` shows it.
fn show(namespace: &Namespace, when: &str) {
    let seen = namespace.kubectl(&["get", "bm,deploy,sts,pods"]);
    println!("{when}:\n{seen}");
}

/// At zero a request is held and answered; under load the formula holds; after the cooldown the workers go again.
pub fn zero_to_many_and_back() {
    let namespace = Namespace::create("scaling");
    let uri = Affine::FIRST.publish(&namespace);
    let spec = json!({
        "scaling": {"minReplicas": 0, "maxReplicas": 5, "targetQueueLength": 8, "cooldown": "15s"},
        "batching": {"maxBatchSize": 2}
    });
    namespace.apply(&Affine::manifest(MODEL, &uri, &spec).to_string());
    namespace.wait("bm/affine", "condition=Ready", "120s");
    model::no_workers(&namespace, MODEL, Duration::from_secs(90));
    let reason = "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
    eventually(Duration::from_secs(20), || {
        match namespace.kubectl(&["get", "bm", MODEL, "-o", reason]) {
            reason if reason == "ScaledToZero" => Ok(()),
            other => Err(other),
        }
    });

    show(&namespace, "at zero");
    let first = pod(
        "first",
        &["--url", "http://affine", "--model", MODEL, "--count", "1"],
        None,
    );
    let answers = Load::start(&namespace, &first.to_string()).finish(Duration::from_mins(1));
    check(&answers, |answer| Affine::FIRST.gave(answer));
    println!(
        "from the first request at zero to its answer: {:.1} s",
        answers[0].millis / 1e3
    );

    // Always 24 requests are open, 8 to a worker: three workers, and not the five that are allowed.
    let deployments = namespace.watch("deployments");
    let pods = namespace.watch("pods");
    let load = Load::numbered(&namespace, MODEL, 24);
    model::workers(&namespace, MODEL, 3, Duration::from_mins(1));
    let begin = Instant::now();
    load.answered(load.so_far() + 500);
    thread::sleep(Duration::from_secs(20).saturating_sub(begin.elapsed()));
    let under_load = wanted(&deployments);
    assert_eq!(
        under_load.last().map(|(_, count)| *count),
        Some(3),
        "24 open requests, 8 to a worker: {under_load:?}"
    );
    assert!(reversals(&under_load) <= 1, "{under_load:?}");
    show(&namespace, "under load");
    let stopped = Instant::now();
    check(&load.stop(), |answer| Affine::FIRST.gave(answer));

    model::no_workers(&namespace, MODEL, Duration::from_secs(90));
    show(&namespace, "after it");
    let whole = wanted(&deployments);
    assert!(reversals(&whole) <= 1, "{whole:?}");
    let (gone, left) = *whole.last().expect("a Deployment was seen");
    assert_eq!(left, 0, "{whole:?}");
    // The scaler may have looked just before the load stopped, so the wait is a period less than the cooldown.
    let waited = gone.duration_since(stopped);
    assert!(
        waited > Duration::from_secs(14),
        "the last worker went {waited:?} after the last request, before the cooldown"
    );
    deletion_cost_before_scale_in(&pods);

    // A leader that has yet to learn the queue's length wakes nobody.
    operator::kill();
    thread::sleep(Duration::from_secs(10));
    assert_eq!(wanted(&deployments).last(), Some(&(gone, left)));
}

/// Every worker that went had its deletion cost written before.
fn deletion_cost_before_scale_in(pods: &Watch) {
    let events = pods.events();
    let is_worker =
        |pod: &Value| pod["metadata"]["labels"]["app.kubernetes.io/component"] == "worker";
    let going: Vec<&Value> = events
        .iter()
        .map(|(_, event)| &event["object"])
        .filter(|pod| is_worker(pod) && !pod["metadata"]["deletionTimestamp"].is_null())
        .collect();
    assert!(!going.is_empty(), "no worker went");
    for pod in going {
        let cost = &pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"];
        assert!(
            cost.is_string(),
            "{} went without a deletion cost",
            model::name(pod)
        );
    }
}
