//! The protocol's calls about the server and the model, and those that only Triton has.

use std::sync::Arc;

use carpool_protocol::{
    Datatype,
    inference::{
        DataType, ModelConfig, ModelConfigRequest, ModelConfigResponse, ModelDynamicBatching,
        ModelInput, ModelMetadataRequest, ModelMetadataResponse, ModelOutput, ModelReadyRequest,
        ModelReadyResponse, ModelTransactionPolicy, RepositoryIndexRequest,
        RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
        ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        model_metadata_response::TensorMetadata, repository_index_response::ModelIndex,
    },
};
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;
use tonic::{Status, body::Body};
use tonic_prost::ProstCodec;

use super::SERVICE;
use crate::{
    error::Error,
    metadata::{self, TensorOfModel},
    metrics::Kind,
    proxy::{Proxy, Served},
};

/// The most bytes of a question: a model's name and version.
const LARGEST: u64 = 64 << 10;

/// The methods that are served, for a client that calls another.
const METHODS: &str = "ModelInfer, ModelStreamInfer, ModelReady, ModelMetadata, ModelConfig, ServerLive, ServerReady, \
    ServerMetadata and RepositoryIndex of inference.GRPCInferenceService";

/// Answers a call of a method that does not run the model.
pub async fn serve(proxy: Arc<Proxy>, method: &str, request: Request<Incoming>) -> Response<Body> {
    let kind = match method {
        "ServerLive" | "ServerReady" | "ModelReady" => Kind::Health,
        "ServerMetadata" | "ModelMetadata" | "ModelConfig" | "RepositoryIndex" => Kind::Metadata,
        _ => Kind::Unknown,
    };
    let mut open = proxy.metrics.open(kind);
    let ready = match method {
        "ServerReady" | "ModelReady" | "RepositoryIndex" => proxy.ready().await,
        _ => Ok(()),
    };
    let served = |name: &str, version: &str| {
        let served = proxy.served();
        served.check_name(name)?;
        served.check_version(Some(version).filter(|version| !version.is_empty()))?;
        Ok(served)
    };
    let response = match method {
        "ServerLive" => {
            answer(request, |_: ServerLiveRequest| {
                Ok(ServerLiveResponse { live: true })
            })
            .await
        }
        "ServerReady" => {
            let ready = ready.is_ok();
            answer(request, |_: ServerReadyRequest| {
                Ok(ServerReadyResponse { ready })
            })
            .await
        }
        "ModelReady" => {
            answer(request, |asked: ModelReadyRequest| {
                served(&asked.name, &asked.version)?;
                let ready = ready.is_ok();
                Ok(ModelReadyResponse { ready })
            })
            .await
        }
        "ServerMetadata" => answer(request, |_: ServerMetadataRequest| Ok(server())).await,
        "ModelMetadata" => {
            answer(request, |asked: ModelMetadataRequest| {
                served(&asked.name, &asked.version).map(|served| model(&served))
            })
            .await
        }
        "ModelConfig" => {
            answer(request, |asked: ModelConfigRequest| {
                let served = served(&asked.name, &asked.version)?;
                Ok(ModelConfigResponse {
                    config: Some(config(&served)),
                })
            })
            .await
        }
        "RepositoryIndex" => {
            answer(request, |asked: RepositoryIndexRequest| {
                let model = index(&proxy.served(), &ready);
                let is_wanted = ready.is_ok() || !asked.ready;
                let models = is_wanted.then_some(model).into_iter().collect();
                Ok(RepositoryIndexResponse { models })
            })
            .await
        }
        other => Status::from(&unknown(other)).into_http(),
    };
    open.answered(super::status_of(&response));
    response
}

/// Answers a call of one message with one message.
async fn answer<Q, A>(
    request: Request<Incoming>,
    answer: impl Fn(Q) -> Result<A, Error>,
) -> Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    let handle = tower::service_fn(|request: tonic::Request<Q>| {
        let answered = answer(request.into_inner());
        let answered = answered.map(tonic::Response::new);
        std::future::ready(answered.map_err(|error| Status::from(&error)))
    });
    let codec = ProstCodec::<A, Q>::default();
    super::grpc(codec, request.headers(), LARGEST)
        .unary(handle, request)
        .await
}

/// The error of a method that is not served.
fn unknown(method: &str) -> Error {
    if method.contains("SharedMemory") {
        let sentence = format!(
            "{method}: shared memory is not served, as workers run on other machines than their clients; send tensors \
             in the message"
        );
        return Error::NotBuilt(sentence);
    }
    Error::UnknownPath {
        given: format!("{SERVICE}{method}"),
        served: METHODS,
    }
}

fn server() -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: metadata::SERVER.to_owned(),
        version: metadata::VERSION.to_owned(),
        extensions: metadata::EXTENSIONS.map(str::to_owned).into(),
    }
}

fn model(served: &Served) -> ModelMetadataResponse {
    let (inputs, outputs) = metadata::tensors(served);
    let describe = |tensor: TensorOfModel<'_>| TensorMetadata {
        name: tensor.name.to_owned(),
        datatype: tensor.datatype.to_string(),
        shape: tensor.shape,
    };
    ModelMetadataResponse {
        name: served.name.clone(),
        versions: vec![served.revision.to_string()],
        platform: metadata::PLATFORM.to_owned(),
        inputs: inputs.into_iter().map(describe).collect(),
        outputs: outputs.into_iter().map(describe).collect(),
    }
}

/// The model's configuration in Triton's words. Its largest batch is the largest request: how many rows share a batch is
/// no client's concern.
fn config(served: &Served) -> ModelConfig {
    let (inputs, outputs) = metadata::tensors(served);
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

fn index(served: &Served, ready: &Result<(), Error>) -> ModelIndex {
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
