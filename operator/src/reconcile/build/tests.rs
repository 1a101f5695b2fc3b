//! Children as they are rendered.

mod placement;
mod redis;

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};

use super::*;
use crate::reconcile::fixtures;

fn images() -> Images {
    Images {
        sidecar: "carpool/sidecar:1".into(),
        worker: "carpool/worker:1".into(),
        redis: "redis:7.2".into(),
        redis_user: None,
        pull_policy: "IfNotPresent".into(),
        defaults: ModelDefaults::default(),
    }
}

pub(super) fn children(over: &str) -> Children {
    children_of(over, &[])
}

/// The same where workers of other revisions are left.
fn children_of(over: &str, others: &[&str]) -> Children {
    children_with(over, others, "{}")
}

/// The same with defaults of the cluster.
fn children_with(over: &str, others: &[&str], defaults: &str) -> Children {
    let valid = fixtures::valid(over);
    let revisions = others.iter().copied().chain([valid.revision.as_str()]);
    let secret = valid
        .external_secret()
        .unwrap_or("sentiment-redis")
        .to_owned();
    let inputs = RolloutInputs {
        active: valid.revision.clone(),
        secret: secret.clone(),
        proxy_secret: secret.clone(),
        places: [(secret, valid.revision.clone())].into(),
        password: None,
        made_secret: None,
        models: revisions
            .map(|revision| (revision.to_owned(), valid.spec.model.clone()))
            .collect(),
        worker: Some(RevisionState::default()),
    };
    build(
        &valid,
        &inputs,
        &Images {
            defaults: serde_yaml::from_str(defaults).unwrap(),
            ..images()
        },
        &["carpool-system".into(), "monitoring".into()],
    )
    .unwrap()
}

fn worker(children: &Children) -> &PodSpec {
    template(children.worker.as_ref().unwrap())
        .spec
        .as_ref()
        .unwrap()
}

fn template(deployment: &Deployment) -> &PodTemplateSpec {
    &deployment.spec.template
}

fn redis(children: &Children) -> &PodSpec {
    let set = &children.redis.as_ref().unwrap().spec;
    set.template.spec.as_ref().unwrap()
}

#[test]
fn the_smallest_resource_has_these_children() {
    let children = children("{}");
    let revision = fixtures::valid("{}").revision;
    let mut names: Vec<String> = Vec::new();
    let mut owned = |kind: &str, metadata: &ObjectMeta| {
        let owner = &metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.controller),
            ("BatchedModel", Some(true))
        );
        assert_eq!(metadata.labels.as_ref().unwrap()[names::MODEL], "sentiment");
        names.push(format!("{kind}/{}", metadata.name.as_ref().unwrap()));
    };
    for account in &children.accounts {
        owned("ServiceAccount", &account.metadata);
    }
    owned("ConfigMap", &children.config.metadata);
    for policy in &children.policies {
        owned("NetworkPolicy", &policy.metadata);
    }
    for budget in &children.budgets {
        owned("PodDisruptionBudget", &budget.metadata);
    }
    for service in &children.services {
        owned("Service", &service.metadata);
    }
    owned("StatefulSet", &children.redis.as_ref().unwrap().metadata);
    owned("Deployment", &children.proxy.metadata);
    owned("Deployment", &children.worker.as_ref().unwrap().metadata);
    assert_eq!(
        names,
        [
            "ServiceAccount/sentiment-proxy",
            "ServiceAccount/sentiment-worker",
            "ServiceAccount/sentiment-redis",
            "ConfigMap/sentiment-config",
            "NetworkPolicy/sentiment-proxy",
            "NetworkPolicy/sentiment-worker",
            "NetworkPolicy/sentiment-redis",
            "PodDisruptionBudget/sentiment-proxy",
            &format!("PodDisruptionBudget/sentiment-worker-{revision}"),
            "Service/sentiment",
            "Service/sentiment-redis",
            "StatefulSet/sentiment-redis",
            "Deployment/sentiment-proxy",
            &format!("Deployment/sentiment-worker-{revision}"),
        ]
    );
}

#[test]
fn every_pod_meets_the_restricted_standard() {
    let children = children("{}");
    let proxy = template(&children.proxy).spec.as_ref().unwrap();
    for pod in [proxy, worker(&children), redis(&children)] {
        let security = pod.security_context.as_ref().unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        assert_eq!(
            security.run_as_user, None,
            "some clusters give each namespace its own users"
        );
        assert_eq!(
            security.seccomp_profile.as_ref().unwrap().type_,
            "RuntimeDefault"
        );
        assert_eq!(pod.automount_service_account_token, Some(false));
        for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
            restricted(container);
        }
    }
}

fn restricted(container: &Container) {
    let name = &container.name;
    let security = container.security_context.as_ref().unwrap();
    assert_eq!(security.allow_privilege_escalation, Some(false), "{name}");
    assert_eq!(security.read_only_root_filesystem, Some(true), "{name}");
    let dropped = security
        .capabilities
        .as_ref()
        .unwrap()
        .drop
        .as_ref()
        .unwrap();
    assert_eq!(dropped, &["ALL"], "{name}");
    let mounts = container.volume_mounts.as_ref().unwrap();
    assert!(
        mounts
            .iter()
            .any(|mount| mount.mount_path == "/tmp" && mount.read_only.is_none()),
        "{name}"
    );
    let requests = container
        .resources
        .as_ref()
        .unwrap()
        .requests
        .as_ref()
        .unwrap();
    assert!(
        requests.contains_key("cpu") && requests.contains_key("memory"),
        "{name}"
    );
}

#[test]
fn worker_deployments_never_carry_replicas() {
    let deployment = children("scaling: {minReplicas: 3}").worker.unwrap();
    let json = serde_json::to_value(deployment).unwrap();
    assert!(json["spec"].get("replicas").is_none(), "{json}");
}

#[test]
fn gpus_reach_the_serving_container_and_no_other() {
    let children = children("worker: {resources: {limits: {nvidia.com/gpu: 1, memory: 8Gi}}}");
    let pod = worker(&children);
    let resources = pod.containers[0].resources.as_ref().unwrap();
    assert_eq!(resources.limits.as_ref().unwrap()["nvidia.com/gpu"].0, "1");
    assert!(
        !resources.requests.as_ref().unwrap().contains_key("memory"),
        "the limit speaks of it"
    );
    let fetch = &pod.init_containers.as_ref().unwrap()[0];
    let limits = fetch.resources.as_ref().unwrap().limits.as_ref().unwrap();
    assert_eq!(limits.keys().collect::<Vec<_>>(), ["memory"]);
    assert!(children.config.data.as_ref().unwrap()["config.yaml"].contains("device: cuda"));
}

#[test]
fn only_the_init_container_sees_the_claim() {
    let children = children("{}");
    let pod = worker(&children);
    let mounts = |container: &Container| {
        let mounts = container.volume_mounts.clone().unwrap();
        mounts
            .into_iter()
            .map(|mount| (mount.name, mount.read_only))
            .collect::<Vec<_>>()
    };
    let fetch = &pod.init_containers.as_ref().unwrap()[0];
    assert!(mounts(fetch).contains(&("claim".into(), Some(true))));
    assert!(
        !mounts(&pod.containers[0])
            .iter()
            .any(|(name, _)| name == "claim")
    );
    assert!(
        fetch
            .args
            .as_ref()
            .unwrap()
            .contains(&"--source=/mnt/claim/sentiment".to_owned())
    );
}

#[test]
fn threads_follow_the_cpu_that_a_worker_asks_for() {
    let threads = |worker_spec: &str| {
        let children = children(&format!("worker: {worker_spec}"));
        let env = worker(&children).containers[0].env.clone().unwrap();
        env.into_iter()
            .find(|env| env.name == "CARPOOL_THREADS")
            .map(|env| {
                let source = env.value_from.and_then(|from| from.resource_field_ref);
                let request = source.map(|source| (source.resource, source.divisor.unwrap().0));
                (env.value, request)
            })
    };
    // The kubelet divides and rounds up.
    let requested = Some((None, Some(("requests.cpu".to_owned(), "1".to_owned()))));
    for asks in [
        "{}",
        "{resources: {requests: {cpu: 1500m}}}",
        "{resources: {limits: {memory: 1Gi}}}",
        "{podOverrides: {spec: {containers: [{name: helper, resources: {limits: {cpu: 2}}}]}}}",
    ] {
        assert_eq!(threads(asks), requested, "{asks}");
    }
    // The worker's own control group says it where a limit is given.
    for limits in [
        "{resources: {limits: {cpu: 2}}}",
        "{podOverrides: {spec: {containers: [{name: worker, resources: {limits: {cpu: '2'}}}]}}}",
    ] {
        assert_eq!(threads(limits), None, "{limits}");
    }
    let own = "{podOverrides: {spec: {containers: [{name: worker, env: [{name: CARPOOL_THREADS, value: '3'}]}]}}}";
    assert_eq!(threads(own), Some((Some("3".to_owned()), None)));
}

#[test]
fn overrides_are_merged_last() {
    let children = children(
        "
worker:
  podOverrides:
    metadata: {labels: {team: nlp}}
    spec: {shareProcessNamespace: true, containers: [{name: worker, env: [{name: OMP_NUM_THREADS, value: '2'}]}]}
proxy: {podOverrides: {spec: {terminationGracePeriodSeconds: 7}}}
",
    );
    let pod = worker(&children);
    assert_eq!(pod.share_process_namespace, Some(true));
    assert_eq!(pod.containers.len(), 1);
    let env = pod.containers[0].env.as_ref().unwrap();
    assert_eq!(
        env.iter().map(|env| env.name.as_str()).collect::<Vec<_>>(),
        ["POD_NAME", "OMP_NUM_THREADS", "CARPOOL_THREADS"]
    );
    let metadata = template(children.worker.as_ref().unwrap())
        .metadata
        .as_ref()
        .unwrap();
    assert_eq!(metadata.labels.as_ref().unwrap()["team"], "nlp");
    let proxy = template(&children.proxy).spec.as_ref().unwrap();
    assert_eq!(proxy.termination_grace_period_seconds, Some(7));
}

#[test]
fn admin_ports_are_open_to_whoever_may_ask() {
    let children = children("{}");
    for (policy, rules) in children.policies.iter().zip([2, 1]) {
        let ingress = policy.spec.as_ref().unwrap().ingress.as_ref().unwrap();
        assert_eq!(ingress.len(), rules);
        let admin = ingress.last().unwrap();
        let peers = admin.from.iter().flatten().map(|peer| {
            let selector = peer.namespace_selector.as_ref().unwrap();
            selector.match_labels.as_ref().unwrap()["kubernetes.io/metadata.name"].as_str()
        });
        assert_eq!(peers.collect::<Vec<_>>(), ["carpool-system", "monitoring"]);
    }
}

#[test]
fn workers_that_fail_keep_none_of_another_revision_on_a_node() {
    let children = children_of("{}", &["old"]);
    let latest = fixtures::valid("{}").revision;
    let mut revisions = Vec::new();
    for budget in &children.budgets {
        let spec = budget.spec.as_ref().unwrap();
        assert_eq!(
            spec.unhealthy_pod_eviction_policy.as_deref(),
            Some("AlwaysAllow")
        );
        let selector = spec.selector.as_ref().unwrap();
        let revision = selector.match_labels.as_ref().unwrap().get(names::REVISION);
        assert_eq!(
            budget
                .metadata
                .labels
                .as_ref()
                .unwrap()
                .get(names::REVISION),
            revision,
            "it goes with its revision"
        );
        revisions.extend(revision.cloned());
    }
    revisions.sort();
    let mut expected = vec!["old".to_owned(), latest];
    expected.sort();
    assert_eq!(revisions, expected);
}

#[test]
fn the_configuration_is_what_sidecar_and_worker_read() {
    let children = children("{}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        &file,
        &children.config.data.as_ref().unwrap()["config.yaml"],
    )
    .unwrap();
    let config = carpool_crds::Config::read(file.path()).unwrap();
    let valid = fixtures::valid("{}");
    assert_eq!(config.serving, valid.revision);
    assert_eq!(config.model(&valid.revision).unwrap(), &valid.spec.model);
    assert_eq!(config.uid, valid.uid);
}

#[test]
fn the_same_resource_gives_the_same_children() {
    let render = || {
        let children = children("{}");
        serde_json::to_string(&(
            &children.worker,
            &children.proxy,
            &children.redis,
            &children.config,
        ))
        .unwrap()
    };
    assert_eq!(render(), render());
}
