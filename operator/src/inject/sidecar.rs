//! The sidecar that pods get, and how it is put into them.

use k8s_openapi::api::core::v1::{Container, SeccompProfile, SecurityContext, VolumeMount};
use serde_json::{Map, Value, json};

use crate::{names, reconcile::build::pod};

const CONTAINER: &str = "carpool-sidecar";
const SCRATCH: &str = "carpool-tmp";
const URL: &str = "CARPOOL_URL";
/// The user of the sidecar's image.
const USER: i64 = 65532;
/// Seconds that the app waits for its sidecar before that is started anew.
const STARTUP_ATTEMPTS: i32 = 120;

/// Everything that is added to a pod.
pub struct Sidecar {
    /// The model that it takes requests for.
    pub model: String,
    /// The Secret with the Redis URL.
    pub redis_secret: String,
    /// Image of the sidecar.
    pub image: String,
    /// Pull policy of the image.
    pub pull_policy: String,
}

impl Sidecar {
    /// Adds it to a pod template. What an earlier run added is replaced.
    pub fn add_to(&self, template: &mut Value) -> Result<(), serde_json::Error> {
        // The label opens the way to Redis and tells the operator whom to ask about the switch to a new revision.
        entry(entry(template, "metadata", json!({})), "labels", json!({}))[names::MODEL] =
            json!(self.model);
        let spec = entry(template, "spec", json!({}));
        let url = json!({"name": URL, "value": format!("http://127.0.0.1:{}", names::INJECTED_DATA_PORT)});
        for list in ["initContainers", "containers"] {
            let containers = spec.get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                // First, so that the app's own variables can refer to it.
                put(entry(container, "env", json!([])), url.clone(), true);
            }
        }
        let as_root = spec["securityContext"]["runAsUser"] == 0;
        // First, so that other init containers can use it, too. One of an earlier run is replaced.
        put(
            entry(spec, "initContainers", json!([])),
            serde_json::to_value(self.container(as_root))?,
            true,
        );
        let volumes = entry(spec, "volumes", json!([]));
        put(volumes, serde_json::to_value(pod::scratch(SCRATCH))?, false);
        let config = pod::config_volume(&self.model, &self.redis_secret);
        put(volumes, serde_json::to_value(config)?, false);
        Ok(())
    }

    fn container(&self, in_pod_of_root: bool) -> Container {
        let mut container = pod::container(CONTAINER, &self.image, &self.pull_policy);
        container.restart_policy = Some("Always".to_owned());
        let mut args = pod::config_args();
        args.push(pod::place_arg(&self.redis_secret));
        args.push(format!("--listen=127.0.0.1:{}", names::INJECTED_DATA_PORT));
        args.push(format!("--admin-listen=:{}", names::INJECTED_ADMIN_PORT));
        container.args = Some(args);
        container.env = Some(vec![pod::pod_name()]);
        container.ports = Some(vec![pod::port("carpool-admin", names::INJECTED_ADMIN_PORT)]);
        container.startup_probe = Some(pod::probe(
            "/readyz",
            names::INJECTED_ADMIN_PORT,
            1,
            STARTUP_ATTEMPTS,
        ));
        // A readiness probe would be too much: an app may have more to do than to ask the model.
        container.liveness_probe = Some(pod::probe("/livez", names::INJECTED_ADMIN_PORT, 10, 3));
        container.resources = Some(pod::resources(None, &[("cpu", "50m"), ("memory", "64Mi")]));
        // The pod is the app's, and may say less.
        container.security_context = Some(SecurityContext {
            run_as_non_root: Some(true),
            run_as_user: in_pod_of_root.then_some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..pod::container_security()
        });
        container.volume_mounts = Some(vec![
            VolumeMount {
                name: SCRATCH.to_owned(),
                mount_path: "/tmp".to_owned(),
                ..VolumeMount::default()
            },
            pod::config_mount(),
        ]);
        container
    }
}

/// A field of an object, made with `default` where it is missing or null.
fn entry<'a>(object: &'a mut Value, field: &str, default: Value) -> &'a mut Value {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let value = &mut object[field];
    if value.is_null() {
        *value = default;
    }
    value
}

/// Puts an item into a list: first, or else in place of the one of its name or at the end.
fn put(list: &mut Value, item: Value, first: bool) {
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    if let Value::Array(items) = list {
        if first {
            items.retain(|other| other["name"] != item["name"]);
            items.insert(0, item);
            return;
        }
        match items.iter_mut().find(|other| other["name"] == item["name"]) {
            Some(other) => *other = item,
            None => items.push(item),
        }
    }
}
