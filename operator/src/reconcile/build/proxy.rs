//! The proxies: a Deployment, and the Service in front of it.

use k8s_openapi::{
    DeepMerge,
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Container, PodSpec, Service, ServicePort, ServiceSpec, TopologySpreadConstraint,
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

/// Port 80 in front of the proxies' data port.
pub fn service(valid: &Valid) -> Service {
    Service {
        metadata: metadata(valid, valid.name.clone(), Some(Component::Proxy)),
        spec: Some(ServiceSpec {
            ip_family_policy: Some(pod::IP_FAMILY_POLICY.to_owned()),
            selector: Some(names::selector(&valid.name, Component::Proxy)),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                // Tells meshes and gateways that HTTP/2 without TLS is spoken, too.
                app_protocol: Some("kubernetes.io/h2c".to_owned()),
                port: 80,
                target_port: Some(IntOrString::String("http".to_owned())),
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
        volumes: Some(vec![
            pod::scratch("tmp"),
            pod::config_volume(&valid.name, redis_secret),
        ]),
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

fn container(valid: &Valid, images: &Images, redis_secret: &str) -> Container {
    let mut container = pod::container("proxy", &images.sidecar, &images.pull_policy);
    let mut args = pod::config_args();
    args.push(pod::place_arg(redis_secret));
    args.push(format!("--listen=:{}", names::DATA_PORT));
    args.push(format!("--admin-listen=:{}", names::ADMIN_PORT));
    args.push(format!("--lame-duck={LAME_DUCK_SECONDS}s"));
    container.args = Some(args);
    container.env = Some(vec![pod::pod_name()]);
    container.ports = Some(vec![
        pod::port("http", names::DATA_PORT),
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
    }
    container
}
