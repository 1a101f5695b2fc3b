//! An app whose manifest was injected before there was a model, and which outlives it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, lines, run},
    load::{Load, pod},
    model::Affine,
};

const MODEL: &str = "affine";

/// The uid of the app's pod, the restarts of its sidecar, and the answers with status 200 so far.
fn app(namespace: &Namespace) -> (String, u64, usize) {
    let pod = namespace.get(&["pod", "app"]);
    let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let restarts = &pod["status"]["initContainerStatuses"][0]["restartCount"];
    let log = namespace.try_kubectl(&["logs", "app", "--container=load"], b"");
    let answered = lines(&log.unwrap_or_default())
        .filter(|line| line["status"] == 200 && gave(line))
        .count();
    (uid, restarts.as_u64().unwrap_or(0), answered)
}

fn gave(line: &Value) -> bool {
    let number = line["number"].as_u64().expect("a number");
    line["answer"]["outputs"][0]["data"][0].as_f64() == Some(Affine::FIRST.of(number))
}

/// Waits until the app has this many answers more, and says after which time.
fn answered(namespace: &Namespace, more: usize, moment: &str) {
    let begin = Instant::now();
    let before = app(namespace).2;
    eventually(Duration::from_mins(4), || match app(namespace).2 {
        now if now >= before + more => Ok(()),
        now => Err(format!("{moment}: {now} answers, {before} before")),
    });
    println!("{moment}: answered after {:?}", begin.elapsed());
}

pub fn recreated() {
    let namespace = Namespace::create("recreated");
    let uri = Affine::FIRST.publish(&namespace);
    let spec = json!({
        "scaling": {"minReplicas": 1, "maxReplicas": 1}, "queue": {"timeout": "30s"}, "proxy": {"replicas": 1}
    });
    let manifest = Affine::manifest(MODEL, &uri, &spec).to_string();
    let app_manifest = pod("app", &["--model", MODEL, "--clients", "2"], None).to_string();
    // There is no cluster at this address, so none is asked.
    let injected = run(
        "env",
        &[
            "KUBECONFIG=/nowhere",
            "carpool",
            "inject",
            "-f",
            "-",
            "--model",
            MODEL,
        ],
        app_manifest.as_bytes(),
    )
    .unwrap();
    let load = Load::start(&namespace, &injected);
    namespace.wait("pod/app", "condition=PodScheduled", "30s");
    let first = app(&namespace).0;

    namespace.apply(&manifest);
    answered(&namespace, 20, "a model that comes after its app");

    namespace.kubectl(&["delete", "bm", MODEL]);
    namespace.apply(&manifest);
    namespace.wait("bm/affine", "condition=Ready", "180s");
    answered(&namespace, 20, "a model that was made anew");
    let (uid, restarts, _) = app(&namespace);
    assert_eq!(uid, first, "another pod");
    let answers = load.stop();
    let errors: Vec<u64> = answers
        .iter()
        .map(|answer| answer.status)
        .filter(|status| *status != 200)
        .collect();
    println!(
        "{} answers, {} errors while the model was gone: {:?}; {restarts} restarts of the sidecar",
        answers.len(),
        errors.len(),
        errors.iter().take(10).collect::<Vec<_>>()
    );
}
