//! The protocol's answers about the server and the model.

use carpool_crds::{
    TensorSpec,
    tensor_names::{LABEL, SCORE, TEXT},
};
use serde_json::{Value, json};

use crate::proxy::Served;

/// The answer to `GET /v2`.
pub fn server() -> String {
    json!({"name": "carpool", "version": env!("CARGO_PKG_VERSION"), "extensions": []}).to_string()
}

/// The answer to `GET /v2/health/live`.
pub fn live() -> String {
    json!({"live": true}).to_string()
}

/// The answer to `GET /v2/health/ready`.
pub fn ready() -> String {
    json!({"ready": true}).to_string()
}

/// The answer to `GET /v2/models/NAME/ready`. A model without workers is ready: a request is held until one is there.
pub fn model_ready(served: &Served) -> String {
    json!({"name": served.name, "ready": true}).to_string()
}

/// The answer to `GET /v2/models/NAME`.
pub fn model(served: &Served) -> String {
    let model = &served.model;
    let (inputs, outputs) = if model.text.is_some() {
        (
            json!([{"name": TEXT, "datatype": "BYTES", "shape": [-1, 1]}]),
            json!([
                {"name": LABEL, "datatype": "BYTES", "shape": [-1, 1]},
                {"name": SCORE, "datatype": "FP32", "shape": [-1, 1]},
            ]),
        )
    } else {
        (tensors(&model.inputs), tensors(&model.outputs))
    };
    json!({
        "name": served.name,
        "versions": [&*served.revision],
        "platform": "pytorch_torchscript",
        "inputs": inputs,
        "outputs": outputs,
    })
    .to_string()
}

/// The tensors as clients see them.
fn tensors(specs: &[TensorSpec]) -> Value {
    specs
        .iter()
        .map(|spec| {
            json!({
                "name": spec.name,
                "datatype": spec.datatype.to_string(),
                "shape": spec.protocol_shape(),
            })
        })
        .collect()
}
