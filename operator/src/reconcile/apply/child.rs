//! A child as it is sent.

use std::hash::{DefaultHasher, Hash, Hasher};

use kube::{Resource, api::ApiResource};
use serde::Serialize;
use serde_json::{Value, json};

use super::{ApplyError, POLICY};
use crate::{
    names,
    reconcile::{build::Children, observe::Key, turn::Marks, validate::Valid},
};

/// A child of any kind, as it is sent.
pub struct Child {
    pub resource: ApiResource,
    pub name: String,
    pub json: Value,
    /// Hash of what it was rendered as, which it carries as an annotation.
    pub rendered: String,
    pub hash: u64,
    /// The number of pods that it starts with, where others scale it later.
    pub first_replicas: Option<i32>,
    /// The marks of a child with pods.
    pub marks: Option<Marks>,
    /// Whether it is left as it is for now.
    pub waits: bool,
}

impl Child {
    pub fn of<K: Resource<DynamicType = ()> + Serialize>(
        object: &K,
        valid: &Valid,
    ) -> Result<Self, ApplyError> {
        let mut json = serde_json::to_value(object)?;
        let marks = Marks::of(&json, valid);
        if let Some(Marks { template, inputs }) = &marks {
            json["metadata"]["annotations"][names::TEMPLATE] = json!(template);
            json["metadata"]["annotations"][names::INPUTS] = json!(inputs);
        }
        // Another version's hash of the same child costs one more call to the API server.
        let mut hasher = DefaultHasher::new();
        json.to_string().hash(&mut hasher);
        let hash = hasher.finish();
        let rendered = format!("{hash:016x}");
        json["metadata"]["annotations"][names::RENDERED] = json!(rendered);
        Ok(Self {
            resource: ApiResource::erase::<K>(&()),
            name: object.meta().name.clone().unwrap_or_default(),
            json,
            rendered,
            hash,
            first_replicas: None,
            marks,
            waits: false,
        })
    }

    pub fn starting_with(self, replicas: i32) -> Self {
        Self {
            first_replicas: Some(replicas),
            ..self
        }
    }

    pub fn key(&self) -> Key {
        (self.resource.kind.clone(), self.name.clone())
    }

    /// Writes down that its pods are replaced in the model's turn.
    pub fn mark_turn(&mut self) {
        if let Some(marks) = &self.marks {
            self.json["metadata"]["annotations"][names::TURN] = json!(marks.template);
        }
    }

    /// The error of a child without which the others are made all the same: a network policy that the cluster refuses.
    pub fn refused(&self, error: ApplyError) -> Result<ApplyError, ApplyError> {
        let is_refused = matches!(&error, ApplyError::Call(call) if call.is_refused());
        if is_refused && self.resource.kind == POLICY {
            Ok(error)
        } else {
            Err(error)
        }
    }
}

/// The children in the order in which they need each other.
pub fn in_order(children: &Children, valid: &Valid) -> Result<Vec<Child>, ApplyError> {
    // The pattern has no `..`, so a field that is added and forgotten here fails to compile.
    let Children {
        accounts,
        config,
        policies,
        budgets,
        services,
        redis,
        proxy,
        proxies,
        worker,
        needs_secret: _,
    } = children;
    let mut all = Vec::new();
    all.extend(accounts.iter().map(|child| Child::of(child, valid)));
    all.push(Child::of(config, valid));
    all.extend(policies.iter().map(|child| Child::of(child, valid)));
    all.extend(budgets.iter().map(|child| Child::of(child, valid)));
    all.extend(services.iter().map(|child| Child::of(child, valid)));
    all.extend(redis.iter().map(|child| Child::of(child, valid)));
    all.push(Child::of(proxy, valid).map(|child| child.starting_with(*proxies)));
    all.extend(worker.iter().map(|child| Child::of(child, valid)));
    all.into_iter().collect()
}
