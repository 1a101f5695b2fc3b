mod redis;
mod rollouts;
mod updates;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use carpool_crds::{Loaded, LoadedReason};
use carpool_scaling::backlog::RevisionBacklog;
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::json;

use super::*;
use crate::{
    memory::{BacklogSample, Reported},
    reconcile::{fixtures, validate},
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
            latest: revision(),
            active: Some(revision()),
            revisions: BTreeMap::from([(revision(), revision_state)]),
            switched: true,
            ..View::default()
        },
        backlog: Some(backlog(0)),
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

fn backlog(length: u64) -> BacklogSample {
    let queued = RevisionBacklog {
        length,
        ..RevisionBacklog::default()
    };
    BacklogSample {
        at: Instant::now(),
        revisions: BTreeMap::from([(revision(), queued)]),
        feeding: [(String::new(), Some(revision()))].into(),
    }
}

/// A worker says how it serves the model.
fn report(seen: &mut Observed, reason: LoadedReason, message: &str) {
    let report = Reported {
        at: Instant::now(),
        workers: BTreeSet::new(),
        model: Loaded {
            revision: revision(),
            sha256: "abc".into(),
            reason,
            message: message.into(),
        },
    };
    seen.reports.insert(revision(), report);
}

fn status_of(observed: &Observed) -> BatchedModelStatus {
    status_with("{}", observed)
}

/// The same, of a resource with parts of a spec laid over.
fn status_with(over: &str, observed: &Observed) -> BatchedModelStatus {
    status_next(&fixtures::with(over), observed)
}

/// The status after the one that a resource has.
fn status_next(model: &BatchedModel, observed: &Observed) -> BatchedModelStatus {
    let valid = validate::validate(model).unwrap();
    let plan = rollout::plan(&observed.view);
    let verdict = Verdict::Applied {
        valid: &valid,
        plan: &plan,
    };
    status(model, observed, &verdict, Timestamp::UNIX_EPOCH)
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
    report(&mut seen, LoadedReason::Loaded, "");
    let status = status_of(&seen);
    assert_eq!(
        summary(&status),
        "Ready=True/Serving Progressing=False/Complete ModelLoaded=True/Loaded ProxyReady=True/Ready RedisReady=True/Ready ScalingActive=True/FollowsQueue"
    );
    assert_eq!((status.replicas, status.ready_replicas), (1, 1));
    assert_eq!(status.url.as_deref(), Some("http://sentiment.nlp"));
    assert_eq!(status.sha256.as_deref(), Some("abc"));
    assert_eq!(
        (status.serving, status.latest),
        (Some(revision()), Some(revision()))
    );
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
fn a_certificate_that_is_missing_is_told_while_older_proxies_are_ready() {
    let tls = "{proxy: {tls: {secretName: sentiment-tls}}}";
    let mut seen = observed(loaded(1, 1));
    let status = status_with(tls, &seen);
    assert_eq!(status.url.as_deref(), Some("https://sentiment.nlp"));
    assert!(summary(&status).contains("ProxyReady=True/Ready"));

    let said = "carpool-sidecar: --tls-dir: failed to read /etc/carpool-tls/tls.crt: No such file or directory";
    let pod = json!({
        "metadata": {"name": "p", "labels": names::component_labels("sentiment", Component::Proxy)},
        "status": {"phase": "Running", "containerStatuses": [{
            "name": "proxy", "image": "i", "imageID": "", "ready": false, "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 64, "reason": "Error", "message": said}}
        }]}
    });
    seen.pods = vec![Arc::new(serde_json::from_value(pod).unwrap())];
    // A proxy that fails beside others of its kind is not their end.
    assert!(summary(&status_with(tls, &seen)).contains("ProxyReady=True/Ready"));
    let mut proxy = Deployment::clone(seen.proxy.as_ref().unwrap());
    let counts = proxy.status.as_mut().unwrap();
    (counts.replicas, counts.updated_replicas) = (Some(3), Some(1));
    seen.proxy = Some(Arc::new(proxy));
    let status = status_with(tls, &seen);
    assert!(summary(&status).contains("ProxyReady=False/Error"));
    let message = message(&status, "ProxyReady");
    assert!(message.ends_with(said), "{message}");
    // Without TLS those that are ready serve on.
    assert!(summary(&status_of(&seen)).contains("ProxyReady=True/Ready"));
}

#[test]
fn the_way_a_model_is_served_is_told_and_outlives_the_operator() {
    let mut seen = observed(loaded(1, 1));
    let why = "served unpadded: padding changes its answers";
    report(&mut seen, LoadedReason::Unpadded, why);
    let first = status_of(&seen);
    assert!(
        summary(&first)
            .contains("Ready=True/Serving Progressing=False/Complete ModelLoaded=True/Unpadded"),
        "{}",
        summary(&first)
    );
    let told = format!("a worker has loaded revision {}; {why}", revision());
    assert_eq!(message(&first, condition::MODEL_LOADED), told);

    let mut model = fixtures::sentiment();
    model.status = Some(first);
    seen.reports.clear();
    let restarted = status_next(&model, &seen);
    assert_eq!(message(&restarted, condition::MODEL_LOADED), told);
    assert!(summary(&restarted).contains("ModelLoaded=True/Unpadded"));
    assert_eq!(restarted.sha256.as_deref(), Some("abc"));

    report(&mut seen, LoadedReason::Loaded, "");
    let proved = status_next(&model, &seen);
    assert!(summary(&proved).contains("ModelLoaded=True/Loaded"));
    let told = format!("a worker has loaded revision {}", revision());
    assert_eq!(message(&proved, condition::MODEL_LOADED), told);
}

#[test]
fn zero_workers_after_the_proof_is_ready() {
    assert!(summary(&status_of(&observed(loaded(0, 0)))).starts_with("Ready=True/ScaledToZero"));
}

#[test]
fn workers_that_the_queue_asks_for_leave_a_model_ready_and_lost_ones_do_not() {
    let mut model = fixtures::sentiment();
    let mut next = |revision: Revision| {
        let status = status_next(&model, &observed(revision));
        let ready = summary(&status).split(' ').next().unwrap().to_owned();
        model.status = Some(status);
        ready
    };
    assert_eq!(
        next(loaded(2, 0)),
        "Ready=False/WorkersStarting",
        "never Ready so far"
    );
    assert_eq!(next(loaded(0, 0)), "Ready=True/ScaledToZero");
    assert_eq!(
        next(loaded(1, 0)),
        "Ready=True/WorkersStarting",
        "a request woke it"
    );
    assert_eq!(next(loaded(1, 1)), "Ready=True/Serving");
    assert_eq!(next(loaded(3, 1)), "Ready=True/WorkersStarting");
    assert_eq!(next(loaded(3, 3)), "Ready=True/Serving");
    assert_eq!(
        next(loaded(3, 2)),
        "Ready=False/WorkersStarting",
        "one was lost"
    );
    assert_eq!(next(loaded(3, 2)), "Ready=False/WorkersStarting");
    assert_eq!(next(loaded(3, 3)), "Ready=True/Serving");
    let mut full = loaded(4, 3);
    full.workers.unschedulable = Some("Insufficient nvidia.com/gpu".into());
    assert_eq!(next(full), "Ready=False/Unschedulable");
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
fn a_rejected_resource_tells_what_is_seen_and_keeps_the_rest() {
    let mut model = fixtures::sentiment();
    model.status = Some(status_of(&observed(loaded(1, 1))));
    model.metadata.generation = Some(2);
    let verdict = Verdict::Rejected {
        reason: "InvalidSpec",
        message: "spec.queue.maxBytes".into(),
    };
    let mut seen = observed(loaded(3, 3));
    seen.backlog = Some(backlog(7));
    let rejected = status(&model, &seen, &verdict, Timestamp::UNIX_EPOCH);
    assert_eq!(
        summary(&rejected),
        "Ready=False/InvalidSpec Progressing=False/InvalidSpec Stalled=True/InvalidSpec ModelLoaded=True/Loaded ProxyReady=True/Ready RedisReady=True/Ready ScalingActive=True/FollowsQueue"
    );
    assert_eq!(rejected.observed_generation, Some(2));
    assert_eq!(
        rejected.queue_length, 7,
        "shown late, it is asked for again each second"
    );
    assert_eq!((rejected.replicas, rejected.ready_replicas), (3, 3));
    assert_eq!(rejected.serving, Some(revision()));

    (seen.proxy, seen.backlog) = (None, None);
    let without_proxies = status(&model, &seen, &verdict, Timestamp::UNIX_EPOCH);
    assert!(
        summary(&without_proxies).ends_with(
            "ProxyReady=False/Starting RedisReady=True/Ready ScalingActive=False/QueueUnknown"
        ),
        "{}",
        summary(&without_proxies)
    );
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
            &Verdict::Applied {
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
    (seen.backlog, seen.asked) = (None, false);
    assert!(!summary(&status_of(&seen)).contains("ScalingActive"));
    seen.asked = true;
    assert!(summary(&status_of(&seen)).contains("ScalingActive=False/QueueUnknown"));
}
