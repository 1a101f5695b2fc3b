//! Questions to pods: what the queue holds, and what has been loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use carpool_scaling::backlog::{AdminClient, Backlog, RevisionBacklog};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{
    memory::{BacklogSample, Reported},
    names::Component,
    reconcile::{
        observe::{admin_address, feeds},
        place,
    },
    workers,
};

/// Proxies, and then sidecars, that are tried for an answer, one after another.
const ATTEMPTS: usize = 2;
/// The time after which workers are asked for their model again: what they say of it may change.
const REPORTS_EVERY: Duration = Duration::from_secs(30);

/// Asks for the queue. One proxy knows the whole queue. Whom each of them feeds matters only between two revisions:
/// `all` are asked then. Returns what they know together, and whether one that takes requests did not answer.
pub async fn backlog(
    asker: &AdminClient,
    pods: &[Arc<Pod>],
    all: bool,
) -> Option<(BacklogSample, bool)> {
    let feeding = pods.iter().map(AsRef::as_ref);
    let feeding: Vec<&Pod> = feeding.filter(|pod| feeds(pod)).collect();
    let answers = if all {
        join_all(feeding.iter().map(|pod| ask(asker, pod))).await
    } else {
        let mut answers = Vec::new();
        for pod in in_turn(&feeding) {
            answers.push(ask(asker, pod).await);
            if matches!(answers.last(), Some((_, Asked::Answer(_)))) {
                break;
            }
        }
        answers
    };
    merge(answers, Instant::now())
}

/// Pods to ask until one answers: Ready proxies and, where none does, sidecars of apps, whose requests wake a model,
/// too.
fn in_turn<'a>(feeding: &[&'a Pod]) -> Vec<&'a Pod> {
    let (proxies, sidecars): (Vec<&Pod>, Vec<&Pod>) = feeding
        .iter()
        .copied()
        .partition(|pod| workers::is(pod, Component::Proxy));
    let proxies = proxies.into_iter().filter(|pod| workers::is_ready(pod));
    let sidecars = sidecars.into_iter().filter(|pod| address(pod).is_some());
    proxies
        .take(ATTEMPTS)
        .chain(sidecars.take(ATTEMPTS))
        .collect()
}

/// Outcome of a question to a proxy or a sidecar.
#[derive(Debug)]
enum Asked {
    Answer(Backlog),
    /// The pod takes requests and does not say where it puts them.
    Silent,
    /// The pod takes no requests.
    Absent,
}

/// Asks a pod. Returns the place of the queue that it answers for, too.
async fn ask<'a>(asker: &AdminClient, pod: &'a Pod) -> (&'a str, Asked) {
    (place::of(pod).unwrap_or_default(), answer(asker, pod).await)
}

async fn answer(asker: &AdminClient, pod: &Pod) -> Asked {
    let Some((ip, port)) = address(pod) else {
        return Asked::Absent;
    };
    match asker.backlog(ip, port).await {
        Ok(backlog) => Asked::Answer(backlog),
        Err(error) => {
            tracing::debug!(%error, pod = pod.metadata.name, "a proxy does not tell its backlog");
            if workers::is_ready(pod) {
                Asked::Silent
            } else {
                Asked::Absent
            }
        }
    }
}

/// The address at which a pod can be asked, if its containers still run.
fn address(pod: &Pod) -> Option<(IpAddr, u16)> {
    let phase = pod.status.as_ref()?.phase.as_deref()?;
    if phase == "Running" {
        admin_address(pod)
    } else {
        None
    }
}

fn merge(answers: Vec<(&str, Asked)>, at: Instant) -> Option<(BacklogSample, bool)> {
    let mut revisions: BTreeMap<String, RevisionBacklog> = BTreeMap::new();
    let mut feeding: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut silence = false;
    for (place, answer) in answers {
        match answer {
            Asked::Answer(backlog) => {
                feeding
                    .entry(place.to_owned())
                    .and_modify(|fed| {
                        fed.take_if(|fed| *fed != backlog.serving);
                    })
                    .or_insert(Some(backlog.serving));
                // A revision has one place, so answers about it from another hold nothing.
                for (revision, queued) in backlog.revisions {
                    let known = revisions.entry(revision).or_default();
                    // Each knows the whole queue and, beyond it, what it has itself taken and not yet put there.
                    known.length = known.length.max(queued.length);
                    known.workers.extend(queued.workers);
                }
            }
            Asked::Silent => silence = true,
            Asked::Absent => {}
        }
    }
    (!feeding.is_empty()).then_some((
        BacklogSample {
            at,
            revisions,
            feeding,
        },
        silence,
    ))
}

/// Asks a revision's workers for their model, where one of them is new, and again after a while.
pub async fn report(
    asker: &AdminClient,
    pods: &[Arc<Pod>],
    revision: &str,
    known: Option<&Reported>,
    now: Instant,
) -> Option<Reported> {
    let ready = |pod: &&Pod| workers::is_worker(pod, revision) && workers::is_ready(pod);
    let pods: Vec<&Pod> = pods.iter().map(AsRef::as_ref).filter(ready).collect();
    let workers: BTreeSet<String> = pods.iter().map(|pod| pod.name_any()).collect();
    if !report_is_due(known, &workers, now) {
        return None;
    }
    let addresses = pods.into_iter().filter_map(admin_address);
    let answers = join_all(addresses.map(|(ip, port)| asker.loaded(ip, port))).await;
    let told = answers.into_iter().filter_map(|answer| {
        answer
            .inspect_err(|error| tracing::debug!(%error, "a worker does not tell what it loaded"))
            .ok()
    });
    // A worker may have been replaced by one of another revision that got its address.
    let model = told
        .filter(|model| model.revision == revision)
        .min_by_key(|model| model.reason)?;
    Some(Reported {
        at: now,
        workers,
        model,
    })
}

/// Whether Ready workers are to be asked for their model.
fn report_is_due(known: Option<&Reported>, ready: &BTreeSet<String>, now: Instant) -> bool {
    !ready.is_empty()
        && known.is_none_or(|known| {
            !ready.is_subset(&known.workers)
                || now.saturating_duration_since(known.at) >= REPORTS_EVERY
        })
}

#[cfg(test)]
mod tests {
    use carpool_crds::Loaded;

    use super::*;

    fn answer(serving: &str, lengths: &[(&str, u64)]) -> Asked {
        let queued = |length| RevisionBacklog {
            length,
            ..RevisionBacklog::default()
        };
        Asked::Answer(Backlog {
            serving: serving.into(),
            revisions: lengths
                .iter()
                .map(|(name, length)| ((*name).to_owned(), queued(*length)))
                .collect(),
        })
    }

    fn merged(answers: Vec<Asked>) -> Option<(BacklogSample, bool)> {
        merge(
            answers.into_iter().map(|answer| ("", answer)).collect(),
            Instant::now(),
        )
    }

    fn pod(name: &str, component: Option<&str>, ready: &str, phase: &str) -> Pod {
        let mut pod = serde_json::json!({
            "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "app"}},
            "status": {"phase": phase, "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]}
        });
        if let Some(component) = component {
            pod["metadata"]["labels"] = serde_json::json!({
                "app.kubernetes.io/name": "carpool", "app.kubernetes.io/component": component
            });
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn sidecars_are_asked_where_no_proxy_answers() {
        let pods = [
            pod("done", None, "False", "Succeeded"),
            pod("app-1", None, "True", "Running"),
            pod("app-2", None, "False", "Running"),
            pod("app-3", None, "True", "Running"),
            pod("proxy-1", Some("proxy"), "False", "Running"),
            pod("proxy-2", Some("proxy"), "True", "Running"),
        ];
        let names = |pods: &[Pod]| -> Vec<String> {
            let pods: Vec<&Pod> = pods.iter().collect();
            let asked = in_turn(&pods).into_iter();
            asked.map(ResourceExt::name_any).collect()
        };
        assert_eq!(names(&pods), ["proxy-2", "app-1", "app-2"]);
        assert_eq!(names(&pods[..5]), ["app-1", "app-2"]);
    }

    #[test]
    fn workers_are_asked_for_their_model_when_one_is_new_and_again_after_a_while() {
        let now = Instant::now();
        let names = |names: &[&str]| -> BTreeSet<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let known = Reported {
            at: now,
            workers: names(&["a", "b"]),
            model: Loaded {
                revision: "r1".into(),
                sha256: "abc".into(),
                reason: carpool_crds::LoadedReason::Loaded,
                message: String::new(),
            },
        };
        assert!(report_is_due(None, &names(&["a"]), now));
        assert!(!report_is_due(None, &names(&[]), now));
        assert!(!report_is_due(Some(&known), &names(&["a"]), now));
        assert!(report_is_due(Some(&known), &names(&["a", "c"]), now));
        let later = now + REPORTS_EVERY;
        assert!(report_is_due(Some(&known), &names(&["a"]), later));
        assert!(!report_is_due(Some(&known), &names(&[]), later));
    }

    #[test]
    fn the_longest_answer_counts() {
        let (sample, _) = merged(vec![
            answer("b", &[("a", 0), ("b", 4)]),
            answer("b", &[("a", 2), ("b", 3)]),
        ])
        .unwrap();
        let lengths = ["a", "b", "c"].map(|revision| sample.length(revision));
        assert_eq!((lengths, sample.total()), ([2, 4, 0], 6));
        assert_eq!(sample.feeding[""].as_deref(), Some("b"));
    }

    #[test]
    fn one_that_feeds_another_revision_or_is_silent_is_noticed() {
        let feeding = |answers| {
            let (sample, silence) = merged(answers).unwrap();
            (sample.feeding[""].clone(), silence)
        };
        let (a, b) = (|| answer("a", &[]), || answer("b", &[]));
        assert_eq!(feeding(vec![a(), b()]), (None, false));
        assert_eq!(feeding(vec![b(), Asked::Silent]), (Some("b".into()), true));
        assert_eq!(feeding(vec![b(), Asked::Absent]), (Some("b".into()), false));
    }

    #[test]
    fn proxies_of_two_places_feed_what_their_place_is_told() {
        let answers = vec![
            ("new", answer("b", &[("b", 1)])),
            ("old", answer("a", &[("a", 3)])),
            ("new", answer("b", &[("b", 2)])),
        ];
        let (sample, _) = merge(answers, Instant::now()).unwrap();
        assert_eq!(sample.feeding["new"].as_deref(), Some("b"));
        assert_eq!(sample.feeding["old"].as_deref(), Some("a"));
        assert_eq!((sample.length("a"), sample.length("b")), (3, 2));
        assert!(sample.knows("old") && !sample.knows("elsewhere"));
    }

    #[test]
    fn without_an_answer_nothing_is_known() {
        assert_eq!(merged(vec![Asked::Silent, Asked::Absent]), None);
        assert_eq!(merged(Vec::new()), None);
    }
}
