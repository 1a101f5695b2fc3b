//! The third step: the children of a resource, as they should be. Pure: the same resource always gives the same
//! children, so an operator that starts anew changes none.

mod config;
#[cfg(test)]
mod golden;
pub mod pod;
mod policies;
mod proxy;
mod redis;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;

use carpool_crds::{Duration, GROUP, Model};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

pub use self::{
    proxy::url,
    redis::secret as redis_secret,
    worker::{RevisionState, attempt},
};
use rand::distr::{Alphanumeric, SampleString};

use super::{
    observe::Observed,
    proxies,
    validate::{RedisPlace, Valid},
};
use crate::{
    defaults::ModelDefaults,
    names::{self, Component},
};

/// Letters and digits of the mark of a password, which says nothing of the password.
const MARK_LENGTH: usize = 8;

/// The images of the pods, and how they run where their model does not say.
#[derive(Debug, Clone)]
pub struct Images {
    /// `carpool-sidecar`.
    pub sidecar: String,
    /// `carpool-worker`.
    pub worker: String,
    /// `redis-server`.
    pub redis: String,
    /// The user of the Redis image, where the image itself names none that is not root.
    pub redis_user: Option<i64>,
    /// Pull policy of all images.
    pub pull_policy: String,
    /// Settings of models whose own spec leaves them to the cluster.
    pub defaults: ModelDefaults,
}

/// Parts of a plan that the children depend on, beside their resource.
#[derive(Debug, Clone)]
pub struct RolloutInputs {
    /// The revision that the proxies are to feed.
    pub active: String,
    /// The Secret with the URL of the Redis that the spec asks for.
    pub secret: String,
    /// The same of the Redis that the active revision's workers read, which the proxies use.
    pub proxy_secret: String,
    /// The revision to feed with the Redis of each Secret.
    pub places: BTreeMap<String, String>,
    /// The mark of a managed Redis' password, where it is not the first.
    pub password: Option<String>,
    /// The Secret that was made for a managed Redis.
    pub made_secret: Option<String>,
    /// The models of the revisions that have workers, or had when they were last seen.
    pub models: BTreeMap<String, Model>,
    /// The latest revision's past; `None` while it is not its turn yet.
    pub worker: Option<RevisionState>,
}

impl RolloutInputs {
    /// Has a managed Redis start anew with another password, from a Secret that it does not share with an older operator.
    pub fn renew_password(&mut self, valid: &Valid, observed: &Observed) {
        let (old, new) = (&observed.places.managed, names::redis_secret(&valid.name));
        for secret in [&mut self.secret, &mut self.proxy_secret] {
            if secret == old {
                secret.clone_from(&new);
            }
        }
        if let Some(revision) = self.places.remove(old) {
            self.places.insert(new, revision);
        }
        self.made_secret = Some(self.secret.clone());
        self.password = Some(Alphanumeric.sample_string(&mut rand::rng(), MARK_LENGTH));
    }
}

/// The children of one resource. The Secret is not among them: it is created once and never looked at again.
#[derive(Debug)]
pub struct Children {
    /// Accounts without tokens, one per component.
    pub accounts: Vec<ServiceAccount>,
    /// The configuration that proxies, workers and injected sidecars read.
    pub config: ConfigMap,
    /// Network policies, one per component, unless they are left to the user.
    pub policies: Vec<NetworkPolicy>,
    /// Disruption budgets of the proxies and of each revision's workers.
    pub budgets: Vec<PodDisruptionBudget>,
    /// The model's, and its Redis'.
    pub services: Vec<Service>,
    /// Redis, where it is managed.
    pub redis: Option<StatefulSet>,
    /// Proxies, without their number.
    pub proxy: Deployment,
    /// The number of proxies that a new Deployment starts with.
    pub proxies: i32,
    /// Workers of the latest revision, where it is their turn.
    pub worker: Option<Deployment>,
    /// Whether a Secret with a password must be there.
    pub needs_secret: bool,
}

/// Reasons for which children can't be written down.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration.
    #[error("failed to write the configuration as YAML: {0}")]
    Config(#[from] serde_yaml::SerializeError),
    /// The model's annotation.
    #[error("failed to write the model as JSON: {0}")]
    Model(#[from] serde_json::Error),
}

/// The children of a resource. `scrape_namespaces` may reach the admin ports of proxies and workers, and the first of
/// them, the operator's own, the proxies' data port, too.
pub fn build(
    valid: &Valid,
    inputs: &RolloutInputs,
    images: &Images,
    scrape_namespaces: &[String],
) -> Result<Children, BuildError> {
    let secret = &inputs.secret;
    let redis = match &valid.redis {
        RedisPlace::Managed {
            resources,
            max_memory,
        } => {
            let memory = redis::Memory {
                resources,
                max: *max_memory,
            };
            Some(redis::stateful_set(
                valid,
                images,
                &memory,
                secret,
                inputs.password.as_deref(),
            ))
        }
        RedisPlace::External { .. } => None,
    };
    let managed = redis.is_some();
    let components = |with_redis: bool| {
        [Component::Proxy, Component::Worker]
            .into_iter()
            .chain(with_redis.then_some(Component::Redis))
    };
    let revisions = inputs.models.keys();
    let with_policies = images.defaults.manages_network_policies(&valid.spec);
    Ok(Children {
        accounts: components(managed)
            .map(|component| policies::account(valid, component))
            .collect(),
        config: config::config_map(valid, inputs)?,
        policies: components(managed)
            .filter(|_| with_policies)
            .map(|component| policies::policy(valid, component, scrape_namespaces))
            .collect(),
        budgets: std::iter::once(policies::proxy_budget(valid))
            .chain(revisions.map(|revision| policies::worker_budget(valid, revision)))
            .collect(),
        services: std::iter::once(proxy::service(valid))
            .chain(managed.then(|| redis::service(valid)))
            .collect(),
        redis,
        proxy: proxy::deployment(valid, images, &inputs.proxy_secret),
        proxies: proxies::first(valid),
        worker: inputs
            .worker
            .as_ref()
            .map(|state| worker::deployment(valid, images, secret, state))
            .transpose()?,
        needs_secret: managed,
    })
}

/// A child's metadata: owned by the resource, so that it goes with it.
fn metadata(valid: &Valid, name: String, component: Option<Component>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(valid.namespace.clone()),
        labels: Some(match component {
            Some(component) => names::component_labels(&valid.name, component),
            None => names::labels(&valid.name),
        }),
        owner_references: Some(vec![OwnerReference {
            api_version: format!("{GROUP}/v1alpha1"),
            kind: "BatchedModel".to_owned(),
            name: valid.name.clone(),
            uid: valid.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

/// A duration in whole seconds, rounded up.
fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.0.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}
