//! Where pods run, what they may use, and who reaches them.

use super::*;

const SCHEDULED: &str = "{nodeSelector: {pool: gpu}, tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}], \
    imagePullSecrets: [{name: pull}], priorityClassName: high}";

fn scheduled(pod: &PodSpec) -> serde_json::Value {
    serde_json::json!([
        pod.node_selector,
        pod.tolerations,
        pod.image_pull_secrets,
        pod.priority_class_name
    ])
}

#[test]
fn all_pods_of_a_model_run_where_it_says_or_else_the_cluster() {
    let expected = serde_json::json!([
        {"pool": "gpu"}, [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}], [{"name": "pull"}], "high"
    ]);
    let other = "{nodeSelector: {pool: other, zone: a}, tolerations: [{operator: Exists}], \
        imagePullSecrets: [{name: other}], priorityClassName: low}";
    let none = "{nodeSelector: {}, tolerations: [], imagePullSecrets: [], priorityClassName: ''}";
    for (spec, defaults, expected) in [
        (SCHEDULED, "{}", &expected),
        ("{}", SCHEDULED, &expected),
        (SCHEDULED, other, &expected),
        (none, other, &serde_json::json!([null, null, null, null])),
        ("{}", "{}", &serde_json::json!([null, null, null, null])),
    ] {
        let children = children_with(spec, &[], defaults);
        let proxy = template(&children.proxy).spec.as_ref().unwrap();
        for pod in [proxy, worker(&children), redis(&children)] {
            assert_eq!(&scheduled(pod), expected, "{spec} over {defaults}");
        }
    }
}

#[test]
fn overrides_go_before_what_all_pods_have() {
    let children = children(&format!(
        "{{worker: {{podOverrides: {{spec: {{priorityClassName: low, nodeSelector: {{zone: a}}}}}}}}, {}",
        SCHEDULED.strip_prefix('{').unwrap()
    ));
    let pod = worker(&children);
    assert_eq!(pod.priority_class_name.as_deref(), Some("low"));
    let nodes = pod.node_selector.as_ref().unwrap();
    assert_eq!((nodes.len(), nodes["zone"].as_str()), (1, "a"));
}

#[test]
fn network_policies_may_be_left_to_the_user() {
    for (spec, defaults, policies) in [
        ("{}", "{}", 3),
        ("networkPolicies: None", "{}", 0),
        ("{}", "networkPolicies: None", 0),
        ("networkPolicies: Managed", "networkPolicies: None", 3),
    ] {
        let children = children_with(spec, &[], defaults);
        assert_eq!(children.policies.len(), policies, "{spec} over {defaults}");
    }
}

#[test]
fn proxies_are_reached_from_their_namespace_and_from_where_the_resource_says() {
    let clients = |over: &str| {
        let policy = serde_json::to_value(&children(over).policies[0]).unwrap();
        policy["spec"]["ingress"][0]["from"].clone()
    };
    let own = serde_json::json!({"podSelector": {}});
    let operator = serde_json::json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "carpool-system"}}});
    assert_eq!(clients("{}"), serde_json::json!([own, operator]));
    let peers = "[{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x]}]}}, \
        {ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]";
    let given: serde_json::Value = serde_yaml::from_str(peers).unwrap();
    assert_eq!(
        clients(&format!("proxy: {{allowFrom: {peers}}}")),
        serde_json::json!([own, operator, given[0], given[1]])
    );
}

#[test]
fn the_container_that_fetches_asks_for_no_more_than_the_one_that_serves() {
    let fetch = |worker_spec: &str| {
        let children = children(&format!("worker: {worker_spec}"));
        let pod = worker(&children);
        serde_json::to_value(&pod.init_containers.as_ref().unwrap()[0].resources).unwrap()
    };
    for (worker_spec, resources) in [
        (
            "{}",
            "{limits: {memory: 256Mi}, requests: {cpu: 100m, memory: 256Mi}}",
        ),
        (
            "{resources: {requests: {memory: 4Gi}, limits: {cpu: 2, ephemeral-storage: 8Gi, amd.com/gpu: 1}}}",
            "{limits: {cpu: '2', ephemeral-storage: 8Gi, memory: 4Gi}, requests: {memory: 4Gi}}",
        ),
        (
            "{podOverrides: {spec: {containers: [{name: worker, resources: {limits: {memory: 128Mi}, requests: {memory: 128Mi}}}]}}}",
            "{limits: {memory: 128Mi}, requests: {cpu: 100m, memory: 128Mi}}",
        ),
        (
            "{podOverrides: {spec: {initContainers: [{name: fetch, resources: {limits: {memory: 1Gi}}}]}}}",
            "{limits: {memory: 1Gi}}",
        ),
    ] {
        let expected: serde_json::Value = serde_yaml::from_str(resources).unwrap();
        assert_eq!(fetch(worker_spec), expected, "{worker_spec}");
    }
}

#[test]
fn a_cluster_autoscaler_may_move_every_pod() {
    let children =
        children("worker: {podOverrides: {spec: {volumes: [{name: mine, emptyDir: {}}]}}}");
    let redis = &children.redis.as_ref().unwrap().spec.template;
    for (template, volumes) in [
        (template(&children.proxy), "tmp"),
        (template(children.worker.as_ref().unwrap()), "tmp,model"),
        (redis, "tmp,data"),
    ] {
        let annotations = template.metadata.as_ref().unwrap().annotations.as_ref();
        assert_eq!(
            annotations.unwrap()["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"],
            volumes
        );
    }
}

#[test]
fn nothing_is_of_one_family_of_addresses() {
    let children = children("{}");
    for service in &children.services {
        let spec = service.spec.as_ref().unwrap();
        assert_eq!(spec.ip_family_policy.as_deref(), Some("PreferDualStack"));
    }
    let proxy = template(&children.proxy).spec.as_ref().unwrap();
    let args = [proxy, worker(&children)].map(|pod| pod.containers[0].args.clone().unwrap());
    assert!(args[0].contains(&"--listen=:8080".to_owned()));
    for args in args {
        assert!(
            args.contains(&"--admin-listen=:9090".to_owned()),
            "{args:?}"
        );
    }
}
