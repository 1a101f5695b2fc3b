//! Paths and methods of the data port.

use std::{convert::Infallible, sync::Arc};

use carpool_process::methods;
use http::{
    HeaderValue, Method, Request, Response, Version,
    header::{CONNECTION, CONTENT_TYPE},
    request::Parts,
};
use hyper::body::Incoming;
use tracing::Instrument;

use crate::{
    body::IncomingBody,
    embeddings,
    error::Error,
    followed::Followed,
    grpc,
    infer::{self, Caller},
    jobs, metadata,
    metrics::Kind,
    payload::Payload,
    predict,
    proxy::{Proxy, Served},
    rerank, task, v1,
};

/// The paths that are served, for a client that asks for another.
const PATHS: &str = "/v2/models/NAME[/versions/VERSION]/infer, /v1/models/NAME:predict, /predict for a text, /v1/embeddings, /rerank, \
    and, by GET, /v2/jobs/ID[/result], \
    /v2, /v2/health/live, /v2/health/ready, /v2/models, /v2/models/NAME[/versions/VERSION][/ready] and /v1/models[/NAME]";

/// The methods that any of the paths takes.
const EVERY_METHOD: &str = "GET, HEAD, POST, DELETE, OPTIONS";

/// The thing that a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    /// The server as a whole: `*`, which only OPTIONS has.
    Any,
    Server,
    Live,
    Ready,
    Model(Target<'a>),
    ModelReady(Target<'a>),
    Infer(Target<'a>),
    /// Triton's view of how a model is served.
    Config(Target<'a>),
    /// The models that there are, in Triton's words.
    Index,
    /// The models that there are.
    Models,
    /// Whether a model is ready, in the protocol's first version.
    ModelV1(&'a str),
    /// The protocol's first version.
    PredictV1(&'a str),
    Predict,
    /// A job.
    Job(&'a str),
    /// A job's answer.
    JobResult(&'a str),
    /// The embeddings of texts, in the form of `OpenAI`.
    Embeddings,
    /// The scores of documents for a query.
    Rerank,
    /// Triton's memory that a client and its server share.
    SharedMemory,
}

/// The model that a path names.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    name: &'a str,
    version: Option<&'a str>,
}

impl<'a> Route<'a> {
    /// Parses a path; `None` where nothing is served at it.
    fn of(path: &'a str) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').collect();
        match segments[..] {
            ["*"] => Some(Self::Any),
            ["", "predict"] => Some(Self::Predict),
            ["", "v1", "embeddings"] => Some(Self::Embeddings),
            ["", "rerank"] | ["", "v1" | "v2", "rerank"] => Some(Self::Rerank),
            ["", "v2"] => Some(Self::Server),
            ["", "v2", "health", "live"] => Some(Self::Live),
            ["", "v2", "health", "ready"] => Some(Self::Ready),
            ["", "v1" | "v2", "models"] => Some(Self::Models),
            ["", "v2", "jobs", id] => Some(Self::Job(id)),
            ["", "v2", "jobs", id, "result"] => Some(Self::JobResult(id)),
            ["", "v2", "repository", "index"] => Some(Self::Index),
            ["", "v2", "systemsharedmemory" | "cudasharedmemory", ..] => Some(Self::SharedMemory),
            ["", "v1", "models", name] => Some(match name.strip_suffix(":predict") {
                Some(name) => Self::PredictV1(name),
                None => Self::ModelV1(name),
            }),
            ["", "v2", "models", name, "versions", version, ref rest @ ..] => {
                let version = Some(version);
                Self::of_model(Target { name, version }, rest)
            }
            ["", "v2", "models", name, ref rest @ ..] => {
                let version = None;
                Self::of_model(Target { name, version }, rest)
            }
            _ => None,
        }
    }

    fn of_model(target: Target<'a>, rest: &[&str]) -> Option<Self> {
        match rest {
            [] => Some(Self::Model(target)),
            ["ready"] => Some(Self::ModelReady(target)),
            ["config"] => Some(Self::Config(target)),
            ["infer"] => Some(Self::Infer(target)),
            _ => None,
        }
    }

    /// Whether the route asks the model for an answer.
    fn is_inference(&self) -> bool {
        matches!(
            self,
            Self::Infer(_) | Self::Predict | Self::PredictV1(_) | Self::Embeddings | Self::Rerank
        )
    }

    /// The methods that the route takes.
    fn methods(&self) -> &'static str {
        match self {
            Self::Infer(_)
            | Self::Predict
            | Self::PredictV1(_)
            | Self::Embeddings
            | Self::Rerank
            | Self::Index => methods::WRITE,
            Self::Any | Self::SharedMemory => EVERY_METHOD,
            Self::Job(_) => methods::REMOVABLE,
            _ => methods::READ,
        }
    }

    /// The kind that requests to the route are counted as.
    fn kind(&self) -> Kind {
        match self {
            Self::Any
            | Self::Server
            | Self::Model(_)
            | Self::Config(_)
            | Self::Index
            | Self::Models => Kind::Metadata,
            Self::Live | Self::Ready | Self::ModelReady(_) | Self::ModelV1(_) => Kind::Health,
            Self::Infer(_) => Kind::Infer,
            Self::Job(_) | Self::JobResult(_) => Kind::Job,
            Self::Predict | Self::PredictV1(_) => Kind::Predict,
            Self::Embeddings => Kind::Embeddings,
            Self::Rerank => Kind::Rerank,
            Self::SharedMemory => Kind::Unknown,
        }
    }
}

/// Answers one request, whatever it is.
pub async fn serve(
    proxy: Arc<Proxy>,
    client: Arc<str>,
    request: Request<Incoming>,
) -> Result<Response<Payload>, Infallible> {
    if grpc::is_grpc(request.headers()) {
        return Ok(grpc::serve(proxy, client, request).await);
    }
    let (head, body) = request.into_parts();
    let mut body = IncomingBody::new(&head.headers, body);
    let route = Route::of(head.uri.path());
    let kind = route.as_ref().map_or(Kind::Unknown, Route::kind);
    let inference = route.as_ref().is_some_and(Route::is_inference);
    let mut open = proxy.metrics.open(kind);
    let mut followed = if inference {
        Followed::new(&head.method, head.uri.path(), &head.headers)
    } else {
        Followed::default()
    };
    let span = followed.span.clone();
    let is_open_ai = matches!(route, Some(Route::Embeddings));
    let caller = Caller::new(client, &head.headers, &mut followed);
    let dispatched = dispatch(&proxy, caller, route, &head, &mut body);
    let mut response = match dispatched.instrument(span).await {
        Ok(response) => response,
        Err(error) => {
            if inference {
                proxy.metrics.refused(error.status().1);
                tracing::debug!(parent: &followed.span, %error, "request refused");
            }
            // A client whose time is over has waited long enough.
            if !matches!(error, Error::Deadline) {
                body.discard().await;
            }
            if is_open_ai {
                embeddings::error_response(&error)
            } else {
                error.response()
            }
        }
    };
    open.answered(response.status());
    if inference {
        let status = response.status().as_u16();
        tracing::debug!(parent: &followed.span, status, "request served");
        followed.answer(&head.headers, response.headers_mut());
    }
    if head.method == Method::HEAD {
        response = methods::head(response);
    }
    let cors = &proxy.served().cors;
    cors.allow(&head.method, &head.headers, response.headers_mut());
    // HTTP/2 tells all streams at once, when the connection ends.
    if head.version < Version::HTTP_2 && proxy.not_draining().is_err() {
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn dispatch(
    proxy: &Proxy,
    caller: Caller<'_>,
    route: Option<Route<'_>>,
    head: &Parts,
    body: &mut IncomingBody,
) -> Result<Response<Payload>, Error> {
    let route = route.ok_or_else(|| Error::UnknownPath {
        given: head.uri.path().to_owned(),
        served: PATHS,
    })?;
    let allowed = route.methods();
    if head.method == Method::OPTIONS {
        return Ok(methods::options(allowed));
    }
    if !allowed.split(", ").any(|allowed| head.method == allowed) {
        return Err(Error::Method {
            given: head.method.clone(),
            allowed,
        });
    }
    let is_asynchronous = route.is_inference() && jobs::is_asynchronous(&head.headers);
    let answer: Payload = match route {
        Route::Any | Route::Server => metadata::server().into(),
        Route::Live => metadata::live().into(),
        Route::Ready => {
            proxy.ready().await?;
            metadata::ready().into()
        }
        Route::Model(target) => metadata::model(&*target.served(proxy)?).into(),
        Route::ModelReady(target) => {
            let served = target.served(proxy)?;
            proxy.ready().await?;
            metadata::model_ready(&served).into()
        }
        Route::Infer(target) if is_asynchronous => {
            proxy.served().check_name(target.name)?;
            return jobs::submit(proxy, caller, head, body, target.version).await;
        }
        _ if is_asynchronous => return Err(Error::Asynchronous),
        Route::Job(id) if head.method == Method::DELETE => return jobs::cancel(proxy, id).await,
        Route::Job(id) => return jobs::state(proxy, id, &head.headers).await,
        Route::JobResult(id) => return jobs::result(proxy, id, &head.headers).await,
        Route::Infer(target) => {
            proxy.served().check_name(target.name)?;
            let version = target.version;
            return infer::serve(proxy, caller, head, body, version).await;
        }
        Route::Config(target) => metadata::config_json(&*target.served(proxy)?).into(),
        Route::Index => {
            let ready = proxy.ready().await;
            metadata::index_json(&proxy.served(), &ready).into()
        }
        Route::Models => metadata::models(&proxy.served()).into(),
        Route::ModelV1(name) => {
            let served = proxy.served();
            served.check_name(name)?;
            metadata::model_v1(&served, proxy.ready().await.is_ok()).into()
        }
        Route::PredictV1(name) => {
            proxy.served().check_name(name)?;
            return v1::serve(proxy, caller, head, body).await;
        }
        Route::Predict => predict::serve(proxy, caller, head, body).await?.into(),
        Route::Embeddings => task::serve::<embeddings::Form>(proxy, caller, head, body)
            .await?
            .into(),
        Route::Rerank => task::serve::<rerank::Form>(proxy, caller, head, body)
            .await?
            .into(),
        Route::SharedMemory => return Err(metadata::no_shared_memory(head.uri.path())),
    };
    Ok(json(answer))
}

impl Target<'_> {
    /// The model served, if it is the one that the path names.
    fn served(&self, proxy: &Proxy) -> Result<Arc<Served>, Error> {
        let served = proxy.served();
        served.check_name(self.name)?;
        served.check_version(self.version)?;
        Ok(served)
    }
}

/// An answer of JSON, with status 200.
pub fn json(body: impl Into<Payload>) -> Response<Payload> {
    let mut response = Response::new(body.into());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_protocol() {
        let target = |version| Target { name: "m", version };
        for (path, route) in [
            ("/v2", Route::Server),
            ("/v2/health/live", Route::Live),
            ("/v2/health/ready", Route::Ready),
            ("/v2/models/m", Route::Model(target(None))),
            ("/v2/models/m/ready", Route::ModelReady(target(None))),
            ("/v2/models/m/infer", Route::Infer(target(None))),
            ("/v2/models/m/versions/7", Route::Model(target(Some("7")))),
            (
                "/v2/models/m/versions/7/ready",
                Route::ModelReady(target(Some("7"))),
            ),
            (
                "/v2/models/m/versions/7/infer",
                Route::Infer(target(Some("7"))),
            ),
            ("/v2/models/m/config", Route::Config(target(None))),
            ("/v2/jobs/7", Route::Job("7")),
            ("/v2/jobs/7/result", Route::JobResult("7")),
            ("/v2/models", Route::Models),
            ("/v2/repository/index", Route::Index),
            (
                "/v2/systemsharedmemory/region/a/register",
                Route::SharedMemory,
            ),
            ("/v2/cudasharedmemory/status", Route::SharedMemory),
            ("/v1/models", Route::Models),
            ("/v1/models/m", Route::ModelV1("m")),
            ("/v1/models/m:predict", Route::PredictV1("m")),
            ("/predict", Route::Predict),
            ("/v1/embeddings", Route::Embeddings),
            ("/rerank", Route::Rerank),
            ("/v1/rerank", Route::Rerank),
            ("/v2/rerank", Route::Rerank),
            ("*", Route::Any),
        ] {
            assert_eq!(Route::of(path), Some(route), "{path}");
        }
        for path in [
            "/",
            "/v2/",
            "/v2/models/m/versions",
            "/v2/models/m/versions/7/infer/more",
            "/v1/models/m/infer",
            "/v2/repository/models/m/load",
        ] {
            assert_eq!(Route::of(path), None, "{path}");
        }
    }
}
