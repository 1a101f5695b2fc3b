//! Statuses of a Redis of ours and of the user's.

use k8s_openapi::api::core::v1::Pod;

use super::*;

#[test]
fn a_redis_that_fits_nowhere_says_why() {
    let mut seen = observed(loaded(1, 1));
    seen.redis = None;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "r", "labels": {"app.kubernetes.io/name": "carpool", "app.kubernetes.io/component": "redis"}},
        "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient memory"}]}
    }))
    .unwrap();
    seen.pods.push(Arc::new(pod));
    let status = status_of(&seen);
    assert!(summary(&status).starts_with("Ready=False/RedisNotReady"));
    assert!(message(&status, condition::READY).contains("Insufficient memory"));
}

#[test]
fn a_redis_of_the_users_is_ready_while_proxies_tell_the_queue() {
    let external = "queue: {redis: {external: {urlSecretName: mine}}}";
    let mut seen = observed(loaded(1, 1));
    seen.redis = None;
    assert!(summary(&status_with(external, &seen)).contains("RedisReady=True/Reachable"));

    seen.backlog = None;
    let lost = status_with(external, &seen);
    assert!(summary(&lost).starts_with("Ready=False/RedisNotReady"));
    assert!(summary(&lost).contains("ProxyReady=True/Ready RedisReady=False/NotReached"));
    assert!(message(&lost, condition::READY).contains("the Redis of the Secret mine"));

    seen.asked = false;
    assert!(
        summary(&status_with(external, &seen)).contains("RedisReady=True/Reachable"),
        "an operator that has just started has not asked yet"
    );
    seen.proxy = None;
    assert!(summary(&status_with(external, &seen)).contains("RedisReady=Unknown/NotReached"));
}
