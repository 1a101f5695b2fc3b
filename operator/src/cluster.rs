//! The operator's view of the cluster: one watch per kind, kept in an index, of objects that carry the model's label.
//!
//! A watch's event asks for a reconcile only once its index holds the object, so a reconcile never misses what
//! caused it.

use std::fmt::Debug;

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ObjectMeta,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;

use crate::{
    index::{Index, ModelRef, Stored},
    names,
};

/// Models that something has happened to.
type Touched = SelectAll<BoxStream<'static, ModelRef>>;

/// The objects that were last seen. Of kinds that hold nothing else of interest only the metadata is kept.
#[derive(Clone)]
pub struct Cluster {
    /// Every `BatchedModel`.
    pub models: Store<Stored>,
    /// Proxies and workers.
    pub deployments: Index<Deployment>,
    /// Redis.
    pub stateful_sets: Index<StatefulSet>,
    /// Pods of all components, and those with an injected sidecar.
    pub pods: Index<Pod>,
    /// Metadata of the `ConfigMap`s.
    pub config_maps: Index<PartialObjectMeta<ConfigMap>>,
    /// Metadata of the Services.
    pub services: Index<PartialObjectMeta<Service>>,
    /// Metadata of the `ServiceAccount`s.
    pub accounts: Index<PartialObjectMeta<ServiceAccount>>,
    /// Metadata of the `PodDisruptionBudget`s.
    pub budgets: Index<PartialObjectMeta<PodDisruptionBudget>>,
    /// Metadata of the `NetworkPolicy`s.
    pub policies: Index<PartialObjectMeta<NetworkPolicy>>,
}

/// The streams that keep a [`Cluster`] current. They must be polled.
pub struct Watches {
    /// Resources that changed.
    pub models: BoxStream<'static, Result<Stored, watcher::Error>>,
    /// Resources of which a child changed.
    pub children: Touched,
}

impl Cluster {
    /// Starts watching. Nothing is seen before the streams are polled.
    pub fn watch(client: &Client) -> (Self, Watches) {
        let (models, writer) = reflector::store();
        let stream = watcher(
            Api::<Stored>::all(client.clone()),
            watcher::Config::default(),
        )
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .boxed();
        let mut children = SelectAll::new();
        let cluster = Self {
            models,
            deployments: watch_children(client, &mut children),
            stateful_sets: watch_children(client, &mut children),
            pods: watch_children(client, &mut children),
            config_maps: watch_children(client, &mut children),
            services: watch_children(client, &mut children),
            accounts: watch_children(client, &mut children),
            budgets: watch_children(client, &mut children),
            policies: watch_children(client, &mut children),
        };
        let watches = Watches {
            models: stream,
            children,
        };
        (cluster, watches)
    }

    /// Resolves once every watch of children has seen everything. For resources themselves the controller waits.
    pub async fn ready(&self) {
        let Self {
            models: _,
            deployments,
            stateful_sets,
            pods,
            config_maps,
            services,
            accounts,
            budgets,
            policies,
        } = self;
        deployments.ready().await;
        stateful_sets.ready().await;
        pods.ready().await;
        config_maps.ready().await;
        services.ready().await;
        accounts.ready().await;
        budgets.ready().await;
        policies.ready().await;
    }
}

fn watch_children<K>(client: &Client, touched: &mut Touched) -> Index<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let index = Index::new();
    let fed = index.clone();
    let stream = watcher(
        Api::<K>::all(client.clone()),
        watcher::Config::default().labels(names::MODEL),
    )
    .modify(|object| {
        // Large, and of no use here.
        object.managed_fields_mut().clear();
    })
    .default_backoff()
    .flat_map(move |event| {
        stream::iter(match event {
            Ok(event) => fed.feed(event),
            Err(error) => {
                tracing::warn!(%error, "a watch was interrupted and is taken up again");
                Vec::new()
            }
        })
    });
    touched.push(stream.boxed());
    index
}

/// Whether an object is a child of the resource with this UID.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// The stream of touched resources, as a controller takes it.
pub fn merge(children: Touched, others: impl Stream<Item = ModelRef> + Send + 'static) -> Touched {
    let mut all = children;
    all.push(others.boxed());
    all
}
