//! `spec.queue`: the queue's bounds and times, and its Redis.

use std::collections::BTreeMap;

#[cfg(feature = "kube")]
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Bytes, Duration, Resources, defaults};

/// The queue between proxies and workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "duration(self.lease) >= duration('1s') && duration(self.lease) + duration(self.lease) + duration(self.lease) <= duration(self.timeout)",
    "lease must be at least 1s and at most a third of timeout, so that another worker can still answer when one dies"
)))]
pub struct Queue {
    /// The most requests that wait or are in flight; one more is answered 429.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 10_000_000)))]
    #[serde(default = "defaults::max_length")]
    pub max_length: u32,

    /// The most bytes that the queue's requests hold together; a proxy holds as many of answers that clients do not
    /// take.
    #[serde(default = "defaults::max_bytes")]
    pub max_bytes: Bytes,

    /// The largest request body, 256Mi at most; a larger one is answered 413. All bodies that a proxy is reading at a time
    /// hold 16 times as much, or 64Mi if that is more; beyond it a request is answered 429.
    #[serde(default = "defaults::max_request_bytes")]
    pub max_request_bytes: Bytes,

    /// The longest that a request may take, from its arrival to its answer; then it is answered 504.
    #[cfg_attr(feature = "kube", x_kube(validation = (
        "duration(self) >= duration('3s') && duration(self) <= duration('1h')",
        "timeout: between 3s and 1h"
    )))]
    #[serde(default = "defaults::timeout")]
    pub timeout: Duration,

    /// The longest that a request may take whose client comes back for the answer (`Prefer: respond-async`); then its job
    /// has failed. Default: 1h.
    #[cfg_attr(feature = "kube", x_kube(validation = (
        "duration(self) >= duration('3s') && duration(self) <= duration('168h')",
        "asyncTimeout: between 3s and 168h"
    )))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_timeout: Option<Duration>,

    /// The time that a job's result is kept. Default: 1h.
    #[cfg_attr(feature = "kube", x_kube(validation = (
        "duration(self) >= duration('1s') && duration(self) <= duration('168h')",
        "resultTtl: between 1s and 168h"
    )))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_ttl: Option<Duration>,

    /// The most rows that one request may hold; a larger one is answered 413. Its rows run in batches between those of
    /// others, and it is answered when the last has run.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1_000_000)))]
    #[serde(default = "defaults::max_rows_per_request")]
    pub max_rows_per_request: u32,

    /// The time that a worker's process may be silent before another takes its requests over. However long a batch
    /// runs, its worker is not silent: `runTimeout` is what ends one that hangs.
    #[serde(default = "defaults::lease")]
    pub lease: Duration,

    /// The longest that one forward pass may take before the worker is taken to hang, and ends. Default: 20 times as
    /// long as the slowest so far, at least 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", x_kube(validation = (
        "duration(self) >= duration('1s') && duration(self) <= duration('24h')",
        "runTimeout: between 1s and 24h"
    )))]
    pub run_timeout: Option<Duration>,

    /// The number of times that a request may be given to a worker before it is given up, the first time included.
    #[cfg_attr(feature = "kube", schemars(range(min = 2, max = 100)))]
    #[serde(default = "defaults::max_deliveries")]
    pub max_deliveries: u32,

    /// The priorities that requests may have. Without it, all have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priorities: Option<Priorities>,

    /// The callers among which the queue is shared out. Without it, each proxy is one: that beside an app, for instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fairness: Option<Fairness>,

    /// The Redis (7.0 or later) or Valkey that holds the queue.
    #[serde(default)]
    pub redis: Redis,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_length: defaults::max_length(),
            max_bytes: defaults::max_bytes(),
            max_request_bytes: defaults::max_request_bytes(),
            timeout: defaults::timeout(),
            async_timeout: None,
            result_ttl: None,
            max_rows_per_request: defaults::max_rows_per_request(),
            lease: defaults::lease(),
            run_timeout: None,
            max_deliveries: defaults::max_deliveries(),
            priorities: None,
            fairness: None,
            redis: Redis::default(),
        }
    }
}

/// The priorities that requests may have: the parameter `priority` of the protocol, in Triton's meaning. 1 is the highest.
/// Where many wait, workers take twice as many of a priority as of the next: a low one is slowed, and never starved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "self.default <= self.levels",
    "default must be one of the priorities, at most levels"
)))]
pub struct Priorities {
    /// The number of priorities.
    #[cfg_attr(feature = "kube", schemars(range(min = 2, max = 7)))]
    pub levels: u8,

    /// The priority of requests that name none, or one that there is not.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 7)))]
    pub default: u8,
}

/// The callers among which the queue is shared out: where many requests wait, one with few of them does not wait for those
/// of another with many, and none fills the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
pub struct Fairness {
    /// The header, or gRPC metadata, whose value names a request's caller, such as `x-tenant`.
    #[cfg_attr(
        feature = "kube",
        schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))
    )]
    pub key: String,
}

impl Queue {
    /// The longest that a request may take whose client comes back for the answer.
    #[must_use]
    pub fn async_timeout(&self) -> Duration {
        self.async_timeout.unwrap_or(defaults::async_timeout())
    }

    /// The time that a job's result is kept.
    #[must_use]
    pub fn result_ttl(&self) -> Duration {
        self.result_ttl.unwrap_or(defaults::result_ttl())
    }
}

/// The Redis that holds the queue: the operator's own, or yours.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
#[cfg_attr(feature = "kube", x_kube(validation = (
    "!(has(self.managed) && has(self.external))",
    "redis: either managed or external, not both"
)))]
pub struct Redis {
    /// A Redis that the operator runs beside the model. The default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedRedis>,

    /// A Redis of yours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalRedis>,
}

/// A Redis that the operator runs beside the model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
pub struct ManagedRedis {
    /// The Redis' resources. 60 % of the memory limit is what it may hold. Default limit: 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// Parts of a PodTemplateSpec, merged over the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(schema_with = "crate::spec::preserve_unknown")
    )]
    pub pod_overrides: Option<BTreeMap<String, Value>>,
}

/// A Redis of yours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kube", derive(KubeSchema))]
pub struct ExternalRedis {
    /// A Secret of this namespace whose key `url` holds `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` for TLS,
    /// or `redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/NAME[/DB]` for the primary that those sentinels
    /// know by this name, `rediss+sentinel://` for TLS. Its key `ca.crt` holds the certificate authorities to trust with
    /// TLS, as PEM; without it those of the image are, which has none unless you add them. A change of either is followed
    /// once it works. To move the queue to another Redis, name another Secret: that is a rollout.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub url_secret_name: String,
}
