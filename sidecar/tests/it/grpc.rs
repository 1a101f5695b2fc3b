//! Calls of gRPC, made by a client of tonic's.

use std::time::Duration;

use carpool_protocol::{
    Datatype, InferRequest, InferResponse, Tensor,
    inference::{
        DataType, InferTensorContents, ModelConfigRequest, ModelConfigResponse, ModelInferRequest,
        ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
        ModelReadyResponse, ModelStreamInferResponse, RepositoryIndexRequest,
        RepositoryIndexResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
        ServerReadyResponse, model_infer_request::InferInputTensor,
    },
};
use carpool_testkit::free_port;
use futures::{StreamExt, stream};
use http::uri::PathAndQuery;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message;
use serde_json::json;
use tonic::{Code, Request, Status, client::Grpc, codec::CompressionEncoding};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt;

use crate::rig::{Rig, config, pairs};

pub type Connection = Grpc<Client<HttpConnector, tonic::body::Body>>;

const INFERENCE: &str = "inference.GRPCInferenceService";

pub fn client(rig: &Rig) -> Connection {
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    Grpc::with_origin(client, format!("http://{}", rig.address).parse().unwrap())
}

fn path(service: &str, method: &str) -> PathAndQuery {
    format!("/{service}/{method}").parse().unwrap()
}

async fn ask<Q, A>(
    client: &mut Connection,
    service: &str,
    method: &str,
    request: Request<Q>,
) -> Result<tonic::Response<A>, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let codec = ProstCodec::<Q, A>::default();
    client.unary(request, path(service, method), codec).await
}

pub async fn infer(
    client: &mut Connection,
    request: Request<ModelInferRequest>,
) -> Result<ModelInferResponse, Status> {
    let answer = ask(client, INFERENCE, "ModelInfer", request).await;
    answer.map(tonic::Response::into_inner)
}

/// A request of one row for the model of pairs, as protobuf.
fn pair(id: &str) -> ModelInferRequest {
    let data = [1.5_f32, -2.0].map(f32::to_le_bytes).concat();
    let request = InferRequest {
        model_name: "m".to_owned(),
        id: id.to_owned(),
        inputs: vec![Tensor::new("x", Datatype::Fp32, [1, 2], data).unwrap()],
        ..InferRequest::default()
    };
    ModelInferRequest::decode(request.encode()).unwrap()
}

#[tokio::test]
async fn raw_and_typed_contents_are_answered_in_raw() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let mut client = client(&rig);
    let mut typed = pair("typed");
    typed.raw_input_contents.clear();
    typed.inputs[0].contents = Some(InferTensorContents {
        fp32_contents: vec![1.5, -2.0],
        ..InferTensorContents::default()
    });
    for request in [pair("raw"), typed] {
        let id = request.id.clone();
        let answer = infer(&mut client, Request::new(request)).await.unwrap();
        assert_eq!((&*answer.model_name, &*answer.model_version), ("m", "r1"));
        assert_eq!(answer.id, id);
        let answer = InferResponse::decode(answer.encode_to_vec().into()).unwrap();
        let data = [1.5_f32, -2.0].map(f32::to_le_bytes).concat();
        let expected = Tensor::new("x", Datatype::Fp32, [1, 2], data).unwrap();
        assert_eq!(answer.outputs, [expected]);
    }
    rig.measures(r#"carpool_proxy_requests_total{route="infer",code="200"} 2"#)
        .await;
}

#[tokio::test]
async fn an_answer_is_compressed_where_its_request_is() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    for coding in [
        None,
        Some(CompressionEncoding::Gzip),
        Some(CompressionEncoding::Deflate),
        Some(CompressionEncoding::Zstd),
    ] {
        let mut client = client(&rig)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
            .accept_compressed(CompressionEncoding::Zstd);
        if let Some(coding) = coding {
            client = client.send_compressed(coding);
        }
        let request = Request::new(pair("7"));
        let answer = ask::<_, ModelInferResponse>(&mut client, INFERENCE, "ModelInfer", request);
        let answer = answer.await.unwrap();
        let used = answer.metadata().get("grpc-encoding");
        let used = used.map(|used| used.to_str().unwrap().to_owned());
        assert_eq!(used, coding.map(|coding| coding.to_string()));
        assert_eq!(answer.get_ref().id, "7");
    }
}

#[tokio::test]
async fn mistakes_have_codes_and_sentences() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let mut client = client(&rig);
    let changed = |change: fn(&mut ModelInferRequest)| {
        let mut request = pair("");
        change(&mut request);
        request
    };
    for (request, code, sentence) in [
        (
            changed(|request| request.model_name = "other".into()),
            Code::NotFound,
            "unknown model other; this is m",
        ),
        (
            changed(|request| request.model_version = "2".into()),
            Code::NotFound,
            "unknown version 2 of m; the one served is r1",
        ),
        (
            changed(|request| request.inputs.push(InferInputTensor::default())),
            Code::InvalidArgument,
            "failed to read raw contents: there are 1 for 2 tensors; each has one, or none has",
        ),
        (
            changed(|request| request.inputs[0].name = "z".into()),
            Code::InvalidArgument,
            "unknown input \"z\"; the model takes \"x\"",
        ),
        (
            changed(|request| request.inputs[0].shape = vec![1, 3]),
            Code::InvalidArgument,
            "tensor `x`: shape [1, 3] has 3 elements; 2 given: change the shape or the data",
        ),
        (
            changed(|request| request.raw_input_contents[0] = vec![0; 2 << 20].into()),
            Code::ResourceExhausted,
            "the body is larger than the 1048576 bytes that a request may have",
        ),
    ] {
        let status = infer(&mut client, Request::new(request)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, sentence));
        assert!(status.get_details_retry_info().is_none());
    }
    let mut late = Request::new(pair(""));
    late.metadata_mut()
        .insert("grpc-timeout", "1s".parse().unwrap());
    let status = infer(&mut client, late).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    rig.measures(r#"carpool_proxy_requests_total{route="infer",code="422"} 2"#)
        .await;
}

#[tokio::test]
async fn a_call_ends_at_its_own_deadline() {
    let rig = Rig::start(config(&pairs())).await;
    let mut client = client(&rig);
    let mut request = Request::new(pair(""));
    request.set_timeout(Duration::from_millis(50));
    let status = infer(&mut client, request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    rig.length("r1", 0).await;
}

#[tokio::test]
async fn without_redis_a_client_is_told_when_to_try_again() {
    let rig = Rig::without_redis(config(&pairs()), free_port()).await;
    let mut client = client(&rig);
    let status = infer(&mut client, Request::new(pair("")))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let retry = status.get_details_retry_info().unwrap();
    assert!(retry.retry_delay.unwrap() >= Duration::from_millis(1));
    let ready = ask::<_, ServerReadyResponse>(
        &mut client,
        INFERENCE,
        "ServerReady",
        Request::new(ServerReadyRequest {}),
    );
    assert!(!ready.await.unwrap().into_inner().ready);
}

#[tokio::test]
async fn the_model_describes_itself() {
    let rig = Rig::start(config(&pairs())).await;
    let mut client = client(&rig);
    let request = Request::new(ServerMetadataRequest {});
    let server: ServerMetadataResponse = ask(&mut client, INFERENCE, "ServerMetadata", request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(server.name, "carpool");
    assert!(server.extensions.contains(&"binary_tensor_data".to_owned()));
    let (name, version) = ("m".to_owned(), String::new());
    let request = Request::new(ModelReadyRequest {
        name: name.clone(),
        version: version.clone(),
    });
    let ready: ModelReadyResponse = ask(&mut client, INFERENCE, "ModelReady", request)
        .await
        .unwrap()
        .into_inner();
    assert!(ready.ready);
    let request = Request::new(ModelMetadataRequest {
        name: name.clone(),
        version: version.clone(),
    });
    let model: ModelMetadataResponse = ask(&mut client, INFERENCE, "ModelMetadata", request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(model.versions, ["r1"]);
    let input = &model.inputs[0];
    assert_eq!(
        (&*input.name, &*input.datatype, &*input.shape),
        ("x", "FP32", &[-1, 2][..])
    );
    let request = Request::new(ModelConfigRequest { name, version });
    let config: ModelConfigResponse = ask(&mut client, INFERENCE, "ModelConfig", request)
        .await
        .unwrap()
        .into_inner();
    let config = config.config.unwrap();
    assert_eq!(config.input[0].data_type(), DataType::TypeFp32);
    assert_eq!(config.input[0].dims, [2]);
    assert!(config.max_batch_size > 1);
    let request = Request::new(RepositoryIndexRequest::default());
    let index: RepositoryIndexResponse = ask(&mut client, INFERENCE, "RepositoryIndex", request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (&*index.models[0].name, &*index.models[0].state),
        ("m", "READY")
    );
    let unknown = Request::new(ModelReadyRequest {
        name: "other".into(),
        ..ModelReadyRequest::default()
    });
    let status = ask::<_, ModelReadyResponse>(&mut client, INFERENCE, "ModelReady", unknown);
    assert_eq!(status.await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn what_is_not_served_is_told() {
    let rig = Rig::start(config(&pairs())).await;
    let mut client = client(&rig);
    for (service, method, sentence) in [
        (
            INFERENCE,
            "SystemSharedMemoryRegister",
            "shared memory is not served",
        ),
        (INFERENCE, "TraceSetting", "there is ModelInfer, "),
        (
            "other.Service",
            "Do",
            "there is inference.GRPCInferenceService, ",
        ),
    ] {
        let request = Request::new(ServerReadyRequest {});
        let status = ask::<_, ServerReadyResponse>(&mut client, service, method, request);
        let status = status.await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains(sentence), "{}", status.message());
    }
}

#[tokio::test]
async fn messages_of_a_stream_are_answered_in_their_order() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let mut client = client(&rig);
    let mut wrong = pair("wrong");
    wrong.inputs[0].name = "z".into();
    let mut messages: Vec<_> = (0..100).map(|number| pair(&number.to_string())).collect();
    messages.insert(50, wrong);
    let codec = ProstCodec::<ModelInferRequest, ModelStreamInferResponse>::default();
    let request = Request::new(stream::iter(messages));
    let answers = client
        .streaming(request, path(INFERENCE, "ModelStreamInfer"), codec)
        .await
        .unwrap()
        .into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    assert_eq!(answers.len(), 101);
    let (mut failed, mut expected) = (0, 0);
    for answer in answers {
        let response = answer.infer_response.unwrap();
        if answer.error_message.is_empty() {
            assert_eq!(response.id, expected.to_string());
            assert_eq!(response.raw_output_contents.len(), 1);
            expected += 1;
        } else {
            assert_eq!(response.id, "wrong");
            assert_eq!(expected, 50);
            assert_eq!(
                answer.error_message,
                "unknown input \"z\"; the model takes \"x\""
            );
            failed += 1;
        }
    }
    assert_eq!((failed, expected), (1, 100));
}

#[tokio::test]
async fn health_and_reflection_are_as_every_server_has_them() {
    let rig = Rig::start(config(&pairs())).await;
    let mut client = client(&rig);
    for (service, expected) in [("", Ok(1)), ("m", Ok(1)), ("other", Err(Code::NotFound))] {
        let request = Request::new(HealthCheckRequest {
            service: service.to_owned(),
        });
        let health =
            ask::<_, HealthCheckResponse>(&mut client, "grpc.health.v1.Health", "Check", request);
        let health = health.await.map(|health| health.into_inner().status);
        assert_eq!(
            health.map_err(|status| status.code()),
            expected,
            "{service}"
        );
    }
    let request = Request::new(stream::iter([ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    }]));
    let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
    let path = path(
        "grpc.reflection.v1.ServerReflection",
        "ServerReflectionInfo",
    );
    let answers = client.streaming(request, path, codec).await.unwrap();
    let answer = answers.into_inner().next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<&str> = services
        .service
        .iter()
        .map(|service| &*service.name)
        .collect();
    assert!(names.contains(&INFERENCE), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
    assert_eq!(json!(names).as_array().unwrap().len(), 3);
}
