use super::*;

fn pod(status: &str) -> Pod {
    let status: serde_json::Value = serde_yaml::from_str(status).unwrap();
    serde_json::from_value(serde_json::json!({
            "metadata": {"name": "w", "labels": {"app.kubernetes.io/name": "carpool", "app.kubernetes.io/component": "worker", "carpool.dev/revision": "r1"}},
            "status": status
        }))
        .unwrap()
}

#[test]
fn ready_ones_are_counted() {
    let ready = pod("conditions: [{type: Ready, status: 'True'}]");
    let starting = pod("conditions: [{type: Ready, status: 'False'}]");
    let workers = Workers::of([&ready, &starting]);
    assert_eq!((workers.pods, workers.ready, workers.problem), (2, 1, None));
    assert!(is_worker(&ready, "r1") && !is_worker(&ready, "r2"));
}

#[test]
fn a_pod_without_a_node_waits_for_room_only_where_room_helps() {
    let unschedulable = |message: &str| {
        let pod = pod(&format!(
            "conditions: [{{type: PodScheduled, status: 'False', reason: Unschedulable, message: '{message}'}}]"
        ));
        Workers::of([&pod])
    };
    for message in [
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        "0/2 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint {a: b}.",
    ] {
        let workers = unschedulable(message);
        assert_eq!(workers.unschedulable.as_deref(), Some(message));
        assert_eq!(workers.problem, None);
    }
    for message in [
        "0/1 nodes are available: persistentvolumeclaim \"modles\" not found. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
        "0/1 nodes are available: 1 node(s) had untolerated taint {a: b}.",
    ] {
        let workers = unschedulable(message);
        assert_eq!(workers.unschedulable, None);
        assert_eq!(
            workers.problem,
            Some(Problem::unschedulable(message.to_owned()))
        );
    }
}

#[test]
fn the_termination_message_is_the_problem() {
    let pod = pod(r#"
initContainerStatuses:
- name: fetch
  ready: false
  image: x
  imageID: x
  restartCount: 1
  state: {waiting: {reason: CrashLoopBackOff}}
  lastState: {terminated: {exitCode: 1, message: '{"reason": "ChecksumMismatch", "message": "the artifact is another"}'}}
containerStatuses:
- {name: worker, ready: false, image: x, imageID: x, restartCount: 0, state: {waiting: {reason: PodInitializing}}}
"#);
    let problem = Workers::of([&pod]).problem.unwrap();
    assert_eq!(
        problem,
        Problem {
            reason: "ChecksumMismatch".into(),
            message: "the artifact is another".into()
        }
    );
}

#[test]
fn a_changed_artifact_is_told_whatever_else_is_wrong() {
    let ended = |name: &str, message: &str| {
        pod(&format!(
            "containerStatuses: [{{name: {name}, ready: false, image: x, imageID: x, restartCount: 1, state: {{running: {{}}}}, lastState: {{terminated: {{exitCode: 1, message: '{message}'}}}}}}]"
        ))
    };
    let changed = ended(
        "worker",
        r#"{"reason": "ArtifactChanged", "message": "it was a, it is b"}"#,
    );
    let other = ended("worker", "panicked");
    for pods in [[&changed, &other], [&other, &changed]] {
        let problem = Workers::of(pods).problem.unwrap();
        assert!(problem.is_changed_artifact(), "{problem:?}");
        assert_eq!(problem.message, "it was a, it is b");
    }
}

#[test]
fn other_ends_are_put_into_words() {
    for (state, reason, says) in [
        (
            "terminated: {exitCode: 137, reason: OOMKilled}",
            "OutOfMemory",
            "memory limit",
        ),
        (
            "terminated: {exitCode: 137, reason: Error}",
            "Killed",
            "SIGKILL: probably its node was out of memory",
        ),
        (
            "waiting: {reason: CrashLoopBackOff, message: back-off 5m0s}}, lastState: {terminated: {exitCode: 0, reason: Completed}",
            "CrashLoopBackOff",
            "the container worker ends again and again",
        ),
        (
            "waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 137, reason: OOMKilled}",
            "OutOfMemory",
            "raise its resources.limits.memory",
        ),
        (
            "running: {}}, lastState: {terminated: {exitCode: 137, reason: OOMKilled}",
            "OutOfMemory",
            "memory limit",
        ),
        (
            "terminated: {exitCode: 1, reason: Error, message: \"a\\nlast line\"}",
            "Error",
            "exit code 1: last line",
        ),
        (
            "waiting: {reason: CreateContainerConfigError, message: no such Secret}",
            "CreateContainerConfigError",
            "no such Secret",
        ),
        (
            "waiting: {reason: InvalidImageName}",
            "InvalidImageName",
            "can't be started",
        ),
    ] {
        let pod = pod(&format!(
            "containerStatuses: [{{name: worker, ready: false, image: x, imageID: x, restartCount: 0, state: {{{state}}}}}]"
        ));
        let problem = Workers::of([&pod]).problem.unwrap();
        assert_eq!(problem.reason, reason);
        assert!(problem.message.contains(says), "{}", problem.message);
    }
    let creating = pod(
        "containerStatuses: [{name: worker, ready: false, image: x, imageID: x, restartCount: 0, state: {waiting: {reason: ContainerCreating}}}]",
    );
    assert_eq!(Workers::of([&creating]).problem, None);
}

#[test]
fn an_image_that_cannot_be_pulled_is_one_problem_however_often_it_is_tried() {
    let problem = |waiting: &str| {
        let pod = pod(&format!(
            "containerStatuses: [{{name: worker, ready: false, image: 'carpool/wroker:1', imageID: '', restartCount: 0, state: {{waiting: {waiting}}}}}]"
        ));
        Workers::of([&pod]).problem.unwrap()
    };
    let first = problem("{reason: ErrImagePull, message: not found}");
    assert_eq!(first.reason, "ImagePullBackOff");
    assert!(
        first.message.contains("carpool/wroker:1"),
        "{}",
        first.message
    );
    assert_eq!(
        problem("{reason: ImagePullBackOff, message: Back-off pulling image}"),
        first
    );
}

#[test]
fn starts_that_failed_are_counted_one_that_goes_on_is_not() {
    let failed = |count: u32, state: &str, last: &str| {
        let pod = pod(&format!(
            "containerStatuses: [{{name: worker, ready: false, image: x, imageID: x, restartCount: {count}, state: {state}, lastState: {last}}}]"
        ));
        Workers::of([&pod]).failed_starts
    };
    let (ended, waits) = (
        "{terminated: {exitCode: 3}}",
        "{waiting: {reason: CrashLoopBackOff}}",
    );
    assert_eq!(failed(0, "{running: {}}", "{}"), 0);
    assert_eq!(failed(0, ended, "{}"), 1);
    assert_eq!(failed(0, waits, ended), 1);
    assert_eq!(failed(1, "{running: {}}", ended), 1);
    assert_eq!(failed(1, waits, ended), 2);
}
