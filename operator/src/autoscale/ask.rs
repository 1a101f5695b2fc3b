//! Questions to pods: what the queue holds, and what has been loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use carpool_scaling::backlog::{AdminClient, Backlog, RevisionBacklog};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{
    memory::Reported,
    names::Component,
    reconcile::fetch::{Observed, admin_address, feeds},
    workers,
};

/// Proxies, and then sidecars, that are tried for an answer, one after another.
const ATTEMPTS: usize = 2;
/// How often workers that have been asked for their model are asked again: what they say of it may change.
const REPORTS_EVERY: Duration = Duration::from_secs(30);

/// What proxies and injected sidecars said.
#[derive(Debug, PartialEq, Eq)]
pub struct Heard {
    /// The queue, by revision.
    pub queue: BTreeMap<String, RevisionBacklog>,
    /// The revision that all who answered feed, if they agree.
    pub serving: Option<String>,
    /// Whether one that takes requests did not answer.
    pub silence: bool,
}

/// Asks for the queue. One proxy knows the whole queue. Whom each of them feeds matters only between two revisions: `all` are asked then.
pub async fn queue(asker: &AdminClient, observed: &Observed, all: bool) -> Option<Heard> {
    let feeding = observed.pods.iter().map(AsRef::as_ref);
    let feeding: Vec<&Pod> = feeding.filter(|pod| feeds(pod)).collect();
    let answers = if all {
        join_all(feeding.iter().map(|pod| ask(asker, pod))).await
    } else {
        let mut answers = Vec::new();
        for pod in in_turn(&feeding) {
            answers.push(ask(asker, pod).await);
            if matches!(answers.last(), Some(Asked::Answer(_))) {
                break;
            }
        }
        answers
    };
    merge(answers)
}

/// Whom to ask until one answers: Ready proxies and, where none does, sidecars of apps, whose requests wake a model, too.
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

/// What became of a question.
#[derive(Debug)]
enum Asked {
    Answer(Backlog),
    /// It takes requests and does not say where it puts them.
    Silent,
    /// It takes no requests.
    Absent,
}

async fn ask(asker: &AdminClient, pod: &Pod) -> Asked {
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

/// Where a pod can be asked, if its containers still run.
fn address(pod: &Pod) -> Option<(IpAddr, u16)> {
    let phase = pod.status.as_ref()?.phase.as_deref()?;
    if phase == "Running" {
        admin_address(pod)
    } else {
        None
    }
}

fn merge(answers: Vec<Asked>) -> Option<Heard> {
    let mut queue: BTreeMap<String, RevisionBacklog> = BTreeMap::new();
    let mut serving = Vec::new();
    let mut silence = false;
    for answer in answers {
        match answer {
            Asked::Answer(backlog) => {
                serving.push(backlog.serving);
                for (revision, queued) in backlog.revisions {
                    let known = queue.entry(revision).or_default();
                    // Each knows the whole queue and, beyond it, what it has itself taken and not yet put there.
                    known.length = known.length.max(queued.length);
                    known.workers.extend(queued.workers);
                }
            }
            Asked::Silent => silence = true,
            Asked::Absent => {}
        }
    }
    let first = serving.first()?.clone();
    let agreed = serving.iter().all(|other| *other == first);
    Some(Heard {
        queue,
        serving: agreed.then_some(first),
        silence,
    })
}

/// What a revision's workers say of their model: asked where one of them is new, and again after a while.
pub async fn report(
    asker: &AdminClient,
    observed: &Observed,
    revision: &str,
    now: Instant,
) -> Option<Reported> {
    let ready = |pod: &&Pod| workers::is_worker(pod, revision) && workers::is_ready(pod);
    let pods: Vec<&Pod> = observed
        .pods
        .iter()
        .map(AsRef::as_ref)
        .filter(ready)
        .collect();
    let workers: BTreeSet<String> = pods.iter().map(|pod| pod.name_any()).collect();
    if !report_is_due(observed.reports.get(revision), &workers, now) {
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
        let heard = merge(vec![
            answer("b", &[("a", 0), ("b", 4)]),
            answer("b", &[("a", 2), ("b", 3)]),
        ])
        .unwrap();
        assert_eq!((heard.queue["a"].length, heard.queue["b"].length), (2, 4));
        assert_eq!(heard.serving.as_deref(), Some("b"));
    }

    #[test]
    fn one_that_feeds_another_revision_or_is_silent_is_noticed() {
        let differ = merge(vec![answer("a", &[]), answer("b", &[])]).unwrap();
        assert_eq!((differ.serving, differ.silence), (None, false));
        let silent = merge(vec![answer("b", &[]), Asked::Silent]).unwrap();
        assert_eq!(
            (silent.serving.as_deref(), silent.silence),
            (Some("b"), true)
        );
        let absent = merge(vec![answer("b", &[]), Asked::Absent]).unwrap();
        assert!(!absent.silence);
    }

    #[test]
    fn without_an_answer_nothing_is_known() {
        assert_eq!(merge(vec![Asked::Silent, Asked::Absent]), None);
        assert_eq!(merge(Vec::new()), None);
    }
}
