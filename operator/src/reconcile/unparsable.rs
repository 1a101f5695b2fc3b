//! The status of a resource that does not parse: an operator older than its definition meets such ones. It is written field
//! by field, and its children go on as they are.

use carpool_crds::{BatchedModel, condition};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    api::{CallError, call},
    index::Stored,
    names,
};

const KIND: &str = "BatchedModel";
const REASON: &str = "Unparsable";

/// Tells in a resource's status that it does not parse, if that is not told yet.
pub async fn tell(client: &Client, stored: &Stored) -> Result<(), CallError> {
    let resource = ApiResource::erase::<BatchedModel>(&());
    let namespace = stored.namespace().unwrap_or_default();
    let name = stored.name_any();
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &resource);
    // The operator may list resources, and get none.
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = call("list", KIND, &name, api.list(&params)).await?;
    let Some(object) = found
        .items
        .into_iter()
        .find(|object| object.name_any() == name)
    else {
        return Ok(());
    };
    let Some(status) = status(&object, Timestamp::now()) else {
        return Ok(());
    };
    let body = json!({"apiVersion": resource.api_version, "kind": KIND, "status": status});
    let params = PatchParams::apply(names::MANAGER).force();
    let patch = Patch::Apply(&body);
    let written = api.patch_status(&name, &params, &patch);
    call("write the status of", KIND, &name, written)
        .await
        .map(drop)
}

/// The status that says why an object does not parse; `None` where it parses, or says so already.
fn status(object: &DynamicObject, now: Timestamp) -> Option<Value> {
    let whole = serde_json::to_value(object).ok()?;
    let error = serde_path_to_error::deserialize::<_, BatchedModel>(&whole).err()?;
    let message = format!(
        "this operator can't read the resource: {}: {}; it is probably older than the resource's definition: upgrade the operator, or take the field out. What runs goes on as it is",
        error.path(),
        error.inner()
    );
    let generation = object.metadata.generation;
    let mut status = whole["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let before = conditions.clone();
    conditions.retain(|old| old["type"] != condition::STALLED);
    for (type_, holds) in [
        (condition::READY, "False"),
        (condition::PROGRESSING, "False"),
    ] {
        let old = conditions.iter().find(|old| old["type"] == type_);
        let since = old
            .filter(|old| old["status"] == holds)
            .map_or_else(|| json!(now), |old| old["lastTransitionTime"].clone());
        let new = json!({
            "type": type_, "status": holds, "reason": REASON, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since
        });
        conditions.retain(|old| old["type"] != type_);
        conditions.push(new);
    }
    let sorted = |conditions: &[Value]| {
        let mut texts: Vec<String> = conditions.iter().map(Value::to_string).collect();
        texts.sort();
        texts
    };
    if sorted(&before) == sorted(&conditions) {
        return None;
    }
    status["conditions"] = Value::Array(conditions);
    status["observedGeneration"] = json!(generation);
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::fixtures;

    fn object(change: impl Fn(&mut Value)) -> DynamicObject {
        let mut object = serde_json::to_value(fixtures::sentiment()).unwrap();
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_field_that_does_not_parse_is_named_once() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(status(&object(|_| ()), now), None);
        let newer = object(|o| {
            o["spec"]["batching"]["maxBatchSize"] = json!("many");
            o["status"] = json!({"revision": "r1", "conditions": [
                {"type": "ProxyReady", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            ]});
        });
        let told = status(&newer, now).unwrap();
        assert_eq!(told["revision"], "r1");
        let conditions = told["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 3);
        let ready = &conditions[1];
        assert_eq!(
            (&ready["type"], &ready["status"]),
            (&json!("Ready"), &json!("False"))
        );
        let message = ready["message"].as_str().unwrap();
        assert!(message.contains("spec.batching.maxBatchSize"), "{message}");
        let again = object(|o| {
            *o = serde_json::to_value(&newer).unwrap();
            o["status"] = told.clone();
        });
        assert_eq!(status(&again, Timestamp::now()), None, "it is told once");
    }
}
