//! Cross-origin resource sharing: which pages of other origins may read answers, as `spec.proxy.corsAllowOrigins` says.
//!
//! An origin that isn't allowed gets the same answer without these headers, and its browser keeps it from the page.

use http::{
    HeaderMap, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
        ACCESS_CONTROL_REQUEST_METHOD, ALLOW, ORIGIN, VARY,
    },
};

/// The seconds for which a browser may keep a preflight's answer; few, so that a changed setting soon holds for all.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The headers of answers that pages may read besides those that browsers let them.
const READABLE: HeaderValue = HeaderValue::from_static(
    "retry-after, carpool-request-id, x-request-id, inference-header-content-length",
);

const ANY: HeaderValue = HeaderValue::from_static("*");

/// The origins whose pages may read answers.
#[derive(Debug, Default)]
pub struct Cors {
    origins: Vec<HeaderValue>,
}

impl Cors {
    /// Allows pages of these origins; `*` is all of them.
    pub fn new(origins: &[String]) -> Self {
        // An origin that is no header's value is none that a browser sends.
        let origins = origins.iter().filter_map(|origin| origin.parse().ok());
        Self {
            origins: origins.collect(),
        }
    }

    /// Adds to an answer's headers those that let its page read it.
    pub fn allow(&self, method: &Method, request: &HeaderMap, response: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        if self.origins.contains(&ANY) {
            response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        } else {
            // Caches must not give one origin another's answer, nor that of a request without any.
            response.append(VARY, HeaderValue::from_name(ORIGIN));
            let origin = request.get(ORIGIN);
            let Some(origin) = origin.filter(|origin| self.origins.contains(origin)) else {
                return;
            };
            response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
        if method != Method::OPTIONS || !request.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, READABLE);
            return;
        }
        if let Some(methods) = response.get(ALLOW).cloned() {
            response.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        // Any header is allowed: none makes the proxy do what a page must not ask for, and a gateway before it may need
        // its own.
        if let Some(headers) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            response.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
            let vary = HeaderValue::from_name(ACCESS_CONTROL_REQUEST_HEADERS);
            response.append(VARY, vary);
        }
        response.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use http::header::RETRY_AFTER;

    use crate::{
        binary::JSON_LENGTH,
        followed::{CLIENT_REQUEST_ID, REQUEST_ID},
    };

    const PAGE: &str = "https://app.example.com";

    /// The headers that an answer to `request` gets where `origins` are allowed.
    fn answer(origins: &[&str], method: &Method, request: &[(&str, &'static str)]) -> HeaderMap {
        let origins: Vec<String> = origins.iter().map(ToString::to_string).collect();
        let request = request
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
            .collect();
        let mut response = HeaderMap::new();
        if method == Method::OPTIONS {
            response.insert(ALLOW, HeaderValue::from_static("POST, OPTIONS"));
        }
        Cors::new(&origins).allow(method, &request, &mut response);
        response
    }

    #[test]
    fn nothing_is_said_unless_it_is_set() {
        assert!(answer(&[], &Method::POST, &[("origin", PAGE)]).is_empty());
    }

    #[test]
    fn an_origin_is_allowed_or_not_and_caches_know_of_it() {
        let allowed = ["https://other.example.com", PAGE];
        let answered = answer(&allowed, &Method::POST, &[("origin", PAGE)]);
        assert_eq!(answered[ACCESS_CONTROL_ALLOW_ORIGIN], PAGE);
        let readable =
            [RETRY_AFTER, REQUEST_ID, CLIENT_REQUEST_ID, JSON_LENGTH].map(|name| name.to_string());
        assert_eq!(answered[ACCESS_CONTROL_EXPOSE_HEADERS], readable.join(", "));
        assert_eq!(answered[VARY], "origin");
        for request in [
            &[][..],
            &[("origin", "https://app.example.com.evil.com")],
            &[("origin", "http://app.example.com")],
            &[("origin", "null")],
        ] {
            let answered = answer(&allowed, &Method::POST, request);
            assert_eq!(answered.len(), 1, "{request:?}");
            assert_eq!(answered[VARY], "origin");
        }
    }

    #[test]
    fn any_origin_needs_no_vary() {
        let answered = answer(&["*"], &Method::POST, &[("origin", PAGE)]);
        assert_eq!(answered[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(!answered.contains_key(VARY));
    }

    #[test]
    fn a_preflight_learns_methods_and_headers() {
        let request = [
            ("origin", PAGE),
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "content-type, traceparent",
            ),
        ];
        let answered = answer(&[PAGE], &Method::OPTIONS, &request);
        assert_eq!(answered[ACCESS_CONTROL_ALLOW_ORIGIN], PAGE);
        assert_eq!(answered[ACCESS_CONTROL_ALLOW_METHODS], "POST, OPTIONS");
        let headers = "content-type, traceparent";
        assert_eq!(answered[ACCESS_CONTROL_ALLOW_HEADERS], headers);
        assert_eq!(answered[ACCESS_CONTROL_MAX_AGE], "600");
        let vary: Vec<_> = answered.get_all(VARY).iter().collect();
        assert_eq!(vary, ["origin", "access-control-request-headers"]);
    }
}
