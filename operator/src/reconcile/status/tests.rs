use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use serde_json::json;

use super::*;
use crate::{
    reconcile::fixtures,
    rollout::{self, Revision, View},
    workers::{Problem, Workers},
};

fn revision() -> String {
    fixtures::valid("{}").revision
}

/// Everything is up, and this is the revision's state.
fn observed(revision_state: Revision) -> Observed {
    let deployment = |ready: i32| -> Arc<Deployment> {
        let object = json!({
            "metadata": {"name": "d", "generation": 1},
            "spec": {"selector": {}, "template": {}},
            "status": {"observedGeneration": 1, "replicas": ready, "updatedReplicas": ready, "readyReplicas": ready}
        });
        Arc::new(serde_json::from_value(object).unwrap())
    };
    let redis: StatefulSet = serde_json::from_value(json!({
        "metadata": {"name": "r"}, "spec": {"selector": {}, "template": {}, "serviceName": "r"}, "status": {"replicas": 1, "readyReplicas": 1}
    }))
    .unwrap();
    let ready = i32::try_from(revision_state.workers.ready).unwrap();
    Observed {
        proxy: Some(deployment(2)),
        redis: Some(Arc::new(redis)),
        workers: BTreeMap::from([(revision(), deployment(ready))]),
        view: View {
            wanted: revision(),
            serving: Some(revision()),
            revisions: BTreeMap::from([(revision(), revision_state)]),
            switched: true,
        },
        queue_length: Some(0),
        asked: true,
        ..Observed::default()
    }
}

fn loaded(replicas: i32, ready: usize) -> Revision {
    Revision {
        replicas,
        loaded: true,
        length: Some(0),
        workers: Workers {
            pods: ready,
            ready,
            ..Workers::default()
        },
        ..Revision::default()
    }
}

fn status_of(observed: &Observed) -> BatchedModelStatus {
    let valid = fixtures::valid("{}");
    let plan = rollout::plan(&observed.view);
    let outcome = Outcome::Applied {
        valid: &valid,
        plan: &plan,
    };
    status(
        &fixtures::sentiment(),
        observed,
        &outcome,
        Timestamp::UNIX_EPOCH,
    )
}

/// `Type=Status/Reason` of all conditions.
fn summary(status: &BatchedModelStatus) -> String {
    let conditions = status.conditions.iter();
    conditions
        .map(|condition| {
            format!(
                "{}={}/{}",
                condition.type_, condition.status, condition.reason
            )
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn message(status: &BatchedModelStatus, type_: &str) -> String {
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_);
    condition.unwrap().message.clone()
}

#[test]
fn a_served_model() {
    let mut seen = observed(loaded(1, 1));
    seen.sha256.insert(revision(), "abc".into());
    let status = status_of(&seen);
    assert_eq!(
        summary(&status),
        "Ready=True/Serving Progressing=False/Complete ModelLoaded=True/Loaded ProxyReady=True/Ready RedisReady=True/Ready ScalingActive=True/FollowsQueue"
    );
    assert_eq!((status.replicas, status.ready_replicas), (1, 1));
    assert_eq!(status.url.as_deref(), Some("http://sentiment.nlp"));
    assert_eq!(status.sha256.as_deref(), Some("abc"));
    assert_eq!(status.revision, Some(revision()));
    assert_eq!(
        status.selector.as_deref(),
        Some(
            "app.kubernetes.io/component=worker,app.kubernetes.io/instance=sentiment,app.kubernetes.io/name=carpool"
        )
    );
    assert!(
        status
            .conditions
            .iter()
            .all(|condition| condition.observed_generation == Some(1))
    );
}

#[test]
fn zero_workers_after_the_proof_is_ready() {
    assert!(summary(&status_of(&observed(loaded(0, 0)))).starts_with("Ready=True/ScaledToZero"));
    assert!(summary(&status_of(&observed(loaded(2, 0)))).starts_with("Ready=True/WorkersStarting"));
}

#[test]
fn a_first_worker_on_its_way_is_not_ready() {
    let status = status_of(&observed(Revision {
        replicas: 1,
        ..Revision::default()
    }));
    assert!(
        summary(&status).starts_with(
            "Ready=False/ModelLoading Progressing=True/RollingOut ModelLoaded=Unknown/Loading"
        ),
        "{}",
        summary(&status)
    );
}

#[test]
fn a_workers_last_words_are_shown() {
    let problem = Problem {
        reason: "ChecksumMismatch".into(),
        message: "the artifact is another".into(),
    };
    let workers = Workers {
        pods: 1,
        problem: Some(problem),
        ..Workers::default()
    };
    let status = status_of(&observed(Revision {
        replicas: 1,
        workers,
        ..Revision::default()
    }));
    assert!(
        summary(&status).starts_with("Ready=False/ChecksumMismatch Progressing=False/Failed ModelLoaded=False/ChecksumMismatch"),
        "{}",
        summary(&status)
    );
    assert_eq!(
        message(&status, condition::MODEL_LOADED),
        "the artifact is another"
    );
}

#[test]
fn a_changed_model_that_fails_leaves_the_old_one_ready() {
    let mut seen = observed(loaded(1, 1));
    let problem = Problem {
        reason: "ModelInvalid".into(),
        message: "three outputs".into(),
    };
    let workers = Workers {
        pods: 1,
        problem: Some(problem),
        ..Workers::default()
    };
    let failed = Revision {
        replicas: 1,
        workers,
        ..Revision::default()
    };
    let old = seen.view.revisions.insert(revision(), failed).unwrap();
    seen.view.revisions.insert("old".into(), old);
    seen.view.serving = Some("old".into());
    let status = status_of(&seen);
    assert!(
        summary(&status).starts_with(
            "Ready=True/Serving Progressing=False/Failed ModelLoaded=False/ModelInvalid"
        ),
        "{}",
        summary(&status)
    );
    assert_eq!(status.revision.as_deref(), Some("old"));
}

#[test]
fn revisions_that_take_turns_on_a_node_are_ready_all_the_while() {
    let mut seen = observed(loaded(1, 0));
    let serving = seen.view.revisions.get_mut(&revision()).unwrap();
    serving.workers.unschedulable = Some("Insufficient nvidia.com/gpu".into());
    assert!(summary(&status_of(&seen)).starts_with("Ready=False/Unschedulable"));
    let mut retired = loaded(1, 1);
    retired.length = Some(3);
    seen.view.revisions.insert("old".into(), retired);
    assert!(
        summary(&status_of(&seen)).starts_with("Ready=True/MakingRoom Progressing=True/Draining")
    );
}

#[test]
fn a_redis_that_fits_nowhere_says_why() {
    let mut seen = observed(loaded(1, 1));
    seen.redis = None;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "r", "labels": {"app.kubernetes.io/name": "carpool", "app.kubernetes.io/component": "redis"}},
        "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient memory"}]}
    }))
    .unwrap();
    seen.pods.push(Arc::new(pod));
    let status = status_of(&seen);
    assert!(summary(&status).starts_with("Ready=False/RedisNotReady"));
    assert!(message(&status, condition::READY).contains("Insufficient memory"));
}

#[test]
fn a_rejected_resource_keeps_what_is_known_of_the_rest() {
    let mut model = fixtures::sentiment();
    model.status = Some(status_of(&observed(loaded(1, 1))));
    model.metadata.generation = Some(2);
    let outcome = Outcome::Rejected {
        reason: "NameConflict",
        message: "Service sentiment".into(),
    };
    let seen = Observed {
        queue_length: Some(7),
        ..Observed::default()
    };
    let status = status(&model, &seen, &outcome, Timestamp::UNIX_EPOCH);
    assert!(summary(&status).starts_with(
        "Ready=False/NameConflict Progressing=False/NameConflict ModelLoaded=True/Loaded"
    ));
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(
        status.queue_length, 7,
        "shown late, it is asked for again each second"
    );
    assert_eq!(status.ready_replicas, 1);
}

#[test]
fn times_change_only_with_the_status_they_are_of() {
    let mut model = fixtures::sentiment();
    let first = status_of(&observed(loaded(1, 1)));
    model.status = Some(first.clone());
    let valid = fixtures::valid("{}");
    let later = Timestamp::from_second(60).unwrap();
    let at = |observed: &Observed| {
        let plan = rollout::plan(&observed.view);
        status(
            &model,
            observed,
            &Outcome::Applied {
                valid: &valid,
                plan: &plan,
            },
            later,
        )
    };
    assert!(says_the_same(&first, &at(&observed(loaded(1, 1)))));
    let zero = at(&observed(loaded(0, 0)));
    assert!(!says_the_same(&first, &zero));
    let since = |status: &BatchedModelStatus| status.conditions[0].last_transition_time.0;
    assert_eq!(
        since(&zero),
        Timestamp::UNIX_EPOCH,
        "Ready stayed True; only its reason changed"
    );
}

#[test]
fn an_operator_that_has_not_asked_yet_says_nothing_of_scaling() {
    let mut seen = observed(loaded(1, 1));
    (seen.queue_length, seen.asked) = (None, false);
    assert!(!summary(&status_of(&seen)).contains("ScalingActive"));
    seen.asked = true;
    assert!(summary(&status_of(&seen)).contains("ScalingActive=False/QueueUnknown"));
}
