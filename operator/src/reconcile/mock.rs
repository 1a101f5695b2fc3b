//! An API server that is a function, for tests below a cluster.

use std::sync::{Arc, Mutex};

use futures::channel::mpsc;
use http_body_util::BodyExt;
use hyper::{Request, Response, StatusCode};
use kube::{
    Client,
    client::{Body, ClientBuilder},
    runtime::{
        events::{Recorder, Reporter},
        watcher::Event,
    },
};
use serde_json::{Value, json};

use super::{Context, build::Images, fixtures};
use crate::{
    calls,
    cluster::Cluster,
    live::Seen,
    memory::{Memory, lock},
    metrics::Metrics,
    names,
    turns::Turns,
};

/// A call that the server got.
#[derive(Debug, Clone)]
pub struct Call {
    /// The method and the path, as `PATCH /api/v1/namespaces/nlp/services/sentiment`.
    pub target: String,
    /// The query, as `force=true&fieldManager=carpool`.
    pub query: String,
    /// The body, null where there is none.
    pub body: Value,
}

impl Call {
    /// Whether the call's method is `method` and its path ends with `path`.
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.target.starts_with(method) && self.target.ends_with(path)
    }
}

/// The calls that a server got so far.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<Mutex<Vec<Call>>>);

impl Calls {
    /// Takes the calls since the last time.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.0))
    }
}

/// A client of a server that answers what `answer` says, or else as an empty one does that takes everything.
pub fn api_server(
    answer: impl Fn(&Call) -> Option<(u16, Value)> + Send + Sync + 'static,
) -> (Client, Calls) {
    counted_api_server(&calls::Calls::default(), answer)
}

/// The same, with its calls counted as the operator counts them.
pub fn counted_api_server(
    counts: &calls::Calls,
    answer: impl Fn(&Call) -> Option<(u16, Value)> + Send + Sync + 'static,
) -> (Client, Calls) {
    let calls = Calls::default();
    let (answer, seen) = (Arc::new(answer), calls.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answer, seen) = (Arc::clone(&answer), seen.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes);
            let call = Call {
                target: format!("{} {}", parts.method, parts.uri.path()),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&body?).unwrap_or_default(),
            };
            lock(&seen.0).push(call.clone());
            let (code, body) = answer(&call).unwrap_or_else(|| empty_server(&call));
            let response = Response::builder()
                .status(StatusCode::from_u16(code).unwrap())
                .body(Body::from(serde_json::to_vec(&body).unwrap()))
                .unwrap();
            Ok::<_, tower::BoxError>(response)
        }
    });
    let client = ClientBuilder::new(service, "default")
        .with_layer(counts)
        .build();
    (client, calls)
}

/// A `Status` of the API server, as it comes with an error.
pub fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message
    });
    (code, status)
}

fn empty_server(call: &Call) -> (u16, Value) {
    if call.target.starts_with("GET") {
        return failure(404, "NotFound", "not found");
    }
    let mut object = call.body.clone();
    if !object.is_object() {
        object = json!({});
    }
    object["metadata"]["uid"] = json!("made");
    object["metadata"]["resourceVersion"] = json!("1");
    if call.target.ends_with("/status") {
        object["spec"] = json!(fixtures::sentiment().spec);
    }
    if call.target.ends_with("/scale") {
        object = json!({"metadata": {"name": "w"}, "spec": object["spec"]});
    }
    (200, object)
}

/// Everything that a reconcile needs, on a cluster that has nothing yet.
pub fn context(client: Client) -> Context {
    let memory = Arc::new(Memory::default());
    Context {
        cluster: Cluster::watch(&client).0,
        recorder: Recorder::new(
            client.clone(),
            Reporter {
                controller: names::MANAGER.to_owned(),
                instance: None,
            },
        ),
        client,
        images: Images {
            sidecar: "sidecar".into(),
            worker: "worker".into(),
            redis: "redis".into(),
            redis_user: None,
            pull_policy: "IfNotPresent".into(),
            defaults: crate::defaults::ModelDefaults::default(),
        },
        scrape_namespaces: vec!["carpool".into()],
        metrics: Arc::new(Metrics::new(Arc::clone(&memory), calls::Calls::default())),
        memory,
        turns: Mutex::new(Turns::new(1)),
        asks: mpsc::unbounded().0,
    }
}

/// Has the watches see a managed Redis.
pub fn see_redis(context: &Context, set: Value) {
    let set = Seen::of(serde_json::from_value(set).unwrap());
    context.cluster.stateful_sets.feed(Event::Apply(set));
}

/// Has the watches see a configuration.
pub fn see_config(context: &Context, config: Value) {
    let config = Seen::of(serde_json::from_value(config).unwrap());
    context.cluster.config_maps.feed(Event::Apply(config));
}

/// Has the watches see a pod, or that it is gone.
pub fn see_pod(context: &Context, pod: Value, gone: bool) {
    let pod = serde_json::from_value(pod).unwrap();
    context.cluster.pods.feed(if gone {
        Event::Delete(pod)
    } else {
        Event::Apply(pod)
    });
}

/// Has the watches see a Deployment.
pub fn see(context: &Context, deployment: Value) {
    let deployment = Seen::of(serde_json::from_value(deployment).unwrap());
    context.cluster.deployments.feed(Event::Apply(deployment));
}
