//! HEAD and OPTIONS, and pages of other origins.

use carpool_sidecar::Args;
use http::{HeaderValue, Method, StatusCode};
use serde_json::json;

use crate::{
    client::{Answer, JSON, http2, request, send, send_with, until},
    rig::{INFER, Rig, config, pair, pairs},
};

const PAGE: &str = "https://app.example.com";
const READ: &str = "GET, HEAD, OPTIONS";

/// Sends a request as a page of another origin does.
async fn ask(rig: &Rig, method: Method, path: &str, headers: &[(&'static str, &str)]) -> Answer {
    let body = if method == Method::POST {
        pair().to_string()
    } else {
        String::new()
    };
    let mut request = request(method, rig.address, path, JSON, body);
    for (name, value) in headers {
        request
            .headers_mut()
            .insert(*name, HeaderValue::from_str(value).unwrap());
    }
    send(request).await
}

#[tokio::test]
async fn head_says_what_get_says_but_for_the_body() {
    let rig = Rig::start(config(&pairs())).await;
    for (address, path) in [
        (rig.address, "/v2"),
        (rig.address, "/v2/health/live"),
        (rig.address, "/v2/health/ready"),
        (rig.address, "/v2/models/m"),
        (rig.address, "/v2/models/m/ready"),
        (rig.address, "/v2/models/m/versions/r1"),
        (rig.address, "/v2/models/other"),
        (rig.address, "/nowhere"),
        (rig.admin, "/livez"),
        (rig.admin, "/readyz"),
        (rig.admin, "/backlog"),
        (rig.admin, "/nowhere"),
    ] {
        let ask = |method| request(method, address, path, None, "");
        let get = send(ask(Method::GET)).await;
        // HTTP/1 would leave a body out by itself, HTTP/2 would not.
        for head in [
            send(ask(Method::HEAD)).await,
            send_with(&http2(), ask(Method::HEAD)).await,
        ] {
            assert_eq!(head.status, get.status, "{path}");
            assert_eq!(head.headers["content-type"], get.headers["content-type"]);
            let length = get.body.len().to_string();
            assert_eq!(head.headers["content-length"], length, "{path}");
            assert!(head.body.is_empty(), "{path}");
        }
    }
    let head = send(request(Method::HEAD, rig.admin, "/metrics", None, "")).await;
    assert_eq!(head.status, StatusCode::OK);
    let head = send(request(Method::HEAD, rig.address, INFER, None, "")).await;
    assert_eq!(head.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(head.headers["allow"], "POST, OPTIONS");
}

#[tokio::test]
async fn options_lists_the_methods() {
    let rig = Rig::start(config(&pairs())).await;
    for (address, path, allow) in [
        (rig.address, "/v2", READ),
        (rig.address, "/v2/models/m", READ),
        (rig.address, INFER, "POST, OPTIONS"),
        (rig.address, "/predict", "POST, OPTIONS"),
        (rig.admin, "/metrics", READ),
    ] {
        let answer = send(request(Method::OPTIONS, address, path, None, "")).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{path}");
        assert_eq!(answer.headers["allow"], allow, "{path}");
        assert!(answer.body.is_empty());
    }
    let answer = send(request(Method::OPTIONS, rig.address, "/nowhere", None, "")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_page_of_another_origin_reads_nothing_unless_it_is_allowed() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    for method in [Method::POST, Method::OPTIONS] {
        let preflight = ("access-control-request-method", "POST");
        let answer = ask(&rig, method, INFER, &[("origin", PAGE), preflight]).await;
        assert!(answer.status.is_success());
        for name in answer.headers.keys() {
            assert!(!name.as_str().starts_with("access-control-"), "{name}");
        }
    }
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_reads_answers_and_errors() {
    let mut configured = config(&pairs());
    configured["corsAllowOrigins"] = json!([PAGE]);
    let rig = Rig::start_with(configured.clone(), Args::default()).await;
    rig.echo();

    let preflight = [
        ("origin", PAGE),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type"),
    ];
    let answer = ask(&rig, Method::OPTIONS, INFER, &preflight).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    for (name, value) in [
        ("access-control-allow-origin", PAGE),
        ("access-control-allow-methods", "POST, OPTIONS"),
        ("access-control-allow-headers", "content-type"),
        ("vary", "origin"),
    ] {
        assert_eq!(answer.headers[name], value, "{name}");
    }

    for (method, path, status) in [
        (Method::POST, INFER, 200),
        (Method::POST, "/v2/models/other/infer", 404),
        (Method::GET, "/v2/models/m", 200),
        (Method::GET, INFER, 405),
    ] {
        let answer = ask(&rig, method.clone(), path, &[("origin", PAGE)]).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.headers["access-control-allow-origin"], PAGE);
        assert_eq!(answer.headers["vary"], "origin");
        let other = [("origin", "https://evil.example.com")];
        for headers in [&other[..], &[]] {
            let answer = ask(&rig, method.clone(), path, headers).await;
            assert_eq!(answer.status, status, "{path}");
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
            assert_eq!(answer.headers["vary"], "origin");
        }
    }

    configured["corsAllowOrigins"] = json!(["*"]);
    rig.configure(&configured);
    until(async || {
        let answer = ask(&rig, Method::GET, "/v2", &[("origin", PAGE)]).await;
        (answer.headers["access-control-allow-origin"] == "*").then_some(())
    })
    .await;
}
