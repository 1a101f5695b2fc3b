//! A changed model is a new revision.

use std::{collections::HashSet, time::Duration};

use serde_json::json;

use crate::{
    cluster::{Namespace, eventually},
    load::{Answer, Load, check},
    model::{self, Affine},
    recorder::Recorder,
    slots::Slots,
};

const MODEL: &str = "affine";

/// With room for one worker the old revision makes way, the queue holds requests meanwhile, and no request is lost or
/// answered by a model other than the one that its answer names.
pub fn one_slot() {
    let slot = Slots::create("revision", 1);
    let namespace = Namespace::create("revision");
    let (first, second) = (
        Affine::FIRST.publish(&namespace),
        Affine::SECOND.publish(&namespace),
    );
    let spec = json!({
        "scaling": {"minReplicas": 1, "maxReplicas": 1},
        "queue": {"timeout": "60s"},
        "worker": {"resources": slot.one(), "rollout": {"roomTimeout": "0s"}}
    });
    namespace.apply(&Affine::manifest(MODEL, &first, &spec).to_string());
    namespace.wait("bm/affine", "condition=Ready", "120s");
    let revision = || namespace.kubectl(&["get", "bm", MODEL, "-o", "jsonpath={.status.serving}"]);
    let old = revision();

    let recorder = Recorder::start(&namespace);
    let load = Load::numbered(&namespace, MODEL, 8);
    load.answered(100);
    namespace.apply(&Affine::manifest(MODEL, &second, &spec).to_string());
    let new = eventually(Duration::from_mins(2), || match revision() {
        now if now != old => Ok(now),
        now => Err(format!("still {now}")),
    });
    load.answered(load.so_far() + 100);
    let answers = load.stop();
    recorder.finish("one-slot", &answers);

    let version = |answer: &Answer| {
        answer.body["model_version"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    check(&answers, |answer| {
        let model = if version(answer) == old {
            Affine::FIRST
        } else {
            Affine::SECOND
        };
        (answer.number_in("y") - model.of(answer.number)).abs() < 1e-4
    });
    let versions: HashSet<String> = answers.iter().map(version).collect();
    assert_eq!(
        versions,
        HashSet::from([old.clone(), new]),
        "both revisions answered, and none else"
    );
    eventually(Duration::from_mins(1), || {
        let left = namespace.list("deployments", &format!("carpool.dev/revision={old}"));
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "the old revision still has {} Deployments",
                left.len()
            ))
        }
    });
    model::workers(&namespace, MODEL, 1, Duration::from_secs(30));
    drop(slot);
}
