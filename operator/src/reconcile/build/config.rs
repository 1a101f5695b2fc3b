//! The `ConfigMap` that proxies, workers and injected sidecars read.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use carpool_crds::{Config, Model};
use k8s_openapi::api::core::v1::ConfigMap;

use super::metadata;
use crate::{names, reconcile::validate::Valid};

/// The configuration of one resource: the revision to feed, and the models of all that have workers.
pub fn config_map(
    valid: &Valid,
    active: &str,
    models: &BTreeMap<String, Model>,
) -> Result<ConfigMap, serde_yaml::SerializeError> {
    let config = Config {
        name: valid.name.clone(),
        namespace: valid.namespace.clone(),
        uid: valid.uid.clone(),
        serving: active.to_owned(),
        models: models.clone(),
        batching: valid.spec.batching.clone(),
        queue: valid.spec.queue.clone(),
        device: valid.spec.worker.device(),
        cors_allow_origins: valid.spec.proxy.cors_allow_origins.clone(),
    };
    let yaml = serde_yaml::to_string(&config)?;
    let mut metadata = metadata(valid, names::config(&valid.name), None);
    metadata.annotations = Some(BTreeMap::from([
        (names::SERVING.to_owned(), active.to_owned()),
        (names::CONFIG_HASH.to_owned(), hash(&yaml)),
    ]));
    Ok(ConfigMap {
        metadata,
        data: Some(BTreeMap::from([("config.yaml".to_owned(), yaml)])),
        ..ConfigMap::default()
    })
}

fn hash(text: &str) -> String {
    // The hash is only ever compared with itself: another version's costs one more look at the file.
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
