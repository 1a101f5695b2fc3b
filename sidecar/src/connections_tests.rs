use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::TRAILER};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::routes;

/// Serves every request with `answer` on an address of its own.
async fn serve<A, F>(answer: A, head_timeout: Duration) -> SocketAddr
where
    A: Fn(Arc<str>, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<Payload>, Infallible>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let way = Way {
        head_timeout,
        ..Way::new("p1".into(), None, Unread::new(0, Gauge::default()))
    };
    tokio::spawn(way.accept(listener, answer, CancellationToken::new()));
    address
}

#[tokio::test]
async fn a_client_that_asks_for_nothing_is_let_go() {
    let soon = Duration::from_millis(100);
    let address = serve(async |_, _| Ok(Response::default()), soon).await;
    // The second and third are how HTTP/2 begins.
    for begun in ["", "PRI ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(begun.as_bytes()).await.unwrap();
        let closed = async { while client.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} };
        tokio::time::timeout(Duration::from_secs(20), closed)
            .await
            .unwrap();
    }
}

/// Serves every request with an answer of this many bytes, to clients that have little time to take it.
async fn serve_in_no_time(bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let way = Way {
        write_timeout: Duration::from_millis(100),
        ..Way::new("p1".into(), None, Unread::new(0, Gauge::default()))
    };
    let answer = move |_, _| async move { Ok(Response::new(Payload::from(vec![b'x'; bytes]))) };
    tokio::spawn(way.accept(listener, answer, CancellationToken::new()));
    address
}

/// Waits until the server has closed the connection.
async fn closed(mut client: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset closes it as well.
    let end = tokio::time::timeout(Duration::from_secs(20), client.read_to_end(&mut bytes));
    let _ = end.await.expect("the connection is to be closed");
    bytes
}

#[tokio::test]
async fn a_further_head_that_does_not_end_is_not_waited_for() {
    let address = serve_in_no_time(2).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let asked = b"GET / HTTP/1.1\r\nhost: m\r\n\r\n";
    client.write_all(asked).await.unwrap();
    let mut answer = [0; 1024];
    assert!(client.read(&mut answer).await.unwrap() > 0);
    client.write_all(b"GET / HT").await.unwrap();
    closed(client).await;
}

#[tokio::test]
async fn an_answer_for_which_http2_leaves_no_room_is_not_held() {
    let address = serve_in_no_time(100).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    // SETTINGS whose INITIAL_WINDOW_SIZE is 0, and HEADERS with `GET http:/`, which end their stream.
    client
        .write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0")
        .await
        .unwrap();
    client
        .write_all(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x84\x86\x01\x01m")
        .await
        .unwrap();
    let bytes = closed(client).await;
    // HEADERS came, and none of the answer.
    assert!(
        bytes.windows(4).any(|frame| frame == b"\x01\x04\0\0"),
        "{bytes:?}"
    );
    assert!(!bytes.contains(&b'x'), "{bytes:?}");
}

/// An answer that ends with the trailer `x-status`.
fn with_trailer() -> Response<Payload> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-status", HeaderValue::from_static("7"));
    let frames = [
        Frame::data(Bytes::from_static(b"hello")),
        Frame::trailers(trailers),
    ];
    let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
    let mut response = Response::new(Payload::from(tonic::body::Body::new(StreamBody::new(
        frames,
    ))));
    let headers = response.headers_mut();
    headers.insert(TRAILER, HeaderValue::from_static("x-status"));
    response
}

#[tokio::test]
async fn an_answer_may_end_with_trailers() {
    let address = serve(async |_, _| Ok(with_trailer()), HEAD_TIMEOUT).await;

    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<Empty<Bytes>>();
    let uri = format!("http://{address}/").parse().unwrap();
    let answer = client.get(uri).await.unwrap().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-status"], "7");
    assert_eq!(answer.to_bytes(), "hello");

    let mut client = TcpStream::connect(address).await.unwrap();
    let asked = "GET / HTTP/1.1\r\nhost: m\r\nte: trailers\r\nconnection: close\r\n\r\n";
    client.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "5\r\nhello\r\n0\r\nx-status: 7\r\n\r\n");
}

#[tokio::test]
async fn an_answer_that_is_all_there_has_a_length_and_no_chunks() {
    let answer = async |_, _| Ok(routes::json("{}".to_owned()));
    let address = serve(answer, HEAD_TIMEOUT).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let asked = "GET / HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n";
    client.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("content-length: 2\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n{}"), "{answer}");
}

#[test]
fn a_client_is_its_address_or_whom_the_proxy_stands_beside() {
    let own: Arc<str> = "p1".into();
    for (peer, expected) in [
        ("10.1.2.3:4000", "10.1.2.3"),
        ("[::ffff:10.1.2.3]:4000", "10.1.2.3"),
        ("[fd00::7]:4000", "fd00::7"),
        ("127.0.0.1:4000", "p1"),
        ("[::1]:4000", "p1"),
        ("[::ffff:127.0.0.1]:4000", "p1"),
    ] {
        assert_eq!(&*client(Ok(peer.parse().unwrap()), &own), expected);
    }
    let gone = Err(io::ErrorKind::NotConnected.into());
    assert!(Arc::ptr_eq(&client(gone, &own), &own));
}

#[tokio::test]
async fn every_request_of_a_connection_is_of_the_same_client() {
    let (told, mut clients) = tokio::sync::mpsc::unbounded_channel();
    let answer = move |client, _| {
        told.send(client).unwrap();
        async { Ok(Response::default()) }
    };
    let address = serve(answer, HEAD_TIMEOUT).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let asked = "GET / HTTP/1.1\r\nhost: m\r\n\r\n".repeat(2);
    client.write_all(asked.as_bytes()).await.unwrap();
    let first = clients.recv().await.unwrap();
    let second = clients.recv().await.unwrap();
    assert_eq!(&*first, "p1");
    assert!(Arc::ptr_eq(&first, &second));
}
