//! Reconciles on an API server that refuses, conflicts and goes away.

use std::{sync::Arc, time::Instant};

use carpool_crds::BatchedModel;
use carpool_scaling::{Decision, Reason};
use kube::core::DeserializeGuard;
use serde_json::{Value, json};

use super::{
    fixtures,
    mock::{Call, Calls, api_server, context, failure, see},
    *,
};
use crate::{live::Live, memory::lock, names, reconcile::observe::Key};

async fn run(context: &Arc<Context>, model: &BatchedModel) -> Result<Action, ReconcileError> {
    let stored = Arc::new(DeserializeGuard(Ok(model.clone())));
    Box::pin(reconcile(stored, Arc::clone(context))).await
}

/// A worker Deployment of a revision, with this many workers asked for.
fn workers(model: &BatchedModel, revision: &str, replicas: i32) -> Value {
    let name = names::worker("sentiment", revision);
    json!({
        "metadata": {
            "name": name, "namespace": "nlp", "uid": name, "resourceVersion": "1", "generation": 1,
            "labels": names::of_revision(names::labels("sentiment"), revision),
            "annotations": {
                names::LOADED: "true",
                names::MODEL_SPEC: serde_json::to_string(&model.spec.model).unwrap()
            },
            "ownerReferences": [{"apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "name": "sentiment",
                                 "uid": model.uid().unwrap(), "controller": true}]
        },
        "spec": {"replicas": replicas, "selector": {}, "template": {}}
    })
}

/// Has the scaler want three workers of the resource's revision, of which there is one.
fn wants_three(context: &Context, model: &BatchedModel) -> String {
    let revision = model.spec.model.revision();
    see(context, workers(model, &revision, 1));
    let decision = Decision {
        replicas: 3,
        reason: Reason::LongQueue,
    };
    let remembered = context.memory.of(model);
    lock(&remembered)
        .decisions
        .insert(revision.clone(), decision);
    format!(
        "/deployments/{}/scale",
        names::worker("sentiment", &revision)
    )
}

fn patches(calls: &[Call]) -> Vec<&Call> {
    let patches = calls.iter().filter(|call| call.target.starts_with("PATCH"));
    patches.collect()
}

fn condition<'a>(calls: &'a [Call], type_: &str) -> &'a Value {
    let status = calls
        .iter()
        .find(|call| call.is("PATCH", "/status"))
        .unwrap();
    let conditions = status.body["status"]["conditions"].as_array().unwrap();
    conditions
        .iter()
        .find(|condition| condition["type"] == type_)
        .unwrap()
}

#[tokio::test]
async fn children_are_applied_in_order_as_one_manager_and_a_secret_is_made_once() {
    let (client, calls) = api_server(|_| None);
    let context = Arc::new(context(client));
    run(&context, &fixtures::sentiment()).await.unwrap();
    let calls = calls.take();
    let applied: Vec<&str> = patches(&calls)
        .into_iter()
        .filter(|call| !call.target.ends_with("/status"))
        .map(|call| {
            assert_eq!(
                call.query, "&force=true&fieldManager=carpool",
                "{}",
                call.target
            );
            call.target.rsplit('/').nth(1).unwrap()
        })
        .collect();
    let mut kinds = applied.clone();
    kinds.dedup();
    let order = [
        "serviceaccounts",
        "configmaps",
        "networkpolicies",
        "poddisruptionbudgets",
        "services",
        "statefulsets",
        "deployments",
    ];
    assert_eq!(kinds, order);
    let secrets = calls.iter().filter(|call| call.is("POST", "/secrets"));
    assert_eq!(secrets.count(), 1);
    assert!(
        !calls.iter().any(|call| call.is("GET", "/secrets")),
        "a Secret is never read"
    );
    let replicas = calls
        .iter()
        .any(|call| !call.body["spec"]["replicas"].is_null() && call.target.contains("-worker-"));
    assert!(!replicas, "an apply says nothing of the number of workers");
}

#[tokio::test]
async fn an_object_that_is_not_ours_is_left_alone_and_the_status_names_it() {
    let (client, calls) = api_server(|call| {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "sentiment", "uid": "theirs"}});
        call.is("GET", "/services/sentiment")
            .then_some((200, service))
    });
    let context = Arc::new(context(client));
    let action = run(&context, &fixtures::sentiment()).await.unwrap();
    assert_eq!(action, Action::requeue(AGAIN_AFTER_CONFLICT));
    let calls = calls.take();
    assert_eq!(patches(&calls).len(), 1, "only the status is written");
    let ready = condition(&calls, "Ready");
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("NameConflict"))
    );
    assert!(
        ready["message"]
            .as_str()
            .unwrap()
            .contains("Service sentiment"),
        "{ready}"
    );
}

#[tokio::test]
async fn workers_follow_their_queue_though_a_child_is_forbidden() {
    let (client, calls) = api_server(|call| {
        let denied = || failure(403, "Forbidden", "policy says no");
        call.target.contains("/networkpolicies/").then(denied)
    });
    let context = Arc::new(context(client));
    let model = fixtures::sentiment();
    let scale = wants_three(&context, &model);
    let error = run(&context, &model).await.unwrap_err().to_string();
    assert!(
        error.contains("NetworkPolicy") && error.contains("policy says no"),
        "{error}"
    );
    let calls = calls.take();
    let scaled = calls.iter().find(|call| call.is("PATCH", &scale)).unwrap();
    assert_eq!(scaled.body["spec"]["replicas"], 3);
}

#[tokio::test]
async fn workers_follow_their_queue_though_the_spec_is_refused() {
    let (client, calls) = api_server(|_| None);
    let context = Arc::new(context(client));
    let model = fixtures::with("{worker: {podOverrides: {spec: {containers: nonsense}}}}");
    let scale = wants_three(&context, &model);
    run(&context, &model).await.unwrap();
    let calls = calls.take();
    assert!(calls.iter().any(|call| call.is("PATCH", &scale)));
    assert_eq!(
        patches(&calls).len(),
        2,
        "the number of workers and the status"
    );
    assert_eq!(condition(&calls, "Ready")["reason"], "InvalidSpec");
}

#[tokio::test]
async fn a_number_of_workers_that_could_not_be_written_is_tried_again_at_the_next_tick() {
    let (client, calls) = api_server(|call| {
        let conflict = || failure(409, "Conflict", "the object has been modified");
        call.target.ends_with("/scale").then(conflict)
    });
    let context = Arc::new(context(client));
    let model = fixtures::sentiment();
    let scale = wants_three(&context, &model);
    let error = run(&context, &model).await.unwrap_err().to_string();
    assert!(error.starts_with("failed to scale Deployment"), "{error}");
    let remembered = context.memory.of(&model);
    assert!(lock(&remembered).scale_failed);
    assert_eq!(
        calls
            .take()
            .iter()
            .filter(|call| call.is("PATCH", &scale))
            .count(),
        1
    );
}

#[tokio::test]
async fn a_child_that_is_no_longer_wanted_goes_unless_it_is_another_by_now() {
    for code in [200, 404, 409] {
        let (client, calls) = api_server(move |call| {
            let answer = || match code {
                200 => (200, json!({"kind": "Status", "status": "Success"})),
                code => failure(code, "Other", "it is another by now"),
            };
            call.target.starts_with("DELETE").then(answer)
        });
        let context = Arc::new(context(client));
        let model = fixtures::sentiment();
        let mut stray = workers(&model, "x", 0);
        stray["metadata"]["labels"] = json!(names::labels("sentiment"));
        stray["metadata"]["name"] = json!("sentiment-stray");
        see(&context, workers(&model, &model.spec.model.revision(), 1));
        see(&context, stray);
        run(&context, &model).await.unwrap();
        let calls = calls.take();
        let deleted: Vec<&Call> = calls
            .iter()
            .filter(|call| call.target.starts_with("DELETE"))
            .collect();
        assert_eq!(deleted.len(), 1, "{deleted:?}");
        assert!(deleted[0].target.ends_with("/deployments/sentiment-stray"));
        assert_eq!(
            deleted[0].body["preconditions"]["uid"],
            "sentiment-worker-x"
        );
    }
}

#[tokio::test]
async fn nothing_is_made_or_told_in_a_namespace_that_goes() {
    let (client, calls) = api_server(|call| {
        let mut going = failure(403, "Forbidden", "because it is being terminated");
        going.1["details"] = json!({"causes": [{"reason": "NamespaceTerminating"}]});
        call.target.starts_with("PATCH").then_some(going)
    });
    let context = Arc::new(context(client));
    let action = run(&context, &fixtures::sentiment()).await.unwrap();
    assert_eq!(action, Action::await_change());
    assert_eq!(patches(&calls.take()).len(), 1);
}

#[tokio::test]
async fn a_status_is_written_when_it_says_something_new_and_so_are_its_events() {
    let (client, calls) = api_server(|_| None);
    let context = Arc::new(context(client));
    let mut model = fixtures::sentiment();
    run(&context, &model).await.unwrap();
    let first = calls.take();
    let status = first
        .iter()
        .find(|call| call.is("PATCH", "/status"))
        .unwrap();
    assert_eq!(status.query, "&force=true&fieldManager=carpool");
    let events = first
        .iter()
        .filter(|call| call.is("POST", "/events"))
        .count();
    assert!(events > 0);
    model.status = serde_json::from_value(status.body["status"].clone()).unwrap();
    run(&context, &model).await.unwrap();
    let second = calls.take();
    assert!(
        !second
            .iter()
            .any(|call| call.is("PATCH", "/status") || call.is("POST", "/events")),
        "{second:?}"
    );
}

/// A resource whose children have been made on a cluster that took them as they were sent.
struct Made {
    context: Arc<Context>,
    calls: Calls,
    model: BatchedModel,
    observed: Observed,
    seen: BTreeMap<Key, Value>,
}

impl Made {
    async fn new() -> Self {
        let (client, calls) = api_server(|_| None);
        let context = Arc::new(context(client));
        let model = fixtures::sentiment();
        let mut made = Self {
            observed: Observed::default(),
            seen: BTreeMap::new(),
            context,
            calls,
            model,
        };
        made.observed = observe::observe(
            &made.context.cluster,
            &made.model,
            &mut lock(&made.context.memory.of(&made.model)),
            Instant::now(),
        );
        for call in made.again().await {
            if call.target.starts_with("PATCH") {
                made.see(call.body);
            }
        }
        made.observed.redis = Some(Arc::default());
        made
    }

    /// Has the watches see a child.
    fn see(&mut self, mut child: Value) {
        let key = |field: &Value| field.as_str().unwrap().to_owned();
        let key = (key(&child["kind"]), key(&child["metadata"]["name"]));
        child["metadata"]["uid"] = json!("made");
        child["metadata"]["resourceVersion"] = json!("1");
        child["metadata"]["generation"] = json!(1);
        let live = Live::of(serde_json::from_value(child.clone()).unwrap());
        self.observed.live.insert(key.clone(), Arc::new(live));
        self.seen.insert(key, child);
    }

    /// Makes the children again. Returns the calls that it took.
    async fn again(&self) -> Vec<Call> {
        let valid = validate::validate(&self.model).unwrap();
        let plan = rollout::plan(&self.observed.view);
        let remembered = self.context.memory.of(&self.model);
        Box::pin(make(
            &self.context,
            &valid,
            &plan,
            &self.observed,
            &remembered,
        ))
        .await
        .unwrap();
        self.calls.take()
    }

    /// Leaves the operator with what stands on the cluster, as a new leader has it.
    fn forget(&mut self) {
        *lock(&self.context.memory.of(&self.model)) = Remembered::default();
        for (_, child) in std::mem::take(&mut self.seen) {
            self.see(child);
        }
    }

    /// The children as they are rendered.
    async fn rendered() -> Vec<Value> {
        let (client, calls) = api_server(|_| None);
        let context = Arc::new(context(client));
        run(&context, &fixtures::sentiment()).await.unwrap();
        let calls = calls.take().into_iter();
        calls
            .filter(|call| call.target.starts_with("PATCH") && !call.target.ends_with("/status"))
            .map(|call| call.body)
            .collect()
    }
}

#[tokio::test]
async fn children_that_are_as_they_should_be_are_not_applied_again_also_by_a_new_leader() {
    let mut made = Made::new().await;
    assert!(made.again().await.is_empty());
    made.forget();
    assert!(
        made.again().await.is_empty(),
        "a new leader has only what stands on the cluster"
    );

    // Defaults, a status and what others add are no difference.
    for mut child in Made::rendered().await {
        child["metadata"]["labels"]["theirs"] = json!("x");
        child["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!("1");
        child["spec"]["theirs"] = json!("x");
        child["status"] = json!({"theirs": 1});
        made.see(child);
    }
    made.forget();
    assert!(made.again().await.is_empty());
}

#[tokio::test]
async fn what_is_missing_of_a_child_is_applied_again_once() {
    let changes: [fn(&mut Value); 6] = [
        |child| child["metadata"]["labels"] = json!({(names::MODEL): "sentiment"}),
        |child| child["metadata"]["annotations"] = json!({}),
        |child| child["metadata"]["annotations"][names::RENDERED] = json!("of another version"),
        |child| child["metadata"]["ownerReferences"] = json!(null),
        |child| child["metadata"]["ownerReferences"][0]["controller"] = json!(null),
        |child| child["metadata"]["ownerReferences"][0]["blockOwnerDeletion"] = json!(false),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        for child in Made::rendered().await {
            let mut made = Made::new().await;
            let name = format!(
                "{} {}, change {index}",
                child["kind"], child["metadata"]["name"]
            );
            let mut changed = child.clone();
            change(&mut changed);
            let annotated = changed["metadata"]["annotations"][names::RENDERED].is_string();
            let owned = changed["metadata"]["ownerReferences"][0]["controller"] == true;
            made.see(changed);
            if !annotated && !owned {
                continue;
            }
            for told in ["by the operator that made it", "by a new leader"] {
                let calls = made.again().await;
                let calls = patches(&calls);
                assert_eq!(calls.len(), 1, "{name}, {told}");
                assert_eq!(calls[0].body["metadata"], child["metadata"]);
                made.forget();
            }
        }
    }
}

#[tokio::test]
async fn a_field_that_somebody_changed_is_applied_again_and_asked_for_once_where_it_stays() {
    let mut made = Made::new().await;
    for child in Made::rendered().await {
        let field = match child["kind"].as_str().unwrap() {
            "Deployment" | "StatefulSet" => "/spec/template/spec/containers/0/image",
            "Service" => "/spec/ports/0/port",
            "PodDisruptionBudget" => "/spec/maxUnavailable",
            "NetworkPolicy" => "/spec/policyTypes",
            "ConfigMap" => "/data/config.yaml",
            _ => "/automountServiceAccountToken",
        };
        let mut changed = child.clone();
        *changed.pointer_mut(field).unwrap() = json!("other");
        made.see(changed.clone());
        for told in ["by the operator that made it", "by a new leader"] {
            let calls = made.again().await;
            let calls = patches(&calls);
            assert_eq!(calls.len(), 1, "{field} {told}");
            assert_eq!(calls[0].body, child);
            made.forget();
        }
        made.see(child);
        made.again().await;
    }

    // An admission webhook changes what is applied.
    let mutated = |call: &Call| {
        let mut object = call.body.clone();
        object["metadata"]["uid"] = json!("made");
        object["spec"]["ports"][0]["port"] = json!(81);
        call.is("PATCH", "/services/sentiment")
            .then_some((200, object))
    };
    let (client, calls) = api_server(mutated);
    made.context = Arc::new(context(client));
    made.calls = calls;
    for mut child in Made::rendered().await {
        if child["kind"] == "Service" && child["metadata"]["name"] == "sentiment" {
            child["spec"]["ports"][0]["port"] = json!(81);
        }
        made.see(child);
    }
    assert_eq!(made.again().await.len(), 1);
    assert!(made.again().await.is_empty(), "it was asked for");
}

#[test]
fn what_keeps_children_from_being_made_is_told_in_the_end() {
    let reason = |error: ApplyError, failures| {
        rejected(&error.into(), failures).map(|verdict| match verdict {
            Verdict::Rejected { reason, message } => (reason, message),
            Verdict::Applied { .. } => panic!("nothing was applied"),
        })
    };
    let denied = || {
        ApplyError::Call(CallError::Api {
            verb: "apply",
            kind: "Deployment".into(),
            name: "sentiment-proxy".into(),
            source: Box::new(kube::Error::Api(Box::new(kube::core::Status {
                code: 403,
                message: "admission webhook \"policy\" denied the request".into(),
                ..kube::core::Status::default()
            }))),
        })
    };
    assert_eq!(reason(denied(), TELL_AFTER - 1), None);
    let (short, message) = reason(denied(), TELL_AFTER).unwrap();
    assert_eq!(short, "ApplyFailed");
    assert!(message.ends_with("denied the request"), "{message}");
    let conflict = ApplyError::NameConflict(vec!["Service sentiment".into()]);
    assert_eq!(reason(conflict, 0).unwrap().0, "NameConflict");
    let going = ApplyError::Call(CallError::NamespaceGoes);
    assert_eq!(reason(going, u32::MAX), None);
}
