//! Redis behind TLS.

use std::path::Path;

use carpool_queue::{Consumer, Endpoint, QueueError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::{
    answer, consumer, options, producer, request,
    server::{Server, free_port},
    worker,
};

/// A certificate authority with the certificate and the key that it made for 127.0.0.1, as files.
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(["127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&server_key, &issuer)
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, pem) in [
            ("ca.crt", certificate.pem()),
            ("server.crt", server.pem()),
            ("server.key", server_key.serialize_pem()),
        ] {
            std::fs::write(folder.path().join(name), pem).unwrap();
        }
        Self { folder }
    }

    pub fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Returns the arguments of a server that is reached by TLS at this port.
    pub fn arguments(&self, port: u16) -> Vec<String> {
        [
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", self.file("server.crt")),
            ("--tls-key-file", self.file("server.key")),
            ("--tls-ca-cert-file", self.file("ca.crt")),
            ("--tls-auth-clients", "no".to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }
}

/// Starts a server that is reached by TLS, too. Returns it and its TLS URL.
fn start(authority: &Authority) -> (Server, String) {
    let port = free_port();
    let server = Server::start_with(authority.arguments(port));
    (server, format!("rediss://127.0.0.1:{port}"))
}

fn trusting(url: &str, authority: &Authority) -> Endpoint {
    let file = authority.file("ca.crt");
    Endpoint::from_url(url)
        .unwrap()
        .with_ca_file(Path::new(&file))
        .unwrap()
}

/// Returns the error of an endpoint that can't be reached.
async fn refused(endpoint: Endpoint) -> String {
    match producer(&endpoint, "proxy").backlog().await {
        Err(error @ QueueError::Unreachable(_)) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was let in"),
    }
}

#[tokio::test]
async fn requests_go_through_tls() {
    let authority = Authority::new();
    let (_server, url) = start(&authority);
    let endpoint = trusting(&url, &authority);
    let producer = producer(&endpoint, "proxy");
    let working = worker(consumer(&endpoint, "worker").await);
    let body = vec![7; 1 << 20];
    let outcome = producer.submit(request(body.clone())).await.unwrap();
    assert_eq!(outcome, answer(body));
    working.abort();
}

#[tokio::test]
async fn a_server_that_nobody_trusted_vouches_for_is_refused() {
    let authority = Authority::new();
    let (_server, url) = start(&authority);
    let other = Authority::new();
    let error = refused(trusting(&url, &other)).await;
    assert!(error.contains("certificate"), "{error}");

    // The system's authorities have never heard of this one either.
    let error = refused(Endpoint::from_url(&url).unwrap()).await;
    assert!(error.contains("certificate"), "{error}");

    // The certificate is for another name.
    let url = url.replace("127.0.0.1", "localhost");
    let error = refused(trusting(&url, &authority)).await;
    assert!(error.contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn the_next_connection_trusts_a_new_authority() {
    let authority = Authority::new();
    let (_server, url) = start(&authority);
    let folder = tempfile::tempdir().unwrap();
    let (url_file, ca_file) = (folder.path().join("url"), folder.path().join("ca.crt"));
    std::fs::write(&url_file, url).unwrap();
    std::fs::copy(Authority::new().file("ca.crt"), &ca_file).unwrap();
    let endpoints = [
        Endpoint::from_file(&url_file).unwrap(),
        Endpoint::from_file(&url_file)
            .unwrap()
            .with_ca_file(&ca_file)
            .unwrap(),
    ];
    for endpoint in &endpoints {
        refused(endpoint.clone()).await;
    }
    std::fs::copy(authority.file("ca.crt"), &ca_file).unwrap();
    for endpoint in &endpoints {
        assert!(producer(endpoint, "proxy").ping().await);
    }
    std::fs::write(&ca_file, "").unwrap();
    for endpoint in endpoints {
        let error = Consumer::connect(endpoint, options("worker")).await.err();
        assert!(
            matches!(error, Some(QueueError::CaFile { .. })),
            "{error:?}"
        );
    }
}

#[test]
fn a_ca_file_that_does_nothing_is_refused() {
    let authority = Authority::new();
    let tls = Endpoint::from_url("rediss://redis").unwrap();
    for (file, part) in [
        ("nowhere", "No such file"),
        ("server.key", "holds no PEM certificate"),
    ] {
        let file = authority.file(file);
        let error = tls.clone().with_ca_file(Path::new(&file)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(part) && error.contains(&file), "{error}");
    }
    let plain = Endpoint::from_url("redis://:secret@redis").unwrap();
    let file = authority.file("ca.crt");
    let error = plain
        .with_ca_file(Path::new(&file))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rediss://") && !error.contains("secret"),
        "{error}"
    );
}
