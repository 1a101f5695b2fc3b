//! The protocol's answers about the server and the model.

use carpool_crds::{
    Dimension, Model, TensorSpec,
    tensor_names::{EMBEDDING, LABEL},
};
use carpool_protocol::{
    Datatype,
    inference::{
        DataType, ModelConfig, ModelDynamicBatching, ModelInput, ModelOutput,
        ModelTransactionPolicy, repository_index_response::ModelIndex,
    },
};
use serde_json::{Value, json};

use crate::{error::Error, proxy::Served};

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
    let Some(text) = &model.text else {
        return (of_specs(&model.inputs), of_specs(&model.outputs));
    };
    let inputs = text.inputs().iter().map(|name| TensorOfModel {
        name,
        datatype: Datatype::Bytes,
        shape: vec![-1, 1],
    });
    let outputs = text.outputs().iter().map(|name| TensorOfModel {
        name,
        datatype: match *name {
            LABEL => Datatype::Bytes,
            _ => Datatype::Fp32,
        },
        shape: match *name {
            EMBEDDING => vec![-1, embedding_size(model)],
            _ => vec![-1, 1],
        },
    });
    (inputs.collect(), outputs.collect())
}

/// The number of elements of the embeddings that a model of the task Embed gives.
pub fn embedding_size(model: &Model) -> i64 {
    let last = model.outputs.first().and_then(|output| output.shape.last());
    last.map_or(-1, Dimension::as_protocol)
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

/// The answer to a list of all models: there is one.
pub fn models(served: &Served) -> String {
    json!({"models": [served.name]}).to_string()
}

/// The answer to `GET /v1/models/NAME`.
pub fn model_v1(served: &Served, ready: bool) -> String {
    json!({"name": served.name, "ready": ready}).to_string()
}

/// The answer to `GET /v2/models/NAME/config`, as Triton writes [`config`] in JSON.
pub fn config_json(served: &Served) -> String {
    let config = config(served);
    let tensor = |name: &str, data_type: DataType, dims: &[i64]| json!({"name": name, "data_type": data_type.as_str_name(), "dims": dims});
    let inputs = config.input.iter();
    let outputs = config.output.iter();
    json!({
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend,
        "max_batch_size": config.max_batch_size,
        "input": inputs.map(|input| tensor(&input.name, input.data_type(), &input.dims)).collect::<Value>(),
        "output": outputs.map(|output| tensor(&output.name, output.data_type(), &output.dims)).collect::<Value>(),
        "dynamic_batching": {},
        "model_transaction_policy": {"decoupled": false},
    })
    .to_string()
}

/// The answer to `POST /v2/repository/index`.
pub fn index_json(served: &Served, ready: &Result<(), Error>) -> String {
    let model = index(served, ready);
    json!([{"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}])
        .to_string()
}

/// The error of a call that shares memory with its server.
pub fn no_shared_memory(call: &str) -> Error {
    Error::NotBuilt(format!(
        "{call}: shared memory is not served, as workers run on other machines than their clients; send tensors in the \
         message"
    ))
}

/// The model's configuration in Triton's words. Its largest batch is the largest request: how many rows share a batch is
/// no client's concern.
pub fn config(served: &Served) -> ModelConfig {
    let (inputs, outputs) = tensors(served);
    let dims = |tensor: &TensorOfModel<'_>| tensor.shape.get(1..).unwrap_or_default().to_vec();
    ModelConfig {
        name: served.name.clone(),
        platform: "pytorch_libtorch".to_owned(),
        backend: "pytorch".to_owned(),
        max_batch_size: i32::try_from(served.max_rows).unwrap_or(i32::MAX),
        input: inputs
            .iter()
            .map(|tensor| ModelInput {
                name: tensor.name.to_owned(),
                data_type: data_type(tensor.datatype).into(),
                dims: dims(tensor),
            })
            .collect(),
        output: outputs
            .iter()
            .map(|tensor| ModelOutput {
                name: tensor.name.to_owned(),
                data_type: data_type(tensor.datatype).into(),
                dims: dims(tensor),
            })
            .collect(),
        dynamic_batching: Some(ModelDynamicBatching {}),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
    }
}

pub fn index(served: &Served, ready: &Result<(), Error>) -> ModelIndex {
    ModelIndex {
        name: served.name.clone(),
        version: served.revision.to_string(),
        state: if ready.is_ok() {
            "READY"
        } else {
            "UNAVAILABLE"
        }
        .to_owned(),
        reason: ready
            .as_ref()
            .err()
            .map_or_else(String::new, ToString::to_string),
    }
}

fn data_type(datatype: Datatype) -> DataType {
    match datatype {
        Datatype::Bool => DataType::TypeBool,
        Datatype::Uint8 => DataType::TypeUint8,
        Datatype::Uint16 => DataType::TypeUint16,
        Datatype::Uint32 => DataType::TypeUint32,
        Datatype::Uint64 => DataType::TypeUint64,
        Datatype::Int8 => DataType::TypeInt8,
        Datatype::Int16 => DataType::TypeInt16,
        Datatype::Int32 => DataType::TypeInt32,
        Datatype::Int64 => DataType::TypeInt64,
        Datatype::Fp16 => DataType::TypeFp16,
        Datatype::Bf16 => DataType::TypeBf16,
        Datatype::Fp32 => DataType::TypeFp32,
        Datatype::Fp64 => DataType::TypeFp64,
        Datatype::Bytes => DataType::TypeString,
    }
}
