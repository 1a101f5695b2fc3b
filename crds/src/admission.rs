//! The checks that the API server makes before it stores a resource, for those who have none at hand.

use kube::CustomResourceExt;

use crate::{BatchedModel, schema};

/// Returns every violation of the schema's bounds or, where there is none, of the CEL rules. A resource with none is one
/// that the API server takes.
#[must_use]
pub fn violations(resource: &BatchedModel) -> Vec<String> {
    if resource.metadata.name.is_none() {
        return vec!["metadata.name: is missing".to_owned()];
    }
    let schema = BatchedModel::crd().spec.versions[0]
        .schema
        .as_ref()
        .and_then(|schema| serde_json::to_value(&schema.open_api_v3_schema).ok())
        .unwrap_or_default();
    let object = serde_json::to_value(resource).unwrap_or_default();
    let bounds = schema::violations(&schema, &object);
    if !bounds.is_empty() {
        // The API server evaluates the CEL rules only where the bounds hold, too.
        return bounds.iter().map(ToString::to_string).collect();
    }
    resource
        .validate_cel()
        .err()
        .map(|errors| errors.iter().map(ToString::to_string).collect())
        .unwrap_or_default()
}
