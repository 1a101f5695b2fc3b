//! Names, labels, annotations and ports of a `BatchedModel`'s children.

use std::collections::BTreeMap;

/// Whoever applies the children and the status.
pub const MANAGER: &str = "carpool";
/// The owner of a number of proxies that an apply has set, until somebody scales them.
pub const SCALE_MANAGER: &str = "carpool-scale";

/// The label that says whose an object is. Pods with an injected sidecar carry it too.
pub const MODEL: &str = "carpool.dev/model";
/// The label of a revision: on its workers, their Deployment and its disruption budget.
pub const REVISION: &str = "carpool.dev/revision";

/// Annotation of a worker Deployment: the model of its revision, as JSON. The spec forgets a model when it gets
/// another.
pub const MODEL_SPEC: &str = "carpool.dev/model-spec";
/// Annotation of a worker Deployment of which a worker has been Ready once.
pub const LOADED: &str = "carpool.dev/loaded";
/// Annotation of a `BatchedModel`: another value than before asks for another attempt at a revision that was given up.
pub const RETRY: &str = "carpool.dev/retry";
/// Annotation of a worker Deployment that was given up in favour of the revision before: the problem and the attempt, as
/// JSON.
pub const GIVEN_UP: &str = "carpool.dev/given-up";
/// Annotation of pods and workloads as the operator keeps them in memory: the Secret with the URL of the Redis that they
/// use, which they mount. Annotation of the `ConfigMap`: the Secret that was made for a managed Redis.
pub const REDIS_SECRET: &str = "carpool.dev/redis-secret";
/// Annotation of a managed Redis and of its pods: another value than before comes with another password.
pub const REDIS_PASSWORD: &str = "carpool.dev/redis-password";
/// Annotation of the `ConfigMap`: the revision that is fed at each place of the queue, as JSON.
pub const PLACES: &str = "carpool.dev/places";
/// Annotation of the `ConfigMap`: the revision that the proxies feed.
pub const SERVING: &str = "carpool.dev/serving";
/// Annotation of the `ConfigMap` and of pods: the hash of the configuration. Writing it on a pod makes its kubelet read
/// the `ConfigMap` at once instead of at its next turn.
pub const CONFIG_HASH: &str = "carpool.dev/config-hash";

/// Annotation of every child: the hash of what was applied. A part that is rendered no more leaves no other trace.
pub const RENDERED: &str = "carpool.dev/rendered";

/// Annotation of a workload: the hash of its pod template.
pub const TEMPLATE: &str = "carpool.dev/template";
/// Annotation of a workload: hashes of what its pods depend on, as `reconcile/turn.rs` compares them. Another
/// template of the same inputs is another operator's.
pub const INPUTS: &str = "carpool.dev/inputs";
/// Annotation of a workload: the hash of the pod template that it got in its model's turn of an upgrade.
pub const TURN: &str = "carpool.dev/turn";

/// The label that tells the kinds of pods apart.
pub const COMPONENT: &str = "app.kubernetes.io/component";

/// The admin port of proxies and workers.
pub const ADMIN_PORT: u16 = 9090;
/// The data port of proxies.
pub const DATA_PORT: u16 = 8080;
/// The data port of a sidecar in an app's pod, on 127.0.0.1.
pub const INJECTED_DATA_PORT: u16 = 18080;
/// The admin port of a sidecar in an app's pod.
pub const INJECTED_ADMIN_PORT: u16 = 18090;
/// The port of a managed Redis.
pub const REDIS_PORT: u16 = 6379;

/// Directory in which the configuration is mounted.
pub const CONFIG_DIRECTORY: &str = "/etc/carpool";
/// Directory in which a proxy's certificate is mounted.
pub const TLS_DIRECTORY: &str = "/etc/carpool-tls";

/// A kind of pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// Takes requests over HTTP.
    Proxy,
    /// Runs the model.
    Worker,
    /// Holds the queue.
    Redis,
}

impl Component {
    /// The value of its label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Worker => "worker",
            Self::Redis => "redis",
        }
    }
}

/// `NAME-proxy`, `NAME-worker`, `NAME-redis`.
#[must_use]
pub fn child(model: &str, component: Component) -> String {
    format!("{model}-{}", component.as_str())
}

/// The Deployment of one revision's workers.
#[must_use]
pub fn worker(model: &str, revision: &str) -> String {
    format!("{model}-worker-{revision}")
}

/// The `ConfigMap` that proxies, workers and injected sidecars read.
#[must_use]
pub fn config(model: &str) -> String {
    format!("{model}-config")
}

/// The Secret of a managed Redis, unless an older operator made it, which put a part of the resource's UID behind it. The
/// name says nothing of the resource's UID, so that a manifest may hold it before there is a resource.
#[must_use]
pub fn redis_secret(model: &str) -> String {
    child(model, Component::Redis)
}

/// The Secret of a managed Redis that an older operator made.
#[must_use]
pub fn old_redis_secret(model: &str, uid: &str) -> String {
    let uid: String = uid.chars().filter(|c| *c != '-').take(8).collect();
    format!("{}-{uid}", redis_secret(model))
}

/// The labels of every child.
#[must_use]
pub fn labels(model: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "carpool"),
        ("app.kubernetes.io/instance", model),
        ("app.kubernetes.io/managed-by", "carpool"),
        (MODEL, model),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// The labels of a component and its pods.
#[must_use]
pub fn component_labels(model: &str, component: Component) -> BTreeMap<String, String> {
    let mut labels = labels(model);
    labels.insert(COMPONENT.to_owned(), component.as_str().to_owned());
    labels
}

/// The selector of a component's pods: its labels, without those that may change one day.
#[must_use]
pub fn selector(model: &str, component: Component) -> BTreeMap<String, String> {
    let mut labels = component_labels(model, component);
    labels.retain(|key, _| key != MODEL && key != "app.kubernetes.io/managed-by");
    labels
}

/// Labels or a selector, narrowed down to one revision.
#[must_use]
pub fn of_revision(
    mut labels: BTreeMap<String, String>,
    revision: &str,
) -> BTreeMap<String, String> {
    labels.insert(REVISION.to_owned(), revision.to_owned());
    labels
}

/// [`selector`] as `kubectl --selector` takes it.
#[must_use]
pub fn selector_text(model: &str, component: Component) -> String {
    selector(model, component)
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}
