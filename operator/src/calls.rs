//! Calls to the API server as they leave: how many of which kind, and when each watch was last known to work.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    task,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use hyper::{Method, Request, Response, header::CONTENT_TYPE};
use kube::client::Body;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tower::{Layer, Service};

use crate::memory::lock;

/// The time after which a watch that was not taken up again is dead. The API server ends each within 5 minutes, and
/// while it can't be reached the Lease runs out much sooner.
const DEAD_AFTER: Duration = Duration::from_mins(10);

/// The kind of a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// The verb as in RBAC, or "apply".
    pub verb: &'static str,
    /// The kind in the plural, with the subresource if there is one.
    pub resource: String,
}

/// Everything that is known of calls. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    /// Calls, by kind.
    pub counts: Family<Call, Counter>,
    /// The moments at which a list or a watch last began well, by kind in the plural.
    watches: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Calls {
    /// Expects these kinds, in the plural, to be watched from now on.
    pub fn expect(&self, kinds: impl IntoIterator<Item = String>, now: Instant) {
        lock(&self.watches).extend(kinds.into_iter().map(|kind| (kind, now)));
    }

    /// The kinds, in the plural, whose watch is dead.
    #[must_use]
    pub fn dead(&self, now: Instant) -> Vec<String> {
        let watches = lock(&self.watches);
        let dead = watches
            .iter()
            .filter(|(_, last)| now.saturating_duration_since(**last) > DEAD_AFTER);
        dead.map(|(kind, _)| kind.clone()).collect()
    }

    fn saw(&self, call: &Call, now: Instant) {
        if matches!(call.verb, "list" | "watch")
            && let Some(last) = lock(&self.watches).get_mut(&call.resource)
        {
            *last = now;
        }
    }
}

impl<S> Layer<S> for Calls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            calls: self.clone(),
        }
    }
}

/// A client that counts its calls.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    inner: S,
    calls: Calls,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> task::Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (call, calls) = (kind_of(&request), self.calls.clone());
        calls.counts.get_or_create(&call).inc();
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            if answer
                .as_ref()
                .is_ok_and(|answer| answer.status().is_success())
            {
                calls.saw(&call, Instant::now());
            }
            answer
        }
        .boxed()
    }
}

/// The kind of a call, as its path tells it: `/api/v1/[namespaces/NAMESPACE/]KIND[/NAME[/SUBRESOURCE]]`, or the same
/// below `/apis/GROUP/VERSION`.
fn kind_of<B>(request: &Request<B>) -> Call {
    let mut parts = request.uri().path().trim_matches('/').split('/');
    let skipped = if parts.next() == Some("apis") { 2 } else { 1 };
    let mut parts = parts.skip(skipped).peekable();
    if parts.peek() == Some(&"namespaces") {
        parts.next();
        parts.next();
    }
    let mut resource = parts.next().unwrap_or_default().to_owned();
    let is_one = parts.next().is_some();
    if let Some(subresource) = parts.next() {
        resource = format!("{resource}/{subresource}");
    }
    let queries = request.uri().query().unwrap_or_default();
    let is_watch = queries.split('&').any(|query| query == "watch=true");
    let is_apply = || {
        let content = request.headers().get(CONTENT_TYPE);
        content.is_some_and(|kind| kind.as_bytes().starts_with(b"application/apply-patch"))
    };
    let verb = match *request.method() {
        Method::GET if is_watch => "watch",
        Method::GET if is_one => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PATCH if is_apply() => "apply",
        Method::PATCH => "patch",
        Method::PUT => "update",
        Method::DELETE => "delete",
        _ => "other",
    };
    Call { verb, resource }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, uri: &str, content: &str) -> Request<()> {
        let request = Request::builder().method(method).uri(uri);
        request.header(CONTENT_TYPE, content).body(()).unwrap()
    }

    #[test]
    fn a_call_is_told_by_its_path() {
        let apply = "application/apply-patch+yaml";
        for (method, uri, content, verb, resource) in [
            (Method::GET, "/api/v1/pods?&watch=true", "", "watch", "pods"),
            (
                Method::GET,
                "/apis/apps/v1/deployments?&limit=1",
                "",
                "list",
                "deployments",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/n/services/s",
                "",
                "get",
                "services",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/n/deployments/d",
                apply,
                "apply",
                "deployments",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/n/deployments/d/scale",
                "",
                "patch",
                "deployments/scale",
            ),
            (
                Method::POST,
                "/api/v1/namespaces/n/secrets",
                "",
                "create",
                "secrets",
            ),
        ] {
            let call = kind_of(&request(method, uri, content));
            assert_eq!(
                (call.verb, call.resource.as_str()),
                (verb, resource),
                "{uri}"
            );
        }
    }

    #[test]
    fn a_watch_that_is_not_taken_up_again_is_dead() {
        let calls = Calls::default();
        let begin = Instant::now();
        calls.expect(["pods".to_owned(), "services".to_owned()], begin);
        let watch = |resource: &str| Call {
            verb: "watch",
            resource: resource.to_owned(),
        };
        calls.saw(&watch("pods"), begin + DEAD_AFTER);
        calls.saw(&watch("secrets"), begin + DEAD_AFTER);
        assert!(calls.dead(begin + DEAD_AFTER).is_empty());
        let later = begin + DEAD_AFTER + Duration::from_secs(1);
        assert_eq!(calls.dead(later), ["services"]);
    }
}
