//! The fourth step: make the children so. Only what differs from what was applied last is sent.

mod child;
mod kubelets;
mod write;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Preconditions},
};

use self::child::{Child, in_order};
pub use self::kubelets::nudge as nudge_kubelets;
use super::{
    Context,
    build::Children,
    observe::{Key, Observed},
    secret::Secret,
    turn,
    validate::Valid,
};
use crate::{
    api::{CallError, call},
    live::Live,
    memory::{Remembered, lock},
    names::{self, Component},
    turns::Ahead,
};

/// The kind without which a model works all the same.
const POLICY: &str = "NetworkPolicy";
/// The time after which something that the cluster refused is tried again.
pub const REFUSED_FOR: Duration = Duration::from_mins(1);

/// Reasons for which the children are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Objects that are not ours have our children's names.
    #[error("already there and not of this BatchedModel, so left alone: {}; delete what is in the way, or choose another name", .0.join(", "))]
    NameConflict(Vec<String>),
    /// The Secret of Redis is there already and may be that of a resource of the same name that is gone.
    #[error(
        "already there: Secret {0}; if it is that of a BatchedModel that was deleted, Kubernetes is about to delete it, too; in a minute it is used as it is"
    )]
    SecretConflict(String),
    /// The API server did not do what it was asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A child can't be written as JSON.
    #[error("failed to write a child as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The writer of one resource's children.
pub struct Applier<'a> {
    /// The API server, and the turns.
    pub context: &'a Context,
    /// The resource.
    pub valid: &'a Valid,
    /// Children as they were last applied.
    pub remembered: &'a Mutex<Remembered>,
    /// The maker of the Secret of a managed Redis.
    pub secret: &'a Secret<'a>,
    /// The Secret that is to be made in place of one that was lost, once its Redis is told to read it.
    pub lost_secret: Option<&'a str>,
}

/// Children as they are, beside those that could be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// The models before this one, whose pods wait for its turn of an upgrade.
    pub waits: Option<Ahead>,
    /// Whether a workload has just been told to replace its pods, which it does not show yet.
    pub changed: bool,
    /// Whether network policies are in force, or the cluster's reason why not; `None` where none are asked for.
    pub policies: Option<Result<(), String>>,
}

impl Applier<'_> {
    /// Makes the children so, and removes those that are no longer wanted, workers of the revisions in `delete` among them.
    pub async fn apply(
        &self,
        children: &Children,
        observed: &Observed,
        delete: &[String],
    ) -> Result<Made, ApplyError> {
        let wanted = in_order(children, self.valid)?;
        let mut refusals = Vec::new();
        let mut conflicts = Vec::new();
        let mut planned = Vec::with_capacity(wanted.len());
        for child in wanted {
            let live = match self.live(&child, observed).await {
                Err(error) => {
                    refusals.push(child.refused(error)?.to_string());
                    continue;
                }
                Ok(live) => live,
            };
            if live.as_ref().is_some_and(|live| !self.is_ours(live)) {
                conflicts.push(format!("{} {}", child.resource.kind, child.name));
            }
            planned.push((child, live));
        }
        if !conflicts.is_empty() {
            return Err(ApplyError::NameConflict(conflicts));
        }
        // The Secret is made before its Redis, which reads it once: a second one would hold another password than the
        // server's.
        if children.needs_secret && observed.redis.is_none() {
            self.secret.create(observed).await?;
        }
        let waits = self.take_turn(&mut planned, observed);
        let mut changed = false;
        for (child, live) in planned.iter().filter(|(child, _)| !child.waits) {
            let marks = child.marks.as_ref().zip(live.as_ref());
            changed |= marks.is_some_and(|(marks, live)| marks.are_new_to(live));
            if let Some(why) = self.still_refused(child) {
                refusals.push(why);
                continue;
            }
            if let Err(error) = self.write(child, live.as_deref()).await {
                let why = child.refused(error)?.to_string();
                self.remember_refusal(child, &why);
                refusals.push(why);
            }
            if let Some(lost) = self.lost_secret
                && child.resource.kind == "StatefulSet"
            {
                self.secret.restore(lost).await?;
            }
        }
        let wanted: Vec<Key> = planned.iter().map(|(child, _)| child.key()).collect();
        self.prune(&wanted, observed, delete).await?;
        let policies = match refusals.into_iter().next() {
            Some(why) => Some(Err(why)),
            None => (!children.policies.is_empty()).then_some(Ok(())),
        };
        Ok(Made {
            waits,
            changed,
            policies,
        })
    }

    /// Has the pods that a newer operator alone renders otherwise wait for the resource's turn. Returns the models before
    /// it, where they wait.
    fn take_turn(
        &self,
        planned: &mut [(Child, Option<Arc<Live>>)],
        observed: &Observed,
    ) -> Option<Ahead> {
        let works = turn::works(observed);
        let (mut is_updating, mut wants) = (false, false);
        for (child, live) in planned.iter_mut() {
            let (Some(marks), Some(live)) = (&child.marks, live) else {
                continue;
            };
            if marks.were_in_turn(live) {
                is_updating |= turn::is_updating(observed, &child.name);
                child.mark_turn();
            } else if works
                && turn::pods(observed, &child.name) > 0
                && marks.differ_by_operator(live, &child.json, observed.carried_out)
            {
                child.waits = true;
                wants = true;
            }
        }
        let before = self.context.turn(self.valid, wants, is_updating);
        for (child, _) in planned.iter_mut().filter(|(child, _)| child.waits) {
            child.waits = before.is_some();
            child.mark_turn();
        }
        before
    }

    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.context.client.clone(), &self.valid.namespace, resource)
    }

    fn is_ours(&self, live: &Live) -> bool {
        live.is_of(&self.valid.name, &self.valid.uid)
    }

    /// The object of a child's name. What the watches do not show may be somebody else's, without our label.
    async fn live(
        &self,
        child: &Child,
        observed: &Observed,
    ) -> Result<Option<Arc<Live>>, ApplyError> {
        if let Some(live) = observed.live.get(&child.key()) {
            return Ok(Some(Arc::clone(live)));
        }
        let api = self.api(&child.resource);
        let found = call(
            "get",
            &child.resource.kind,
            &child.name,
            api.get_opt(&child.name),
        )
        .await?;
        Ok(found.map(|object| Arc::new(Live::of(object))))
    }

    /// Removes children that the spec no longer asks for, and what belongs to revisions that are done.
    async fn prune(
        &self,
        wanted: &[Key],
        observed: &Observed,
        delete: &[String],
    ) -> Result<(), ApplyError> {
        let redis = names::child(&self.valid.name, Component::Redis);
        for (key, live) in &observed.live {
            let (kind, name) = key;
            let keep = match &live.revision {
                Some(revision) => stays(revision, observed, delete),
                None => wanted.contains(key) || (*name == redis && observed.places.uses_managed()),
            };
            if keep || !self.is_ours(live) || live.is_going {
                continue;
            }
            let Some(resource) = resource_of(kind) else {
                continue;
            };
            let params = DeleteParams::background().preconditions(Preconditions {
                uid: live.uid.clone(),
                ..Preconditions::default()
            });
            match call(
                "delete",
                kind,
                name,
                self.api(&resource).delete(name, &params),
            )
            .await
            {
                Ok(_) => tracing::info!(kind, name, "deleted"),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
            lock(self.remembered).applied.remove(key);
        }
        Ok(())
    }
}

/// Whether the workers of a revision stay, and their disruption budget.
fn stays(revision: &String, observed: &Observed, delete: &[String]) -> bool {
    let view = &observed.view;
    if observed.workers.contains_key(revision) || *revision == view.latest {
        return !delete.contains(revision);
    }
    // A revision that no plan knows of is another version's, and may be all that serves.
    let latest = view.revisions.get(&view.latest);
    !latest.is_some_and(|latest| latest.loaded)
}

/// The kinds of children that a change of the spec can make superfluous.
fn resource_of(kind: &str) -> Option<ApiResource> {
    use k8s_openapi::api::{
        apps::v1 as apps, core::v1 as core, networking::v1 as networking, policy::v1 as policy,
    };
    match kind {
        "Deployment" => Some(ApiResource::erase::<apps::Deployment>(&())),
        "StatefulSet" => Some(ApiResource::erase::<apps::StatefulSet>(&())),
        "ServiceAccount" => Some(ApiResource::erase::<core::ServiceAccount>(&())),
        "Service" => Some(ApiResource::erase::<core::Service>(&())),
        "NetworkPolicy" => Some(ApiResource::erase::<networking::NetworkPolicy>(&())),
        "PodDisruptionBudget" => Some(ApiResource::erase::<policy::PodDisruptionBudget>(&())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rollout::{Revision, View};

    #[test]
    fn workers_that_no_plan_knows_of_stay_until_the_latest_has_loaded() {
        let observed = |loaded| Observed {
            workers: BTreeMap::from([
                ("latest".to_owned(), Arc::default()),
                ("old".to_owned(), Arc::default()),
            ]),
            view: View {
                latest: "latest".into(),
                revisions: BTreeMap::from([(
                    "latest".to_owned(),
                    Revision {
                        loaded,
                        ..Revision::default()
                    },
                )]),
                ..View::default()
            },
            ..Observed::default()
        };
        let stay = |loaded, delete: &[String]| {
            ["latest", "old", "unknown"]
                .map(|revision| stays(&revision.into(), &observed(loaded), delete))
        };
        assert_eq!(stay(false, &[]), [true, true, true]);
        assert_eq!(stay(true, &[]), [true, true, false]);
        assert_eq!(stay(false, &["old".into()]), [true, false, true]);
    }
}
