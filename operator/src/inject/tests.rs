use serde_json::{Value, json};

use super::{
    InjectError,
    manifest::{annotation, join, split},
    sidecar::Sidecar,
};

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
        redis_secret: "sentiment-redis".into(),
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
        for template in templates {
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
    assert!(inject(MANIFEST).starts_with(
        "# An app.\napiVersion: v1\nkind: Service\nmetadata: {name: app}   # kept as it is\n---\n"
    ));
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
fn templates_say_their_model() {
    let mut documents = split(MANIFEST).unwrap();
    assert!(documents[0].templates().is_empty());
    assert_eq!(annotation(documents[1].templates()[0]), None);
    assert_eq!(
        annotation(documents[2].templates()[0]).as_deref(),
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
