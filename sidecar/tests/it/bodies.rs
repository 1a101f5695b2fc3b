//! Bodies that are too large, too slow or too many.

use bytes::Bytes;
use futures::stream;
use http::{Method, Request};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{
    client::{JSON, request, send, until},
    rig::{INFER, Rig, config, pair, pairs},
};

#[tokio::test]
async fn bodies_that_are_being_read_are_bounded_together() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let whole = 1 << 20;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: m\r\ncontent-length: {whole}\r\n\r\n");
    let all_but_a_byte = head + &" ".repeat(whole - 1);
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = TcpStream::connect(rig.address).await.unwrap();
        client.write_all(all_but_a_byte.as_bytes()).await.unwrap();
        clients.push(client);
    }
    until(async || {
        let answer = rig.post(INFER, pair()).await;
        (answer.status == 429).then(|| assert_eq!(answer.retry_after(), Some(1)))
    })
    .await;
    drop(clients);
    until(async || rig.post(INFER, pair()).await.ok().ok().map(drop)).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_however_it_comes() {
    let rig = Rig::start(config(&pairs())).await;
    rig.echo();
    let sentence = "the body is larger than the 1048576 bytes that a request may have";
    // The client writes its whole body before it reads, so that the proxy must not close on it.
    let spaces = |bytes: usize| Bytes::from(" ".repeat(bytes));
    for bytes in [(1 << 20) + 1, 8 << 20] {
        let answer = send(request(
            Method::POST,
            rig.address,
            INFER,
            JSON,
            spaces(bytes),
        ))
        .await;
        assert_eq!(answer.ok(), Err((413, sentence.to_owned())), "{bytes}");
    }
    let chunks = (0..64).map(move |_| Ok::<_, std::io::Error>(Frame::data(spaces(32 << 10))));
    let chunked = Request::post(format!("http://{}{INFER}", rig.address))
        .body(StreamBody::new(stream::iter(chunks)))
        .unwrap();
    assert_eq!(send(chunked).await.ok(), Err((413, sentence.to_owned())));

    let pair = pair().to_string();
    let just_right = " ".repeat((1 << 20) - pair.len()) + &pair;
    rig.post(INFER, just_right).await.ok().unwrap();
}

/// Sends the head of a request and the beginning of its body, and gives the first line of the answer.
async fn first_line(rig: &Rig, headers: &str, body: &str) -> String {
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let mut stream = BufReader::new(stream);
    let request = format!("POST {INFER} HTTP/1.1\r\nhost: m\r\n{headers}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    line
}

#[tokio::test]
async fn a_client_that_writes_it_all_before_it_reads_is_told() {
    let rig = Rig::start(config(&pairs())).await;
    let body = " ".repeat(8 << 20);
    for (header, told) in [
        ("content-type: text/plain", "415 Unsupported Media Type"),
        ("content-encoding: br", "415 Unsupported Media Type"),
        ("inference-header-content-length: x", "400 Bad Request"),
    ] {
        let headers = format!("{header}\r\ncontent-length: {}", body.len());
        let line = first_line(&rig, &headers, &body).await;
        assert_eq!(line, format!("HTTP/1.1 {told}\r\n"), "{header}");
    }
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told() {
    let rig = Rig::start(config(&pairs())).await;
    let headers = "expect: 100-continue\r\ncontent-length: ";
    let told = first_line(&rig, &format!("{headers}{}", 1 << 30), "").await;
    assert_eq!(told, "HTTP/1.1 413 Payload Too Large\r\n");
    let told = first_line(&rig, &format!("{headers}10"), "").await;
    assert_eq!(told, "HTTP/1.1 100 Continue\r\n");
}

#[tokio::test]
async fn a_body_that_never_ends_ends_at_the_deadline() {
    let mut config = config(&pairs());
    config["queue"]["timeout"] = json!("200ms");
    let rig = Rig::start(config).await;
    let told = first_line(&rig, "content-length: 10", "{").await;
    assert_eq!(told, "HTTP/1.1 504 Gateway Timeout\r\n");
}
