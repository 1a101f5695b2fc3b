//! Statuses of a resource between two revisions.

use carpool_scaling::{Decision, Reason};

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
            "Ready=False/ModelInvalid Progressing=False/Failed ModelLoaded=False/ModelInvalid"
        ),
        "{}",
        summary(&status)
    );
    assert_eq!(status.serving.as_deref(), Some("old"));
    assert_eq!(status.latest, Some(revision()));
    assert_eq!(
        message(&status, condition::READY),
        format!(
            "revision {} does not start: three outputs; revision old still answers with 1 worker",
            revision()
        )
    );
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
            "Ready=False/ArtifactChanged Progressing=False/Failed ModelLoaded=False/ArtifactChanged"
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
fn a_revision_that_gives_its_room_to_the_one_before_is_not_ready() {
    let mut seen = observed(loaded(1, 0));
    let active = seen.view.revisions.get_mut(&revision()).unwrap();
    active.workers.unschedulable = Some("Insufficient nvidia.com/gpu".into());
    assert!(summary(&status_of(&seen)).starts_with("Ready=False/Unschedulable"));
    let mut draining = loaded(1, 1);
    draining.length = Some(3);
    seen.view.revisions.insert("old".into(), draining);
    assert!(
        summary(&status_of(&seen))
            .starts_with("Ready=False/Unschedulable Progressing=True/Draining")
    );
}

/// A rollout from `old`, with three workers, to the latest revision in this state.
fn rollout(latest: Revision) -> Observed {
    let mut seen = observed(latest);
    let mut old = loaded(3, 3);
    old.decision = Some(Decision {
        replicas: 3,
        reason: Reason::Steady,
    });
    seen.view.revisions.insert("old".into(), old);
    seen.view.active = Some("old".into());
    seen
}

#[test]
fn a_rollout_is_ready_once_the_latest_revision_serves_at_the_wanted_number() {
    let ready = |seen: &Observed| {
        let status = status_of(seen);
        let told = message(&status, condition::READY);
        (summary(&status).split(' ').next().unwrap().to_owned(), told)
    };
    let mut first = loaded(1, 0);
    first.loaded = false;
    let (loading, told) = ready(&rollout(first.clone()));
    assert_eq!(loading, "Ready=False/RollingOut");
    assert_eq!(
        told,
        format!(
            "0 of 1 workers of revision {} are Ready; revision old still answers with 3 workers",
            revision()
        )
    );

    first.workers.waiting = 1;
    first.workers.unschedulable = Some("Insufficient nvidia.com/gpu".into());
    let mut waits = rollout(first);
    let (reason, told) = ready(&waits);
    assert_eq!(reason, "Ready=False/WaitingForRoom");
    assert!(
        told.contains("waits 300s for a node: Insufficient"),
        "{told}"
    );
    waits.view.waited = true;
    assert_eq!(ready(&waits).0, "Ready=False/MakingRoom");
    waits.view.bounds.max_unavailable = 0;
    assert_eq!(ready(&waits).0, "Ready=False/WaitingForRoom");

    let mut grown = rollout(loaded(3, 2));
    assert_eq!(ready(&grown).0, "Ready=False/RollingOut");
    let latest = grown.view.revisions.get_mut(&revision()).unwrap();
    latest.workers.ready = 3;
    grown.view.switched = false;
    let (switching, told) = ready(&grown);
    assert_eq!(switching, "Ready=False/RollingOut");
    assert!(told.starts_with("proxies are switching"), "{told}");
    grown.view.active = Some(revision());
    grown.view.switched = true;
    let (switched, told) = ready(&grown);
    assert_eq!(switched, "Ready=True/Serving");
    assert_eq!(
        told,
        format!("revision {} is served by 3 workers", revision())
    );
}

#[test]
fn a_rollout_that_failed_twice_is_stalled() {
    let stalled = |failed_starts| {
        let mut failing = loaded(1, 0);
        failing.loaded = false;
        failing.workers.failed_starts = failed_starts;
        failing.workers.problem = Some(Problem {
            reason: "ModelInvalid".into(),
            message: "three outputs".into(),
        });
        summary(&status_of(&rollout(failing)))
    };
    assert!(
        stalled(1).starts_with("Ready=False/ModelInvalid Progressing=False/Failed ModelLoaded")
    );
    assert!(
        stalled(2).starts_with(
            "Ready=False/ModelInvalid Progressing=False/Failed Stalled=True/ModelInvalid ModelLoaded"
        ),
        "{}",
        stalled(2)
    );
}

#[test]
fn a_revision_that_was_given_up_says_what_tries_it_again() {
    let mut failed = loaded(0, 0);
    failed.loaded = false;
    failed.given_up = Some(rollout::GivenUp {
        problem: Problem {
            reason: "OutOfMemory".into(),
            message: "the container worker went beyond its memory limit".into(),
        },
        attempt: String::new(),
    });
    let status = status_of(&rollout(failed));
    assert!(
        summary(&status).starts_with(
            "Ready=False/OutOfMemory Progressing=False/Failed Stalled=True/OutOfMemory"
        )
    );
    for type_ in [condition::READY, condition::MODEL_LOADED] {
        let told = message(&status, type_);
        let retry = "`kubectl annotate --overwrite bm sentiment carpool.dev/retry=$(date +%s)`";
        assert!(told.contains(retry), "{told}");
    }
}

#[test]
fn a_revision_that_proxies_are_only_now_told_to_feed_does_not_serve_yet() {
    let mut seen = observed(loaded(1, 1));
    seen.view.revisions.insert("old".into(), loaded(1, 1));
    seen.view.active = Some("old".into());
    assert_eq!(rollout::plan(&seen.view).active, revision(), "it is due");
    let told = summary(&status_of(&seen));
    assert!(told.starts_with("Ready=False/RollingOut"), "{told}");
    seen.view.active = Some(revision());
    let told = summary(&status_of(&seen));
    assert!(told.starts_with("Ready=True/Serving"), "{told}");
}
