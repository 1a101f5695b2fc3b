//! Real text, classified in batches: over the Service, and by an app through the sidecar in its own pod.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, read, root, run},
    load::{Answer, Load, check, pod},
    model, operator,
};

const MODEL: &str = "sentiment";
const CLIENTS: &str = "16";

/// A held-out sentence, and the answer of libtorch alone.
struct Direct {
    text: String,
    label: String,
    score: f64,
}

fn direct() -> Vec<Direct> {
    let folder = carpool_testkit::cache().join("models/sentiment");
    let output = folder.join("direct.json");
    let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let artifact = folder.join("artifact");
    let script = root().join("tests/models/direct.py");
    // The answers are kept: one at a time, the sentences take a while.
    if model::stale(&output, &[&artifact.join("model.pt"), &script]) {
        model::python(
            "direct.py",
            &[
                &path(&artifact),
                &path(&folder.join("heldout.json")),
                &path(&output),
            ],
        );
    }
    let Ok(Value::Array(answers)) = serde_json::from_str(&read(&output)) else {
        panic!("direct.py writes an array")
    };
    answers
        .iter()
        .map(|answer| Direct {
            text: answer["text"].as_str().expect("a text").to_owned(),
            label: answer["label"].as_str().expect("a label").to_owned(),
            score: answer["score"].as_f64().expect("a score"),
        })
        .collect()
}

fn right(answer: &Answer, direct: &[Direct]) -> bool {
    let expected = &direct[usize::try_from(answer.number).expect("few requests") % direct.len()];
    let near = (answer.number_in("score") - expected.score).abs() < 1e-4;
    // A score this near to a half may fall on either side within that tolerance.
    near && (answer.output("label")[0] == expected.label || (expected.score - 0.5).abs() < 1e-4)
}

/// The batches that the workers have run.
struct Batches {
    rows: f64,
    runs: f64,
    /// Batches of more than eight rows.
    large: f64,
}

impl Batches {
    fn read(namespace: &Namespace) -> Self {
        let metric = |name: &str| model::worker_metric(namespace, MODEL, name);
        let runs = metric("carpool_worker_batch_size_rows_count");
        Self {
            rows: metric("carpool_worker_batch_size_rows_sum"),
            runs,
            large: runs - metric("carpool_worker_batch_size_rows_bucket{le=\"8.0\"}"),
        }
    }

    fn mean_since(&self, before: &Self) -> f64 {
        (self.rows - before.rows) / (self.runs - before.runs)
    }
}

pub fn sentiment() {
    let namespace = Namespace::create("serving");
    model::publish(
        &namespace,
        "sentiment",
        &carpool_testkit::cache().join("models/sentiment/artifact"),
    );
    namespace.apply(&read(&root().join("examples/sentiment/cluster.yaml")));
    namespace.wait("bm/sentiment", "condition=Ready", "180s");
    println!("{}", operator::helm_test(namespace.name(), MODEL));

    let direct = direct();
    let inputs: Vec<Value> = direct
        .iter()
        .map(|sentence| json!([{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [sentence.text]}]))
        .collect();
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sentences"},
        "data": {"inputs.json": serde_json::to_string(&inputs).expect("values are JSON")}
    });
    namespace.apply(&config_map.to_string());
    let arguments = ["--model", MODEL, "--clients", CLIENTS, "--count"];
    let all = direct.len().to_string();

    model::workers(&namespace, MODEL, 1, Duration::from_mins(1));
    let before = Batches::read(&namespace);
    let over_service = [&arguments[..], &[&all, "--url", "http://sentiment"]].concat();
    let load = Load::start(
        &namespace,
        &pod("service", &over_service, Some("sentences")).to_string(),
    );
    let answers = load.finish(Duration::from_mins(5));
    check(&answers, |answer| right(answer, &direct));
    assert_eq!(answers.len(), direct.len());
    let mean = Batches::read(&namespace).mean_since(&before);
    println!(
        "{} sentences over the Service: mean batch {mean:.1}",
        answers.len()
    );
    assert!(mean >= 8.0, "mean batch {mean}");

    through_a_sidecar(&namespace, &direct);
}

/// Half of the clients come through the sidecar of their own pod, half over the Service, and they share batches.
fn through_a_sidecar(namespace: &Namespace, direct: &[Direct]) {
    let half = ["--model", MODEL, "--clients", "8"];
    let app = pod("app", &half, Some("sentences")).to_string();
    let injected = run(
        "carpool",
        &["inject", "-f", "-", "--model", MODEL],
        app.as_bytes(),
    )
    .unwrap();
    let service = pod(
        "service",
        &[&half[..], &["--url", "http://sentiment"]].concat(),
        Some("sentences"),
    )
    .to_string();

    let loads = [
        Load::start(namespace, &injected),
        Load::start(namespace, &service),
    ];
    let sidecar = namespace.get(&["pod", "app"])["spec"]["initContainers"][0].clone();
    assert_eq!(sidecar["restartPolicy"], "Always", "a native sidecar");
    // One pod may start long before the other, so neither stops before both have been answered every sentence.
    for load in &loads {
        load.answered(1);
    }
    let before = Batches::read(namespace);
    for load in &loads {
        load.answered(load.so_far() + direct.len());
    }
    let after = Batches::read(namespace);
    for load in loads {
        check(&load.stop(), |answer| right(answer, direct));
    }
    println!(
        "half through a sidecar: mean batch {:.1}",
        after.mean_since(&before)
    );
    // Eight clients never have more than eight requests open: a batch of more holds requests that came both ways.
    assert!(
        after.large > before.large,
        "no batch held requests that came both ways"
    );
}
