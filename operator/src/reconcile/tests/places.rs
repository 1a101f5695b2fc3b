//! A queue that moves from the operator's Redis to one of the user's.

use super::*;
use crate::reconcile::mock::{see_config, see_pod, see_redis};

const EXTERNAL: &str = "queue: {redis: {external: {urlSecretName: mine}}}";
const MANAGED: &str = "sentiment-redis";

fn meta(kind: &str, name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {
            "name": name, "namespace": "nlp", "uid": name, "resourceVersion": "1", "generation": 1,
            "labels": names::labels("sentiment"), "annotations": annotations,
            "ownerReferences": [{"apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "name": "sentiment",
                                 "uid": fixtures::sentiment().uid().unwrap(), "controller": true}]
        }
    })
}

/// The live Redis of the operator's, with this Secret.
pub(super) fn redis(secret: &str) -> Value {
    let mut set = meta("StatefulSet", "sentiment-redis", &json!({}));
    let volumes = json!([{"name": "secret", "secret": {"secretName": secret}}]);
    set["spec"] = json!({"selector": {}, "serviceName": "r", "template": {"spec": {"containers": [], "volumes": volumes}}});
    set["status"] = json!({"replicas": 1, "readyReplicas": 1});
    set
}

/// Workers of a revision that read the Redis of this Secret.
fn workers_at(revision: &str, secret: &str) -> Value {
    let mut deployment = workers(&fixtures::sentiment(), revision, 1);
    let sources = json!([{"configMap": {"name": "c"}}, {"secret": {"name": secret}}]);
    let volumes = json!([{"name": "carpool-config", "projected": {"sources": sources}}]);
    deployment["spec"]["template"] = json!({"spec": {"containers": [], "volumes": volumes}});
    deployment
}

/// A Ready pod of a component, as the watch keeps it.
pub(super) fn pod(name: &str, component: &str, secret: &str, revision: Option<&str>) -> Value {
    let mut labels = json!({
        names::MODEL: "sentiment", "app.kubernetes.io/name": "carpool", names::COMPONENT: component
    });
    if let Some(revision) = revision {
        labels[names::REVISION] = json!(revision);
    }
    json!({
        "metadata": {"name": name, "namespace": "nlp", "uid": name, "resourceVersion": "1", "labels": labels,
                     "annotations": {names::REDIS_SECRET: secret}},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    })
}

fn serving(revision: &str, places: &Value) -> Value {
    let annotations = json!({names::SERVING: revision, names::PLACES: places.to_string()});
    meta("ConfigMap", "sentiment-config", &annotations)
}

/// The Secret that an applied workload mounts.
fn mounts(calls: &[Call], path: &str) -> String {
    let applied = calls.iter().find(|call| call.is("PATCH", path));
    let applied = applied.unwrap_or_else(|| panic!("{path} is not applied"));
    let volumes = &applied.body["spec"]["template"]["spec"]["volumes"];
    let volumes: Vec<_> = serde_json::from_value(volumes.clone()).unwrap();
    place::mounted(&volumes).unwrap().to_owned()
}

/// The places of the configuration that is applied.
fn fed(calls: &[Call]) -> Value {
    let config = calls
        .iter()
        .find(|call| call.is("PATCH", "/sentiment-config"));
    let config = config.unwrap().body["data"]["config.yaml"].clone();
    let config: Value = serde_yaml::from_str(config.as_str().unwrap()).unwrap();
    assert!(config["places"][MANAGED] != config["places"]["mine"]);
    config["places"].clone()
}

fn deleted(calls: &[Call]) -> Vec<&str> {
    let deletions = calls
        .iter()
        .filter(|call| call.target.starts_with("DELETE"));
    deletions
        .map(|call| call.target.rsplit_once("/nlp/").unwrap().1)
        .collect()
}

/// Has proxies tell, just now, whom they feed where.
fn tell(context: &Context, model: &BatchedModel, feeding: &[(&str, &str)]) {
    let remembered = context.memory.of(model);
    let feeding = feeding.iter();
    lock(&remembered).backlog = Some(crate::memory::BacklogSample {
        at: Instant::now(),
        revisions: BTreeMap::new(),
        feeding: feeding
            .map(|(place, fed)| ((*place).to_owned(), Some((*fed).to_owned())))
            .collect(),
    });
}

#[tokio::test]
async fn the_new_place_is_read_and_fed_before_the_old_one_goes() {
    let (client, calls) = api_server(|_| None);
    let context = Arc::new(context(client));
    let (old, new) = (
        fixtures::valid("{}").revision,
        fixtures::valid(EXTERNAL).revision,
    );
    assert_ne!(old, new);
    let model = fixtures::with(EXTERNAL);
    let pod_of = |secret: &str| pod(secret, "proxy", secret, None);
    let worker_of = |revision: &str, secret: &str| pod(revision, "worker", secret, Some(revision));
    let new_workers = format!("/deployments/{}", names::worker("sentiment", &new));
    let proxies = "/deployments/sentiment-proxy";
    see_redis(&context, redis(MANAGED));
    see_config(&context, serving(&old, &json!({MANAGED: old})));
    see(&context, workers_at(&old, MANAGED));
    see_pod(&context, worker_of(&old, MANAGED), false);
    see_pod(&context, pod_of(MANAGED), false);
    tell(&context, &model, &[(MANAGED, &old)]);

    // Workers of the new place come, and nothing else changes.
    run(&context, &model).await.unwrap();
    let made = calls.take();
    assert_eq!(mounts(&made, &new_workers), "mine");
    assert_eq!(mounts(&made, proxies), MANAGED);
    assert_eq!(fed(&made), json!({MANAGED: old}));
    assert!(deleted(&made).is_empty(), "{:?}", deleted(&made));
    assert_eq!(condition(&made, "RedisReady")["reason"], "Ready");

    // One of them is Ready: proxies follow, each feeding what is read in its own Redis.
    see(&context, workers_at(&new, "mine"));
    see_pod(&context, worker_of(&new, "mine"), false);
    run(&context, &model).await.unwrap();
    let switched = calls.take();
    assert_eq!(mounts(&switched, proxies), "mine");
    assert_eq!(fed(&switched), json!({MANAGED: old, "mine": new}));
    assert!(deleted(&switched).is_empty(), "{:?}", deleted(&switched));

    // The last proxy of the old place is leaving and has requests open.
    see_config(&context, serving(&new, &json!({MANAGED: old, "mine": new})));
    let mut leaving = pod_of(MANAGED);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    see_pod(&context, leaving.clone(), false);
    see_pod(&context, pod_of("mine"), false);
    tell(&context, &model, &[("mine", &new)]);
    run(&context, &model).await.unwrap();
    let drained = calls.take();
    assert!(deleted(&drained).is_empty(), "{:?}", deleted(&drained));
    assert_eq!(fed(&drained), json!({MANAGED: old, "mine": new}));

    // With it go the workers of the old place and, when they are gone, its Redis.
    see_pod(&context, leaving, true);
    run(&context, &model).await.unwrap();
    let emptied = calls.take();
    let workers_of_old = format!("deployments/{}", names::worker("sentiment", &old));
    assert_eq!(deleted(&emptied), [workers_of_old.as_str()]);
    context
        .cluster
        .deployments
        .feed(kube::runtime::watcher::Event::Delete(
            crate::live::Seen::of(serde_json::from_value(workers_at(&old, MANAGED)).unwrap()),
        ));
    run(&context, &model).await.unwrap();
    assert!(
        deleted(&calls.take()).is_empty(),
        "a worker is still leaving"
    );
    see_pod(&context, worker_of(&old, MANAGED), true);
    run(&context, &model).await.unwrap();
    assert_eq!(deleted(&calls.take()), ["statefulsets/sentiment-redis"]);
}

#[tokio::test]
async fn a_sidecar_of_the_old_place_keeps_it_and_no_rollout_waiting() {
    let (client, calls) = api_server(|_| None);
    let context = Arc::new(context(client));
    let (old, before) = (
        fixtures::valid("{}").revision,
        fixtures::valid(EXTERNAL).revision,
    );
    let model = fixtures::with(&format!(
        "{{model: {{uri: 'pvc://models/next'}}, {EXTERNAL}}}"
    ));
    let next = model.spec.revision();
    see_redis(&context, redis(MANAGED));
    see_config(
        &context,
        serving(&before, &json!({MANAGED: old, "mine": before})),
    );
    see(&context, workers_at(&old, MANAGED));
    see(&context, workers_at(&before, "mine"));
    see_pod(&context, pod("w", "worker", "mine", Some(&before)), false);
    see_pod(&context, pod("p", "proxy", "mine", None), false);
    let mut app = pod("app", "app", MANAGED, None);
    app["metadata"]["labels"] = json!({names::MODEL: "sentiment"});
    see_pod(&context, app, false);
    tell(&context, &model, &[("mine", &before), (MANAGED, &old)]);
    run(&context, &model).await.unwrap();
    let made = calls.take();
    assert!(deleted(&made).is_empty(), "{:?}", deleted(&made));
    let of_next = format!("/deployments/{}", names::worker("sentiment", &next));
    assert_eq!(mounts(&made, &of_next), "mine");
    assert_eq!(fed(&made), json!({MANAGED: old, "mine": before}));
}
