//! Documents of a manifest, and pod templates in them.

use carpool_crds::yaml;
use k8s_openapi::api::core::v1::{Container, SeccompProfile, SecurityContext, VolumeMount};
use serde_json::{Map, Value, json};

use super::InjectError;
use crate::{names, reconcile::build::pod};

const CONTAINER: &str = "carpool-sidecar";
const SCRATCH: &str = "carpool-tmp";
const URL: &str = "CARPOOL_URL";
/// The user of the sidecar's image.
const USER: i64 = 65532;
/// Seconds that the app waits for its sidecar before that is started anew.
const STARTUP_ATTEMPTS: i32 = 120;

/// A document of the manifest with its text, which is printed again unless the document was changed.
pub struct Document {
    text: String,
    value: Value,
    /// The reason for which it can't be written anew: kubectl reads it differently.
    ambiguous: Option<InjectError>,
    /// Whether a sidecar was added.
    pub changed: bool,
}

/// The documents of a manifest.
pub fn split(text: &str) -> Result<Vec<Document>, InjectError> {
    let mut texts = vec![(1, String::new())];
    for (index, line) in text.split_inclusive('\n').enumerate() {
        // At the start of a line this begins a document, wherever it stands.
        let rest = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        match (rest, texts.last_mut()) {
            // Text that follows on the same line belongs to the document.
            (Some(rest), _) => {
                let rest = rest.trim_start();
                let first_line = index + 1 + usize::from(rest.is_empty());
                texts.push((first_line, rest.to_owned()));
            }
            (None, Some((_, text))) => text.push_str(line),
            (None, None) => {}
        }
    }
    texts
        .into_iter()
        .enumerate()
        .filter(|(_, (_, text))| !text.trim().is_empty())
        .map(|(index, (first_line, text))| {
            let parse = |message| InjectError::Parse(index + 1, message);
            let read = yaml::read(&text, first_line).map_err(parse)?;
            let read = read.into_iter().next().unwrap_or_default();
            Ok(Document {
                // A document that stays as it is means what it meant.
                ambiguous: read.check().map_err(parse).err(),
                text,
                value: read.value,
                changed: false,
            })
        })
        .collect()
}

/// The manifest of these documents.
pub fn join(documents: Vec<Document>) -> Result<String, InjectError> {
    let texts = documents.into_iter().map(|document| {
        if !document.changed {
            return Ok(document.text);
        }
        match document.ambiguous {
            Some(ambiguous) => Err(ambiguous),
            None => Ok(serde_yaml::to_string(&document.value)?),
        }
    });
    let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
    let ended = texts.iter().map(|text| format!("{}\n", text.trim_end()));
    Ok(ended.collect::<Vec<_>>().join("---\n"))
}

impl Document {
    /// Finds the document's pods and pod templates, each with the namespace it will be in, if the document says so.
    pub fn templates(&mut self) -> Vec<(&mut Value, Option<String>)> {
        let objects: Vec<&mut Value> = if self.value["kind"] == "List" {
            let items = self.value.get_mut("items").and_then(Value::as_array_mut);
            items.into_iter().flatten().collect()
        } else {
            vec![&mut self.value]
        };
        objects
            .into_iter()
            .filter_map(|object| {
                let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
                let path = match object["kind"].as_str()? {
                    "Pod" => "",
                    "Deployment"
                    | "StatefulSet"
                    | "DaemonSet"
                    | "ReplicaSet"
                    | "ReplicationController"
                    | "Job" => "/spec/template",
                    "CronJob" => "/spec/jobTemplate/spec/template",
                    _ => return None,
                };
                Some((object.pointer_mut(path)?, namespace))
            })
            .collect()
    }
}

/// The model that a pod template asks for.
pub fn annotation(template: &Value) -> Option<String> {
    let annotation = &template["metadata"]["annotations"][names::MODEL];
    annotation.as_str().map(str::to_owned)
}

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
        args.push(format!("--listen=127.0.0.1:{}", names::INJECTED_DATA_PORT));
        args.push(format!(
            "--admin-listen=0.0.0.0:{}",
            names::INJECTED_ADMIN_PORT
        ));
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

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "\
# An app.
apiVersion: v1
kind: Service
metadata: {name: app}   # kept as it is
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: nlp}
spec:
  template:
    metadata: {labels: {app: app}}
    spec:
      initContainers: [{name: migrate, image: migrate}]
      containers:
      - {name: app, image: app, env: [{name: A, value: b}]}
      - {name: other, image: other}
      volumes: [{name: tmp, emptyDir: {}}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec: {jobTemplate: {spec: {template: {metadata: {annotations: {carpool.dev/model: digits}}, spec: {containers: [{name: job}]}}}}}
";

    fn sidecar() -> Sidecar {
        Sidecar {
            model: "sentiment".into(),
            redis_secret: "sentiment-redis-0c5b5a3e".into(),
            image: "carpool/sidecar:1".into(),
            pull_policy: "IfNotPresent".into(),
        }
    }

    fn inject(text: &str) -> String {
        try_inject(text).unwrap()
    }

    fn try_inject(text: &str) -> Result<String, InjectError> {
        let mut documents = split(text).unwrap();
        for document in &mut documents {
            let templates = document.templates();
            let found = !templates.is_empty();
            for (template, _) in templates {
                sidecar().add_to(template).unwrap();
            }
            document.changed = found;
        }
        join(documents)
    }

    #[test]
    fn the_sidecar_is_ready_before_the_app_and_told_to_every_container() {
        let injected = split(&inject(MANIFEST)).unwrap();
        let template = &injected[1].value["spec"]["template"];
        assert_eq!(
            template["metadata"]["labels"],
            json!({"app": "app", "carpool.dev/model": "sentiment"})
        );
        let init = &template["spec"]["initContainers"];
        assert_eq!(
            (&init[0]["name"], &init[1]["name"]),
            (&json!("carpool-sidecar"), &json!("migrate"))
        );
        assert_eq!(init[0]["restartPolicy"], "Always");
        assert_eq!(init[0]["startupProbe"]["httpGet"]["port"], 18090);
        assert!(
            init[0]["args"]
                .as_array()
                .unwrap()
                .contains(&json!("--listen=127.0.0.1:18080"))
        );
        let url = json!({"name": "CARPOOL_URL", "value": "http://127.0.0.1:18080"});
        assert_eq!(
            template["spec"]["containers"][0]["env"],
            json!([url, {"name": "A", "value": "b"}])
        );
        assert_eq!(template["spec"]["containers"][1]["env"], json!([url]));
        assert_eq!(init[1]["env"], json!([url]));
        let volumes = template["spec"]["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 3);
        assert!(
            volumes.contains(&json!({"name": "tmp", "emptyDir": {}})),
            "the app's own stays"
        );
    }

    #[test]
    fn other_documents_are_kept_to_the_letter() {
        assert!(inject(MANIFEST).starts_with("# An app.\napiVersion: v1\nkind: Service\nmetadata: {name: app}   # kept as it is\n---\n"));
    }

    #[test]
    fn a_second_time_changes_nothing() {
        let once = inject(MANIFEST);
        assert_eq!(inject(&once), once);
    }

    #[test]
    fn pods_lists_and_json_are_understood() {
        let pod = r#"{"kind": "List", "items": [{"kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}, {"kind": "Secret"}]}"#;
        let injected = split(&inject(pod)).unwrap();
        assert_eq!(
            injected[0].value["items"][0]["spec"]["initContainers"][0]["name"],
            "carpool-sidecar"
        );
        assert_eq!(injected[0].value["items"][1], json!({"kind": "Secret"}));
    }

    #[test]
    fn numbers_and_texts_are_what_kubectl_reads() {
        let pod = "\
--- {kind: Pod, spec: {volumes: [{name: carpool, configMap: {name: c, defaultMode: 0400}}], containers: [{name: c}]}}
---
kind: Pod
spec: {containers: [{name: c, env: [{name: MODE, value: '0400'}, {name: UP, value: 'yes'}]}]}
";
        let injected = inject(pod);
        let documents = split(&injected).unwrap();
        let volumes = documents[0].value["spec"]["volumes"].as_array().unwrap();
        assert_eq!(volumes[0]["configMap"]["defaultMode"], 256);
        assert_eq!(volumes.len(), 3, "the app's own is kept");
        let env = documents[1].value["spec"]["containers"][0]["env"]
            .as_array()
            .unwrap();
        assert_eq!(
            (&env[1]["value"], &env[2]["value"]),
            (&json!("0400"), &json!("yes"))
        );
    }

    #[test]
    fn the_url_comes_before_what_refers_to_it() {
        let pod = "kind: Pod\nspec: {containers: [{name: c, env: [{name: INFER, value: $(CARPOOL_URL)/v2}, {name: CARPOOL_URL, value: old}]}]}";
        let injected = split(&inject(pod)).unwrap();
        assert_eq!(
            injected[0].value["spec"]["containers"][0]["env"],
            json!([
                {"name": "CARPOOL_URL", "value": "http://127.0.0.1:18080"},
                {"name": "INFER", "value": "$(CARPOOL_URL)/v2"}
            ])
        );
    }

    #[test]
    fn the_sidecar_is_not_root_where_the_app_is() {
        let user = |pod: &str| {
            let injected = split(&inject(pod)).unwrap();
            injected[0].value["spec"]["initContainers"][0]["securityContext"]["runAsUser"].clone()
        };
        assert_eq!(
            user("kind: Pod\nspec: {securityContext: {runAsUser: 0}}"),
            65532
        );
        assert_eq!(
            user("kind: Pod\nspec: {securityContext: {runAsUser: 7}}"),
            Value::Null
        );
    }

    #[test]
    fn templates_say_their_model_and_namespace() {
        let mut documents = split(MANIFEST).unwrap();
        assert!(documents[0].templates().is_empty());
        assert_eq!(documents[1].templates()[0].1.as_deref(), Some("nlp"));
        assert_eq!(annotation(documents[1].templates()[0].0), None);
        assert_eq!(
            annotation(documents[2].templates()[0].0).as_deref(),
            Some("digits")
        );
    }

    #[test]
    fn what_kubectl_reads_differently_is_refused_by_line() {
        let pod = "a: yes\n---\n# A pod.\nkind: Pod\nspec:\n  containers: [{name: c, env: [{name: UP, value: y}]}]\n";
        let error = try_inject(pod).unwrap_err().to_string();
        assert_eq!(
            error,
            "failed to parse document 2 of the manifest: line 6: spec.containers[0].env[0].value: kubectl reads y as \
             the boolean true; quote it: \"y\", or write true"
        );
        let quoted = inject(&pod.replace("value: y", "value: 'y'"));
        assert!(
            quoted.starts_with("a: yes\n---\n"),
            "stays as it is: {quoted}"
        );
        assert!(split(&quoted).unwrap()[1].ambiguous.is_none(), "{quoted}");
    }

    #[test]
    fn what_is_not_yaml_is_named() {
        let error = split("a: 1\n---\nb: [").err().unwrap().to_string();
        assert!(error.contains("document 2"), "{error}");
    }
}
