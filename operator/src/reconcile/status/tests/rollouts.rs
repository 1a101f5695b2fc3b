//! Statuses of a resource between two revisions.

use super::*;

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
    seen.view.active = Some("old".into());
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
fn a_changed_artifact_is_told_while_the_worker_before_serves_on_and_after() {
    let changed = Problem {
        reason: "ArtifactChanged".into(),
        message: "the artifact has changed".into(),
    };
    let mut seen = observed(loaded(2, 1));
    report(&mut seen, LoadedReason::Loaded, "");
    let revision_state = seen.view.revisions.get_mut(&revision()).unwrap();
    revision_state.workers.pods = 2;
    revision_state.workers.problem = Some(changed);
    let plan = rollout::plan(&seen.view);
    assert_eq!((plan.give_up, plan.delete), (None, Vec::new()));
    assert_eq!(plan.active, revision());
    let serves_on = status_of(&seen);
    assert!(
        summary(&serves_on).starts_with(
            "Ready=True/Serving Progressing=False/Failed ModelLoaded=False/ArtifactChanged"
        ),
        "{}",
        summary(&serves_on)
    );
    assert_eq!(
        message(&serves_on, condition::MODEL_LOADED),
        "the artifact has changed"
    );
    assert_eq!(serves_on.sha256.as_deref(), Some("abc"));

    let revision_state = seen.view.revisions.get_mut(&revision()).unwrap();
    (revision_state.workers.pods, revision_state.workers.ready) = (1, 0);
    let none_left = status_of(&seen);
    assert!(
        summary(&none_left).starts_with(
            "Ready=False/ArtifactChanged Progressing=False/Failed ModelLoaded=False/ArtifactChanged"
        ),
        "{}",
        summary(&none_left)
    );
    assert_eq!(
        message(&none_left, condition::READY),
        "the artifact has changed"
    );
    assert_eq!(
        none_left.sha256.as_deref(),
        Some("abc"),
        "the recorded one, not the new one"
    );
}

#[test]
fn revisions_that_take_turns_on_a_node_are_ready_all_the_while() {
    let mut seen = observed(loaded(1, 0));
    let active = seen.view.revisions.get_mut(&revision()).unwrap();
    active.workers.unschedulable = Some("Insufficient nvidia.com/gpu".into());
    assert!(summary(&status_of(&seen)).starts_with("Ready=False/Unschedulable"));
    let mut draining = loaded(1, 1);
    draining.length = Some(3);
    seen.view.revisions.insert("old".into(), draining);
    assert!(
        summary(&status_of(&seen)).starts_with("Ready=True/MakingRoom Progressing=True/Draining")
    );
}
