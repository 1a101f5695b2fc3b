//! The number of proxies, which has one writer: the operator where the resource gives it, and else whoever scales their
//! Deployment, such as an HPA. An apply never holds it, but for the one that makes the Deployment.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
};
use serde_json::json;

use super::{observe::Observed, validate::Valid};
use crate::{
    api::{CallError, call, patch_params},
    names,
};

/// The proxies of a resource that gives no number, until somebody scales them.
const FIRST: u32 = 2;

/// The number of proxies that a new Deployment starts with.
pub fn first(valid: &Valid) -> i32 {
    let number = valid.spec.proxy.replicas.unwrap_or(FIRST);
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Brings the proxies to the number that the resource gives, if it does.
pub async fn scale(client: &Client, valid: &Valid, observed: &Observed) -> Result<(), CallError> {
    let Some(deployment) = &observed.proxy else {
        return Ok(());
    };
    let from = deployment.spec.replicas.unwrap_or(1);
    let to = first(valid);
    if valid.spec.proxy.replicas.is_none() || from == to {
        return Ok(());
    }
    let name = deployment.name_any();
    let (model, namespace) = (&valid.name, &valid.namespace);
    tracing::info!(model, namespace, from, to, "scaling proxies");
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Merge(json!({"spec": {"replicas": to}}));
    let params = patch_params();
    let scaled = api.patch_scale(&name, &params, &patch);
    call("scale", "Deployment", &name, scaled).await.map(drop)
}

/// Gives up the number of a Deployment that an apply of ours has set. A field that an apply leaves out is removed where
/// nobody else owns it, and there would be one proxy, the API server's default. False where there is no such Deployment.
pub async fn release(client: &Client, namespace: &str, name: &str) -> Result<bool, CallError> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let Some(live) = call("get", "Deployment", name, api.get_opt(name)).await? else {
        return Ok(false);
    };
    if !is_applied(&live.metadata) {
        return Ok(true);
    }
    let scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": name},
        "spec": {"replicas": live.spec.replicas}
    });
    let params = PatchParams::apply(names::SCALE_MANAGER).force();
    let patch = Patch::Apply(&scale);
    let released = api.patch_scale(name, &params, &patch);
    call("scale", "Deployment", name, released).await?;
    Ok(true)
}

/// Whether an apply of ours owns the number.
fn is_applied(meta: &ObjectMeta) -> bool {
    meta.managed_fields.iter().flatten().any(|entry| {
        let fields = entry.fields_v1.as_ref();
        entry.manager.as_deref() == Some(names::MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && fields.is_some_and(|fields| !fields.0["f:spec"]["f:replicas"].is_null())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use carpool_crds::BatchedModel;
    use kube::core::DeserializeGuard;
    use serde_json::Value;

    use super::*;
    use crate::reconcile::{
        fixtures,
        mock::{Call, api_server, context, see},
        reconcile,
    };

    /// The calls of a reconcile that meets proxies, as many as given, whose number the owner of `fields` has set.
    async fn calls(model: &BatchedModel, live: Option<(i32, Value)>) -> Vec<Call> {
        let proxies = live.map(|(replicas, fields)| {
            json!({
                "metadata": {
                    "name": "sentiment-proxy", "namespace": "nlp", "uid": "p", "resourceVersion": "1",
                    "labels": names::component_labels("sentiment", names::Component::Proxy),
                    "managedFields": [fields],
                    "ownerReferences": [{"apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel",
                        "name": "sentiment", "uid": model.uid().unwrap(), "controller": true}]
                },
                "spec": {"replicas": replicas, "selector": {}, "template": {}}
            })
        });
        let stored = proxies.clone();
        let (client, calls) = api_server(move |call| {
            let asked = call.is("GET", "/deployments/sentiment-proxy");
            asked.then(|| stored.clone().map(|proxies| (200, proxies)))?
        });
        let context = Arc::new(context(client));
        if let Some(proxies) = proxies {
            see(&context, proxies);
        }
        let stored = Arc::new(DeserializeGuard(Ok(model.clone())));
        Box::pin(reconcile(stored, context)).await.unwrap();
        let mut calls = calls.take();
        calls.retain(|call| {
            call.target.starts_with("PATCH")
                && call.target.contains("/sentiment-proxy")
                && call.target.contains("/deployments/")
        });
        calls
    }

    fn owner(manager: &str, operation: &str) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:replicas": {}}}})
    }

    #[tokio::test]
    async fn new_proxies_start_with_their_number_or_with_two() {
        for (model, number) in [
            (fixtures::sentiment(), 2),
            (fixtures::with("proxy: {replicas: 5}"), 5),
        ] {
            let calls = calls(&model, None).await;
            assert_eq!(calls.len(), 1, "{calls:?}");
            assert_eq!(calls[0].body["spec"]["replicas"], number);
        }
    }

    #[tokio::test]
    async fn a_number_that_is_left_out_is_whoever_scales_them() {
        let calls = calls(&fixtures::sentiment(), Some((7, owner("hpa", "Update")))).await;
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert_eq!(calls[0].body["spec"]["replicas"], Value::Null);
    }

    #[tokio::test]
    async fn a_number_that_an_apply_has_set_is_given_up_before_an_apply_without_it() {
        let calls = calls(&fixtures::sentiment(), Some((7, owner("carpool", "Apply")))).await;
        let [released, applied] = &calls[..] else {
            panic!("{calls:?}")
        };
        assert!(released.is("PATCH", "/deployments/sentiment-proxy/scale"));
        assert!(
            released.query.contains("fieldManager=carpool-scale"),
            "{}",
            released.query
        );
        assert_eq!(released.body["spec"]["replicas"], 7);
        assert_eq!(applied.body["spec"]["replicas"], Value::Null);
    }

    #[tokio::test]
    async fn a_number_that_is_given_is_kept() {
        let given = fixtures::with("proxy: {replicas: 3}");
        let calls_of = |live| calls(&given, Some((live, owner("kubectl", "Update"))));
        let scaled = calls_of(7).await;
        assert!(scaled[1].is("PATCH", "/deployments/sentiment-proxy/scale"));
        assert_eq!(scaled[1].body["spec"]["replicas"], 3);
        assert_eq!(calls_of(3).await.len(), 1, "it is so already");
    }
}
