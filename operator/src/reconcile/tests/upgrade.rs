//! Upgrades of the operator: pods that it alone renders otherwise are replaced one model after another.

use carpool_crds::BatchedModel;
use futures::channel::mpsc::{self, UnboundedReceiver};
use k8s_openapi::api::core::v1::Pod;
use kube::{api::DynamicObject, runtime::watcher::Event};

use super::*;
use crate::{live::Seen, reconcile::mock::Calls, turns::Turns};

/// A leader of some version, and the cluster that it sees.
struct Leader {
    context: Arc<Context>,
    calls: Calls,
    asked: UnboundedReceiver<ModelRef>,
}

impl Leader {
    fn new(version: &str) -> Self {
        let (client, calls) = api_server(|_| None);
        let mut context = context(client);
        context.images.worker = format!("worker:{version}");
        context.images.sidecar = format!("sidecar:{version}");
        let (asks, asked) = mpsc::unbounded();
        context.asks = asks;
        Self {
            context: Arc::new(context),
            calls,
            asked,
        }
    }

    /// Reconciles a model. Returns what was applied.
    async fn run(&self, model: &BatchedModel) -> Vec<Value> {
        run(&self.context, model).await.unwrap();
        let calls = self.calls.take().into_iter();
        let applied = calls.filter(|call| call.target.starts_with("PATCH"));
        applied.map(|call| call.body).collect()
    }

    /// Has the watches see a child, with all of its pods Ready or none of them updated yet.
    fn see(&self, child: &Value, is_done: bool) {
        let mut child = child.clone();
        let uid = format!("{}-{}", child["kind"], child["metadata"]["name"]);
        child["metadata"]["uid"] = json!(uid);
        child["metadata"]["resourceVersion"] = json!("1");
        child["metadata"]["generation"] = json!(2);
        let pods = child["spec"]["replicas"].as_i64().unwrap_or(1);
        let updated = if is_done { pods } else { 0 };
        child["status"] = json!({
            "observedGeneration": 2, "replicas": pods, "readyReplicas": pods, "updatedReplicas": updated,
            "currentRevision": "a", "updateRevision": if is_done { "a" } else { "b" }
        });
        let object: DynamicObject = serde_json::from_value(child.clone()).unwrap();
        let cluster = &self.context.cluster;
        match child["kind"].as_str().unwrap() {
            "Deployment" => drop(cluster.deployments.feed(Event::Apply(Seen::of(object)))),
            "StatefulSet" => drop(cluster.stateful_sets.feed(Event::Apply(Seen::of(object)))),
            "ConfigMap" => drop(cluster.config_maps.feed(Event::Apply(Seen::of(object)))),
            "Service" => drop(cluster.services.feed(Event::Apply(Seen::of(object)))),
            "ServiceAccount" => drop(cluster.accounts.feed(Event::Apply(Seen::of(object)))),
            "PodDisruptionBudget" => drop(cluster.budgets.feed(Event::Apply(Seen::of(object)))),
            "NetworkPolicy" => drop(cluster.policies.feed(Event::Apply(Seen::of(object)))),
            _ => {}
        }
    }

    /// Has the watches see all children of a model, and a worker that is Ready.
    fn see_all(&self, model: &BatchedModel, children: &[Value]) {
        for child in children {
            self.see(child, true);
        }
        let revision = model.spec.model.revision();
        let name = model.name_any();
        let labels = names::component_labels(&name, names::Component::Worker);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("{name}-0"), "namespace": "nlp", "labels": names::of_revision(labels, &revision)},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        }))
        .unwrap();
        self.context.cluster.pods.feed(Event::Apply(pod));
    }

    fn asked(&mut self) -> Vec<String> {
        let mut asked = Vec::new();
        while let Ok(model) = self.asked.try_recv() {
            asked.push(model.name);
        }
        asked
    }
}

fn model(name: &str) -> BatchedModel {
    let mut model = fixtures::sentiment();
    model.metadata.name = Some(name.to_owned());
    model.metadata.uid = Some(format!("0c5b5a3e-7d53-4c5a-9a53-{name}"));
    // An operator has carried its spec out.
    let status = json!({
        "observedGeneration": 1,
        "conditions": [{"type": "Progressing", "status": "False", "reason": "Complete", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    });
    model.status = serde_json::from_value(status).unwrap();
    model
}

/// The children of a model as a version renders them once they run: the second look finds a worker that is Ready.
async fn made_by(version: &str, model: &BatchedModel) -> Vec<Value> {
    let leader = Leader::new(version);
    let first = leader.run(model).await;
    leader.see_all(model, &first);
    let mut all = first;
    for newer in leader.run(model).await {
        let is_same = |other: &&mut Value| {
            other["kind"] == newer["kind"] && other["metadata"]["name"] == newer["metadata"]["name"]
        };
        if let Some(old) = all.iter_mut().find(is_same) {
            *old = newer;
        }
    }
    all.retain(|child| child["kind"] != "BatchedModel");
    all
}

fn workloads(applied: &[Value]) -> Vec<&Value> {
    let workloads = applied.iter();
    workloads
        .filter(|child| child["kind"] == "Deployment" || child["kind"] == "StatefulSet")
        .collect()
}

fn deployments(applied: &[Value]) -> Vec<&Value> {
    let mut deployments = workloads(applied);
    deployments.retain(|child| child["kind"] == "Deployment");
    deployments
}

fn progressing(applied: &[Value]) -> String {
    let status = applied.iter().find(|body| body["kind"] == "BatchedModel");
    let conditions = status.unwrap()["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|one| one["type"] == "Progressing");
    let found = found.unwrap();
    format!(
        "{}: {}",
        found["reason"].as_str().unwrap(),
        found["message"].as_str().unwrap()
    )
}

/// A leader of a newer version, which finds two models of the version before.
async fn upgraded(models: [&BatchedModel; 2]) -> Leader {
    let leader = Leader::new("2");
    for model in models {
        leader.see_all(model, &made_by("1", model).await);
    }
    leader
}

#[tokio::test]
async fn one_model_after_the_other_gets_the_pods_of_a_newer_operator() {
    let (a, b) = (model("a"), model("b"));
    let mut leader = upgraded([&a, &b]).await;
    let of_a = leader.run(&a).await;
    let changed = workloads(&of_a);
    assert_eq!(changed.len(), 2, "Redis is as it was: {changed:?}");
    for child in &changed {
        let marks = &child["metadata"]["annotations"];
        assert_eq!(marks[names::TURN], marks[names::TEMPLATE]);
        leader.see(child, false);
    }
    let of_b = leader.run(&b).await;
    assert!(workloads(&of_b).is_empty(), "b waits");
    let told = progressing(&of_b);
    assert!(
        told.starts_with("UpdateQueued")
            && told.contains("1 model is before it, nlp/a is being updated"),
        "{told}"
    );
    assert!(workloads(&leader.run(&a).await).is_empty());
    assert!(leader.asked().is_empty());

    // All pods of a are Ready again.
    for child in &changed {
        leader.see(child, true);
    }
    assert!(workloads(&leader.run(&a).await).is_empty());
    assert_eq!(leader.asked(), ["b"]);
    let of_b = leader.run(&b).await;
    assert_eq!(workloads(&of_b).len(), 2);
}

#[tokio::test]
async fn a_leader_that_takes_over_amid_a_turn_counts_it() {
    let (a, b) = (model("a"), model("b"));
    let before = upgraded([&a, &b]).await;
    let of_a = before.run(&a).await;
    let leader = upgraded([&a, &b]).await;
    for child in workloads(&of_a) {
        leader.see(child, false);
    }
    assert!(workloads(&leader.run(&a).await).is_empty());
    assert!(
        workloads(&leader.run(&b).await).is_empty(),
        "a is in its turn"
    );
    for child in workloads(&of_a) {
        leader.see(child, true);
    }
    leader.run(&a).await;
    assert_eq!(workloads(&leader.run(&b).await).len(), 2);
}

#[tokio::test]
async fn what_the_user_changes_and_a_model_that_does_not_work_wait_for_nobody() {
    let (a, mut b) = (model("a"), model("b"));
    let leader = upgraded([&a, &b]).await;
    leader.run(&a).await;
    assert!(workloads(&leader.run(&b).await).is_empty());
    // The number of workers is no change of what they are.
    b.spec.scaling.max_replicas += 1;
    b.metadata.generation = Some(2);
    assert!(deployments(&leader.run(&b).await).is_empty());
    let over = "{worker: {resources: {requests: {cpu: 250m}}}}";
    b.spec.worker = fixtures::with(over).spec.worker;
    b.metadata.generation = Some(3);
    let applied = leader.run(&b).await;
    let applied = deployments(&applied);
    assert_eq!(applied.len(), 1, "the proxies wait on");
    assert!(applied[0]["metadata"]["annotations"][names::TURN].is_null());

    let c = model("c");
    let leader = upgraded([&a, &c]).await;
    leader.run(&a).await;
    let of_c = made_by("1", &c).await;
    let proxy = of_c
        .iter()
        .find(|child| child["metadata"]["name"] == "c-proxy");
    let mut failing = proxy.unwrap().clone();
    failing["metadata"]["uid"] = json!("c-proxy");
    failing["status"] = json!({"observedGeneration": 2, "replicas": 1, "readyReplicas": 0});
    let failing: DynamicObject = serde_json::from_value(failing).unwrap();
    leader
        .context
        .cluster
        .deployments
        .feed(Event::Apply(Seen::of(failing)));
    assert_eq!(workloads(&leader.run(&c).await).len(), 2);
}

#[tokio::test]
async fn several_models_take_their_turn_at_a_time_where_that_is_asked_for() {
    let (a, b) = (model("a"), model("b"));
    let leader = upgraded([&a, &b]).await;
    *lock(&leader.context.turns) = Turns::new(2);
    assert_eq!(workloads(&leader.run(&a).await).len(), 2);
    assert_eq!(workloads(&leader.run(&b).await).len(), 2);
}

#[tokio::test]
async fn a_field_with_a_default_that_a_newer_version_knows_is_no_change_of_the_users() {
    let (a, b) = (model("a"), model("b"));
    let leader = Leader::new("2");
    for model in [&a, &b] {
        let mut children = made_by("1", model).await;
        for child in &mut children {
            let annotations = child["metadata"]["annotations"].as_object_mut().unwrap();
            if let Some(inputs) = annotations.get_mut(names::INPUTS) {
                let (_, redis) = inputs.as_str().unwrap().split_once('.').unwrap();
                *inputs = json!(format!("other.{redis}"));
            }
        }
        leader.see_all(model, &children);
    }
    assert_eq!(deployments(&leader.run(&a).await).len(), 2);
    assert!(deployments(&leader.run(&b).await).is_empty());
}

#[tokio::test]
async fn a_number_of_workers_changes_no_workload() {
    let mut a = model("a");
    let leader = Leader::new("1");
    leader.see_all(&a, &made_by("1", &a).await);
    leader.run(&a).await;
    a.spec.scaling.max_replicas += 1;
    a.metadata.generation = Some(2);
    assert!(workloads(&leader.run(&a).await).is_empty());
}
