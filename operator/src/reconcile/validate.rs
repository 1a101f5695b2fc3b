//! The second step: checks what CEL cannot see. Gives the resource as the next steps need it, or the sentence for its
//! condition.

use std::path::{Component as Part, Path};

use carpool_crds::{BatchedModel, BatchedModelSpec, Bytes, IpBlock, Peer, Quantity, Resources};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt;

use super::{cidr::Cidr, strict};
use crate::names;

/// The share of a managed Redis' memory limit that data may take: the rest is for its buffers and its AOF rewrite.
const DATA_SHARE: f64 = 0.6;
const DEFAULT_REDIS_MEMORY: &str = "1Gi";
/// Memory that a node must have free for a managed Redis, unless its limit is less: an idle queue holds next to
/// nothing.
const REDIS_REQUEST: &str = "128Mi";
/// Redis takes nothing longer than 512 MB, and a request is stored with what belongs to it.
const MAX_REQUEST: Bytes = Bytes(256 << 20);

/// A resource that has passed.
#[derive(Debug, Clone, PartialEq)]
pub struct Valid {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// The spec.
    pub spec: BatchedModelSpec,
    /// The revision of the spec.
    pub revision: String,
    /// The annotation [`names::RETRY`].
    pub retry: Option<String>,
    /// Place of the artifact.
    pub artifact: Artifact,
    /// Place of the queue.
    pub redis: RedisPlace,
    /// `spec.proxy.podOverrides`.
    pub proxy_overrides: Option<PodTemplateSpec>,
    /// `spec.worker.podOverrides`.
    pub worker_overrides: Option<PodTemplateSpec>,
    /// `spec.queue.redis.managed.podOverrides`.
    pub redis_overrides: Option<PodTemplateSpec>,
}

/// An artifact on a `PersistentVolumeClaim` of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The claim's name.
    pub claim: String,
    /// The path within it, relative; empty for the whole claim.
    pub path: String,
}

/// Place of the queue.
#[derive(Debug, Clone, PartialEq)]
pub enum RedisPlace {
    /// A Redis that the operator runs beside the model.
    Managed {
        /// Resources of that Redis, as given or by default.
        resources: Resources,
        /// `maxmemory`, in bytes.
        max_memory: u64,
    },
    /// A Redis of the user's, whose URL this Secret holds.
    External {
        /// The Secret's name.
        secret: String,
    },
}

impl Valid {
    /// The Secret with the URL of the Redis that the spec names, if it does not leave Redis to the operator.
    #[must_use]
    pub fn external_secret(&self) -> Option<&str> {
        match &self.redis {
            RedisPlace::Managed { .. } => None,
            RedisPlace::External { secret } => Some(secret),
        }
    }
}

/// Checks a resource.
pub fn validate(model: &BatchedModel) -> Result<Valid, String> {
    let field = |name: &str, value: Option<&String>| {
        value
            .cloned()
            .ok_or_else(|| format!("metadata.{name} is missing"))
    };
    let spec = &model.spec;
    let queue = &spec.queue;
    if queue.max_request_bytes > queue.max_bytes {
        return Err(format!(
            "spec.queue.maxRequestBytes: {} is more than spec.queue.maxBytes, which is {}",
            queue.max_request_bytes, queue.max_bytes
        ));
    }
    if queue.max_request_bytes > MAX_REQUEST {
        return Err(format!(
            "spec.queue.maxRequestBytes: {} is more than {MAX_REQUEST}, the most that Redis can hold of one request",
            queue.max_request_bytes
        ));
    }
    let redis = redis(spec)?;
    if let RedisPlace::Managed { max_memory, .. } = redis
        && queue.max_bytes.0 > max_memory
    {
        return Err(format!(
            "spec.queue.maxBytes: {} is more than the {max_memory} bytes that Redis may hold, {:.0} % of its memory limit in spec.queue.redis.managed.resources",
            queue.max_bytes,
            DATA_SHARE * 100.0
        ));
    }
    allow_from(&spec.proxy.allow_from)?;
    let overrides = |path: &str, overrides: Option<&_>| {
        overrides
            .map(|overrides| strict::pod_template(path, overrides))
            .transpose()
    };
    Ok(Valid {
        name: field("name", model.metadata.name.as_ref())?,
        namespace: field("namespace", model.metadata.namespace.as_ref())?,
        uid: field("uid", model.metadata.uid.as_ref())?,
        generation: model.metadata.generation.unwrap_or_default(),
        revision: spec.revision(),
        retry: model.annotations().get(names::RETRY).cloned(),
        artifact: artifact(&spec.model.uri)?,
        redis,
        proxy_overrides: overrides("spec.proxy.podOverrides", spec.proxy.pod_overrides.as_ref())?,
        worker_overrides: overrides(
            "spec.worker.podOverrides",
            spec.worker.pod_overrides.as_ref(),
        )?,
        redis_overrides: overrides(
            "spec.queue.redis.managed.podOverrides",
            queue
                .redis
                .managed
                .as_ref()
                .and_then(|managed| managed.pod_overrides.as_ref()),
        )?,
        spec: spec.clone(),
    })
}

/// Checks blocks of addresses: a NetworkPolicy with one that is none would be refused as a whole.
fn allow_from(peers: &[Peer]) -> Result<(), String> {
    for (index, peer) in peers.iter().enumerate() {
        let Some(IpBlock { cidr, except }) = &peer.ip_block else {
            continue;
        };
        let field = format!("spec.proxy.allowFrom[{index}].ipBlock");
        let parse = |field: &str, text: &str| {
            let parsed = text.parse::<Cidr>();
            parsed.map_err(|error| format!("{field}: {error}"))
        };
        let block = parse(&format!("{field}.cidr"), cidr)?;
        for (index, left_out) in except.iter().flatten().enumerate() {
            let field = format!("{field}.except[{index}]");
            if !block.is_wider_than(&parse(&field, left_out)?) {
                return Err(format!("{field}: {left_out} is no smaller part of {cidr}"));
            }
        }
    }
    Ok(())
}

fn artifact(uri: &str) -> Result<Artifact, String> {
    let Some(place) = uri.strip_prefix("pvc://") else {
        return Err(format!(
            "spec.model.uri: {uri} works only with `carpool local`; in a cluster it is pvc://CLAIM/PATH"
        ));
    };
    let (claim, path) = place.split_once('/').unwrap_or((place, ""));
    let path = path.trim_matches('/');
    let inside = Path::new(path)
        .components()
        .all(|part| matches!(part, Part::Normal(_)));
    if !inside {
        return Err(format!("spec.model.uri: {uri} leaves its claim"));
    }
    Ok(Artifact {
        claim: claim.to_owned(),
        path: path.to_owned(),
    })
}

fn redis(spec: &BatchedModelSpec) -> Result<RedisPlace, String> {
    if let Some(external) = &spec.queue.redis.external {
        return Ok(RedisPlace::External {
            secret: external.url_secret_name.clone(),
        });
    }
    let given = spec
        .queue
        .redis
        .managed
        .as_ref()
        .and_then(|managed| managed.resources.clone());
    let mut resources = given.unwrap_or_default();
    let quantity = |text: &str| Quantity(text.to_owned());
    let limit = resources
        .limits
        .entry("memory".to_owned())
        .or_insert_with(|| quantity(DEFAULT_REDIS_MEMORY))
        .clone();
    let bytes = limit.value().ok_or_else(|| {
        format!(
            "spec.queue.redis.managed.resources.limits.memory: {} is not a quantity",
            limit.0
        )
    })?;
    let request = Some(quantity(REDIS_REQUEST))
        .filter(|request| request.value() < Some(bytes))
        .unwrap_or(limit);
    resources
        .requests
        .entry("memory".to_owned())
        .or_insert(request);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float becomes the nearest u64"
    )]
    let max_memory = (bytes * DATA_SHARE) as u64;
    Ok(RedisPlace::Managed {
        resources,
        max_memory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::fixtures;

    #[test]
    fn the_smallest_resource_is_valid() {
        let valid = validate(&fixtures::sentiment()).unwrap();
        assert_eq!(
            valid.artifact,
            Artifact {
                claim: "models".into(),
                path: "sentiment".into()
            }
        );
        let RedisPlace::Managed { max_memory, .. } = valid.redis else {
            panic!("a managed Redis is the default")
        };
        assert_eq!(max_memory, 644_245_094);
    }

    #[test]
    fn what_cel_cannot_see_is_refused_by_the_fields_name() {
        for (over, says) in [
            (
                "model: {uri: 'file://artifact'}",
                "spec.model.uri: file://artifact works only with `carpool local`",
            ),
            (
                "model: {uri: 'pvc://models/../etc'}",
                "spec.model.uri: pvc://models/../etc leaves its claim",
            ),
            (
                "queue: {maxBytes: 1Mi}",
                "spec.queue.maxRequestBytes: 4Mi is more than spec.queue.maxBytes",
            ),
            (
                "queue: {maxBytes: 600Mi, maxRequestBytes: 257Mi}",
                "spec.queue.maxRequestBytes: 257Mi is more than 256Mi",
            ),
            (
                "queue: {maxBytes: 1Gi}",
                "spec.queue.maxBytes: 1Gi is more than the 644245094 bytes",
            ),
            (
                "queue: {redis: {managed: {resources: {limits: {memory: 256Mi}}}}}",
                "spec.queue.maxBytes: 512Mi is more than",
            ),
            (
                "worker: {podOverrides: {spec: {nodeSelecter: {a: b}}}}",
                "spec.worker.podOverrides.spec.nodeSelecter",
            ),
            (
                "proxy: {podOverrides: {spec: {replicas: 3}}}",
                "spec.proxy.podOverrides.spec.replicas",
            ),
            (
                "proxy: {allowFrom: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0}}]}",
                "spec.proxy.allowFrom[1].ipBlock.cidr: \"10.0.0.0\" has no length; allowed is ADDRESS/LENGTH",
            ),
            (
                "proxy: {allowFrom: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}]}",
                "spec.proxy.allowFrom[0].ipBlock.except[1]: 11.0.0.0/16 is no smaller part of 10.0.0.0/8",
            ),
            (
                "queue: {redis: {managed: {podOverrides: {spec: {nodeName: 3}}}}}",
                "spec.queue.redis.managed.podOverrides",
            ),
            (
                "queue: {redis: {managed: {podOverrides: {spec: {tolerates: []}}}}}",
                "spec.queue.redis.managed.podOverrides.spec.tolerates",
            ),
        ] {
            let error = validate(&fixtures::with(over)).unwrap_err();
            assert!(error.contains(says), "{over}: {error}");
        }
    }

    #[test]
    fn a_managed_redis_requests_little_and_no_more_than_its_limit() {
        for (resources, request) in [
            ("{}", "128Mi"),
            ("{limits: {cpu: 1, memory: 4Gi}}", "128Mi"),
            ("{limits: {memory: 100Mi}}", "100Mi"),
            ("{limits: {memory: 4Gi}, requests: {memory: 1Gi}}", "1Gi"),
        ] {
            let model = fixtures::with(&format!(
                "queue: {{maxBytes: 4Mi, redis: {{managed: {{resources: {resources}}}}}}}"
            ));
            let RedisPlace::Managed { resources, .. } = validate(&model).unwrap().redis else {
                panic!("a managed Redis was asked for")
            };
            assert_eq!(resources.requests["memory"].0, request);
        }
    }

    #[test]
    fn a_redis_of_the_users_needs_only_its_secret() {
        let model =
            fixtures::with("queue: {maxBytes: 8Gi, redis: {external: {urlSecretName: mine}}}");
        assert_eq!(
            validate(&model).unwrap().redis,
            RedisPlace::External {
                secret: "mine".into()
            }
        );
    }
}
