//! The `CustomResourceDefinition`, as `kubectl apply` takes it.

use kube::CustomResourceExt;
use serde_json::Value;

use crate::BatchedModel;

/// The `CustomResourceDefinition` of [`BatchedModel`] in YAML.
pub fn manifest() -> Result<String, serde_yaml::SerializeError> {
    let mut definition =
        serde_json::to_value(BatchedModel::crd()).map_err(|error| error.to_string())?;
    tidy(&mut definition);
    serde_yaml::to_string(&definition)
}

/// Takes out what Rust's types say and Kubernetes does not: integer formats that its API server warns of, bounds as
/// floating-point numbers, and `nullable`, which would let `null` stand where leaving the field out is meant.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.remove("nullable");
            if object
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|format| format.starts_with("uint"))
            {
                object.insert("format".to_owned(), Value::from("int64"));
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|value| value.fract() == 0.0) {
                // The bounds written in `crds/` all fit.
                #[expect(clippy::cast_possible_truncation)]
                let whole = whole as i64;
                *value = Value::from(whole);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_manifest_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/batchedmodels.yaml");
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            checked_in == manifest().unwrap(),
            "{path} is stale; write it anew with `carpool crds > crds/manifests/batchedmodels.yaml`"
        );
    }

    #[test]
    fn the_group_is_the_constant() {
        assert_eq!(BatchedModel::crd().spec.group, crate::GROUP);
    }

    #[test]
    fn every_field_is_described_and_no_list_item_has_a_default() {
        let mut definition = serde_json::to_value(BatchedModel::crd()).unwrap();
        tidy(&mut definition);
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        walk(&schema["properties"]["spec"], "spec", false);
    }

    fn walk(schema: &Value, path: &str, in_list: bool) {
        assert!(
            !(in_list && schema.get("default").is_some()),
            "{path}: a default inside a list item is drift to GitOps tools"
        );
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(
                property["description"].is_string(),
                "{path} has no description"
            );
            walk(property, &path, in_list);
        }
        if schema["items"].is_object() {
            walk(&schema["items"], &format!("{path}[]"), true);
        }
    }
}
