//! Requests by TLS: by whom, with which protocols, and while the certificate is renewed.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use bytes::Bytes;
use carpool_sidecar::Args;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    client::post,
    rig::{INFER, Rig, config, pair, pairs},
};

/// A folder as a Secret of the type kubernetes.io/tls is mounted, which is renewed as the kubelet does: by the swap of
/// a link above the files.
pub struct Mounted {
    folder: TempDir,
}

impl Mounted {
    pub fn new() -> Self {
        let mounted = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for name in ["tls.crt", "tls.key"] {
            let link = mounted.path().join(name);
            std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
        }
        mounted.renew();
        mounted
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Puts a new certificate, signed by itself, in place of the last one.
    pub fn renew(&self) {
        let key = KeyPair::generate().unwrap();
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        self.put(&certificate.pem(), &key.serialize_pem());
    }

    /// Puts both files in place of the last ones, at once.
    pub fn put(&self, certificate: &str, key: &str) {
        let version = tempfile::tempdir_in(self.path()).unwrap().keep();
        fs::write(version.join("tls.crt"), certificate).unwrap();
        fs::write(version.join("tls.key"), key).unwrap();
        let next = self.file("..data_tmp");
        std::os::unix::fs::symlink(version.file_name().unwrap(), &next).unwrap();
        fs::rename(next, self.file("..data")).unwrap();
    }

    fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.file("tls.crt")).unwrap()
    }

    fn args(&self) -> Args {
        Args {
            tls_dir: Some(self.path().to_owned()),
            ..Args::default()
        }
    }
}

/// Connects by TLS, trusting a certificate and offering protocols.
async fn connect(
    rig: &Rig,
    trusted: CertificateDer<'static>,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let mut settings = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    settings.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(rig.address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(settings))
        .connect(name, stream)
        .await
}

/// Opens a connection by HTTP/1.1.
async fn open(rig: &Rig, trusted: CertificateDer<'static>) -> http1::SendRequest<Full<Bytes>> {
    let stream = connect(rig, trusted, &["http/1.1"]).await.unwrap();
    let (client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn ask(client: &mut http1::SendRequest<Full<Bytes>>, rig: &Rig) {
    client.ready().await.unwrap();
    let answer = client.send_request(post(rig.address, INFER, pair())).await;
    let (head, body) = answer.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    assert_eq!(head.status, 200, "{body:?}");
}

#[tokio::test]
async fn both_protocols_are_spoken_on_one_port() {
    let mounted = Mounted::new();
    let rig = Rig::start_with(config(&pairs()), mounted.args()).await;
    rig.echo();
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let stream = connect(&rig, mounted.certificate(), offered).await.unwrap();
        let spoken = stream.get_ref().1.alpn_protocol();
        assert_eq!(spoken, chosen.map(str::as_bytes), "{offered:?}");
        let request = post(rig.address, INFER, pair());
        let answer = if chosen == Some("h2") {
            let io = TokioIo::new(stream);
            let (mut client, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            client.send_request(request).await.unwrap()
        } else {
            let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            client.send_request(request).await.unwrap()
        };
        assert_eq!(answer.status(), 200, "{offered:?}");
    }
    // A protocol that is not spoken is told at once.
    let refused = connect(&rig, mounted.certificate(), &["spdy/1"]).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
    // The admin port, which the kubelet probes, is as it was.
    rig.is_ready().await;
}

#[tokio::test]
async fn curl_and_what_it_can_not_reach() {
    let mounted = Mounted::new();
    let rig = Rig::start_with(config(&pairs()), mounted.args()).await;
    rig.echo();
    let curl = async |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
            .arg(mounted.file("tls.crt"))
            .args(arguments);
        command.stdin(Stdio::null()).output().await.unwrap()
    };
    let url = format!("https://{}{INFER}", rig.address);
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let body = pair().to_string();
        let told = "\n%{http_version} %{http_code}";
        let output = curl(&[flag, "--json", &body, "--write-out", told, &url]).await;
        let said = String::from_utf8(output.stdout).unwrap();
        let (answer, status) = said.rsplit_once('\n').unwrap();
        assert_eq!(status, format!("{version} 200"), "{said}");
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        assert_eq!(answer["outputs"][0]["data"], json!([1.5, -2.0]));
    }
    // A client without TLS is not served, and neither is one that knows TLS 1.1 at most.
    let plain = curl(&[&url.replace("https", "http")]).await;
    assert!(!plain.status.success());
    let old = curl(&["--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0", &url]).await;
    assert!(!old.status.success());
    let still = curl(&["--json", &pair().to_string(), &url]).await;
    assert!(still.status.success());
}

#[tokio::test]
async fn a_renewed_certificate_is_for_new_connections_and_no_request_is_lost() {
    let mounted = Mounted::new();
    let rig = Rig::start_with(config(&pairs()), mounted.args()).await;
    rig.echo();
    let first = mounted.certificate();
    let mut old = open(&rig, first.clone()).await;
    ask(&mut old, &rig).await;

    let renewed = Cell::new(false);
    let load = async {
        // Each fails if the connection it began on is broken, or its answer is not 200.
        while !renewed.get() {
            ask(&mut old, &rig).await;
        }
    };
    let renewal = async {
        mounted.renew();
        rig.measures(r#"carpool_proxy_certificate_reloads_total{result="applied"} 1"#)
            .await;
        renewed.set(true);
    };
    tokio::join!(load, renewal);
    ask(&mut old, &rig).await;
    let second = mounted.certificate();
    ask(&mut open(&rig, second.clone()).await, &rig).await;
    let refused = connect(&rig, first, &[]).await.unwrap_err().to_string();
    assert!(refused.contains("invalid peer certificate"), "{refused}");

    // Nothing changes by what can't be used: a key of another certificate, no certificate, no file.
    let certificate = fs::read_to_string(mounted.file("tls.crt")).unwrap();
    mounted.put(&certificate, &KeyPair::generate().unwrap().serialize_pem());
    rig.measures(r#"carpool_proxy_certificate_reloads_total{result="refused"} 1"#)
        .await;
    mounted.put("", "");
    rig.measures(r#"carpool_proxy_certificate_reloads_total{result="refused"} 2"#)
        .await;
    fs::remove_file(mounted.file("..data")).unwrap();
    rig.measures(r#"carpool_proxy_certificate_reloads_total{result="refused"} 3"#)
        .await;
    ask(&mut open(&rig, second).await, &rig).await;

    mounted.renew();
    rig.measures(r#"carpool_proxy_certificate_reloads_total{result="applied"} 2"#)
        .await;
    ask(&mut open(&rig, mounted.certificate()).await, &rig).await;
    ask(&mut old, &rig).await;
}

#[tokio::test]
async fn files_that_are_written_one_after_another_are_read_once_both_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let other = Mounted::new();
    for name in ["tls.crt", "tls.key"] {
        fs::copy(other.file(name), folder.path().join(name)).unwrap();
    }
    let args = Args {
        tls_dir: Some(folder.path().to_owned()),
        ..Args::default()
    };
    let rig = Rig::start_with(config(&pairs()), args).await;
    rig.echo();
    other.renew();
    fs::copy(other.file("tls.crt"), folder.path().join("tls.crt")).unwrap();
    rig.measures(r#"carpool_proxy_certificate_reloads_total{result="refused"} 1"#)
        .await;
    fs::copy(other.file("tls.key"), folder.path().join("tls.key")).unwrap();
    rig.measures(r#"carpool_proxy_certificate_reloads_total{result="applied"} 1"#)
        .await;
    ask(&mut open(&rig, other.certificate()).await, &rig).await;
}

#[tokio::test]
async fn a_certificate_that_can_not_be_used_ends_the_process_with_a_sentence() {
    let mounted = Mounted::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), config(&pairs()).to_string()).unwrap();
    let said = async || {
        let output = Command::new(env!("CARGO_BIN_EXE_carpool-sidecar"))
            .env_clear()
            .arg("--config")
            .arg(file.path())
            .args(["--redis-url", "redis://127.0.0.1:1", "--name", "p1"])
            .arg("--tls-dir")
            .arg(mounted.path())
            .output();
        let output = output.await.unwrap();
        assert_eq!(output.status.code(), Some(64));
        String::from_utf8(output.stderr).unwrap()
    };
    let [certificate, key] =
        ["tls.crt", "tls.key"].map(|name| fs::read_to_string(mounted.file(name)).unwrap());
    let other = KeyPair::generate().unwrap().serialize_pem();
    for (certificate, key, parts) in [
        (
            &*certificate,
            &*other,
            ["tls.crt and tls.key can't be used", "its key"],
        ),
        (
            &key,
            &key,
            ["tls.crt must hold a certificate", "it holds none"],
        ),
        (
            &certificate,
            &certificate,
            ["tls.key must hold a private key", "PEM"],
        ),
        (&certificate, "", ["tls.key must hold a private key", "PEM"]),
    ] {
        mounted.put(certificate, key);
        let said = said().await;
        let begins = format!("carpool-sidecar: --tls-dir: {}", mounted.path().display());
        assert!(said.starts_with(&begins), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains("BEGIN"), "{said}");
    }
    fs::remove_file(mounted.file("..data")).unwrap();
    let said = said().await;
    let begins = "carpool-sidecar: --tls-dir: failed to read ";
    assert!(said.starts_with(begins), "{said}");
    assert!(said.contains("must hold tls.crt and tls.key"), "{said}");
}

#[tokio::test]
async fn a_client_that_does_not_agree_on_tls_holds_nobody_up() {
    let mounted = Mounted::new();
    let mut rig = Rig::start_with(config(&pairs()), mounted.args()).await;
    rig.echo();
    let mut silent = TcpStream::connect(rig.address).await.unwrap();
    let mut garbled = TcpStream::connect(rig.address).await.unwrap();
    garbled.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut told = Vec::new();
    garbled.read_to_end(&mut told).await.unwrap();
    // An alert of TLS, whose first byte is its type.
    assert_eq!(told.first(), Some(&21), "{told:?}");
    ask(&mut open(&rig, mounted.certificate()).await, &rig).await;
    rig.stop();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    rig.stopped().await;
}
