//! The services that every gRPC server has: the standard health check, and the reflection of its descriptions.

use std::{convert::Infallible, sync::Arc};

use carpool_protocol::FILE_DESCRIPTOR_SET;
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::{Status, body::Body};
use tonic_health::pb::{
    FILE_DESCRIPTOR_SET as HEALTH, HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};
use tonic_reflection::server::Builder;
use tower::{Service, ServiceExt};

use crate::{error::Error, metrics::Kind, proxy::Proxy};

/// The services' paths, for a client that calls another.
const SERVICES: &str =
    "inference.GRPCInferenceService, grpc.health.v1.Health and grpc.reflection.v1.ServerReflection";

/// Answers a call that is not the protocol's.
pub async fn serve(proxy: Arc<Proxy>, path: &str, request: Request<Incoming>) -> Response<Body> {
    let service = path.split('/').nth(1).unwrap_or_default();
    let kind = match service {
        "grpc.health.v1.Health" => Kind::Health,
        "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection" => {
            Kind::Metadata
        }
        _ => Kind::Unknown,
    };
    let mut open = proxy.metrics.open(kind);
    let response = match service {
        "grpc.health.v1.Health" => {
            call(HealthServer::new(HealthOf(Arc::clone(&proxy))), request).await
        }
        "grpc.reflection.v1.ServerReflection" => match builder().build_v1() {
            Ok(reflection) => call(reflection, request).await,
            Err(error) => broken(&error),
        },
        "grpc.reflection.v1alpha.ServerReflection" => match builder().build_v1alpha() {
            Ok(reflection) => call(reflection, request).await,
            Err(error) => broken(&error),
        },
        _ => {
            let unknown = Error::UnknownPath {
                given: path.to_owned(),
                served: SERVICES,
            };
            Status::from(&unknown).into_http()
        }
    };
    open.answered(super::status_of(&response));
    response
}

fn builder() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(HEALTH)
}

fn broken(error: &impl std::fmt::Display) -> Response<Body> {
    let error = Error::Internal(format!("failed to describe the services: {error}"));
    Status::from(&error).into_http()
}

async fn call<S>(service: S, request: Request<Incoming>) -> Response<Body>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
{
    match service.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The health of the proxy, as its model's clients see it.
struct HealthOf(Arc<Proxy>);

#[tonic::async_trait]
impl Health for HealthOf {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let Self(proxy) = self;
        let asked = request.into_inner().service;
        let is_ours = ["", "inference.GRPCInferenceService"].contains(&&*asked);
        if !is_ours && asked != proxy.served().name {
            return Err(Status::not_found(format!("unknown service {asked:?}")));
        }
        let status = match proxy.ready().await {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        let status = status.into();
        Ok(tonic::Response::new(HealthCheckResponse { status }))
    }

    type WatchStream = futures::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented(
            "the proxy's health is not watched; ask for it by Check",
        ))
    }
}
