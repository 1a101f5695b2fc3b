//! The workers of one revision: a Deployment.

use std::collections::BTreeMap;

use carpool_crds::{Model, Rollout};
use k8s_openapi::{
    DeepMerge,
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Container, EnvVar, EnvVarSource, PersistentVolumeClaimVolumeSource, PodSpec,
            PodTemplateSpec, ResourceFieldSelector, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString,
    },
};

use sha2::{Digest, Sha256};

use super::{Images, metadata, pod};
use crate::{
    names::{self, Component},
    reconcile::validate::Valid,
    rollout::GivenUp,
};

/// Seconds that a worker may need beyond a last batch, which is over within the requests' timeout.
const SPARE_SECONDS: i64 = 10;
/// Seconds in which a Deployment's pods must make progress, once they have room.
const PROGRESS_SECONDS: i64 = 600;
const CLAIM_DIRECTORY: &str = "/mnt/claim";
const MODEL_DIRECTORY: &str = "/model";
const CONTAINER: &str = "worker";
const FETCH: &str = "fetch";
/// The resources that an init container shares with the container after it.
const SHARED: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// The number of threads of a worker, where that is not what its control group allows.
const THREADS: &str = "CARPOOL_THREADS";

/// The past of a revision. It stands on its Deployment, so that an operator that starts anew knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevisionState {
    /// A worker has been Ready.
    pub loaded: bool,
    /// The attempt that was given up in favour of the revision before.
    pub given_up: Option<GivenUp>,
    /// Whether pods that are replaced leave before their successors have come, which fit nowhere beside them.
    pub trade: bool,
}

/// The workers of the latest revision, without their number: only `scale.rs` writes that. A Deployment that is new
/// therefore starts with one, the API server's default, which is the one that is to prove the revision.
pub fn deployment(
    valid: &Valid,
    images: &Images,
    redis_secret: &str,
    state: &RevisionState,
) -> Result<Deployment, serde_json::Error> {
    let revision = &valid.revision;
    let labels = names::component_labels(&valid.name, Component::Worker);
    let labels = names::of_revision(labels, revision);
    let selector = names::of_revision(names::selector(&valid.name, Component::Worker), revision);

    let mut metadata = metadata(
        valid,
        names::worker(&valid.name, revision),
        Some(Component::Worker),
    );
    metadata.labels = Some(labels);
    metadata.annotations = Some(annotations(&valid.spec.model, state)?);
    let room_timeout = super::whole_seconds(valid.spec.worker.rollout.room_timeout);
    Ok(Deployment {
        metadata,
        spec: DeploymentSpec {
            replicas: None,
            selector: LabelSelector {
                match_labels: Some(selector),
                ..LabelSelector::default()
            },
            strategy: Some(strategy(&valid.spec.worker.rollout, state.trade)),
            // Pods that wait for room make no progress, and are none the worse for it.
            progress_deadline_seconds: i32::try_from(PROGRESS_SECONDS + room_timeout).ok(),
            template: template(valid, images, redis_secret),
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    })
}

/// The way in which pods of an older template are replaced: where there is room, each leaves once its successor is Ready.
fn strategy(rollout: &Rollout, trade: bool) -> DeploymentStrategy {
    let count = |number: u32| i32::try_from(number).ok().map(IntOrString::Int);
    let (max_surge, max_unavailable) = if trade {
        (count(0), count(rollout.max_unavailable))
    } else {
        let quarter = || Some(IntOrString::String("25%".to_owned()));
        (rollout.max_surge.map_or_else(quarter, count), count(0))
    };
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge,
            max_unavailable,
        }),
    }
}

/// The attempt at the latest revision: a hash of its pods' template and of the annotation that asks for another attempt.
pub fn attempt(
    valid: &Valid,
    images: &Images,
    redis_secret: &str,
) -> Result<String, serde_json::Error> {
    let template = serde_json::to_vec(&template(valid, images, redis_secret))?;
    let digest = Sha256::new()
        .chain_update(template)
        .chain_update(valid.retry.as_deref().unwrap_or_default());
    Ok(hex::encode(&digest.finalize()[..5]))
}

fn template(valid: &Valid, images: &Images, redis_secret: &str) -> PodTemplateSpec {
    let labels = names::component_labels(&valid.name, Component::Worker);
    let mut template = pod::template(
        names::of_revision(labels, &valid.revision),
        pod_spec(valid, images, redis_secret),
        &valid.spec,
        &images.defaults,
    );
    if let Some(overrides) = &valid.worker_overrides {
        template.merge_from(overrides.clone());
    }
    if let Some(pod) = &mut template.spec {
        pod.containers.iter_mut().for_each(limit_threads);
        limit_fetch(pod);
    }
    template
}

fn annotations(
    model: &Model,
    state: &RevisionState,
) -> Result<BTreeMap<String, String>, serde_json::Error> {
    let mut annotations =
        BTreeMap::from([(names::MODEL_SPEC.to_owned(), serde_json::to_string(model)?)]);
    if state.loaded {
        annotations.insert(names::LOADED.to_owned(), "true".to_owned());
    }
    if let Some(why) = &state.given_up {
        annotations.insert(names::GIVEN_UP.to_owned(), serde_json::to_string(why)?);
    }
    Ok(annotations)
}

fn pod_spec(valid: &Valid, images: &Images, redis_secret: &str) -> PodSpec {
    let account = valid.spec.worker.service_account_name.clone();
    PodSpec {
        service_account_name: Some(
            account.unwrap_or_else(|| names::child(&valid.name, Component::Worker)),
        ),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(pod::pod_security()),
        init_containers: Some(vec![fetch(valid, images)]),
        containers: vec![serve(valid, images)],
        volumes: Some(vec![
            pod::scratch("tmp"),
            pod::scratch("model"),
            pod::config_volume(&valid.name, redis_secret),
            Volume {
                name: "claim".to_owned(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: valid.artifact.claim.clone(),
                    ..PersistentVolumeClaimVolumeSource::default()
                }),
                ..Volume::default()
            },
        ]),
        termination_grace_period_seconds: Some(
            SPARE_SECONDS + super::whole_seconds(valid.spec.queue.timeout),
        ),
        ..PodSpec::default()
    }
}

/// Copies the artifact and checks it. Only this container sees the claim.
fn fetch(valid: &Valid, images: &Images) -> Container {
    let mut container = pod::container(FETCH, &images.worker, &images.pull_policy);
    let source = match valid.artifact.path.as_str() {
        "" => CLAIM_DIRECTORY.to_owned(),
        path => format!("{CLAIM_DIRECTORY}/{path}"),
    };
    container.args = Some(vec![
        "fetch".to_owned(),
        format!("--config={}/config.yaml", names::CONFIG_DIRECTORY),
        format!("--revision={}", valid.revision),
        format!("--source={source}"),
        format!("--to={MODEL_DIRECTORY}"),
        "--log-format=json".to_owned(),
    ]);
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.push(pod::config_mount());
        mounts.push(pod::mount("model", MODEL_DIRECTORY));
        mounts.push(VolumeMount {
            read_only: Some(true),
            ..pod::mount("claim", CLAIM_DIRECTORY)
        });
    }
    container
}

fn serve(valid: &Valid, images: &Images) -> Container {
    let mut container = pod::container(CONTAINER, &images.worker, &images.pull_policy);
    let mut args = vec!["serve".to_owned(), format!("--revision={}", valid.revision)];
    args.extend(pod::config_args());
    args.push(format!("--admin-listen=:{}", names::ADMIN_PORT));
    args.push(format!("--model={MODEL_DIRECTORY}"));
    container.args = Some(args);
    container.env = Some(vec![pod::pod_name()]);
    container.ports = Some(vec![pod::port("admin", names::ADMIN_PORT)]);
    // Every second: a request may be waiting for the first worker.
    container.readiness_probe = Some(pod::probe("/readyz", names::ADMIN_PORT, 1, 3));
    container.liveness_probe = Some(pod::probe("/livez", names::ADMIN_PORT, 10, 3));
    container.resources = Some(pod::resources(
        valid.spec.worker.resources.as_ref(),
        &[("cpu", "100m"), ("memory", "256Mi")],
    ));
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.push(pod::config_mount());
        mounts.push(VolumeMount {
            read_only: Some(true),
            ..pod::mount("model", MODEL_DIRECTORY)
        });
    }
    container
}

/// Gives the container that fetches what the one that serves has, but for devices: whatever a quota or a `LimitRange` says,
/// it lets both in or none, and as a pod counts with the larger of the two, it asks for no more. Memory has a limit in any
/// case.
fn limit_fetch(pod: &mut PodSpec) {
    let serve = pod.containers.iter().find(|it| it.name == CONTAINER);
    let Some(mut resources) = serve.and_then(|serve| serve.resources.clone()) else {
        return;
    };
    for amounts in [&mut resources.limits, &mut resources.requests] {
        let amounts = amounts.get_or_insert_default();
        amounts.retain(|name, _| SHARED.contains(&name.as_str()));
    }
    let requested = resources.requests.iter().flatten();
    let memory = requested.filter(|(name, _)| *name == "memory");
    for (name, amount) in memory {
        let limits = resources.limits.get_or_insert_default();
        limits.entry(name.clone()).or_insert_with(|| amount.clone());
    }
    resources.claims = None;
    let fetch = pod.init_containers.iter_mut().flatten();
    for fetch in fetch.filter(|it| it.name == FETCH && it.resources.is_none()) {
        fetch.resources = Some(resources.clone());
    }
}

/// Tells a worker without a CPU limit to use as many threads as the CPUs that it asks for, rounded up. Nothing that it
/// sees says how many those are, and with a thread for each of the node's CPUs, the workers of a node would hinder one
/// another. A limit it sees for itself, be it the user's or the namespace's.
fn limit_threads(container: &mut Container) {
    let limits = container
        .resources
        .as_ref()
        .and_then(|resources| resources.limits.as_ref());
    let told = container
        .env
        .iter()
        .flatten()
        .any(|env| env.name == THREADS);
    if container.name != CONTAINER
        || limits.is_some_and(|limits| limits.contains_key("cpu"))
        || told
    {
        return;
    }
    container.env.get_or_insert_default().push(EnvVar {
        name: THREADS.to_owned(),
        value_from: Some(EnvVarSource {
            resource_field_ref: Some(ResourceFieldSelector {
                resource: "requests.cpu".to_owned(),
                divisor: Some(Quantity("1".to_owned())),
                container_name: None,
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    });
}
