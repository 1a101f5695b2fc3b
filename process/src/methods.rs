//! Methods that every path of HTTP has beside its own: HEAD where there is GET, and OPTIONS.

use bytes::Bytes;
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::body::Body;

/// The methods of a path that is read.
pub const READ: &str = "GET, HEAD, OPTIONS";

/// The methods of a path that is written to.
pub const WRITE: &str = "POST, OPTIONS";

/// The methods of a path that is read, and whose thing can be removed.
pub const REMOVABLE: &str = "GET, HEAD, DELETE, OPTIONS";

/// The answer to OPTIONS for a path that takes the methods `allow`.
#[must_use]
pub fn options<B: Default>(allow: &'static str) -> Response<B> {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// The answer to HEAD: that to GET, its length included, without its body, which HTTP/2 would send.
#[must_use]
pub fn head<B: Body + Default>(get: Response<B>) -> Response<B> {
    let (mut head, body) = get.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(CONTENT_LENGTH, length.into());
    }
    Response::from_parts(head, B::default())
}

/// Answers a request to a port where everything is read; `get` is the answer to GET.
pub fn read(method: &Method, get: impl FnOnce() -> Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    if method == Method::GET {
        return get();
    }
    if method == Method::HEAD {
        return head(get());
    }
    if method == Method::OPTIONS {
        return options(READ);
    }
    let told = format!("method {method} is not allowed here; allowed are {READ}\n");
    let mut response = Response::new(Full::from(told));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(READ));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(CONTENT_TYPE, text);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Response<Full<Bytes>> {
        Response::new(Full::from("12345"))
    }

    #[test]
    fn head_is_get_without_the_body() {
        let answer = read(&Method::HEAD, page);
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[CONTENT_LENGTH], "5");
        assert_eq!(answer.body().size_hint().exact(), Some(0));
        assert_eq!(read(&Method::GET, page).body().size_hint().exact(), Some(5));
    }

    #[test]
    fn other_methods_are_told_which_there_are() {
        for (method, status) in [
            (Method::OPTIONS, StatusCode::NO_CONTENT),
            (Method::POST, StatusCode::METHOD_NOT_ALLOWED),
            (Method::DELETE, StatusCode::METHOD_NOT_ALLOWED),
        ] {
            let answer = read(&method, page);
            assert_eq!(answer.status(), status, "{method}");
            assert_eq!(answer.headers()[ALLOW], READ, "{method}");
        }
    }
}
