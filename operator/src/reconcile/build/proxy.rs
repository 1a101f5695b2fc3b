//! The proxies: a Deployment, and the Service in front of it.

use k8s_openapi::{
    DeepMerge,
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Container, PodSpec, SecretVolumeSource, Service, ServicePort, ServiceSpec,
            TopologySpreadConstraint, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{Images, metadata, pod};
use crate::{
    names::{self, Component},
    reconcile::validate::Valid,
};

/// A proxy goes on taking requests for this long after it was told to stop: until every node has forgotten it.
const LAME_DUCK_SECONDS: i64 = 5;
/// Seconds that a proxy may need beyond its last request's timeout.
const SPARE_SECONDS: i64 = 5;

/// The volume of the certificate.
const TLS_VOLUME: &str = "tls";

/// The name of the proxies' data port, which says whether they are called by TLS. The Service finds the port by it:
/// while a certificate is added or taken away, it leads to those pods only that speak as it says.
fn scheme(valid: &Valid) -> &'static str {
    match valid.spec.proxy.tls {
        Some(_) => "https",
        None => "http",
    }
}

/// The URL of a model's Service.
pub fn url(valid: &Valid) -> String {
    format!("{}://{}.{}", scheme(valid), valid.name, valid.namespace)
}

/// Port 80, or 443 for TLS, in front of the proxies' data port.
pub fn service(valid: &Valid) -> Service {
    // Tells meshes and gateways what is spoken: HTTP/2 without TLS, too, or TLS.
    let (port, app_protocol) = match valid.spec.proxy.tls {
        Some(_) => (443, "https"),
        None => (80, "kubernetes.io/h2c"),
    };
    Service {
        metadata: metadata(valid, valid.name.clone(), Some(Component::Proxy)),
        spec: Some(ServiceSpec {
            ip_family_policy: Some(pod::IP_FAMILY_POLICY.to_owned()),
            selector: Some(names::selector(&valid.name, Component::Proxy)),
            ports: Some(vec![ServicePort {
                name: Some(scheme(valid).to_owned()),
                app_protocol: Some(app_protocol.to_owned()),
                port,
                target_port: Some(IntOrString::String(scheme(valid).to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The proxies, without their number, which `proxies.rs` writes.
pub fn deployment(valid: &Valid, images: &Images, redis_secret: &str) -> Deployment {
    let name = names::child(&valid.name, Component::Proxy);
    let labels = names::component_labels(&valid.name, Component::Proxy);
    let selector = LabelSelector {
        match_labels: Some(names::selector(&valid.name, Component::Proxy)),
        ..LabelSelector::default()
    };
    let pod = PodSpec {
        service_account_name: Some(name.clone()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(pod::pod_security()),
        containers: vec![container(valid, images, redis_secret)],
        volumes: Some(volumes(valid, redis_secret)),
        termination_grace_period_seconds: Some(
            LAME_DUCK_SECONDS + SPARE_SECONDS + super::whole_seconds(valid.spec.queue.timeout),
        ),
        topology_spread_constraints: Some(vec![TopologySpreadConstraint {
            topology_key: "kubernetes.io/hostname".to_owned(),
            max_skew: 1,
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(selector.clone()),
            ..TopologySpreadConstraint::default()
        }]),
        ..PodSpec::default()
    };
    let mut template = pod::template(labels, pod, &valid.spec, &images.defaults);
    if let Some(overrides) = &valid.proxy_overrides {
        template.merge_from(overrides.clone());
    }
    Deployment {
        metadata: metadata(valid, name, Some(Component::Proxy)),
        spec: DeploymentSpec {
            replicas: None,
            selector,
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template,
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    }
}

fn volumes(valid: &Valid, redis_secret: &str) -> Vec<Volume> {
    let mut volumes = vec![
        pod::scratch("tmp"),
        pod::config_volume(&valid.name, redis_secret),
    ];
    volumes.extend(valid.spec.proxy.tls.as_ref().map(|tls| Volume {
        name: TLS_VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(tls.secret_name.clone()),
            // Without it the pod waits for ever and nobody says for what; so the proxy ends with a sentence.
            optional: Some(true),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }));
    volumes
}

fn container(valid: &Valid, images: &Images, redis_secret: &str) -> Container {
    let mut container = pod::container("proxy", &images.sidecar, &images.pull_policy);
    let mut args = pod::config_args();
    args.push(pod::place_arg(redis_secret));
    args.push(format!("--listen=:{}", names::DATA_PORT));
    args.push(format!("--admin-listen=:{}", names::ADMIN_PORT));
    args.push(format!("--lame-duck={LAME_DUCK_SECONDS}s"));
    let tls = valid.spec.proxy.tls.is_some();
    if tls {
        args.push(format!("--tls-dir={}", names::TLS_DIRECTORY));
    }
    container.args = Some(args);
    container.env = Some(vec![pod::pod_name()]);
    container.ports = Some(vec![
        pod::port(scheme(valid), names::DATA_PORT),
        pod::port("admin", names::ADMIN_PORT),
    ]);
    container.readiness_probe = Some(pod::probe("/readyz", names::ADMIN_PORT, 2, 2));
    container.liveness_probe = Some(pod::probe("/livez", names::ADMIN_PORT, 10, 3));
    container.resources = Some(pod::resources(
        valid.spec.proxy.resources.as_ref(),
        &[("cpu", "50m"), ("memory", "64Mi")],
    ));
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.push(pod::config_mount());
        if tls {
            mounts.push(VolumeMount {
                read_only: Some(true),
                ..pod::mount(TLS_VOLUME, names::TLS_DIRECTORY)
            });
        }
    }
    container
}
