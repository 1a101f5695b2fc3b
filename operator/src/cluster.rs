//! What the operator sees: one watch per kind, kept in memory, of objects that carry the model's label.
//!
//! A watch's event asks for a reconcile only once its store holds the object, so a reconcile never misses what
//! caused it.

use std::{fmt::Debug, hash::Hash};

use carpool_crds::BatchedModel;
use futures::{
    FutureExt, Stream, StreamExt,
    future::{self, BoxFuture, Shared},
    stream::{BoxStream, SelectAll},
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
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;

use crate::names;

/// A resource as stored. One that does not parse is told so instead of stopping the watch for all.
pub type Stored = DeserializeGuard<BatchedModel>;

/// A stream of resources that something has happened to.
type Touched = SelectAll<BoxStream<'static, ObjectRef<Stored>>>;

type Ready = Shared<BoxFuture<'static, bool>>;

/// The objects that were last seen. Of kinds that hold nothing else of interest only the metadata is kept.
#[derive(Clone)]
pub struct Cluster {
    /// What users asked for.
    pub models: Store<Stored>,
    /// Proxies and workers.
    pub deployments: Store<Deployment>,
    /// Redis.
    pub stateful_sets: Store<StatefulSet>,
    /// Pods of all components, and those with an injected sidecar.
    pub pods: Store<Pod>,
    /// Metadata.
    pub config_maps: Store<PartialObjectMeta<ConfigMap>>,
    /// Metadata.
    pub services: Store<PartialObjectMeta<Service>>,
    /// Metadata.
    pub accounts: Store<PartialObjectMeta<ServiceAccount>>,
    /// Metadata.
    pub budgets: Store<PartialObjectMeta<PodDisruptionBudget>>,
    /// Metadata.
    pub policies: Store<PartialObjectMeta<NetworkPolicy>>,
    /// A store wakes only the last of those that wait for it, so one future waits for all.
    ready: Ready,
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
        let mut cluster = Self {
            models,
            deployments: watch_children(client, &mut children),
            stateful_sets: watch_children(client, &mut children),
            pods: watch_children(client, &mut children),
            config_maps: watch_children(client, &mut children),
            services: watch_children(client, &mut children),
            accounts: watch_children(client, &mut children),
            budgets: watch_children(client, &mut children),
            policies: watch_children(client, &mut children),
            ready: future::ready(false).boxed().shared(),
        };
        cluster.ready = cluster.all_ready();
        let watches = Watches {
            models: stream,
            children,
        };
        (cluster, watches)
    }

    /// Resolves once every watch of children has seen everything, to whether it has. For resources themselves the
    /// controller waits.
    pub async fn ready(&self) -> bool {
        self.ready.clone().await
    }

    fn all_ready(&self) -> Ready {
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
            ready: _,
        } = self.clone();
        async move {
            let all = async {
                deployments.wait_until_ready().await?;
                stateful_sets.wait_until_ready().await?;
                pods.wait_until_ready().await?;
                config_maps.wait_until_ready().await?;
                services.wait_until_ready().await?;
                accounts.wait_until_ready().await?;
                budgets.wait_until_ready().await?;
                policies.wait_until_ready().await
            };
            all.await.is_ok()
        }
        .boxed()
        .shared()
    }
}

fn watch_children<K>(client: &Client, touched: &mut Touched) -> Store<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
{
    let (store, writer) = reflector::store();
    let stream = watcher(
        Api::<K>::all(client.clone()),
        watcher::Config::default().labels(names::MODEL),
    )
    .modify(|object| {
        // Large, and of no use here.
        object.managed_fields_mut().clear();
    })
    .default_backoff()
    .reflect(writer)
    .touched_objects()
    .filter_map(|event| {
        future::ready(match event {
            Ok(object) => owner(object.meta()),
            Err(error) => {
                tracing::warn!(%error, "a watch was interrupted and is taken up again");
                None
            }
        })
    });
    touched.push(stream.boxed());
    store
}

fn owner(meta: &ObjectMeta) -> Option<ObjectRef<Stored>> {
    let model = meta.labels.as_ref()?.get(names::MODEL)?;
    Some(ObjectRef::new(model).within(meta.namespace.as_deref()?))
}

/// Whether an object is a child of the resource with this UID.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// The stream of touched resources, as a controller takes it.
pub fn merge(
    children: Touched,
    others: impl Stream<Item = ObjectRef<Stored>> + Send + 'static,
) -> Touched {
    let mut all = children;
    all.push(others.boxed());
    all
}
