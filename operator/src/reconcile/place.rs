//! Places of a queue. A place is a Redis, named by the Secret with its URL. A pod uses the Redis of the Secret that it
//! mounts for as long as it lives, so while the queue moves there are pods of two places.

use std::collections::{BTreeMap, BTreeSet};

use carpool_crds::BatchedModelSpec;
use k8s_openapi::api::core::v1::{Pod, Volume};
use kube::ResourceExt;

use super::{build::pod, observe::feeds, validate::Valid};
use crate::{
    names::{self, Component},
    workers,
};

/// The Secret with the Redis URL or password that volumes mount.
#[must_use]
pub fn mounted(volumes: &[Volume]) -> Option<&str> {
    volumes
        .iter()
        .find_map(|volume| match volume.name.as_str() {
            pod::CONFIG_VOLUME => {
                let sources = volume.projected.as_ref()?.sources.iter().flatten();
                let mut secrets = sources.filter_map(|source| source.secret.as_ref());
                Some(secrets.next()?.name.as_str())
            }
            pod::PASSWORD_VOLUME => volume.secret.as_ref()?.secret_name.as_deref(),
            _ => None,
        })
}

/// The place of a pod or workload, as its watch has written it down.
pub fn of(object: &impl ResourceExt) -> Option<&str> {
    let place = object.annotations().get(names::REDIS_SECRET);
    place.map(String::as_str)
}

/// The places of one resource's queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The Secret of a managed Redis: the one that the live one uses, or would.
    pub managed: String,
    /// Names that the Secret of a managed Redis may have.
    pub own_names: [String; 2],
    /// The place that each revision's workers read.
    pub revisions: BTreeMap<String, String>,
    /// Places that a proxy or a sidecar feeds, one that is leaving or has yet to start among them.
    pub fed: BTreeSet<String>,
    /// Places that a sidecar in an app's pod feeds, which stays there until it is injected anew.
    pub fed_by_sidecars: BTreeSet<String>,
    /// Places that pods of any kind but Redis itself use.
    pub used: BTreeSet<String>,
    /// The revision that was last fed at each place.
    pub before: BTreeMap<String, String>,
}

impl Places {
    /// The revision of a spec. One that has workers at the spec's place keeps its name: an older operator named each by its
    /// model alone, wherever the queue was. A name that workers at another place have is none for this one.
    #[must_use]
    pub fn latest(&self, spec: &BatchedModelSpec) -> String {
        let external = spec.queue.redis.external.as_ref();
        let wanted = self.wanted(external.map(|external| external.url_secret_name.as_str()));
        let (plain, placed) = (spec.model.revision(), spec.model.revision_at(&wanted));
        let names = match external {
            None => [plain, placed],
            Some(_) => [placed, plain],
        };
        let is_here = |place: &String| {
            *place == wanted || (external.is_none() && self.own_names.contains(place))
        };
        let here = |name: &&String| self.revisions.get(*name).is_some_and(is_here);
        let is_free = |name: &&String| !self.revisions.contains_key(*name);
        let name = names
            .iter()
            .find(here)
            .or_else(|| names.iter().find(is_free));
        name.unwrap_or(&names[0]).clone()
    }

    /// Adds what pods show.
    pub fn look_at<'a>(&mut self, pods: impl IntoIterator<Item = &'a Pod>) {
        for pod in pods {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            let Some(place) = of(pod).filter(|_| {
                !workers::is(pod, Component::Redis)
                    && !matches!(phase, Some("Succeeded" | "Failed"))
            }) else {
                continue;
            };
            self.used.insert(place.to_owned());
            if feeds(pod) {
                self.fed.insert(place.to_owned());
            }
            if feeds(pod) && !workers::is(pod, Component::Proxy) {
                self.fed_by_sidecars.insert(place.to_owned());
            }
        }
    }

    /// The place that the spec asks for.
    #[must_use]
    pub fn wanted(&self, external: Option<&str>) -> String {
        external.unwrap_or(&self.managed).to_owned()
    }

    /// The place of the proxies when they feed this revision: that of its workers or, where it has none yet, the spec's.
    #[must_use]
    pub fn of_proxies(&self, active: &str, valid: &Valid) -> String {
        let place = self.revisions.get(active).cloned();
        place.unwrap_or_else(|| self.wanted(valid.external_secret()))
    }

    /// The revision to feed at each place where one of `revisions` has workers: at the active one's place that one, at
    /// any other the one that was fed there before.
    #[must_use]
    pub fn to_feed<'a>(
        &self,
        active: &str,
        valid: &Valid,
        revisions: impl Iterator<Item = &'a String>,
    ) -> BTreeMap<String, String> {
        let mut fed = BTreeMap::new();
        for revision in revisions {
            let Some(place) = self.revisions.get(revision) else {
                continue;
            };
            if self.before.get(place) == Some(revision) || !fed.contains_key(place) {
                fed.insert(place.clone(), revision.clone());
            }
        }
        fed.insert(self.of_proxies(active, valid), active.to_owned());
        fed
    }

    /// Whether something still uses the managed Redis, which the spec may no longer ask for.
    #[must_use]
    pub fn uses_managed(&self) -> bool {
        self.used.contains(&self.managed)
            || self.revisions.values().any(|place| *place == self.managed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::fixtures;

    #[test]
    fn nobody_gets_another_revision_by_a_newer_operator() {
        let (managed, external) = (
            fixtures::sentiment().spec,
            fixtures::with("queue: {redis: {external: {urlSecretName: mine}}}").spec,
        );
        let (plain, placed) = (managed.revision(), external.revision());
        let latest = |spec: &BatchedModelSpec, live: &[(&String, &str)]| {
            let live = live.iter();
            Places {
                managed: "m-redis".to_owned(),
                own_names: ["m-redis", "m-redis-0c5b5a3e"].map(str::to_owned),
                revisions: live
                    .map(|(name, place)| ((*name).clone(), (*place).to_owned()))
                    .collect(),
                ..Places::default()
            }
            .latest(spec)
        };
        assert_eq!(latest(&managed, &[]), plain);
        assert_eq!(latest(&external, &[]), placed);
        // Workers that an older operator made keep the name of their model alone.
        assert_eq!(latest(&external, &[(&plain, "mine")]), plain);
        assert_eq!(latest(&managed, &[(&plain, "m-redis-0c5b5a3e")]), plain);
        // A queue that moves never takes the name of workers that read another Redis.
        assert_eq!(latest(&external, &[(&plain, "m-redis")]), placed);
        let moved = latest(&managed, &[(&plain, "mine")]);
        assert!(moved != plain && moved != placed);
        assert_eq!(
            latest(&managed, &[(&moved, "m-redis")]),
            moved,
            "it keeps it"
        );
    }
}
