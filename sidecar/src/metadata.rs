//! The protocol's answers about the server and the model.

use carpool_crds::{
    TensorSpec,
    tensor_names::{LABEL, SCORE, TEXT},
};
use carpool_protocol::Datatype;
use serde_json::{Value, json};

use crate::proxy::Served;

/// The server's name.
pub const SERVER: &str = "carpool";
/// The server's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The protocol's extensions that the server has, by Triton's names.
pub const EXTENSIONS: [&str; 2] = ["binary_tensor_data", "model_configuration"];
/// The platform that models are made with.
pub const PLATFORM: &str = "pytorch_torchscript";

/// A tensor that a model takes or gives, as its clients see it.
pub struct TensorOfModel<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// The type of the tensor's elements.
    pub datatype: Datatype,
    /// The tensor's dimensions, that of the batch first; -1 where one varies.
    pub shape: Vec<i64>,
}

/// The tensors that a model takes and those that it gives.
pub fn tensors(served: &Served) -> (Vec<TensorOfModel<'_>>, Vec<TensorOfModel<'_>>) {
    let model = &served.model;
    if model.text.is_none() {
        return (of_specs(&model.inputs), of_specs(&model.outputs));
    }
    let of_each_row = |name, datatype| TensorOfModel {
        name,
        datatype,
        shape: vec![-1, 1],
    };
    let outputs = vec![
        of_each_row(LABEL, Datatype::Bytes),
        of_each_row(SCORE, Datatype::Fp32),
    ];
    (vec![of_each_row(TEXT, Datatype::Bytes)], outputs)
}

fn of_specs(specs: &[TensorSpec]) -> Vec<TensorOfModel<'_>> {
    let tensors = specs.iter().map(|spec| TensorOfModel {
        name: &spec.name,
        datatype: spec.datatype.into(),
        shape: spec.protocol_shape(),
    });
    tensors.collect()
}

/// The answer to `GET /v2`.
pub fn server() -> String {
    json!({"name": SERVER, "version": VERSION, "extensions": EXTENSIONS}).to_string()
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
    let (inputs, outputs) = tensors(served);
    json!({
        "name": served.name,
        "versions": [&*served.revision],
        "platform": PLATFORM,
        "inputs": inputs.iter().map(describe).collect::<Value>(),
        "outputs": outputs.iter().map(describe).collect::<Value>(),
    })
    .to_string()
}

fn describe(tensor: &TensorOfModel<'_>) -> Value {
    json!({"name": tensor.name, "datatype": tensor.datatype.name(), "shape": tensor.shape})
}
