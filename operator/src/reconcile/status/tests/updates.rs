//! Statuses while pods of an older template are replaced.

use super::*;

fn updating(generation: i64, status: &serde_json::Value) -> Arc<Deployment> {
    let object = json!({
        "metadata": {"name": "d", "generation": generation},
        "spec": {"selector": {}, "template": {}, "replicas": 3},
        "status": status
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

#[test]
fn an_update_that_fails_says_why() {
    let progressing = |workers: Workers, conditions: serde_json::Value| {
        let mut seen = observed(Revision {
            workers,
            updating: true,
            ..loaded(3, 2)
        });
        let status = json!({
            "observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2, "conditions": conditions
        });
        seen.workers.insert(revision(), updating(2, &status));
        let status = status_of(&seen);
        let told = message(&status, condition::PROGRESSING);
        (summary(&status), told)
    };
    let pods = |problem, unschedulable: Option<String>| Workers {
        pods: 3,
        ready: 2,
        waiting: usize::from(unschedulable.is_some()),
        problem,
        unschedulable,
        ..Workers::default()
    };
    let stalled = json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "has timed out"}]);
    let pull = Problem {
        reason: "ImagePullBackOff".into(),
        message: "the image can't be pulled".into(),
    };
    let (failed, why) = progressing(pods(Some(pull), None), json!([]));
    assert!(
        failed.starts_with(
            "Ready=False/UpdateFailed Progressing=False/Failed Stalled=True/UpdateFailed"
        ),
        "{failed}"
    );
    assert_eq!(why, "the image can't be pulled");
    let (failed, why) = progressing(pods(None, None), stalled.clone());
    assert!(failed.contains("Progressing=False/Failed"), "{failed}");
    assert_eq!(why, "has timed out");

    let room = || Some("Insufficient nvidia.com/gpu".to_owned());
    let (waits, _) = progressing(pods(None, room()), json!([]));
    assert!(
        waits.contains("Progressing=True/Updating"),
        "an older pod may leave: {waits}"
    );
    let (_, why) = progressing(pods(None, room()), stalled);
    assert_eq!(why, "Insufficient nvidia.com/gpu");
}

#[test]
fn another_number_of_workers_is_no_update() {
    let progressing = |status: &serde_json::Value| {
        let mut seen = observed(loaded(3, 2));
        seen.workers.insert(revision(), updating(3, status));
        summary(&status_of(&seen))
    };
    let seen = |generation: i64, replicas: i32| json!({"observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas});
    for same in [seen(2, 2), seen(3, 2), seen(3, 3)] {
        let told = progressing(&same);
        assert!(
            told.contains("Progressing=False/Complete"),
            "{same}: {told}"
        );
    }
    let told = progressing(&seen(2, 3));
    assert!(
        told.contains("Progressing=True/Updating"),
        "another template, not looked at yet: {told}"
    );
}

/// The condition `Ready` of a status.
fn ready(status: &BatchedModelStatus) -> String {
    let all = summary(status);
    all.split(' ').next().unwrap().to_owned()
}

#[test]
fn pods_that_a_newer_operator_replaces_leave_a_model_ready_and_those_of_a_changed_spec_do_not() {
    let replaced =
        json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2});
    let mut seen = observed(Revision {
        updating: true,
        ..loaded(2, 2)
    });
    seen.workers.insert(revision(), updating(2, &replaced));
    let mut model = fixtures::sentiment();
    model.status = Some(status_of(&observed(loaded(2, 2))));
    let told = summary(&status_next(&model, &seen));
    assert!(
        told.starts_with("Ready=True/Serving Progressing=True/Updating"),
        "{told}"
    );
    model.metadata.generation = Some(2);
    let status = status_next(&model, &seen);
    assert_eq!(ready(&status), "Ready=False/Updating");
    model.status = Some(status);
    let status = status_next(&model, &seen);
    assert_eq!(ready(&status), "Ready=False/Updating");
    model.status = Some(status);
    let status = status_next(&model, &observed(loaded(2, 2)));
    assert_eq!(ready(&status), "Ready=True/Serving");
}

#[test]
fn a_changed_spec_is_not_served_before_its_pods_are_seen() {
    let mut model = fixtures::sentiment();
    model.status = Some(status_of(&observed(loaded(2, 2))));
    model.metadata.generation = Some(2);
    // The reconcile that applies other pods sees the workload as it was.
    let mut seen = observed(loaded(2, 2));
    seen.made.changed = true;
    let told = summary(&status_next(&model, &seen));
    assert!(
        told.starts_with("Ready=False/Updating Progressing=True/Updating"),
        "{told}"
    );
    // The next one sees other pods and another number at once, and Kubernetes has looked at neither.
    let mut seen = observed(loaded(2, 2));
    let before =
        json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2});
    seen.workers.insert(revision(), updating(3, &before));
    assert_eq!(ready(&status_next(&model, &seen)), "Ready=False/Updating");
}

#[test]
fn more_workers_that_a_changed_spec_asks_for_are_waited_for() {
    let mut model = fixtures::with("{scaling: {minReplicas: 3, maxReplicas: 5}}");
    model.status = Some(status_of(&observed(loaded(1, 1))));
    model.metadata.generation = Some(2);
    let next = |model: &BatchedModel, revision| status_next(model, &observed(revision));
    // Workers are counted once a second, and not by the reconcile that meets the change.
    assert_eq!(
        ready(&next(&model, loaded(1, 1))),
        "Ready=False/WorkersStarting"
    );
    assert_eq!(
        ready(&next(&model, loaded(3, 1))),
        "Ready=False/WorkersStarting"
    );
    let status = next(&model, loaded(3, 3));
    assert_eq!(ready(&status), "Ready=True/Serving");
    model.status = Some(status);
    assert_eq!(
        ready(&next(&model, loaded(5, 3))),
        "Ready=True/WorkersStarting"
    );
}
