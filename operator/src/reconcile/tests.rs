//! Reconciles on an API server that refuses, conflicts and goes away.

mod drift;
mod places;
mod secret;
mod upgrade;

use std::{sync::Arc, time::Instant};

use carpool_crds::BatchedModel;
use carpool_scaling::{Decision, Reason};
use kube::core::DeserializeGuard;
use serde_json::{Value, json};

use super::{
    fixtures,
    mock::{Call, api_server, context, failure, see},
    *,
};
use crate::{memory::lock, names};

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
        call.target.contains("/services/").then(denied)
    });
    let context = Arc::new(context(client));
    let model = fixtures::sentiment();
    let scale = wants_three(&context, &model);
    let error = run(&context, &model).await.unwrap_err().to_string();
    assert!(
        error.contains("Service") && error.contains("policy says no"),
        "{error}"
    );
    let calls = calls.take();
    let scaled = calls.iter().find(|call| call.is("PATCH", &scale)).unwrap();
    assert_eq!(scaled.body["spec"]["replicas"], 3);
}

#[tokio::test]
async fn a_cluster_that_refuses_network_policies_gets_the_rest_and_the_status_says_so() {
    for (code, reason) in [(403, "Forbidden"), (404, "NotFound"), (422, "Invalid")] {
        let (client, calls) = api_server(move |call| {
            let denied = || failure(code, reason, "says no");
            call.target.contains("/networkpolicies/").then(denied)
        });
        let context = Arc::new(context(client));
        let model = fixtures::sentiment();
        run(&context, &model).await.unwrap();
        let first = calls.take();
        let of = |calls: &[Call], kind: &str| {
            let patches = patches(calls).into_iter();
            patches.filter(|call| call.target.contains(kind)).count()
        };
        assert_eq!(of(&first, "/deployments/"), 2, "{code}");
        assert_eq!(of(&first, "/statefulsets/"), 1, "{code}");
        let told = condition(&first, "NetworkPoliciesReady");
        assert_eq!(told["status"], "False");
        let message = told["message"].as_str().unwrap();
        assert!(message.contains("says no"), "{message}");
        let ready = condition(&first, "Ready");
        assert_ne!(ready["reason"], "Refused");
        run(&context, &model).await.unwrap();
        assert_eq!(
            of(&calls.take(), "/networkpolicies/"),
            0,
            "it was just tried"
        );
    }
    let (client, calls) = api_server(|_| None);
    let context = Arc::new(context(client));
    run(&context, &fixtures::sentiment()).await.unwrap();
    let told = condition(&calls.take(), "NetworkPoliciesReady").clone();
    assert_eq!(told["status"], "True");
}

#[tokio::test]
async fn a_resource_that_does_not_parse_is_told_so_and_keeps_its_children() {
    let mut newer = serde_json::to_value(fixtures::sentiment()).unwrap();
    newer["spec"]["worker"]["device"] = json!("of-a-newer-version");
    let listed = newer.clone();
    let (client, calls) = api_server(move |call| {
        let list = json!({"apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModelList", "metadata": {}, "items": [listed]});
        call.is("GET", "/batchedmodels").then_some((200, list))
    });
    let context = Arc::new(context(client));
    let stored: Stored = serde_json::from_value(newer).unwrap();
    assert!(stored.0.is_err());
    let action = Box::pin(reconcile(Arc::new(stored), Arc::clone(&context))).await;
    assert_eq!(action.unwrap(), Action::await_change());
    let calls = calls.take();
    assert_eq!(patches(&calls).len(), 1, "only the status is written");
    let ready = condition(&calls, "Ready");
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("Unparsable"))
    );
    assert!(!calls.iter().any(|call| call.target.starts_with("DELETE")));
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
