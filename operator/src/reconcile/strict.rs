//! `podOverrides`, parsed strictly: Kubernetes' types skip what they do not know, and a skipped override is a trap.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

/// Parses parts of a `PodTemplateSpec`. The error names the path of what is wrong.
pub fn pod_template(
    path: &str,
    overrides: &BTreeMap<String, Value>,
) -> Result<PodTemplateSpec, String> {
    let mut given = Value::Object(overrides.clone().into_iter().collect());
    complete(&mut given);
    let parsed: PodTemplateSpec = serde_json::from_value(given.clone())
        .map_err(|error| format!("{path}: not parts of a PodTemplateSpec: {error}"))?;
    let kept = serde_json::to_value(&parsed).map_err(|error| format!("{path}: {error}"))?;
    if let Some(field) = skipped(&given, &kept, path) {
        return Err(format!("{field}: a PodTemplateSpec has no such field"));
    }
    // Containers are merged by name; one without would be added as a container of its own.
    let nameless = parsed
        .spec
        .iter()
        .flat_map(|spec| {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        })
        .any(|container| container.name.is_empty());
    if nameless {
        return Err(format!("{path}.spec: a container has no name"));
    }
    Ok(parsed)
}

/// Adds what a whole `PodTemplateSpec` must have and a part of one may leave out.
fn complete(given: &mut Value) {
    if let Some(spec) = given.get_mut("spec").and_then(Value::as_object_mut) {
        spec.entry("containers")
            .or_insert_with(|| Value::Array(Vec::new()));
    }
}

/// The path of a field that was given and not kept.
fn skipped(given: &Value, kept: &Value, path: &str) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match kept.get(name) {
                Some(kept) => skipped(value, kept, &path),
                None if value.is_null() => None,
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(kept)) => given
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(index, (given, kept))| skipped(given, kept, &format!("{path}[{index}]"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<PodTemplateSpec, String> {
        pod_template(
            "spec.worker.podOverrides",
            &serde_yaml::from_str(yaml).unwrap(),
        )
    }

    #[test]
    fn parts_of_a_template_are_taken() {
        let template = parse(
            "metadata: {labels: {team: nlp}}\nspec: {nodeSelector: {zone: a}, tolerations: [{key: gpu, operator: Exists}], containers: [{name: worker, env: [{name: A, value: b}]}]}",
        )
        .unwrap();
        let spec = template.spec.unwrap();
        assert_eq!(spec.node_selector.unwrap()["zone"], "a");
        assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "A");
        assert!(parse("spec: {shareProcessNamespace: true}").is_ok());
        assert!(parse("spec: {nodeSelector: {}}").is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (yaml, says) in [
            (
                "sepc: {}",
                "spec.worker.podOverrides.sepc: a PodTemplateSpec has no such field",
            ),
            (
                "spec: {nodeSelecter: {zone: a}}",
                "spec.worker.podOverrides.spec.nodeSelecter: a PodTemplateSpec has no such field",
            ),
            (
                "spec: {containers: [{name: worker, enviroment: [1]}]}",
                "spec.worker.podOverrides.spec.containers[0].enviroment",
            ),
            (
                "spec: {nodeSelector: 7}",
                "spec.worker.podOverrides: not parts of a PodTemplateSpec",
            ),
            (
                "spec: {containers: [{image: x}]}",
                "spec.worker.podOverrides.spec: a container has no name",
            ),
        ] {
            let error = parse(yaml).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
