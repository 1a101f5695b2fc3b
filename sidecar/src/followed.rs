//! The identifiers by which one inference request is followed, in the headers of its answer and in logs.

use carpool_queue::Ticket;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tracing::{Span, field};

/// The header with the client's own identifier of a request, which its answer repeats.
pub const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The header of an answer with the uuid under which the request was queued.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("carpool-request-id");

/// The identifiers of one inference request, and the span that holds them in logs.
#[derive(Debug)]
pub struct Followed {
    /// The span that events about the request belong to.
    pub span: Span,
    /// The uuid under which the request was queued; `None` where it was not.
    queued_as: Option<HeaderValue>,
}

/// The identifiers of a request that is not followed.
impl Default for Followed {
    fn default() -> Self {
        Self {
            span: Span::none(),
            queued_as: None,
        }
    }
}

impl Followed {
    /// Begins to follow a request. Its span is at debug level: at the default level it costs nothing.
    pub fn new(method: &Method, path: &str, headers: &HeaderMap) -> Self {
        let client_id = headers.get(CLIENT_REQUEST_ID);
        let span = tracing::debug_span!(
            "infer",
            %method,
            path,
            id = field::Empty,
            x_request_id = client_id.and_then(|id| id.to_str().ok()),
        );
        Self {
            span,
            queued_as: None,
        }
    }

    /// Notes that the request is queued.
    pub fn queued(&mut self, ticket: &Ticket<'_>) {
        let id = ticket.id();
        self.span.record("id", field::display(id));
        let mut text = [0; 36];
        let text = id.hyphenated().encode_lower(&mut text);
        self.queued_as = HeaderValue::from_str(text).ok();
    }

    /// Adds the request's identifiers to the headers of its answer.
    pub fn answer(self, request: &HeaderMap, answer: &mut HeaderMap) {
        if let Some(id) = request.get(CLIENT_REQUEST_ID) {
            answer.insert(CLIENT_REQUEST_ID, id.clone());
        }
        if let Some(id) = self.queued_as {
            answer.insert(REQUEST_ID, id);
        }
    }
}
