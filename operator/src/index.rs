//! Objects of one kind, by the model that they belong to. Looking at one model costs what that model has, however many
//! others there are.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Debug,
    mem,
    sync::{Arc, Mutex},
};

use carpool_crds::BatchedModel;
use kube::{
    Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{reflector::ObjectRef, watcher::Event},
};
use tokio::sync::watch;

use crate::{memory::lock, names};

/// A `BatchedModel` as stored. One that does not parse says so instead of stopping the watch for all.
pub type Stored = DeserializeGuard<BatchedModel>;

/// The namespace and the name of a `BatchedModel`.
pub type ModelRef = ObjectRef<Stored>;

/// An object as an index needs to know it.
pub trait Object {
    /// The namespace and the name.
    fn key(&self) -> (String, String);
    /// The model whose label it carries.
    fn model(&self) -> Option<ModelRef>;
    /// The UID and the resource version.
    fn version(&self) -> (Option<String>, Option<String>);
}

impl<K: Resource> Object for K {
    fn key(&self) -> (String, String) {
        (self.namespace().unwrap_or_default(), self.name_any())
    }

    fn model(&self) -> Option<ModelRef> {
        let meta = self.meta();
        let name = meta.labels.as_ref()?.get(names::MODEL)?;
        Some(ObjectRef::new(name).within(meta.namespace.as_deref()?))
    }

    fn version(&self) -> (Option<String>, Option<String>) {
        (self.uid(), self.resource_version())
    }
}

/// An index that one watch feeds and everybody reads. Clones share their objects.
#[derive(Debug)]
pub struct Index<K> {
    state: Arc<Mutex<State<K>>>,
    ready: watch::Sender<bool>,
}

#[derive(Debug)]
struct State<K> {
    objects: Objects<K>,
    /// Objects of a list that is being read. They replace all others once the list is complete.
    listed: Objects<K>,
}

#[derive(Debug)]
struct Objects<K> {
    by_model: HashMap<ModelRef, BTreeMap<String, Arc<K>>>,
    /// The model of each object, by namespace and name, which finds an object whose label has changed.
    model_of: HashMap<(String, String), ModelRef>,
}

impl<K: Object> Index<K> {
    /// An index that holds nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            objects: Objects::default(),
            listed: Objects::default(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            ready: watch::Sender::new(false),
        }
    }

    /// Resolves once everything that there was at the start has been listed.
    pub async fn ready(&self) {
        // The wait fails only without a sender, and this is one.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The objects that carry a model's label, in the order of their names.
    #[must_use]
    pub fn of(&self, model: &ModelRef) -> Vec<Arc<K>> {
        let state = lock(&self.state);
        let objects = state.objects.by_model.get(model);
        objects.map_or_else(Vec::new, |objects| objects.values().cloned().collect())
    }

    /// Takes one event of the watch in. Returns the models that it touches, each once.
    pub fn feed(&self, event: Event<K>) -> Vec<ModelRef> {
        let mut state = lock(&self.state);
        match event {
            Event::Apply(object) => state.objects.insert(object),
            Event::Delete(object) => state.objects.remove(&object),
            Event::Init => {
                state.listed = Objects::default();
                Vec::new()
            }
            Event::InitApply(object) => {
                state.listed.insert(object);
                Vec::new()
            }
            Event::InitDone => {
                let listed = mem::take(&mut state.listed);
                let touched = listed.differences(&state.objects);
                state.objects = listed;
                self.ready.send_replace(true);
                touched
            }
        }
    }
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            ready: self.ready.clone(),
        }
    }
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self {
            by_model: HashMap::new(),
            model_of: HashMap::new(),
        }
    }
}

impl<K: Object> Objects<K> {
    fn insert(&mut self, object: K) -> Vec<ModelRef> {
        let Some(model) = object.model() else {
            return self.remove(&object);
        };
        let key = object.key();
        let name = key.1.clone();
        let before = self.model_of.insert(key, model.clone());
        let moved = before.filter(|before| *before != model);
        if let Some(before) = &moved {
            self.take(before, &name);
        }
        let objects = self.by_model.entry(model.clone()).or_default();
        objects.insert(name, Arc::new(object));
        moved.into_iter().chain([model]).collect()
    }

    fn remove(&mut self, object: &K) -> Vec<ModelRef> {
        let key = object.key();
        let model = self.model_of.remove(&key);
        if let Some(model) = &model {
            self.take(model, &key.1);
        }
        model.into_iter().collect()
    }

    fn take(&mut self, model: &ModelRef, name: &str) {
        if let Some(objects) = self.by_model.get_mut(model) {
            objects.remove(name);
            if objects.is_empty() {
                self.by_model.remove(model);
            }
        }
    }

    /// The models of which an object has come, changed or gone since `before`.
    fn differences(&self, before: &Self) -> Vec<ModelRef> {
        let models: HashSet<&ModelRef> =
            self.by_model.keys().chain(before.by_model.keys()).collect();
        let versions =
            |objects: &Self, model: &ModelRef| -> Vec<(String, Option<String>, Option<String>)> {
                let objects = objects.by_model.get(model).into_iter().flatten();
                let versions = objects.map(|(name, object)| {
                    let (uid, version) = object.version();
                    (name.clone(), uid, version)
                });
                versions.collect()
            };
        let differs = |model: &&ModelRef| versions(self, model) != versions(before, model);
        models.into_iter().filter(differs).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(name: &str, model: Option<&str>, version: &str) -> Pod {
        let mut pod = serde_json::json!({
            "metadata": {"name": name, "namespace": "nlp", "uid": name, "resourceVersion": version}
        });
        if let Some(model) = model {
            pod["metadata"]["labels"] = serde_json::json!({"carpool.dev/model": model});
        }
        serde_json::from_value(pod).unwrap()
    }

    fn model(name: &str) -> ModelRef {
        ObjectRef::new(name).within("nlp")
    }

    fn names(index: &Index<Pod>, of: &str) -> Vec<String> {
        let pods = index.of(&model(of)).into_iter();
        pods.map(|pod| pod.name_any()).collect()
    }

    /// Feeds a whole list. Returns the names of the models that it touches.
    fn list(index: &Index<Pod>, pods: Vec<Pod>) -> Vec<String> {
        index.feed(Event::Init);
        for pod in pods {
            assert!(index.feed(Event::InitApply(pod)).is_empty());
        }
        let touched = index.feed(Event::InitDone).into_iter();
        let mut touched: Vec<String> = touched.map(|model| model.name).collect();
        touched.sort();
        touched
    }

    #[test]
    fn an_object_is_found_by_its_model_alone() {
        let index = Index::new();
        assert_eq!(
            index.feed(Event::Apply(pod("a-1", Some("a"), "1"))),
            [model("a")]
        );
        index.feed(Event::Apply(pod("b-1", Some("b"), "1")));
        index.feed(Event::Apply(pod("a-0", Some("a"), "1")));
        assert_eq!(names(&index, "a"), ["a-0", "a-1"]);
        assert_eq!(names(&index, "b"), ["b-1"]);
        let elsewhere = ObjectRef::new("a").within("vision");
        assert!(index.of(&elsewhere).is_empty());
        assert_eq!(
            index.feed(Event::Delete(pod("a-1", Some("a"), "2"))),
            [model("a")]
        );
        assert_eq!(names(&index, "a"), ["a-0"]);
    }

    #[test]
    fn an_object_whose_label_changes_touches_both_models() {
        let index = Index::new();
        index.feed(Event::Apply(pod("x", Some("a"), "1")));
        let touched = index.feed(Event::Apply(pod("x", Some("b"), "2")));
        assert_eq!(touched, [model("a"), model("b")]);
        assert_eq!((names(&index, "a").len(), names(&index, "b").len()), (0, 1));
        assert_eq!(index.feed(Event::Apply(pod("x", None, "3"))), [model("b")]);
        assert!(names(&index, "b").is_empty());
    }

    #[test]
    fn what_went_while_the_watch_was_interrupted_is_noticed() {
        let index = Index::new();
        let first = vec![
            pod("a-1", Some("a"), "1"),
            pod("b-1", Some("b"), "1"),
            pod("c-1", Some("c"), "1"),
        ];
        assert_eq!(list(&index, first), ["a", "b", "c"]);
        let second = vec![pod("a-1", Some("a"), "1"), pod("b-1", Some("b"), "2")];
        assert_eq!(list(&index, second), ["b", "c"]);
        assert!(names(&index, "c").is_empty());
    }

    #[test]
    fn a_list_that_is_not_complete_hides_nothing() {
        let index = Index::new();
        list(&index, vec![pod("a-1", Some("a"), "1")]);
        index.feed(Event::Init);
        assert_eq!(names(&index, "a"), ["a-1"]);
    }

    #[tokio::test]
    async fn an_index_is_ready_after_its_first_list() {
        let index = Index::<Pod>::new();
        let waiting = tokio::spawn({
            let index = index.clone();
            async move { index.ready().await }
        });
        list(&index, Vec::new());
        waiting.await.unwrap();
    }
}
