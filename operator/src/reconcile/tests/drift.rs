//! Children that somebody changed, and children that nobody did.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::{
    live::Live,
    reconcile::{
        mock::{Calls, failure},
        observe::Key,
    },
};

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
            let mut altered = child.clone();
            change(&mut altered);
            let annotated = altered["metadata"]["annotations"][names::RENDERED].is_string();
            let owned = altered["metadata"]["ownerReferences"][0]["controller"] == true;
            made.see(altered);
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
        let mut altered = child.clone();
        *altered.pointer_mut(field).unwrap() = json!("other");
        made.see(altered.clone());
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

#[tokio::test]
async fn a_list_that_somebody_changed_so_that_no_apply_is_taken_is_put_back() {
    let overwritten = AtomicBool::new(false);
    let answer = move |call: &Call| {
        if !call.is("PATCH", "/services/sentiment") {
            return None;
        }
        if !call.query.contains("force=true") {
            overwritten.store(true, Ordering::Relaxed);
            let mut object = call.body.clone();
            let owner = |manager: &str, operation: &str| json!({"manager": manager, "operation": operation});
            object["metadata"]["managedFields"] = json!([
                owner("carpool", "Update"),
                owner("carpool", "Apply"),
                owner("kubectl", "Update")
            ]);
            object["metadata"]["resourceVersion"] = json!("7");
            return Some((200, object));
        }
        let duplicate = || failure(422, "Invalid", "spec.ports[1].name: Duplicate value");
        (!overwritten.load(Ordering::Relaxed)).then(duplicate)
    };
    let (client, calls) = api_server(answer);
    let mut made = Made::new().await;
    made.context = Arc::new(context(client));
    made.calls = calls;
    let mut rendered = Made::rendered().await;
    let is_it =
        |child: &&mut Value| child["kind"] == "Service" && child["metadata"]["name"] == "sentiment";
    let service = rendered.iter_mut().find(is_it).unwrap();
    let ports = service["spec"]["ports"].clone();
    let mut altered = service.clone();
    altered["spec"]["ports"][0]["port"] = json!(81);
    made.see(altered);
    made.forget();
    let calls = made.again().await;
    let [refused, put_back, disowned, applied] = &calls[..] else {
        panic!("{calls:?}")
    };
    assert_eq!(refused.body, applied.body);
    assert_eq!(put_back.body["spec"]["ports"], ports);
    let left = &disowned.body["metadata"];
    assert_eq!(left["resourceVersion"], "7");
    let left: Vec<_> = left["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|owner| (&owner["manager"], &owner["operation"]))
        .collect();
    assert_eq!(
        left,
        [
            (&json!("carpool"), &json!("Apply")),
            (&json!("kubectl"), &json!("Update"))
        ]
    );
}
