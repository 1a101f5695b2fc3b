//! Resources that tests share.

use carpool_crds::BatchedModel;
use serde_json::Value;

use super::validate::{Valid, validate};

/// The smallest resource, as an API server would store it.
pub fn sentiment() -> BatchedModel {
    with("{}")
}

/// The same with parts of a spec laid over.
pub fn with(over: &str) -> BatchedModel {
    let mut manifest: Value = serde_yaml::from_str(
        "
apiVersion: carpool.dev/v1alpha1
kind: BatchedModel
metadata: {name: sentiment, namespace: nlp, uid: 0c5b5a3e-7d53-4c5a-9a53-6b4d6f0f9a11, generation: 1}
spec:
  model:
    uri: pvc://models/sentiment
    inputs: [{name: input_ids, datatype: INT64, shape: [-1]}]
    outputs: [{name: logits, datatype: FP32, shape: [2]}]
",
    )
    .unwrap();
    merge(&mut manifest["spec"], serde_yaml::from_str(over).unwrap());
    serde_json::from_value(manifest).unwrap()
}

/// A resource that has passed validation.
pub fn valid(over: &str) -> Valid {
    validate(&with(over)).unwrap()
}

fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}
