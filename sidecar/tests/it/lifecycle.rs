//! Clients that leave, a Redis that goes and comes back, a proxy that stops.

use carpool_sidecar::Args;
use carpool_testkit::RedisServer;
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    client::{http2, post, send_with, until},
    rig::{INFER, Rig, config, pair, pairs},
    worker,
};

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let rig = Rig::start(config(&pairs())).await;
    let body = pair().to_string();
    let head = format!(
        "POST {INFER} HTTP/1.1\r\nhost: m\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = TcpStream::connect(rig.address).await.unwrap();
    client.write_all((head + &body).as_bytes()).await.unwrap();
    rig.length("r1", 1).await;
    drop(client);
    rig.length("r1", 0).await;
    rig.measures(r#"carpool_proxy_requests_total{route="infer",code="499"} 1"#)
        .await;
    rig.measures("carpool_proxy_open_requests 0").await;
}

#[tokio::test]
async fn a_stream_that_is_reset_takes_its_request_along() {
    let rig = Rig::start(config(&pairs())).await;
    let client = http2();
    let request = post(rig.address, INFER, pair());
    let open = tokio::spawn(async move { send_with(&client, request).await });
    rig.length("r1", 1).await;
    open.abort();
    rig.length("r1", 0).await;
    rig.measures(r#"carpool_proxy_requests_total{route="infer",code="499"} 1"#)
        .await;
}

#[tokio::test]
async fn the_backlog_names_revision_and_workers() {
    let rig = Rig::start(config(&pairs())).await;
    let body = rig.admin("/backlog").await.ok().unwrap();
    assert_eq!(body["serving"], "r1");
    assert_eq!(body["open"], 0);

    let open = [rig.post_later(INFER, pair()), rig.post_later(INFER, pair())];
    rig.length("r1", 2).await;
    let consumer = worker::connect(rig.connection(), "r1").await;
    let jobs = consumer.fetch(1).await.unwrap();
    assert_eq!(jobs.len(), 1);
    let body = rig.admin("/backlog").await.ok().unwrap();
    let bytes = body["revisions"]["r1"]["bytes"].as_u64().unwrap();
    assert_eq!(bytes % 2, 0);
    assert!(bytes > 0);
    assert_eq!(
        body,
        json!({
            "serving": "r1",
            "revisions": {"r1": {
                "length": 2,
                "pending": 1,
                "bytes": bytes,
                "workers": {"w1": {"pending": 1}},
            }},
            "open": 2,
        })
    );
    for request in open {
        request.abort();
    }
    rig.length("r1", 0).await;
}

#[tokio::test]
async fn what_was_open_when_redis_went_is_answered_when_it_is_back() {
    let mut rig = Rig::start(config(&pairs())).await;
    let open = rig.post_later(INFER, pair());
    rig.length("r1", 1).await;
    // The Redis keeps nothing on disk, so the request is lost with it.
    rig.redis = None;
    until(async || (rig.get("/v2/health/ready").await.status == 503).then_some(())).await;
    rig.redis = Some(RedisServer::start_at(rig.port));
    rig.echo();
    let answer = open.await.unwrap().ok().unwrap();
    assert_eq!(answer["outputs"][0]["data"], json!([1.5, -2.0]));
}

#[tokio::test]
async fn a_redis_that_is_away_is_told_to_clients_and_not_to_load_balancers() {
    let mut rig = Rig::start(config(&pairs())).await;
    rig.redis = None;
    until(async || (rig.get("/v2/health/ready").await.status == 503).then_some(())).await;
    assert_eq!(rig.admin("/readyz").await.status, 200);
    let answer = rig.post(INFER, pair()).await;
    assert_eq!(answer.status, 503);
    assert!(answer.retry_after() >= Some(1), "{answer:?}");
}

#[tokio::test]
async fn a_lame_duck_serves_as_before_and_asks_for_goodbye() {
    let args = Args {
        lame_duck: Some("1h".to_owned()),
        ..Args::default()
    };
    let mut rig = Rig::start_with(config(&pairs()), args).await;
    rig.echo();
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (mut old, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let address = rig.address;
    let request = || post(address, INFER, pair());
    let answer = old.send_request(request()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("connection"));
    answer.collect().await.unwrap();
    let multiplexed = http2();
    send_with(&multiplexed, request()).await.ok().unwrap();

    rig.stop();
    until(async || (rig.admin("/readyz").await.status == 503).then_some(())).await;
    old.ready().await.unwrap();
    let answer = old.send_request(request()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["connection"], "close");
    send_with(&multiplexed, request()).await.ok().unwrap();
    let new = rig.post(INFER, pair()).await;
    assert_eq!(new.headers["connection"], "close");
    new.ok().unwrap();
}

#[tokio::test]
async fn a_proxy_that_stops_finishes_what_is_open() {
    let mut rig = Rig::start(config(&pairs())).await;
    let open = rig.post_later(INFER, pair());
    rig.length("r1", 1).await;
    rig.stop();

    let sentence = "this proxy is shutting down; try again".to_owned();
    until(async || (rig.admin("/readyz").await.status == 503).then_some(())).await;
    let ready = rig.admin("/readyz").await;
    assert_eq!(ready.retry_after(), Some(1));
    assert_eq!(ready.ok(), Err((503, sentence)));
    until(async || TcpStream::connect(rig.address).await.is_err().then_some(())).await;

    rig.echo();
    open.await.unwrap().ok().unwrap();
    rig.stopped().await;
}

#[tokio::test]
async fn a_proxy_that_stops_waits_no_longer_than_a_request_may_take() {
    let mut config = config(&pairs());
    config["queue"]["timeout"] = json!("300ms");
    let mut rig = Rig::start(config).await;
    // The head has no end: nothing will ever come of it.
    let mut client = TcpStream::connect(rig.address).await.unwrap();
    client.write_all(b"POST ").await.unwrap();
    rig.get("/v2").await.ok().unwrap();
    rig.stop();
    tokio::time::timeout(std::time::Duration::from_secs(10), rig.stopped())
        .await
        .expect("the head's own timeout is 30 s");
}
