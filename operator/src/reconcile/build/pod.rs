//! Everything that all pods of ours have: the `restricted` Pod Security Standard, a writable /tmp, the configuration.

use std::collections::BTreeMap;

use carpool_crds::{BatchedModelSpec, Quantity, Resources, TaintEffect, TolerationOperator};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapProjection, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
        EnvVarSource, HTTPGetAction, KeyToPath, LocalObjectReference, ObjectFieldSelector,
        PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource,
        ResourceRequirements, SeccompProfile, SecretProjection, SecurityContext, Toleration,
        Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::{defaults::ModelDefaults, names};

/// The volume of the configuration and the Redis URL.
pub const CONFIG_VOLUME: &str = "carpool-config";

/// The volume of a managed Redis' password.
pub const PASSWORD_VOLUME: &str = "secret";

/// Services have an address of each family that the cluster has.
pub const IP_FAMILY_POLICY: &str = "PreferDualStack";

/// Annotation of a pod: the local volumes whose loss need not keep a cluster autoscaler from removing their node.
const EXPENDABLE: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";

/// The template of a pod of a model, which may run where the model or else the cluster says, and which a cluster autoscaler
/// may move: no volume here holds what is not somewhere else, a request in its proxy and an artifact on its claim.
pub fn template(
    labels: BTreeMap<String, String>,
    mut pod: PodSpec,
    spec: &BatchedModelSpec,
    defaults: &ModelDefaults,
) -> PodTemplateSpec {
    schedule(&mut pod, spec, defaults);
    let volumes = pod.volumes.iter().flatten();
    let expendable: Vec<&str> = volumes
        .filter(|volume| volume.empty_dir.is_some())
        .map(|volume| volume.name.as_str())
        .collect();
    let annotations = BTreeMap::from([(EXPENDABLE.to_owned(), expendable.join(","))]);
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(pod),
    }
}

/// The pod half of the `restricted` standard. No fixed user: some clusters give each namespace its own range.
pub fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

/// The container half of the `restricted` standard, and a root file system that cannot be written.
pub fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            ..Capabilities::default()
        }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// Says where a pod may run, and with what it gets there: as its model asks or, for what that leaves out, by default.
fn schedule(pod: &mut PodSpec, spec: &BatchedModelSpec, defaults: &ModelDefaults) {
    let nodes = spec
        .node_selector
        .as_ref()
        .unwrap_or(&defaults.node_selector);
    pod.node_selector = Some(nodes.clone()).filter(|nodes| !nodes.is_empty());

    let tolerations = spec.tolerations.as_ref().unwrap_or(&defaults.tolerations);
    let tolerations: Vec<_> = tolerations.iter().map(toleration).collect();
    pod.tolerations = Some(tolerations).filter(|tolerations| !tolerations.is_empty());

    let secrets = spec
        .image_pull_secrets
        .as_ref()
        .unwrap_or(&defaults.image_pull_secrets);
    let secrets: Vec<_> = secrets
        .iter()
        .map(|secret| LocalObjectReference {
            name: secret.name.clone(),
        })
        .collect();
    pod.image_pull_secrets = Some(secrets).filter(|secrets| !secrets.is_empty());

    let class = spec
        .priority_class_name
        .as_ref()
        .unwrap_or(&defaults.priority_class_name);
    pod.priority_class_name = Some(class.clone()).filter(|class| !class.is_empty());
}

fn toleration(given: &carpool_crds::Toleration) -> Toleration {
    let operator = given.operator.map(|operator| match operator {
        TolerationOperator::Equal => "Equal",
        TolerationOperator::Exists => "Exists",
    });
    let effect = given.effect.map(|effect| match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    });
    Toleration {
        key: given.key.clone(),
        operator: operator.map(ToOwned::to_owned),
        value: given.value.clone(),
        effect: effect.map(ToOwned::to_owned),
        toleration_seconds: given.toleration_seconds,
    }
}

/// A container that ends with a message, has a writable /tmp and the `restricted` standard.
pub fn container(name: &str, image: &str, pull_policy: &str) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some(pull_policy.to_owned()),
        security_context: Some(container_security()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![mount("tmp", "/tmp")]),
        ..Container::default()
    }
}

/// A volume mounted for reading and writing.
pub fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

/// A volume that lives as long as its pod.
pub fn scratch(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    }
}

/// The configuration and the Redis URL in one folder. Whole folders, not single files, so that updates arrive.
pub fn config_volume(model: &str, redis_secret: &str) -> Volume {
    Volume {
        name: CONFIG_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![
                VolumeProjection {
                    config_map: Some(ConfigMapProjection {
                        name: names::config(model),
                        ..ConfigMapProjection::default()
                    }),
                    ..VolumeProjection::default()
                },
                VolumeProjection {
                    secret: Some(SecretProjection {
                        name: redis_secret.to_owned(),
                        items: Some(vec![KeyToPath {
                            key: "url".to_owned(),
                            path: "redis/url".to_owned(),
                            ..KeyToPath::default()
                        }]),
                        ..SecretProjection::default()
                    }),
                    ..VolumeProjection::default()
                },
                // A source of its own, as only a Secret of the user's has this key, and not each of those.
                VolumeProjection {
                    secret: Some(SecretProjection {
                        name: redis_secret.to_owned(),
                        items: Some(vec![KeyToPath {
                            key: "ca.crt".to_owned(),
                            path: "redis/ca.crt".to_owned(),
                            ..KeyToPath::default()
                        }]),
                        optional: Some(true),
                    }),
                    ..VolumeProjection::default()
                },
            ]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// [`config_volume`], mounted where [`config_args`] look for it.
pub fn config_mount() -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(CONFIG_VOLUME, names::CONFIG_DIRECTORY)
    }
}

/// The flag that tells a proxy its place of the queue: the Secret that [`config_volume`] mounts.
pub fn place_arg(redis_secret: &str) -> String {
    format!("--redis-secret={redis_secret}")
}

/// The flags that sidecar and worker share.
pub fn config_args() -> Vec<String> {
    vec![
        format!("--config={}/config.yaml", names::CONFIG_DIRECTORY),
        format!("--redis-url-file={}/redis/url", names::CONFIG_DIRECTORY),
        "--name=$(POD_NAME)".to_owned(),
        "--log-format=json".to_owned(),
    ]
}

/// `POD_NAME`, which [`config_args`] refer to.
pub fn pod_name() -> EnvVar {
    EnvVar {
        name: "POD_NAME".to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.name".to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// A port of a container.
pub fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        ..ContainerPort::default()
    }
}

/// A probe of an admin port.
pub fn probe(path: &str, port: u16, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(i32::from(port)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// The resources given, with requests for what neither they nor their limits speak of.
pub fn resources(
    given: Option<&Resources>,
    default_requests: &[(&str, &str)],
) -> ResourceRequirements {
    let mut resources = given.cloned().unwrap_or_default();
    for (name, amount) in default_requests {
        if !resources.limits.contains_key(*name) {
            resources
                .requests
                .entry((*name).to_owned())
                .or_insert_with(|| Quantity((*amount).to_owned()));
        }
    }
    let amounts = |amounts: BTreeMap<String, Quantity>| {
        let amounts: BTreeMap<_, _> = amounts
            .into_iter()
            .map(|(name, amount)| (name, resource::Quantity(amount.0)))
            .collect();
        Some(amounts).filter(|amounts| !amounts.is_empty())
    };
    ResourceRequirements {
        limits: amounts(resources.limits),
        requests: amounts(resources.requests),
        ..ResourceRequirements::default()
    }
}
