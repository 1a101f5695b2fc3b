//! A summary of a revision's pods: how many are Ready, what keeps one from being placed, why one fails.

mod problem;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

pub use self::problem::{Problem, problem};
use crate::names::{self, Component};

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
            workers.failed_starts = workers.failed_starts.max(problem::failed_starts(pod));
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
