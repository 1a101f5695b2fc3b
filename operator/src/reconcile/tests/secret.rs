//! The Secret of a managed Redis: whose it is, and what becomes of a lost one.

use super::{
    places::{pod, redis},
    *,
};
use crate::reconcile::mock::{see_pod, see_redis};

fn secrets(calls: &[Call]) -> Vec<(&Call, bool)> {
    let posts = calls.iter().filter(|call| call.is("POST", "/secrets"));
    posts
        .map(|call| (call, call.query.contains("dryRun=All")))
        .collect()
}

fn taken(call: &Call) -> Option<(u16, Value)> {
    call.is("POST", "/secrets").then(|| {
        failure(
            409,
            "AlreadyExists",
            "secrets \"sentiment-redis\" already exists",
        )
    })
}

#[tokio::test]
async fn the_name_of_a_new_secret_says_nothing_of_the_resource_made_this_time() {
    let (client, calls) = api_server(|_| None);
    let context = Arc::new(context(client));
    let model = fixtures::sentiment();
    run(&context, &model).await.unwrap();
    let first = calls.take();
    assert_eq!(
        secrets(&first)[0].0.body["metadata"]["name"],
        "sentiment-redis"
    );
    let config = first
        .iter()
        .find(|call| call.is("PATCH", "/sentiment-config"));
    assert_eq!(
        config.unwrap().body["metadata"]["annotations"][names::REDIS_SECRET],
        "sentiment-redis",
        "it is known to be ours from now on"
    );
}

#[tokio::test]
async fn a_secret_of_that_name_is_waited_for_and_told() {
    let (client, calls) = api_server(taken);
    let context = Arc::new(context(client));
    let model = fixtures::sentiment();
    let action = run(&context, &model).await.unwrap();
    assert_eq!(action, Action::requeue(AGAIN_AFTER_CONFLICT));
    let first = calls.take();
    assert_eq!(patches(&first).len(), 1, "only the status is written");
    let ready = condition(&first, "Ready");
    assert_eq!(ready["reason"], "NameConflict");
    assert!(
        ready["message"]
            .as_str()
            .unwrap()
            .contains("Secret sentiment-redis"),
        "{ready}"
    );

    // The collector takes its time, or it is the user's own.
    lock(&context.memory.of(&model))
        .secret
        .waited(Duration::from_mins(2));
    run(&context, &model).await.unwrap();
    let second = calls.take();
    assert!(
        second
            .iter()
            .any(|call| call.is("PATCH", "/statefulsets/sentiment-redis"))
    );
    assert!(
        !second.iter().any(|call| call.target.contains("/secrets/")),
        "it is not touched"
    );
}

#[tokio::test]
async fn an_older_operators_secret_stays_the_models() {
    let (client, calls) = api_server(|_| None);
    let context = Arc::new(context(client));
    see_redis(&context, redis("sentiment-redis-0c5b5a3e"));
    run(&context, &fixtures::sentiment()).await.unwrap();
    let calls = calls.take();
    assert!(secrets(&calls).is_empty());
    let proxy = calls
        .iter()
        .find(|call| call.is("PATCH", "/sentiment-proxy") && call.target.contains("deployments"));
    let proxy = proxy.unwrap().body.to_string();
    assert!(
        proxy.contains("--redis-secret=sentiment-redis-0c5b5a3e"),
        "{proxy}"
    );
}

/// A pod that has had a node for long and no container yet.
fn starving(secret: &str) -> Value {
    let mut starving = pod("starving", "proxy", secret, None);
    starving["status"] = json!({
        "phase": "Pending", "startTime": "2026-01-01T00:00:00Z",
        "containerStatuses": [{"name": "proxy", "ready": false, "image": "x", "imageID": "", "restartCount": 0,
                               "state": {"waiting": {"reason": "ContainerCreating"}}}]
    });
    starving
}

#[tokio::test]
async fn a_lost_secret_is_made_anew_once_its_redis_is_told() {
    for secret in ["sentiment-redis", "sentiment-redis-0c5b5a3e"] {
        let (client, calls) = api_server(|_| None);
        let context = Arc::new(context(client));
        let model = fixtures::sentiment();
        see_redis(&context, redis(secret));
        run(&context, &model).await.unwrap();
        assert!(
            secrets(&calls.take()).is_empty(),
            "nobody asks while all pods run"
        );

        see_pod(&context, starving(secret), false);
        let action = run(&context, &model).await.unwrap();
        assert_ne!(action, Action::requeue(AGAIN), "it is looked at again soon");
        let calls = calls.take();
        let position = |part: &dyn Fn(&Call) -> bool| calls.iter().position(part).unwrap();
        let asked = position(&|call| call.query.contains("dryRun=All"));
        let told = position(&|call| call.is("PATCH", "/statefulsets/sentiment-redis"));
        let made = position(&|call| call.is("POST", "/secrets") && !call.query.contains("dryRun"));
        assert!(asked < told && told < made, "{asked} {told} {made}");
        assert_eq!(calls[asked].body["metadata"]["name"], secret);
        assert_eq!(
            calls[made].body["metadata"]["name"], "sentiment-redis",
            "a name that kubelets look at"
        );
        let template = &calls[told].body["spec"]["template"];
        assert!(template["metadata"]["annotations"][names::REDIS_PASSWORD].is_string());
        assert!(
            template
                .to_string()
                .contains(r#""secretName":"sentiment-redis""#),
            "{template}"
        );
    }
}

#[tokio::test]
async fn a_pod_that_waits_for_an_image_is_no_reason_to_start_redis_anew() {
    let (client, calls) = api_server(taken);
    let context = Arc::new(context(client));
    let model = fixtures::sentiment();
    see_redis(&context, redis("sentiment-redis"));
    see_pod(&context, starving("sentiment-redis"), false);
    for asked in [1, 0] {
        run(&context, &model).await.unwrap();
        let calls = calls.take();
        let secrets = secrets(&calls);
        assert_eq!(secrets.len(), asked, "looks are rare");
        assert!(secrets.iter().all(|(_, dry_run)| *dry_run));
        assert!(
            !calls
                .iter()
                .any(|call| call.body.to_string().contains(names::REDIS_PASSWORD))
        );
    }
}
