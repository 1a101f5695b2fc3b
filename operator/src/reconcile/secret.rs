//! The Secret of a managed Redis: made once, never read, and made again when it is lost. The operator may create Secrets
//! and do nothing else with them, so whose one is can only be told from what it remembers.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{self as core, ContainerStatus, Pod},
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, Client, api::PostParams};
use rand::distr::{Alphanumeric, SampleString};

use super::{
    apply::ApplyError,
    build,
    observe::Observed,
    place,
    validate::{RedisPlace, Valid},
};
use crate::{
    api::{CallError, call},
    memory::{Remembered, lock},
    names::{self, Component},
    workers,
};

const PASSWORD_LENGTH: usize = 32;
/// The time in which the garbage collector removes the Secret of a resource that was deleted.
const COLLECTED: Duration = Duration::from_mins(1);
/// The time for which a pod may have a node and no container before its Secret may be what it waits for.
const STARVES_AFTER: SignedDuration = SignedDuration::from_secs(10);
/// The time between two looks for a lost Secret: pods also wait for large images.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// The memory of a resource's Secret, which lasts as long as the operator leads.
#[derive(Debug, Default)]
pub struct Memory {
    /// Whether it has made the Secret of this name.
    made: Option<String>,
    /// The time since which another's Secret has been in the way.
    in_the_way: Option<Instant>,
    /// The time of the last look for a lost one.
    looked: Option<Instant>,
}

#[cfg(test)]
impl Memory {
    /// Has another's Secret been in the way for so long.
    pub fn waited(&mut self, time: Duration) {
        self.in_the_way = Instant::now().checked_sub(time);
    }
}

/// The maker of one resource's Secret.
pub struct Secret<'a> {
    /// The API server.
    pub client: &'a Client,
    /// The resource.
    pub valid: &'a Valid,
    /// The memory of the resource.
    pub remembered: &'a Mutex<Remembered>,
}

impl Secret<'_> {
    /// The Secret that was made for this very resource, now or before, if one was.
    fn made(&self, observed: &Observed) -> Option<String> {
        let made = lock(self.remembered).secret.made.clone();
        made.or_else(|| observed.made_secret.clone())
    }

    /// Creates the Secret with a password of its own, before there is a Redis. One that was made before keeps its
    /// password. One that is there for another reason may be that of a resource of the same name that was deleted, and
    /// is waited for; then it is taken for one of this resource, made by an operator that ended just then.
    pub async fn create(&self, observed: &Observed) -> Result<(), ApplyError> {
        let name = &observed.places.managed;
        if self.made(observed).as_ref() == Some(name) {
            // A Redis that comes back, for its Secret stays as long as its resource.
            self.post(name, false).await?;
            return Ok(());
        }
        if self.post(name, false).await? {
            let mut remembered = lock(self.remembered);
            remembered.secret.made = Some(name.clone());
            remembered.secret.in_the_way = None;
            return Ok(());
        }
        let mut remembered = lock(self.remembered);
        let since = *remembered
            .secret
            .in_the_way
            .get_or_insert_with(Instant::now);
        if since.elapsed() < COLLECTED {
            return Err(ApplyError::SecretConflict(name.clone()));
        }
        tracing::warn!(name, "a Secret that was there before is used as it is");
        remembered.secret.made = Some(name.clone());
        Ok(())
    }

    /// Whether the Secret of a managed Redis is gone. Looks only where pods wait for something, and changes nothing.
    pub async fn is_lost(&self, observed: &Observed) -> bool {
        let is_managed = matches!(self.valid.redis, RedisPlace::Managed { .. });
        if !is_managed || observed.redis.is_none() || !starving(observed).any(|starves| starves) {
            return false;
        }
        {
            let looked = &mut lock(self.remembered).secret.looked;
            if looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
                return false;
            }
            *looked = Some(Instant::now());
        }
        let would_work = self.post(&observed.places.managed, true).await;
        // An admission webhook that takes no dry runs refuses it, too.
        would_work.unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to look for the Secret of Redis");
            false
        })
    }

    /// Makes the Secret again. The Redis that is there has been told to start anew before, so that, whenever the operator
    /// ends, none goes on with a password that nobody else has.
    pub async fn restore(&self, name: &str) -> Result<(), CallError> {
        let made = self.post(name, false).await?;
        tracing::warn!(
            name,
            made,
            "the Secret of Redis was lost; Redis starts anew with another password"
        );
        lock(self.remembered).secret.made = Some(name.to_owned());
        Ok(())
    }

    /// Creates the Secret, or only asks whether that would work. Returns whether there was none.
    async fn post(&self, name: &str, dry_run: bool) -> Result<bool, CallError> {
        let password = Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_LENGTH);
        let secret = build::redis_secret(self.valid, name, &password);
        let api: Api<core::Secret> = Api::namespaced(self.client.clone(), &self.valid.namespace);
        let params = PostParams {
            dry_run,
            field_manager: Some(names::MANAGER.to_owned()),
        };
        match call("create", "Secret", name, api.create(&params, &secret)).await {
            Err(error) if error.is_conflict() => Ok(false),
            created => created.map(|_| true),
        }
    }
}

/// The time after which to look for a lost Secret again; `None` where no pod waits.
pub fn look_again(observed: &Observed) -> Option<Duration> {
    observed.redis.as_ref()?;
    starving(observed).next().map(|_| LOOK_EVERY)
}

/// Pods that use the managed Redis, have a node and no container yet: whether each has been so for long.
fn starving(observed: &Observed) -> impl Iterator<Item = bool> {
    let now = Timestamp::now();
    let managed = &observed.places.managed;
    let uses =
        move |pod: &Pod| workers::is(pod, Component::Redis) || place::of(pod) == Some(managed);
    observed
        .pods
        .iter()
        .map(AsRef::as_ref)
        .filter(move |pod| uses(pod) && pod.metadata.deletion_timestamp.is_none())
        .filter_map(move |pod| {
            let status = pod.status.as_ref()?;
            let begun = status.start_time.as_ref()?.0;
            let containers = status.init_container_statuses.iter().flatten();
            let mut containers = containers.chain(status.container_statuses.iter().flatten());
            let is_created = containers.any(|container| !is_being_created(container));
            (status.phase.as_deref() == Some("Pending") && !is_created)
                .then(|| now.duration_since(begun) >= STARVES_AFTER)
        })
}

fn is_being_created(container: &ContainerStatus) -> bool {
    let waiting = container
        .state
        .as_ref()
        .and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    matches!(reason, Some("ContainerCreating" | "PodInitializing"))
}
