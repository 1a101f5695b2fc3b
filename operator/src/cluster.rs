//! The operator's view of the cluster: one watch per kind, kept in an index, of objects that carry the model's label.
//!
//! A watch's event asks for a reconcile only once its index holds the object, so a reconcile never misses what
//! caused it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use carpool_crds::BatchedModel;
use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream, SelectAll},
};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Pod, Service, ServiceAccount, Volume},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ObjectMeta},
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event, watcher},
    },
};

use tokio::time::{Instant, timeout_at};

use crate::{
    index::{Index, ModelRef, Object, Stored},
    live::{Seen, Typed},
    memory::lock,
    names,
    reconcile::place,
};

/// Models that something has happened to.
type Touched = SelectAll<BoxStream<'static, ModelRef>>;

/// Objects of one page of a list. All kinds are listed at once, and each page is parsed as a whole.
const PAGE: u32 = 100;
/// The time within which network policies are listed, where the cluster has them.
const POLICIES_WITHIN: Duration = Duration::from_secs(20);
/// The annotation that `kubectl apply` writes: the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The objects that were last seen, each without what is of no use here.
#[derive(Clone)]
pub struct Cluster {
    /// Every `BatchedModel`.
    pub models: Store<Stored>,
    /// Proxies and workers.
    pub deployments: Index<Seen<Deployment>>,
    /// Redis.
    pub stateful_sets: Index<Seen<StatefulSet>>,
    /// Pods of all components, and those with an injected sidecar.
    pub pods: Index<Pod>,
    /// The `ConfigMap`s.
    pub config_maps: Index<Seen<()>>,
    /// The Services.
    pub services: Index<Seen<()>>,
    /// The `ServiceAccount`s.
    pub accounts: Index<Seen<()>>,
    /// The `PodDisruptionBudget`s.
    pub budgets: Index<Seen<()>>,
    /// The `NetworkPolicy`s.
    pub policies: Index<Seen<()>>,
    /// Models that something has happened to since somebody last looked.
    pub news: News,
    /// The time until which network policies are waited for.
    until: Instant,
}

/// Models that something has happened to since somebody last looked. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct News(Arc<Mutex<HashSet<ModelRef>>>);

impl News {
    /// Adds models.
    pub fn add(&self, models: impl IntoIterator<Item = ModelRef>) {
        lock(&self.0).extend(models);
    }

    /// Takes all of them.
    #[must_use]
    pub fn take(&self) -> HashSet<ModelRef> {
        std::mem::take(&mut lock(&self.0))
    }
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
        let news = News::default();
        let (seen, all) = (news.clone(), models.clone());
        let stream = watcher(
            Api::<Stored>::all(client.clone()),
            watcher::Config::default().page_size(PAGE),
        )
        .default_backoff()
        .modify(|model| {
            // Large, and of no use here.
            model.managed_fields_mut().clear();
            model.annotations_mut().remove(LAST_APPLIED);
        })
        .reflect(writer)
        .inspect_ok(move |event| match event {
            Event::Apply(model) | Event::Delete(model) => seen.add([ObjectRef::from_obj(model)]),
            Event::InitDone => seen.add(
                all.state()
                    .iter()
                    .map(|model| ObjectRef::from_obj(&**model)),
            ),
            Event::Init | Event::InitApply(_) => {}
        })
        .applied_objects()
        .boxed();
        let mut children = Children {
            client,
            news: &news,
            touched: SelectAll::new(),
        };
        let cluster = Self {
            models,
            deployments: children.watch::<Deployment, _>(),
            stateful_sets: children.watch::<StatefulSet, _>(),
            pods: children.watch_pods(),
            config_maps: children.watch::<ConfigMap, _>(),
            services: children.watch::<Service, _>(),
            accounts: children.watch::<ServiceAccount, _>(),
            budgets: children.watch::<PodDisruptionBudget, _>(),
            policies: children.watch::<NetworkPolicy, _>(),
            news: news.clone(),
            until: Instant::now() + POLICIES_WITHIN,
        };
        let watches = Watches {
            models: stream,
            children: children.touched,
        };
        (cluster, watches)
    }

    /// The kinds that are watched, in the plural, network policies apart: a cluster may refuse them.
    #[must_use]
    pub fn watched() -> Vec<String> {
        [
            ApiResource::erase::<BatchedModel>(&()),
            ApiResource::erase::<Deployment>(&()),
            ApiResource::erase::<StatefulSet>(&()),
            ApiResource::erase::<Pod>(&()),
            ApiResource::erase::<ConfigMap>(&()),
            ApiResource::erase::<Service>(&()),
            ApiResource::erase::<ServiceAccount>(&()),
            ApiResource::erase::<PodDisruptionBudget>(&()),
        ]
        .map(|resource| resource.plural)
        .into()
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
            news: _,
            until: _,
        } = self;
        deployments.ready().await;
        stateful_sets.ready().await;
        pods.ready().await;
        config_maps.ready().await;
        services.ready().await;
        accounts.ready().await;
        budgets.ready().await;
        // A cluster may refuse them, or know none.
        let _ = timeout_at(self.until, policies.ready()).await;
    }
}

/// Starts the watches of children.
struct Children<'a> {
    client: &'a Client,
    news: &'a News,
    touched: Touched,
}

impl Children<'_> {
    /// Watches a kind, of which [`Seen`] keeps what matters.
    fn watch<K, T>(&mut self) -> Index<Seen<T>>
    where
        K: Resource<DynamicType = ()>,
        T: Typed + Send + Sync + 'static,
    {
        let resource = ApiResource::erase::<K>(&());
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let events = watcher(api, config()).map(|event| {
            event.map(|event| match event {
                Event::Apply(object) => Event::Apply(Seen::of(object)),
                Event::Delete(object) => Event::Delete(Seen::of(object)),
                Event::InitApply(object) => Event::InitApply(Seen::of(object)),
                Event::Init => Event::Init,
                Event::InitDone => Event::InitDone,
            })
        });
        self.feed(events)
    }

    fn watch_pods(&mut self) -> Index<Pod> {
        let events = watcher(Api::<Pod>::all(self.client.clone()), config()).modify(|pod| {
            // Large, and of no use here.
            pod.managed_fields_mut().clear();
            if let Some(spec) = &mut pod.spec {
                spec.containers = Vec::new();
                spec.init_containers = None;
                let volumes = spec.volumes.take().unwrap_or_default();
                note_place(&mut pod.metadata, &volumes);
            }
        });
        self.feed(events)
    }

    fn feed<O: Object + Send + Sync + 'static>(
        &mut self,
        events: impl Stream<Item = watcher::Result<Event<O>>> + Send + 'static,
    ) -> Index<O> {
        let (index, news) = (Index::new(), self.news.clone());
        let fed = index.clone();
        let stream = events.default_backoff().flat_map(move |event| {
            let touched = match event {
                Ok(event) => fed.feed(event),
                Err(error) => {
                    tracing::warn!(%error, "a watch was interrupted and is taken up again");
                    Vec::new()
                }
            };
            news.add(touched.iter().cloned());
            stream::iter(touched)
        });
        self.touched.push(stream.boxed());
        index
    }
}

/// Writes the place of the queue that an object uses into what is kept of it, in place of its volumes.
pub fn note_place(metadata: &mut ObjectMeta, volumes: &[Volume]) {
    if let Some(secret) = place::mounted(volumes) {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(names::REDIS_SECRET.to_owned(), secret.to_owned());
    }
}

fn config() -> watcher::Config {
    watcher::Config::default()
        .labels(names::MODEL)
        .page_size(PAGE)
}

/// The stream of touched resources, as a controller takes it.
pub fn merge(children: Touched, others: impl Stream<Item = ModelRef> + Send + 'static) -> Touched {
    let mut all = children;
    all.push(others.boxed());
    all
}
