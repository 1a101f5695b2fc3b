//! A managed Redis: a `StatefulSet` of one, its Service, and the Secret with its password.

use std::collections::BTreeMap;

use carpool_crds::Resources;
use k8s_openapi::{
    DeepMerge,
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        core::v1::{
            Container, EmptyDirVolumeSource, KeyToPath, PodSecurityContext, PodSpec, Probe, Secret,
            SecretVolumeSource, Service, ServicePort, ServiceSpec, TCPSocketAction, Volume,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString,
    },
};

use super::{Images, metadata, pod};
use crate::{
    names::{self, Component},
    reconcile::validate::Valid,
};

const PORT: u16 = names::REDIS_PORT;
const SECRET_DIRECTORY: &str = "/etc/redis";
const DATA_DIRECTORY: &str = "/data";

/// Bytes from which on the log of a managed Redis is rewritten, in its own words and as a number.
const REWRITE_MIN: (&str, u64) = ("1gb", 1 << 30);

/// The memory of a managed Redis.
pub struct Memory<'a> {
    /// The container's resources.
    pub resources: &'a Resources,
    /// Bytes that data may take.
    pub max: u64,
}

/// Times the size of the data that may be written while Redis rewrites its log, which takes as long as writing the data
/// once: clients together write faster than the one process that rewrites, but not much.
const WRITTEN_MEANWHILE: u64 = 2;

/// The most bytes that a managed Redis keeps on disk. After a rewrite, its log is a base as large as the data and what was
/// written meanwhile; the next rewrite comes when it is twice that, and at least [`REWRITE_MIN`]. During that one there
/// is, beside the log, a new base and again what is written meanwhile.
fn disk(max_memory: u64) -> u64 {
    let rewritten = max_memory.saturating_mul(1 + WRITTEN_MEANWHILE);
    let log = rewritten.saturating_mul(2).max(REWRITE_MIN.1);
    log.saturating_add(rewritten)
}

/// The password, for the server in its own words and for clients as a URL. Nothing else is in it. It is not immutable:
/// kubelets would never look at one of the same name again, and a lost one is made anew.
pub fn secret(valid: &Valid, name: &str, password: &str) -> Secret {
    let host = names::child(&valid.name, Component::Redis);
    Secret {
        metadata: metadata(valid, name.to_owned(), Some(Component::Redis)),
        string_data: Some(BTreeMap::from([
            ("redis.conf".to_owned(), format!("requirepass {password}\n")),
            (
                "url".to_owned(),
                format!("redis://:{password}@{host}.{}:{PORT}", valid.namespace),
            ),
        ])),
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
/// outlives a crash of the process but not the pod: what a proxy holds open it queues again. Another `password` than
/// before makes a pod that reads the Secret again.
pub fn stateful_set(
    valid: &Valid,
    images: &Images,
    memory: &Memory<'_>,
    secret: &str,
    password: Option<&str>,
) -> StatefulSet {
    let name = names::child(&valid.name, Component::Redis);
    let mut metadata = metadata(valid, name.clone(), Some(Component::Redis));
    let mut template = pod::template(
        names::component_labels(&valid.name, Component::Redis),
        pod_spec(images, memory, &name, secret),
        &valid.spec,
        &images.defaults,
    );
    if let Some(password) = password {
        let template = template.metadata.get_or_insert_default();
        for metadata in [&mut metadata, template] {
            let annotations = metadata.annotations.get_or_insert_default();
            annotations.insert(names::REDIS_PASSWORD.to_owned(), password.to_owned());
        }
    }
    if let Some(overrides) = &valid.redis_overrides {
        template.merge_from(overrides.clone());
    }
    StatefulSet {
        metadata,
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

fn pod_spec(images: &Images, memory: &Memory<'_>, account: &str, secret: &str) -> PodSpec {
    PodSpec {
        service_account_name: Some(account.to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_user: images.redis_user,
            ..pod::pod_security()
        }),
        containers: vec![container(images, memory)],
        volumes: Some(vec![
            pod::scratch("tmp"),
            Volume {
                empty_dir: Some(EmptyDirVolumeSource {
                    size_limit: Some(Quantity(disk(memory.max).to_string())),
                    ..EmptyDirVolumeSource::default()
                }),
                ..pod::scratch("data")
            },
            Volume {
                name: pod::PASSWORD_VOLUME.to_owned(),
                secret: Some(SecretVolumeSource {
                    secret_name: Some(secret.to_owned()),
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

fn container(images: &Images, memory: &Memory<'_>) -> Container {
    let mut container = pod::container("redis", &images.redis, &images.pull_policy);
    container.command = Some(vec!["redis-server".to_owned()]);
    let settings: [(&str, &str); 7] = [
        ("port", &PORT.to_string()),
        ("dir", DATA_DIRECTORY),
        ("maxmemory", &memory.max.to_string()),
        // A queue that forgets is none: a full Redis refuses, and the proxies say 429.
        ("maxmemory-policy", "noeviction"),
        ("appendonly", "yes"),
        // The log grows by two bytes for each byte queued, whatever the queue holds: rewritten at the default of 64mb,
        // Redis would fork every few seconds under load.
        ("auto-aof-rewrite-min-size", REWRITE_MIN.0),
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
    container.resources = Some(pod::resources(Some(memory.resources), &[("cpu", "50m")]));
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.push(pod::mount("data", DATA_DIRECTORY));
        mounts.push(k8s_openapi::api::core::v1::VolumeMount {
            read_only: Some(true),
            ..pod::mount(pod::PASSWORD_VOLUME, SECRET_DIRECTORY)
        });
    }
    container
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured at 74 MB/s of writes on two busy processors, where the rewrite came to 25 MB/s: 6.1 times `maxmemory`.
    #[test]
    fn the_disk_of_redis_holds_its_log_and_the_next_one() {
        const GI: u64 = 1 << 30;
        assert_eq!(disk(GI), 9 * GI);
        assert_eq!(
            disk(GI / 8),
            GI + 3 * GI / 8,
            "a short log is not rewritten"
        );
    }
}
