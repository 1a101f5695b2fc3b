//! Reasons for which a pod does not run, in words for users.

use carpool_crds::{Termination, TerminationReason};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use serde::{Deserialize, Serialize};

use super::unschedulable;

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

/// The most starts of one of a pod's containers that failed.
pub fn failed_starts(pod: &Pod) -> u32 {
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
