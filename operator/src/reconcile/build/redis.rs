//! A managed Redis: a `StatefulSet` of one, its Service, and the Secret with its password.

use std::collections::BTreeMap;

use carpool_crds::Resources;
use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        core::v1::{
            Container, KeyToPath, PodSecurityContext, PodSpec, Probe, Secret, SecretVolumeSource,
            Service, ServicePort, ServiceSpec, TCPSocketAction, Volume,
        },
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{Images, metadata, pod};
use crate::{
    names::{self, Component},
    reconcile::validate::Valid,
};

const PORT: u16 = names::REDIS_PORT;
const SECRET_DIRECTORY: &str = "/etc/redis";
const DATA_DIRECTORY: &str = "/data";

/// The password, for the server in its own words and for clients as a URL. It is created and never changed, so
/// nothing else is in it.
pub fn secret(valid: &Valid, password: &str) -> Secret {
    let host = names::child(&valid.name, Component::Redis);
    Secret {
        metadata: metadata(
            valid,
            names::redis_secret(&valid.name, &valid.uid),
            Some(Component::Redis),
        ),
        string_data: Some(BTreeMap::from([
            ("redis.conf".to_owned(), format!("requirepass {password}\n")),
            (
                "url".to_owned(),
                format!("redis://:{password}@{host}.{}:{PORT}", valid.namespace),
            ),
        ])),
        immutable: Some(true),
        ..Secret::default()
    }
}

/// The Service at which proxies and workers find Redis.
pub fn service(valid: &Valid) -> Service {
    Service {
        metadata: metadata(
            valid,
            names::child(&valid.name, Component::Redis),
            Some(Component::Redis),
        ),
        spec: Some(ServiceSpec {
            ip_family_policy: Some(pod::IP_FAMILY_POLICY.to_owned()),
            selector: Some(names::selector(&valid.name, Component::Redis)),
            ports: Some(vec![ServicePort {
                name: Some("redis".to_owned()),
                app_protocol: Some("redis".to_owned()),
                port: i32::from(PORT),
                target_port: Some(IntOrString::String("redis".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The server, which listens on every address of both families, as Redis and Valkey do unless told otherwise. Its data
/// outlives a crash of the process but not the pod: what a proxy holds open it queues again.
pub fn stateful_set(
    valid: &Valid,
    images: &Images,
    resources: &Resources,
    max_memory: u64,
) -> StatefulSet {
    let name = names::child(&valid.name, Component::Redis);
    let template = pod::template(
        names::component_labels(&valid.name, Component::Redis),
        pod_spec(valid, images, resources, max_memory),
        &valid.spec,
        &images.defaults,
    );
    StatefulSet {
        metadata: metadata(valid, name.clone(), Some(Component::Redis)),
        spec: StatefulSetSpec {
            replicas: Some(1),
            // `OrderedReady` would have a pod that never gets Ready keep the one with a corrected spec from replacing
            // it.
            pod_management_policy: Some("Parallel".to_owned()),
            service_name: Some(name),
            selector: LabelSelector {
                match_labels: Some(names::selector(&valid.name, Component::Redis)),
                ..LabelSelector::default()
            },
            template,
            ..StatefulSetSpec::default()
        },
        ..StatefulSet::default()
    }
}

fn pod_spec(valid: &Valid, images: &Images, resources: &Resources, max_memory: u64) -> PodSpec {
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_user: images.redis_user,
            ..pod::pod_security()
        }),
        containers: vec![container(images, resources, max_memory)],
        volumes: Some(vec![
            pod::scratch("tmp"),
            pod::scratch("data"),
            Volume {
                name: "secret".to_owned(),
                secret: Some(SecretVolumeSource {
                    secret_name: Some(names::redis_secret(&valid.name, &valid.uid)),
                    items: Some(vec![KeyToPath {
                        key: "redis.conf".to_owned(),
                        path: "redis.conf".to_owned(),
                        ..KeyToPath::default()
                    }]),
                    ..SecretVolumeSource::default()
                }),
                ..Volume::default()
            },
        ]),
        ..PodSpec::default()
    }
}

fn container(images: &Images, resources: &Resources, max_memory: u64) -> Container {
    let mut container = pod::container("redis", &images.redis, &images.pull_policy);
    container.command = Some(vec!["redis-server".to_owned()]);
    let settings: [(&str, &str); 7] = [
        ("port", &PORT.to_string()),
        ("dir", DATA_DIRECTORY),
        ("maxmemory", &max_memory.to_string()),
        // A queue that forgets is none: a full Redis refuses, and the proxies say 429.
        ("maxmemory-policy", "noeviction"),
        ("appendonly", "yes"),
        // The log grows by two bytes for each byte queued, whatever the queue holds: rewritten at the default of 64mb,
        // Redis would fork every few seconds under load.
        ("auto-aof-rewrite-min-size", "1gb"),
        ("save", ""),
    ];
    let mut args = vec![format!("{SECRET_DIRECTORY}/redis.conf")];
    for (name, value) in settings {
        args.push(format!("--{name}"));
        args.push(value.to_owned());
    }
    container.args = Some(args);
    container.ports = Some(vec![pod::port("redis", PORT)]);
    let probe = |failures| Probe {
        tcp_socket: Some(TCPSocketAction {
            port: IntOrString::String("redis".to_owned()),
            ..TCPSocketAction::default()
        }),
        period_seconds: Some(2),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    container.readiness_probe = Some(probe(2));
    container.liveness_probe = Some(probe(15));
    container.resources = Some(pod::resources(Some(resources), &[("cpu", "50m")]));
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.push(pod::mount("data", DATA_DIRECTORY));
        mounts.push(k8s_openapi::api::core::v1::VolumeMount {
            read_only: Some(true),
            ..pod::mount("secret", SECRET_DIRECTORY)
        });
    }
    container
}
