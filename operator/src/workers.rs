//! A summary of a revision's pods: how many are Ready, what keeps one from being placed, why one fails.

use carpool_crds::{Termination, TerminationReason};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::names::{self, Component};

/// The exit code of what SIGKILL ended.
const KILLED: i32 = 137;

/// The cause of a worker that is not Ready: a stable reason for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The reason, as the termination message or Kubernetes gives it.
    pub reason: String,
    /// The sentence.
    pub message: String,
}

impl Problem {
    /// Whether a worker was refused because its artifact is not its revision's any more.
    #[must_use]
    pub fn is_changed_artifact(&self) -> bool {
        self.reason == TerminationReason::ArtifactChanged.name()
    }

    /// The problem of a pod that has no node.
    #[must_use]
    pub fn unschedulable(message: String) -> Self {
        Self {
            reason: "Unschedulable".to_owned(),
            message,
        }
    }
}

/// The pods of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workers {
    /// Pods that exist, whatever their state.
    pub pods: usize,
    /// Pods that are Ready.
    pub ready: usize,
    /// Pods that have been told to leave.
    pub leaving: usize,
    /// Pods that fit nowhere before others leave a node.
    pub waiting: usize,
    /// The most starts of a container that failed in one pod that is not Ready.
    pub failed_starts: u32,
    /// The scheduler's message on a pod that fits nowhere before others leave a node.
    pub unschedulable: Option<String>,
    /// The problem of a pod that does not get Ready, whoever leaves.
    pub problem: Option<Problem>,
}

impl Workers {
    /// Looks at pods.
    pub fn of<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        let mut workers = Self::default();
        for pod in pods {
            workers.pods += 1;
            if pod.metadata.deletion_timestamp.is_some() {
                workers.leaving += 1;
                continue;
            }
            if is_ready(pod) {
                workers.ready += 1;
                continue;
            }
            if let Some(message) = unschedulable(pod).filter(|message| room_helps(message)) {
                workers.waiting += 1;
                workers.unschedulable = Some(message);
                continue;
            }
            workers.failed_starts = workers.failed_starts.max(failed_starts(pod));
            let problem = problem(pod);
            let first = workers.problem.is_none();
            // The problem that another attempt never cures is told before any other.
            if first || problem.as_ref().is_some_and(Problem::is_changed_artifact) {
                workers.problem = problem;
            }
        }
        workers
    }
}

/// Whether a pod is a worker of this revision.
pub fn is_worker(pod: &Pod, revision: &str) -> bool {
    is(pod, Component::Worker)
        && pod
            .labels()
            .get(names::REVISION)
            .is_some_and(|label| label == revision)
}

/// Whether a pod is of this component.
pub fn is(pod: &Pod, component: Component) -> bool {
    let labels = pod.labels();
    labels
        .get("app.kubernetes.io/name")
        .is_some_and(|name| name == "carpool")
        && labels
            .get(names::COMPONENT)
            .is_some_and(|label| label == component.as_str())
}

/// Whether a pod is Ready.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

fn condition<'a>(
    pod: &'a Pod,
    type_: &str,
) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

fn unschedulable(pod: &Pod) -> Option<String> {
    let scheduled = condition(pod, "PodScheduled")?;
    (scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable"))
        .then(|| scheduled.message.clone().unwrap_or_default())
}

/// Whether a pod would have a node if others left it. No room cures a missing claim, a taint or a selector.
fn room_helps(message: &str) -> bool {
    [
        "Insufficient ",
        "Too many pods",
        // Devices of dynamic resource allocation.
        "cannot allocate all claims",
        "free ports",
        "anti-affinity",
        "ReadWriteOncePod",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// The most starts of one of a pod's containers that failed.
fn failed_starts(pod: &Pod) -> u32 {
    let failed = |status: &ContainerStatus| {
        let ended = |state: &ContainerState| {
            state
                .terminated
                .as_ref()
                .is_some_and(|ended| ended.exit_code != 0)
        };
        let (state, last) = (status.state.as_ref(), status.last_state.as_ref());
        let now = state.is_some_and(ended);
        // The count is of restarts: the start before a wait is one that has not been made up for yet.
        let waits = state.is_some_and(|state| state.waiting.is_some()) && last.is_some_and(ended);
        let restarts = u32::try_from(status.restart_count).unwrap_or(0);
        restarts + u32::from(now || waits)
    };
    let status = pod.status.iter();
    let containers = status.flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    });
    containers
        .filter(|status| !status.ready)
        .map(failed)
        .max()
        .unwrap_or(0)
}

/// The problem of a pod that does not run: it has no node, its containers have ended, or something keeps the kubelet
/// from starting them.
pub fn problem(pod: &Pod) -> Option<Problem> {
    if let Some(message) = unschedulable(pod) {
        return Some(Problem::unschedulable(message));
    }
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten())
        .find_map(container_problem)
}

fn container_problem(status: &ContainerStatus) -> Option<Problem> {
    if status.ready {
        return None;
    }
    let state = status.state.as_ref()?;
    let last = status
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let ended = state.terminated.as_ref().or(last);
    if let Some(ended) = ended.filter(|ended| ended.exit_code != 0) {
        let said = ended.message.as_deref().unwrap_or_default().trim();
        if let Ok(Termination { reason, message }) = serde_json::from_str(said) {
            return Some(Problem { reason, message });
        }
        if ended.reason.as_deref() == Some("OOMKilled") {
            return Some(Problem {
                reason: TerminationReason::OutOfMemory.name().to_owned(),
                message: format!(
                    "the container {} went beyond its memory limit; raise its resources.limits.memory",
                    status.name
                ),
            });
        }
        if ended.exit_code == KILLED {
            return Some(Problem {
                reason: "Killed".to_owned(),
                message: format!(
                    "the container {} was killed by SIGKILL: probably its node was out of memory, or it did not end in \
                     time; the pod's events say which",
                    status.name
                ),
            });
        }
        return Some(Problem {
            reason: ended.reason.clone().unwrap_or_else(|| "Error".to_owned()),
            message: format!(
                "the container {} ended with exit code {}: {}",
                status.name,
                ended.exit_code,
                said.lines().last().unwrap_or("it said nothing")
            ),
        });
    }
    let waiting = state.waiting.as_ref()?;
    let said = waiting.message.clone();
    let (reason, message) = match waiting.reason.as_deref()? {
        // The kubelet goes to and fro between the two, each time in other words.
        "ErrImagePull" | "ImagePullBackOff" => (
            "ImagePullBackOff",
            format!(
                "the image {} of the container {} can't be pulled; the pod's events say why",
                status.image, status.name
            ),
        ),
        stuck @ ("InvalidImageName"
        | "ErrImageNeverPull"
        | "CreateContainerConfigError"
        | "CreateContainerError") => (
            stuck,
            said.unwrap_or_else(|| format!("the container {} can't be started", status.name)),
        ),
        // A container that ended with an exit code was named above.
        stuck @ "CrashLoopBackOff" => (
            stuck,
            format!(
                "the container {} ends again and again although nothing fails; its log and the pod's events say why",
                status.name
            ),
        ),
        // Any other reason is a step on the way to running.
        _ => return None,
    };
    Some(Problem {
        reason: reason.to_owned(),
        message,
    })
}

#[cfg(test)]
mod tests {
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
}
