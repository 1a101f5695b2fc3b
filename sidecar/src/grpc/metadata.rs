//! The protocol's calls about the server and the model, and those that only Triton has.

use std::sync::Arc;

use carpool_protocol::inference::{
    ModelConfigRequest, ModelConfigResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, RepositoryIndexRequest, RepositoryIndexResponse,
    ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse, model_metadata_response::TensorMetadata,
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
                    config: Some(metadata::config(&served)),
                })
            })
            .await
        }
        "RepositoryIndex" => {
            answer(request, |asked: RepositoryIndexRequest| {
                let model = metadata::index(&proxy.served(), &ready);
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
        return metadata::no_shared_memory(method);
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
