//! The spec of a `BatchedModel`: what a user asks for.

use std::collections::BTreeMap;

#[cfg(feature = "kube")]
use kube::{CustomResource, KubeSchema};
#[cfg(feature = "kube")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Duration, ImagePullSecret, Model, NetworkPolicyMode, Peer, ProxyTls, Queue, Resources,
    Toleration, defaults,
};

/// A model served in batches: Redis, proxies and workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(CustomResource, KubeSchema))]
#[cfg_attr(feature = "kube", kube(
    // `crate::GROUP`; the attribute takes only a literal, and a test holds the two together.
    group = "carpool.dev",
    version = "v1alpha1",
    kind = "BatchedModel",
    namespaced,
    cel,
    shortname = "bm",
    category = "carpool",
    derive = "PartialEq",
    doc = "A model served in batches: single requests from many pods share one queue, and workers run them together.",
    status = "crate::BatchedModelStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Queue", type_ = "integer", json_path = ".status.queueLength"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = (
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 40",
        "metadata.name: at most 40 characters, lower-case letters, digits and '-', starting with a letter (it names Services)"
    )
))]
pub struct BatchedModelSpec {
    /// The model: its artifact, and the tensors it takes and gives. A change makes a new revision.
    pub model: Model,

    /// The number that the scale subresource points at. It is 1 as long as `scaling.mode` is `Builtin`, where the queue
    /// decides.
    #[cfg_attr(feature = "kube", schemars(range(max = 1000)))]
    #[cfg_attr(feature = "kube", x_kube(validation = (
        "self == 1",
        "replicas: allowed is 1; the queue decides how many workers run, and scaling.mode External is not built yet"
    )))]
    #[serde(default = "defaults::replicas")]
    pub replicas: u32,

    /// The rules by which the number of workers follows the queue.
    #[serde(default)]
    pub scaling: Scaling,

    /// The rules by which requests become batches.
    #[serde(default)]
    pub batching: Batching,

    /// The queue between proxies and workers.
    #[serde(default)]
    pub queue: Queue,

    /// The proxies, which take requests over HTTP.
    #[serde(default)]
    pub proxy: Proxy,

    /// The workers, which run the model.
    #[serde(default)]
    pub worker: Worker,

    /// The labels of nodes that may run the model's pods: proxies, workers and a managed Redis. Default: the chart's
    /// `models.nodeSelector`, which counts no more where one is given, be it `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,

    /// The taints of nodes that may run the model's pods nevertheless. Default: the chart's `models.tolerations`, which
    /// count no more where any are given, be it `[]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 32)))]
    pub tolerations: Option<Vec<Toleration>>,

    /// Secrets of this namespace with which the images of the model's pods are pulled. Default: the chart's
    /// `models.imagePullSecrets`, which count no more where any are given, be it `[]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 16)))]
    pub image_pull_secrets: Option<Vec<ImagePullSecret>>,

    /// The priority class of the model's pods. Default: the chart's `models.priorityClassName`, which counts no more
    /// where one is given, be it empty: then it is the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub priority_class_name: Option<String>,

    /// The writer of the model's network policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policies: Option<NetworkPolicyMode>,
}

impl BatchedModelSpec {
    /// The revision: the model and the place of its queue. Its workers read one Redis, so a queue that moves is a revision
    /// of its own; all that the operator runs for a model are one place.
    #[must_use]
    pub fn revision(&self) -> String {
        match &self.queue.redis.external {
            None => self.model.revision(),
            Some(external) => self.model.revision_at(&external.url_secret_name),
        }
    }
}

/// The rules by which the number of workers follows the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "self.minReplicas <= self.maxReplicas",
    "minReplicas must not be above maxReplicas"
)))]
pub struct Scaling {
    /// The writer of the number of workers. `Builtin`: the operator, from the length of the queue.
    #[serde(default)]
    pub mode: ScalingMode,

    /// The fewest workers. 0 lets an idle model go; the first request after that is held until a worker is there.
    #[cfg_attr(feature = "kube", schemars(range(max = 1000)))]
    #[serde(default)]
    pub min_replicas: u32,

    /// The most workers.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1000)))]
    #[serde(default = "defaults::max_replicas")]
    pub max_replicas: u32,

    /// Requests, waiting and in flight, that one worker is expected to carry.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1_000_000)))]
    #[serde(default = "defaults::target_queue_length")]
    pub target_queue_length: u32,

    /// The time for which fewer workers must have been enough before one goes.
    #[cfg_attr(feature = "kube", x_kube(validation = ("duration(self) <= duration('24h')", "cooldown: at most 24h")))]
    #[serde(default = "defaults::cooldown")]
    pub cooldown: Duration,
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            mode: ScalingMode::default(),
            min_replicas: 0,
            max_replicas: defaults::max_replicas(),
            target_queue_length: defaults::target_queue_length(),
            cooldown: defaults::cooldown(),
        }
    }
}

/// The writer of the number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum ScalingMode {
    /// The operator, from the length of the queue.
    #[default]
    Builtin,
}

/// The rules by which requests become batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
pub struct Batching {
    /// The most rows that run together.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1024)))]
    #[serde(default = "defaults::max_batch_size")]
    pub max_batch_size: u32,

    /// The time that a batch that is not full waits for more, counted from its oldest request's arrival. 0: an idle
    /// worker takes what is there at once, and batches grow while it is busy.
    #[cfg_attr(feature = "kube", x_kube(validation = ("duration(self) <= duration('10s')", "maxDelay: at most 10s")))]
    #[serde(default = "defaults::max_delay")]
    pub max_delay: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            max_batch_size: defaults::max_batch_size(),
            max_delay: defaults::max_delay(),
        }
    }
}

/// The proxies, which take requests over HTTP.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
pub struct Proxy {
    /// The number of proxies behind the Service. Left out, there are 2 at first, and then as many as whoever scales the
    /// Deployment NAME-proxy wants, such as an HPA or `kubectl scale`.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 100)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,

    /// The web pages that may read answers (CORS): their origins, such as `https://app.example.com`, as browsers send
    /// them, or `*` for all. Default: none. A change needs no restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 32), inner(length(max = 253))))]
    #[cfg_attr(feature = "kube", x_kube(validation = (
        "self.all(o, o == '*' || (o.matches('^[a-z][-+.a-z0-9]*://[^A-Z/?#@*, ]+$') && !o.matches('^(https://.*:443|http://.*:80)$')))",
        "corsAllowOrigins: an origin is SCHEME://HOST or SCHEME://HOST:PORT, in lower case, without a path or the scheme's own port, such as https://app.example.com; * is all of them"
    )))]
    pub cors_allow_origins: Vec<String>,

    /// The pods and addresses that may reach the proxies, beside the pods of this namespace and of the operator's, where
    /// a network plugin enforces network policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 32)))]
    pub allow_from: Vec<Peer>,

    /// The certificate by which the Service's port 443 takes requests by TLS. Default: none, and port 80 takes them
    /// without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ProxyTls>,

    /// The proxies' resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// Parts of a PodTemplateSpec, merged over the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "preserve_unknown"))]
    pub pod_overrides: Option<BTreeMap<String, Value>>,
}

/// The workers, which run the model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.gpuResource) || (has(self.resources) && has(self.resources.limits) && self.gpuResource in self.resources.limits)",
    "gpuResource: resources.limits must ask for this resource"
)))]
pub struct Worker {
    /// The device on which the model runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,

    /// The name of a resource that is a GPU, where it is none of NVIDIA's: `amd.com/gpu`. Workers whose resources ask for it
    /// run on `cuda`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 317)))]
    pub gpu_resource: Option<String>,

    /// The workers' resources, GPUs among them. A worker uses as many threads as its CPU limit allows, at least one;
    /// without a limit as many as the CPUs that it requests, rounded up: one by default. `CARPOOL_THREADS`, set in
    /// `podOverrides`, goes before both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// The rules by which workers are replaced when the model or their pod changes.
    #[serde(default)]
    pub rollout: Rollout,

    /// The workers' ServiceAccount. Default: one of their own that has no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub service_account_name: Option<String>,

    /// Parts of a PodTemplateSpec, merged over the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "preserve_unknown"))]
    pub pod_overrides: Option<BTreeMap<String, Value>>,
}

/// The names of whole and shared GPUs, as NVIDIA's device plugin gives them.
const NVIDIA_GPUS: [&str; 2] = ["nvidia.com/gpu", "nvidia.com/gpu.shared"];
/// The begin of the names of GPUs' parts, as NVIDIA's device plugin gives them.
const NVIDIA_MIG: &str = "nvidia.com/mig-";

impl Worker {
    /// The device on which the model runs: as given, or what the resources imply.
    #[must_use]
    pub fn device(&self) -> Device {
        let mut limits = self.resources.iter().flat_map(|it| it.limits.keys());
        let asks_for_gpu = limits.any(|resource| {
            NVIDIA_GPUS.contains(&resource.as_str())
                || resource.starts_with(NVIDIA_MIG)
                || self.gpu_resource.as_ref() == Some(resource)
        });
        self.device.unwrap_or(if asks_for_gpu {
            Device::Cuda
        } else {
            Device::Cpu
        })
    }
}

/// The device on which the model runs. Default: `cuda` where the resources ask for an NVIDIA GPU (`nvidia.com/gpu`,
/// `nvidia.com/gpu.shared`, `nvidia.com/mig-*`) or for `gpuResource`, else `cpu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "kube", derive(JsonSchema))]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU by CUDA, or what libtorch takes for it.
    Cuda,
}

/// The rules by which workers are replaced when the model or their pod changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!has(self.maxSurge) || self.maxSurge + self.maxUnavailable > 0",
    "maxSurge and maxUnavailable must not both be 0"
)))]
pub struct Rollout {
    /// The most workers above the wanted number. 0 never takes a spare GPU: workers are replaced one for one, at once.
    /// Default: for a new revision as many as the queue needs, for a changed pod a quarter of the workers, at least one.
    #[cfg_attr(feature = "kube", schemars(range(max = 1000)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_surge: Option<u32>,
    /// The most workers below the wanted number, once `roomTimeout` has passed and new ones fit nowhere. 0 waits for room
    /// for as long as it takes.
    #[cfg_attr(feature = "kube", schemars(range(max = 1000)))]
    #[serde(default = "defaults::max_unavailable")]
    pub max_unavailable: u32,
    /// The time for which a new worker that fits on no node waits for another node, before old workers leave to make room.
    /// 0 suits nodes of a fixed number: a full one makes room at once.
    #[cfg_attr(feature = "kube", x_kube(validation = ("duration(self) <= duration('24h')", "roomTimeout: at most 24h")))]
    #[serde(default = "defaults::room_timeout")]
    pub room_timeout: Duration,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_surge: None,
            max_unavailable: defaults::max_unavailable(),
            room_timeout: defaults::room_timeout(),
        }
    }
}

/// The schema of any object. A PodTemplateSpec's own is some 600 KB and Helm's release Secret holds 1 MiB, so overrides
/// are parsed at reconcile instead.
#[cfg(feature = "kube")]
pub(crate) fn preserve_unknown(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_ask_for_a_gpu_run_on_it() {
        for (worker, device) in [
            ("{}", Device::Cpu),
            ("{resources: {limits: {nvidia.com/gpu: 1}}}", Device::Cuda),
            (
                "{resources: {limits: {nvidia.com/gpu.shared: 1}}}",
                Device::Cuda,
            ),
            (
                "{resources: {limits: {nvidia.com/mig-1g.5gb: 1}}}",
                Device::Cuda,
            ),
            ("{resources: {limits: {amd.com/gpu: 1}}}", Device::Cpu),
            (
                "{gpuResource: amd.com/gpu, resources: {limits: {amd.com/gpu: 1}}}",
                Device::Cuda,
            ),
            (
                "{device: cuda, resources: {limits: {amd.com/gpu: 1}}}",
                Device::Cuda,
            ),
            (
                "{device: cpu, resources: {limits: {nvidia.com/gpu: 1}}}",
                Device::Cpu,
            ),
        ] {
            let parsed: Worker = serde_yaml::from_str(worker).unwrap();
            assert_eq!(parsed.device(), device, "{worker}");
        }
    }
}
