//! Children of a resource with a Redis of ours, and with one of the user's.

use super::*;

#[test]
fn a_redis_of_the_users_has_no_children() {
    let children = children("queue: {redis: {external: {urlSecretName: mine}}}");
    assert!(children.redis.is_none() && !children.needs_secret);
    assert_eq!(children.services.len(), 1);
    assert_eq!(children.policies.len(), 2);
    // The Secret need not hold authorities, but must hold the URL.
    let proxy = template(&children.proxy).spec.as_ref().unwrap();
    for pod in [proxy, worker(&children)] {
        let secrets: Vec<_> = pod
            .volumes
            .iter()
            .flatten()
            .filter_map(|volume| volume.projected.as_ref()?.sources.as_ref())
            .flatten()
            .filter_map(|source| source.secret.as_ref())
            .map(|secret| {
                let item = &secret.items.as_ref().unwrap()[0];
                (&*secret.name, &*item.path, secret.optional)
            })
            .collect();
        assert_eq!(
            secrets,
            [
                ("mine", "redis/url", None),
                ("mine", "redis/ca.crt", Some(true))
            ]
        );
    }
}

#[test]
fn redis_holds_what_its_memory_allows_and_refuses_more() {
    let children = children("queue: {redis: {managed: {resources: {limits: {memory: 2Gi}}}}}");
    let args = redis(&children).containers[0]
        .args
        .clone()
        .unwrap()
        .join(" ");
    assert!(args.starts_with("/etc/redis/redis.conf "), "{args}");
    assert!(
        args.contains("--maxmemory 1288490188 --maxmemory-policy noeviction --appendonly yes"),
        "{args}"
    );
    let set = &children.redis.as_ref().unwrap().spec;
    assert_eq!(set.pod_management_policy.as_deref(), Some("Parallel"));
    let secret = redis_secret(&fixtures::valid("{}"), "sentiment-redis", "pass");
    let data = secret.string_data.unwrap();
    assert_eq!(secret.metadata.name.unwrap(), "sentiment-redis");
    assert_eq!(
        secret.immutable, None,
        "kubelets look at an immutable one once"
    );
    assert_eq!(data["redis.conf"], "requirepass pass\n");
    assert_eq!(data["url"], "redis://:pass@sentiment-redis.nlp:6379");
}
