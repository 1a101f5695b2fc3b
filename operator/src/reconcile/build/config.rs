//! The `ConfigMap` that proxies, workers and injected sidecars read.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use carpool_crds::Config;
use k8s_openapi::api::core::v1::ConfigMap;

use super::{RolloutInputs, metadata};
use crate::{names, reconcile::validate::Valid};

/// The configuration of one resource: the revision to feed at each place, and the models of all that have workers.
pub fn config_map(
    valid: &Valid,
    inputs: &RolloutInputs,
) -> Result<ConfigMap, serde_yaml::SerializeError> {
    let mut queue = valid.spec.queue.clone();
    if let Some(managed) = &mut queue.redis.managed {
        // Pods of Redis concern nobody who reads this, and may hold what others are not to know.
        managed.pod_overrides = None;
    }
    let active = &inputs.active;
    let config = Config {
        name: valid.name.clone(),
        namespace: valid.namespace.clone(),
        uid: valid.uid.clone(),
        serving: active.clone(),
        places: inputs.places.clone(),
        models: inputs.models.clone(),
        batching: valid.spec.batching.clone(),
        queue,
        device: valid.spec.worker.device(),
        cors_allow_origins: valid.spec.proxy.cors_allow_origins.clone(),
    };
    let yaml = serde_yaml::to_string(&config)?;
    let mut metadata = metadata(valid, names::config(&valid.name), None);
    metadata.annotations = Some(BTreeMap::from([
        (names::SERVING.to_owned(), active.clone()),
        (names::PLACES.to_owned(), places_json(&inputs.places)),
        // Another password is news, too: it makes kubelets read the Secret.
        (
            names::CONFIG_HASH.to_owned(),
            hash(&(&yaml, &inputs.password)),
        ),
    ]));
    if let (Some(secret), Some(annotations)) = (&inputs.made_secret, &mut metadata.annotations) {
        annotations.insert(names::REDIS_SECRET.to_owned(), secret.clone());
    }
    Ok(ConfigMap {
        metadata,
        data: Some(BTreeMap::from([("config.yaml".to_owned(), yaml)])),
        ..ConfigMap::default()
    })
}

fn places_json(places: &BTreeMap<String, String>) -> String {
    serde_json::to_value(places).unwrap_or_default().to_string()
}

fn hash(content: &impl Hash) -> String {
    // The hash is only ever compared with itself: another version's costs one more look at the file.
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
