//! The webhook over TLS: bounds, changed files, and the end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::answer::MAX_BODY;
use super::super::live::{Files, Live};
use super::super::metrics::Metrics;
use super::super::peer::CONNECTIONS;
use super::super::server::{Injector, Settings};
use super::super::template::DEFAULT;
use super::{asked, pod};
use crate::tls::crypto_provider;

const NAME: &str = "injector.outgate.svc";

/// Files in a folder of their own.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> (Self, CertificateDer<'static>) {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::write(folder.path("template.yaml"), DEFAULT).unwrap();
        let certificate = folder.certify();
        (folder, certificate)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// A new pair.
    fn certify(&self) -> CertificateDer<'static> {
        let pair = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        std::fs::write(self.path("tls.crt"), pair.cert.pem()).unwrap();
        std::fs::write(self.path("tls.key"), pair.signing_key.serialize_pem()).unwrap();
        pair.cert.der().clone()
    }

    fn files(&self) -> Files {
        let at = |name| Path::to_path_buf(&self.path(name));
        Files { certificate: at("tls.crt"), key: at("tls.key"), template: at("template.yaml") }
    }

    async fn start(&self, linger: Duration) -> Injector {
        let any = "127.0.0.1:0".parse().unwrap();
        Injector::start(Settings { listen: any, health: any, files: self.files(), linger }).await.unwrap()
    }
}

async fn connect(
    injector: &Injector,
    trusted: &CertificateDer<'static>,
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_from([127, 0, 0, 1], injector, trusted, alpn).await
}

async fn connect_from(
    address: [u8; 4],
    injector: &Injector,
    trusted: &CertificateDer<'static>,
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let socket = TcpSocket::new_v4()?;
    socket.bind((address, 0).into())?;
    let stream = socket.connect(injector.listen).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), stream).await
}

/// One request on a connection of its own.
async fn send(
    injector: &Injector,
    trusted: &CertificateDer<'static>,
    method: Method,
    path: &str,
    body: Bytes,
) -> (StatusCode, String) {
    let stream = connect(injector, trusted, "http/1.1").await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(path).header("host", NAME).body(Full::new(body)).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn health(injector: &Injector, path: &str) -> String {
    let mut stream = TcpStream::connect(injector.health).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn good() -> Bytes {
    let pod =
        pod("metadata: { labels: { outgate.dev/inject: 'true' } }\nspec: { containers: [{ name: shop }] }\n");
    asked(&pod).to_string().into()
}

#[tokio::test]
async fn reviews_are_answered_and_all_else_is_not() {
    let (folder, trusted) = Folder::new();
    let injector = folder.start(Duration::ZERO).await;
    let (status, body) = send(&injector, &trusted, Method::POST, "/mutate", good()).await;
    assert_eq!(status, StatusCode::OK);
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert!(answer["response"]["patch"].is_string());
    let commas = || Bytes::from(format!("[{}0]", "0,".repeat(300_000)));
    for (method, path, body, wanted) in [
        (Method::POST, "/", good(), StatusCode::NOT_FOUND),
        (Method::GET, "/mutate", Bytes::new(), StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/metrics", Bytes::new(), StatusCode::NOT_FOUND),
        (Method::POST, "/mutate", Bytes::from_static(b"{"), StatusCode::BAD_REQUEST),
        (Method::POST, "/mutate", commas(), StatusCode::PAYLOAD_TOO_LARGE),
        // Large, and a review for all that.
        (Method::POST, "/mutate", large(MAX_BODY - 4096), StatusCode::OK),
    ] {
        let what = format!("{method} {path} {}", body.len());
        assert_eq!(send(&injector, &trusted, method, path, body).await.0, wanted, "{what}");
    }
    assert!(health(&injector, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(health(&injector, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(health(&injector, "/mutate").await.starts_with("HTTP/1.1 404"));
    let metrics = health(&injector, "/metrics").await;
    for line in [
        "outgate_injector_requests_total{result=\"injected\"} 2",
        "outgate_injector_requests_total{result=\"malformed\"} 2",
        "outgate_injector_requests_total{result=\"refused\"} 0",
        "outgate_injector_warnings_total 0",
        "outgate_injector_request_duration_seconds_count 4",
        "outgate_injector_reloads_total{what=\"template\",result=\"refused\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}:\n{metrics}");
    }
}

/// A review with an annotation of others that fills it.
fn large(bytes: usize) -> Bytes {
    let mut pod = pod(
        "metadata: { labels: { outgate.dev/inject: 'true' }, annotations: {} }\nspec: { containers: [{ name: shop }] }\n",
    );
    pod["metadata"]["annotations"]["notes"] = "x".repeat(bytes).into();
    asked(&pod).to_string().into()
}

/// A body that says it is too large is refused before it comes.
#[tokio::test]
async fn an_announced_flood_is_not_waited_for() {
    let (folder, trusted) = Folder::new();
    let injector = folder.start(Duration::ZERO).await;
    let mut stream = connect(&injector, &trusted, "http/1.1").await.unwrap();
    let head = format!("POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

/// Bodies that never come fill the room of their address, and of no other; it is empty again when their connections are gone.
#[tokio::test]
async fn half_a_body_holds_up_its_own_address_only() {
    let (folder, trusted) = Folder::new();
    let injector = folder.start(Duration::ZERO).await;
    let mut stream = connect(&injector, &trusted, "http/1.1").await.unwrap();
    let head = format!("POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY}\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let waiting = send(&injector, &trusted, Method::POST, "/mutate", good());
    tokio::pin!(waiting);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), &mut waiting).await.is_err(),
        "there is no room for this address"
    );
    let mut other = connect_from([127, 0, 0, 2], &injector, &trusted, "http/1.1").await.unwrap();
    other.write_all(&request(&good())).await.unwrap();
    let mut start = [0; 12];
    other.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    drop(stream);
    assert_eq!(waiting.await.0, StatusCode::OK);
}

fn request(body: &[u8]) -> Vec<u8> {
    let head = format!("POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Bodies without a length take what they bring, and not what they could.
#[tokio::test]
async fn a_body_without_a_length_takes_a_step() {
    let (folder, trusted) = Folder::new();
    let injector = folder.start(Duration::ZERO).await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut stream = connect(&injector, &trusted, "http/1.1").await.unwrap();
        let head = "POST /mutate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        open.push(stream);
    }
    let begun = std::time::Instant::now();
    assert_eq!(send(&injector, &trusted, Method::POST, "/mutate", good()).await.0, StatusCode::OK);
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    // And one grows as it comes.
    let mut stream = connect(&injector, &trusted, "http/1.1").await.unwrap();
    let body = large(700_000);
    let head =
        format!("POST /mutate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
}

/// As many connections as one address may have, without a request: others are served, and those are cut.
#[tokio::test]
async fn silent_connections_are_one_addresss_own_and_are_cut() {
    let (folder, trusted) = Folder::new();
    let injector = folder.start(Duration::ZERO).await;
    let mut silent = Vec::new();
    for number in 0..CONNECTIONS {
        let alpn = if number % 2 == 0 { "h2" } else { "http/1.1" };
        silent.push(connect(&injector, &trusted, alpn).await.unwrap());
    }
    assert!(connect(&injector, &trusted, "h2").await.is_err(), "one more");
    assert!(connect_from([127, 0, 0, 2], &injector, &trusted, "h2").await.is_ok());
    for mut stream in silent {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it is not cut");
    }
    assert_eq!(send(&injector, &trusted, Method::POST, "/mutate", good()).await.0, StatusCode::OK);
}

/// All places held by peers that say nothing, from as many addresses as that takes: who has something to say gets in at once.
#[tokio::test]
async fn silent_peers_together_do_not_keep_others_out() {
    let (folder, trusted) = Folder::new();
    let injector = folder.start(Duration::ZERO).await;
    let mut silent = Vec::new();
    for last in 2..10 {
        for _ in 0..CONNECTIONS {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, last], 0).into()).unwrap();
            silent.push(socket.connect(injector.listen).await.unwrap());
        }
    }
    let begun = std::time::Instant::now();
    for _ in 0..5 {
        assert_eq!(send(&injector, &trusted, Method::POST, "/mutate", good()).await.0, StatusCode::OK);
    }
    // Before the first of them is cut for taking too long.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    drop(silent);

    // Probes have a port of their own: who holds all places of that does not have this process taken for dead.
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(injector.health).await.unwrap());
    }
    let begun = std::time::Instant::now();
    assert!(health(&injector, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn http2_as_the_api_server_speaks_it() {
    let (folder, trusted) = Folder::new();
    let injector = folder.start(Duration::ZERO).await;
    let stream = connect(&injector, &trusted, "h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let calls = (0..20).map(|_| {
        let mut sender = sender.clone();
        async move {
            let uri = format!("https://{NAME}/mutate");
            let request = Request::post(uri).body(Full::new(good())).unwrap();
            sender.send_request(request).await.unwrap().status()
        }
    });
    for status in futures_util::future::join_all(calls).await {
        assert_eq!(status, StatusCode::OK);
    }
}

/// At the end: not ready, still serving; then what runs finishes, and nothing new is taken.
#[tokio::test]
async fn the_end_is_in_good_order() {
    let (folder, trusted) = Folder::new();
    let injector = Arc::new(folder.start(Duration::from_millis(400)).await);
    let mut running = connect(&injector, &trusted, "http/1.1").await.unwrap();
    let body = good();
    let head = format!("POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    running.write_all(head.as_bytes()).await.unwrap();
    running.flush().await.unwrap();
    let ending = injector.clone();
    let end = tokio::spawn(async move { ending.shutdown().await });
    while !health(&injector, "/readyz").await.starts_with("HTTP/1.1 503") {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        send(&injector, &trusted, Method::POST, "/mutate", good()).await.0,
        StatusCode::OK,
        "serving on"
    );
    while connect(&injector, &trusted, "http/1.1").await.is_ok() {
        tokio::task::yield_now().await;
    }
    running.write_all(&body).await.unwrap();
    let mut start = [0; 12];
    running.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200", "what ran has finished");
    assert!(end.await.unwrap());
}

/// What the loop of the watch does at each look.
#[tokio::test]
async fn changed_files_are_taken_over_and_bad_ones_are_not() {
    let (folder, _) = Folder::new();
    let metrics = Arc::new(Metrics::new());
    let live = Live::read(folder.files(), metrics.clone()).unwrap();
    let counted = |line: &str| assert!(metrics.encode().contains(line), "{line}\n{}", metrics.encode());
    let (tls, template) = (live.tls(), live.template());
    live.look();
    assert!(Arc::ptr_eq(&tls, &live.tls()) && Arc::ptr_eq(&template, &live.template()), "nothing changed");
    // A new certificate with the old key: half of a swap.
    let (other, _) = Folder::new();
    std::fs::copy(other.path("tls.crt"), folder.path("tls.crt")).unwrap();
    std::fs::write(folder.path("template.yaml"), "default: native\n").unwrap();
    live.look();
    assert!(
        Arc::ptr_eq(&tls, &live.tls()) && Arc::ptr_eq(&template, &live.template()),
        "what was in use goes on"
    );
    counted("reloads_total{what=\"certificate\",result=\"refused\"} 1");
    counted("reloads_total{what=\"template\",result=\"refused\"} 1");
    std::fs::remove_file(folder.path("tls.key")).unwrap();
    live.look();
    counted("reloads_total{what=\"certificate\",result=\"refused\"} 1");
    // The first look may have met a swap; the second tells, and only that one.
    for _ in 0..3 {
        live.look();
        counted("reloads_total{what=\"certificate\",result=\"refused\"} 2");
    }
    std::fs::copy(other.path("tls.key"), folder.path("tls.key")).unwrap();
    std::fs::write(folder.path("template.yaml"), DEFAULT.replace("--log=info", "--log=warn")).unwrap();
    live.look();
    assert!(!Arc::ptr_eq(&tls, &live.tls()));
    assert_ne!(template.hash, live.template().hash);
    counted("reloads_total{what=\"certificate\",result=\"applied\"} 1");
    counted("reloads_total{what=\"template\",result=\"applied\"} 1");
}

/// A template that cannot be read does not keep the certificate from being taken over.
#[tokio::test]
async fn each_file_is_looked_at_by_itself() {
    let (folder, _) = Folder::new();
    let metrics = Arc::new(Metrics::new());
    let live = Live::read(folder.files(), metrics.clone()).unwrap();
    let counted = |line: &str| assert!(metrics.encode().contains(line), "{line}\n{}", metrics.encode());
    let (tls, template) = (live.tls(), live.template());
    std::fs::write(folder.path("template.yaml"), "#".repeat(1024 * 1024 + 1)).unwrap();
    folder.certify();
    live.look();
    assert!(!Arc::ptr_eq(&tls, &live.tls()), "the new certificate is in use");
    assert!(Arc::ptr_eq(&template, &live.template()));
    counted("reloads_total{what=\"certificate\",result=\"applied\"} 1");
    counted("reloads_total{what=\"template\",result=\"refused\"} 0");
    for _ in 0..3 {
        live.look();
        counted("reloads_total{what=\"template\",result=\"refused\"} 1");
    }
    // Readable again, and changed.
    std::fs::write(folder.path("template.yaml"), DEFAULT.replace("--log=info", "--log=warn")).unwrap();
    std::fs::remove_file(folder.path("tls.crt")).unwrap();
    live.look();
    assert_ne!(template.hash, live.template().hash);
    counted("reloads_total{what=\"template\",result=\"applied\"} 1");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let (folder, _) = Folder::new();
    let wrong = |change: fn(&mut Files)| {
        let mut files = folder.files();
        change(&mut files);
        Live::read(files, Arc::new(Metrics::new())).err().unwrap().to_string()
    };
    assert!(
        wrong(|files| files.key = "/nowhere/tls.key".into()).starts_with("/nowhere/tls.key cannot be read")
    );
    assert_eq!(
        wrong(|files| files.key = files.certificate.clone()),
        "the key is not usable PEM: it holds nothing of the wanted kind"
    );
    assert!(wrong(|files| files.template = files.key.clone()).contains("tls.key: it is not a template"));
}
