//! A child as it is on the cluster, kept small, and whether it still is as it was rendered.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use kube::{
    Resource,
    api::{DynamicObject, ObjectMeta},
    runtime::reflector::ObjectRef,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    cluster::note_place,
    contained::contains,
    index::{ModelRef, Object},
    memory::lock,
    names,
};

/// The annotation that `kubectl apply` writes: the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A child as it was last seen, its status apart.
#[derive(Debug, Default)]
pub struct Live {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// `metadata.resourceVersion`.
    pub version: Option<String>,
    /// UID of the owner that controls it.
    pub controller: Option<String>,
    /// The model that its label names.
    pub model: Option<String>,
    /// The revision that its label names.
    pub revision: Option<String>,
    /// Whether it is being deleted.
    pub is_going: bool,
    /// The annotations of ours but [`names::MODEL_SPEC`], which is long.
    pub annotations: Vec<(Box<str>, Box<str>)>,
    /// Hash of everything that is neither status nor bookkeeping. Another one means that somebody wrote.
    pub digest: u64,
    /// The content that `digest` is of, as JSON, until it has been looked at.
    content: Mutex<Option<Box<str>>>,
}

impl Live {
    /// Takes what matters of an object.
    #[must_use]
    pub fn of(object: DynamicObject) -> Self {
        let DynamicObject {
            metadata: mut meta,
            mut data,
            ..
        } = object;
        if let Some(data) = data.as_object_mut() {
            data.remove("status");
        }
        if let Some(annotations) = &mut meta.annotations {
            annotations.remove(LAST_APPLIED);
        }
        let metadata = json!({
            "labels": meta.labels, "annotations": meta.annotations, "ownerReferences": meta.owner_references
        });
        if data.is_null() {
            data = json!({});
        }
        data["metadata"] = metadata;
        let content = data.to_string();
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        let label = |key: &str| meta.labels.as_ref()?.get(key).cloned();
        let annotations = meta.annotations.iter().flatten();
        let ours = annotations
            .filter(|(key, _)| key.starts_with("carpool.dev/") && *key != names::MODEL_SPEC);
        Self {
            controller: controller(&meta),
            model: label(names::MODEL),
            revision: label(names::REVISION),
            is_going: meta.deletion_timestamp.is_some(),
            annotations: ours
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect(),
            digest: hasher.finish(),
            content: Mutex::new(Some(content.into())),
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid,
            version: meta.resource_version,
        }
    }

    /// The value of an annotation of ours.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        let found = self.annotations.iter().find(|(name, _)| **name == *key);
        found.map(|(_, value)| &**value)
    }

    /// Whether it belongs to the resource of this name and UID. A child that has lost its owner does, too.
    #[must_use]
    pub fn is_of(&self, model: &str, uid: &str) -> bool {
        match &self.controller {
            Some(controller) => controller == uid,
            None => {
                self.model.as_deref() == Some(model) && self.annotation(names::RENDERED).is_some()
            }
        }
    }

    /// Whether it was rendered as `hash` says and has everything that `rendered` asks for.
    #[must_use]
    pub fn is_as_rendered(&self, rendered: &Value, hash: &str) -> bool {
        if self.annotation(names::RENDERED) != Some(hash) {
            return false;
        }
        let content = lock(&self.content);
        let content = content.as_deref().map(serde_json::from_str::<Value>);
        content.is_some_and(|live| live.is_ok_and(|live| is_contained(rendered, &live)))
    }

    /// Whether its pod template has everything that the rendered one asks for.
    #[must_use]
    pub fn has_template(&self, rendered: &Value) -> bool {
        let content = lock(&self.content);
        let content = content.as_deref().map(serde_json::from_str::<Value>);
        content.is_some_and(|live| {
            live.is_ok_and(|live| {
                contains(&live["spec"]["template"], &rendered["spec"]["template"])
            })
        })
    }

    /// Forgets what can only be asked once: whoever has looked remembers `digest`.
    pub fn forget_content(&self) {
        lock(&self.content).take();
    }
}

/// Whether an object has everything that a rendered child asks for.
fn is_contained(rendered: &Value, live: &Value) -> bool {
    let Some(rendered) = rendered.as_object() else {
        return false;
    };
    rendered.iter().all(|(key, value)| match key.as_str() {
        "apiVersion" | "kind" | "status" => true,
        "metadata" => ["labels", "annotations", "ownerReferences"]
            .iter()
            .all(|part| contains(&live["metadata"][part], &value[part])),
        other => contains(&live[other], value),
    })
}

/// UID of the owner that controls an object.
fn controller(meta: &ObjectMeta) -> Option<String> {
    let mut owners = meta.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    Some(owner.uid.clone())
}

/// A child with those parts of it that are looked at by type.
#[derive(Debug)]
pub struct Seen<T> {
    /// The parts by type. A workload has no pod template there.
    pub typed: Arc<T>,
    /// The rest.
    pub live: Arc<Live>,
}

/// The parts of a kind that are looked at by type.
pub trait Typed: Sized {
    /// Takes them from an object.
    fn of(object: &mut DynamicObject) -> Self;
}

/// Nothing: everything of interest is in [`Live`].
impl Typed for () {
    fn of(_: &mut DynamicObject) -> Self {}
}

impl Typed for Deployment {
    fn of(object: &mut DynamicObject) -> Self {
        workload(object)
    }
}

impl Typed for StatefulSet {
    fn of(object: &mut DynamicObject) -> Self {
        workload(object)
    }
}

/// A workload without its pod template, which is most of it, but for the place of its queue.
fn workload<K: Resource<DynamicType = ()> + DeserializeOwned + Serialize + Default>(
    object: &mut DynamicObject,
) -> K {
    let template = object.data["spec"]
        .get_mut("template")
        .map(Value::take)
        .unwrap_or_default();
    object.data["spec"]["template"] = json!({});
    let typed = object.clone().try_parse::<K>();
    let volumes = Vec::deserialize(&template["spec"]["volumes"]).unwrap_or_default();
    object.data["spec"]["template"] = template;
    let mut typed = typed.unwrap_or_else(|error| {
        tracing::warn!(%error, name = object.metadata.name, "failed to parse a child");
        let mut typed = K::default();
        *typed.meta_mut() = object.metadata.clone();
        typed
    });
    note_place(typed.meta_mut(), &volumes);
    typed
}

impl<T: Typed> Seen<T> {
    /// Takes what matters of an object.
    #[must_use]
    pub fn of(mut object: DynamicObject) -> Self {
        // Large, and of no use here.
        object.metadata.managed_fields = None;
        let typed = Arc::new(T::of(&mut object));
        Self {
            typed,
            live: Arc::new(Live::of(object)),
        }
    }
}

impl<T> Object for Seen<T> {
    fn key(&self) -> (String, String) {
        (self.live.namespace.clone(), self.live.name.clone())
    }

    fn model(&self) -> Option<ModelRef> {
        let model = self.live.model.as_deref()?;
        Some(ObjectRef::new(model).within(&self.live.namespace))
    }

    fn version(&self) -> (Option<String>, Option<String>) {
        (self.live.uid.clone(), self.live.version.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "a", "namespace": "nlp", "labels": {"carpool.dev/model": "a"},
                "annotations": {names::RENDERED: "h"},
                "ownerReferences": [{"apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "name": "a", "uid": "u", "controller": true}]
            },
            "spec": {"ports": [{"name": "http", "port": 80}]}
        })
    }

    fn live(change: impl Fn(&mut Value)) -> Live {
        let mut object = service();
        object["metadata"]["resourceVersion"] = json!("7");
        object["metadata"]["managedFields"] = json!([]);
        object["spec"]["clusterIP"] = json!("10.96.0.7");
        object["spec"]["ports"][0]["protocol"] = json!("TCP");
        object["status"] = json!({"loadBalancer": {}});
        change(&mut object);
        Live::of(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn what_was_rendered_is_found_again_and_what_was_changed_is_not() {
        let as_rendered = |change: fn(&mut Value)| live(change).is_as_rendered(&service(), "h");
        assert!(as_rendered(|_| ()));
        assert!(as_rendered(
            |o| o["metadata"]["labels"]["theirs"] = json!("x")
        ));
        let changes: [fn(&mut Value); 6] = [
            |o| o["metadata"]["labels"] = json!({}),
            |o| o["metadata"]["annotations"] = json!({}),
            |o| o["metadata"]["annotations"][names::RENDERED] = json!("other"),
            |o| o["metadata"]["ownerReferences"] = json!(null),
            |o| o["metadata"]["ownerReferences"][0]["controller"] = json!(false),
            |o| o["spec"]["ports"][0]["port"] = json!(81),
        ];
        for change in changes {
            assert!(!as_rendered(change));
        }
        assert!(!live(|_| ()).is_as_rendered(&service(), "another hash"));
    }

    #[test]
    fn a_child_without_an_owner_is_still_its_models() {
        let is_ours = |change: fn(&mut Value)| live(change).is_of("a", "u");
        assert!(is_ours(|_| ()));
        assert!(is_ours(|o| o["metadata"]["ownerReferences"] = json!(null)));
        assert!(!is_ours(
            |o| o["metadata"]["ownerReferences"][0]["uid"] = json!("other")
        ));
        let by_hand: fn(&mut Value) = |o| {
            o["metadata"]["ownerReferences"] = json!(null);
            o["metadata"]["annotations"] = json!(null);
        };
        assert!(!is_ours(by_hand));
    }

    #[test]
    fn a_status_changes_no_digest_and_a_label_does() {
        let before = live(|_| ()).digest;
        let same = live(|o| {
            o["status"] = json!({"loadBalancer": {"ingress": []}});
            o["metadata"]["resourceVersion"] = json!("8");
            o["metadata"]["generation"] = json!(3);
        });
        assert_eq!(same.digest, before);
        let other = live(|o| o["metadata"]["labels"]["theirs"] = json!("x"));
        assert_ne!(other.digest, before);
    }

    #[test]
    fn a_workload_is_typed_without_its_pods_and_compared_with_them() {
        let object = json!({
            "metadata": {"name": "w", "namespace": "nlp", "labels": {"carpool.dev/model": "a"}},
            "spec": {"replicas": 2, "selector": {}, "template": {"spec": {"containers": [{"name": "worker", "image": "a"}]}}},
            "status": {"readyReplicas": 1}
        });
        let seen = |object: &Value| -> Seen<Deployment> {
            Seen::of(serde_json::from_value(object.clone()).unwrap())
        };
        let one = seen(&object);
        assert_eq!(one.typed.spec.replicas, Some(2));
        assert!(one.typed.spec.template.spec.is_none());
        let mut other = object.clone();
        other["spec"]["template"]["spec"]["containers"][0]["image"] = json!("b");
        assert_ne!(seen(&other).live.digest, one.live.digest);
    }
}
