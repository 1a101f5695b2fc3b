//! Kubelets, which read a changed configuration at once where they are told.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::Patch};
use serde_json::json;

use crate::{
    api::{call, patch_params},
    names::{self, Component},
    reconcile::{build::Children, observe::Observed, validate::Valid},
    workers,
};

/// Has the kubelets of running pods read the configuration at once: they look at a pod's volumes when it changes. One
/// that fails reads it at its next turn.
pub async fn nudge(client: &Client, valid: &Valid, children: &Children, observed: &Observed) {
    let annotations = children.config.metadata.annotations.as_ref();
    let Some(hash) = annotations.and_then(|annotations| annotations.get(names::CONFIG_HASH)) else {
        return;
    };
    let patch = Patch::Merge(json!({"metadata": {"annotations": {(names::CONFIG_HASH): hash}}}));
    let pods: Api<Pod> = Api::namespaced(client.clone(), &valid.namespace);
    let stale = observed.pods.iter().filter(|pod| {
        let running = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Running");
        running
            && pod.metadata.deletion_timestamp.is_none()
            && !workers::is(pod, Component::Redis)
            && pod.annotations().get(names::CONFIG_HASH) != Some(hash)
    });
    for pod in stale {
        let name = pod.name_any();
        let params = patch_params();
        match call(
            "patch",
            "Pod",
            &name,
            pods.patch_metadata(&name, &params, &patch),
        )
        .await
        {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(%error, "failed to have a pod read the configuration at once");
            }
            // Done, or it has gone meanwhile.
            _ => {}
        }
    }
}
