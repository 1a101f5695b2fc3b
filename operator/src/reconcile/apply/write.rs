//! The write of one child.

use std::{borrow::Cow, time::Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::{Applier, ApplyError, Child, REFUSED_FOR};
use crate::{
    api::{CallError, call, patch_params},
    live::Live,
    memory::{Applied, Refused, lock},
    names,
    reconcile::proxies,
};

impl Applier<'_> {
    /// Whether an object is as its child asks for: as it was left by the last look, or by what stands in it.
    pub(super) fn is_in_force(&self, child: &Child, live: &Live) -> bool {
        let now = applied(child.hash, live);
        let known = lock(self.remembered).applied.get(&child.key()).cloned();
        if known.as_ref() == Some(&now) {
            return true;
        }
        if !live.is_as_rendered(&child.json, &child.rendered) {
            return false;
        }
        live.forget_content();
        lock(self.remembered).applied.insert(child.key(), now);
        true
    }

    pub(super) async fn write(&self, child: &Child, live: Option<&Live>) -> Result<(), ApplyError> {
        if live.is_some_and(|live| self.is_in_force(child, live)) {
            return Ok(());
        }
        let mut sent = Cow::Borrowed(&child.json);
        if let Some(replicas) = child.first_replicas {
            let namespace = &self.valid.namespace;
            let is_there = live.is_some()
                && proxies::release(&self.context.client, namespace, &child.name).await?;
            if !is_there {
                sent.to_mut()["spec"]["replicas"] = json!(replicas);
            }
        }
        let written = match self.send(child, &sent).await {
            Err(refused @ CallError::Refused { .. }) if live.is_some() => {
                if self.overwrite(child).await.is_err() {
                    return Err(refused.into());
                }
                self.send(child, &sent).await?
            }
            written => written?,
        };
        let written = Live::of(written);
        if live.and_then(|live| live.version.as_ref()) != written.version.as_ref() {
            tracing::info!(kind = child.resource.kind, name = child.name, "applied");
        }
        // A field that an admission webhook keeps from being as it should stays so: it was asked for once.
        let applied = applied(child.hash, &written);
        lock(self.remembered).applied.insert(child.key(), applied);
        Ok(())
    }

    /// Applies a child. Forced: a field that somebody else wrote and the resource determines is the resource's.
    async fn send(&self, child: &Child, sent: &Value) -> Result<DynamicObject, CallError> {
        let (api, params) = (
            self.api(&child.resource),
            PatchParams::apply(names::MANAGER).force(),
        );
        let (kind, name) = (&child.resource.kind, &child.name);
        let patch = Patch::Apply(sent);
        call("apply", kind, name, api.patch(name, &params, &patch)).await
    }

    /// Puts a child's own lists in place of those of its object. An apply merges the two, and what somebody changed there
    /// may make it one that the API server refuses, such as a Service with two ports of one name. The fields are left to
    /// nobody, so that the next apply owns them alone and may remove them later.
    async fn overwrite(&self, child: &Child) -> Result<(), CallError> {
        let mut fields = child.json.clone();
        if let Some(fields) = fields.as_object_mut() {
            fields.retain(|key, _| !["apiVersion", "kind", "metadata"].contains(&key.as_str()));
        }
        let written = self.merge(child, &fields).await?;
        let owners = written.metadata.managed_fields.unwrap_or_default();
        let is_ours = |owner: &ManagedFieldsEntry| {
            owner.manager.as_deref() == Some(names::MANAGER)
                && owner.operation.as_deref() == Some("Update")
                && owner.subresource.is_none()
        };
        let others: Vec<_> = owners.into_iter().filter(|owner| !is_ours(owner)).collect();
        // No list at all would leave the owners as they are.
        let others = if others.is_empty() {
            json!([{}])
        } else {
            json!(others)
        };
        let version = written.metadata.resource_version;
        let owners = json!({"metadata": {"managedFields": others, "resourceVersion": version}});
        self.merge(child, &owners).await.map(drop)
    }

    async fn merge(&self, child: &Child, patch: &Value) -> Result<DynamicObject, CallError> {
        let (api, params) = (self.api(&child.resource), patch_params());
        let (kind, name) = (&child.resource.kind, &child.name);
        let patch = Patch::Merge(patch);
        call("patch", kind, name, api.patch(name, &params, &patch)).await
    }

    /// The reason why the cluster has just refused this very child, which is not tried again at once.
    pub(super) fn still_refused(&self, child: &Child) -> Option<String> {
        let remembered = lock(self.remembered);
        let refused = remembered.refused.get(&child.key())?;
        let is_same = refused.hash == child.hash && refused.at.elapsed() < REFUSED_FOR;
        is_same.then(|| refused.why.clone())
    }

    pub(super) fn remember_refusal(&self, child: &Child, why: &str) {
        tracing::warn!(why, "made a model without a network policy");
        let refused = Refused {
            hash: child.hash,
            at: Instant::now(),
            why: why.to_owned(),
        };
        lock(self.remembered).refused.insert(child.key(), refused);
    }
}

fn applied(hash: u64, live: &Live) -> Applied {
    Applied {
        hash,
        uid: live.uid.clone(),
        digest: live.digest,
    }
}
