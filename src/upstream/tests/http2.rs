//! TLS and HTTP/2: one handshake for a cold host, shared connections, and what providers say when they go.

use std::sync::Mutex;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use crate::message::end::End;
use crate::message::failure::{Fault, Progress};
use crate::telemetry;
use crate::upstream::identity::{ClientIdentity, IdentitySource, SecretMissing};
use crate::upstream::settings::{HttpVersion, TlsSettings};

use super::*;

pub(super) struct Authority {
    pub(super) acceptor: TlsAcceptor,
    pem: Arc<[u8]>,
}

pub(super) fn authority(alpn: &[&[u8]]) -> Authority {
    let made = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Authority { acceptor: TlsAcceptor::from(Arc::new(config)), pem: made.cert.pem().into_bytes().into() }
}

pub(super) fn secured(authority: &Authority) -> UpstreamSettings {
    let tls = TlsSettings { ca: Some(authority.pem.clone()), ..TlsSettings::default() };
    // Handshakes are slow in a debug build on a busy machine.
    let ten = Duration::from_secs(10);
    UpstreamSettings { tls, tls_timeout: ten, connect_timeout: ten, ..settings(Scheme::Https) }
}

pub(super) fn https(origin: &Origin, path: &str) -> EgressRequest {
    request(Scheme::Https, origin.address.port(), path)
}

pub(super) type Incoming2 = (http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// An HTTP/2 origin; `answer` gets each request with its number, counted over all connections.
pub(super) async fn http2_origin<A>(acceptor: TlsAcceptor, answer: A) -> Origin
where
    A: Fn(Incoming2, usize) -> bool + Clone + Send + Sync + 'static,
{
    let count = Arc::new(AtomicUsize::new(0));
    Origin::new(move |stream, _| {
        let (acceptor, answer, count) = (acceptor.clone(), answer.clone(), count.clone());
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok(incoming)) = connection.accept().await {
                let goes_on = answer(incoming, count.fetch_add(1, Ordering::SeqCst));
                if !goes_on {
                    connection.graceful_shutdown();
                }
            }
        }
    })
    .await
}

pub(super) fn say_ok((_, mut respond): Incoming2) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from("ok"), true).unwrap();
}

#[tokio::test]
async fn a_cold_host_gets_one_connection_for_all() {
    let authority = authority(&[b"h2"]);
    let origin = http2_origin(authority.acceptor.clone(), |incoming, _| {
        let uri = incoming.0.uri().to_string();
        assert!(uri.starts_with("https://api.test:") && uri.ends_with("/a?b"), "{uri}");
        say_ok(incoming);
        true
    })
    .await;
    let upstream = upstream(secured(&authority));
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let (upstream, request) = (upstream.clone(), https(&origin, "/a?b"));
            let exchange = request.exchange.clone();
            tokio::spawn(async move { (fetch(&upstream, request).await.unwrap().1, exchange) })
        })
        .collect();
    let mut made = 0;
    for client in clients {
        let (body, exchange) = client.await.unwrap();
        assert_eq!(body, "ok");
        let facts = exchange.facts();
        assert_eq!(facts.upstream_version, Some(telemetry::HttpVersion::Http2));
        made += usize::from(facts.tls.is_some());
    }
    assert_eq!((origin.accepted(), made), (1, 1));
    let stats = upstream.stats();
    assert_eq!((stats.open, stats.http2, stats.idle), (1, 1, 1));
}

#[tokio::test]
async fn a_cold_host_that_fails_fails_once_for_all() {
    let authority_ = authority(&[b"h2"]);
    let other = authority(&[b"h2"]);
    let origin = http2_origin(authority_.acceptor.clone(), |incoming, _| {
        say_ok(incoming);
        true
    })
    .await;
    let upstream = upstream(secured(&other));
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let (upstream, request) = (upstream.clone(), https(&origin, "/"));
            tokio::spawn(async move { fetch(&upstream, request).await.unwrap_err() })
        })
        .collect();
    for client in clients {
        let failure = client.await.unwrap();
        assert_eq!((failure.fault, failure.progress), (Fault::TlsCertificate, Progress::NotSent));
    }
    assert_eq!(origin.accepted(), 1);
    assert_eq!(upstream.stats().open, 0);
}

#[tokio::test]
async fn a_host_that_speaks_http1_gets_as_many_connections_as_it_needs() {
    let authority = authority(&[b"http/1.1"]);
    let acceptor = authority.acceptor.clone();
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let origin = Origin::new(move |stream, _| {
        let (acceptor, both) = (acceptor.clone(), both.clone());
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = [0; 1024];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            both.wait().await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            stream.flush().await.unwrap();
            let _ = stream.read(&mut head).await;
        }
    })
    .await;
    let upstream = upstream(secured(&authority));
    let (one, two) =
        tokio::join!(fetch(&upstream, https(&origin, "/")), fetch(&upstream, https(&origin, "/")));
    assert_eq!((one.unwrap().0, two.unwrap().0), (200, 200));
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn after_goaway_the_next_request_gets_another_connection() {
    let authority = authority(&[b"h2"]);
    let origin = http2_origin(authority.acceptor.clone(), |incoming, _| {
        say_ok(incoming);
        false
    })
    .await;
    let upstream = upstream(secured(&authority));
    for round in 1..=3 {
        assert_eq!(fetch(&upstream, https(&origin, "/")).await.unwrap().1, "ok");
        eventually("the connection ends", || upstream.stats().open == 0).await;
        assert_eq!(origin.accepted(), round);
    }
}

#[tokio::test]
async fn a_refused_stream_was_not_processed_and_a_reset_one_may_have_been() {
    let authority = authority(&[b"h2"]);
    let origin = http2_origin(authority.acceptor.clone(), |mut incoming, number| {
        match number {
            0 => incoming.1.send_reset(h2::Reason::REFUSED_STREAM),
            1 => incoming.1.send_reset(h2::Reason::INTERNAL_ERROR),
            _ => say_ok(incoming),
        }
        true
    })
    .await;
    let upstream = upstream(secured(&authority));
    for progress in [Progress::NotSent, Progress::Sent] {
        let request = https(&origin, "/");
        let exchange = request.exchange.clone();
        let failure = fetch(&upstream, request).await.unwrap_err();
        assert_eq!((failure.fault, failure.progress), (Fault::Reset, progress));
        assert_eq!(exchange.may_have_acted(), progress == Progress::Sent);
    }
    assert_eq!(fetch(&upstream, https(&origin, "/")).await.unwrap().0, 200);
    // The refusal gave the connection up, the reset did not.
    assert_eq!(origin.accepted(), 2);
}

/// H2-12
#[tokio::test]
async fn a_huge_head_is_refused() {
    let authority = authority(&[b"h2"]);
    let origin = http2_origin(authority.acceptor.clone(), |mut incoming, _| {
        let mut response = Response::new(());
        for field in 0..200 {
            let name = http::HeaderName::try_from(format!("x-{field}")).unwrap();
            response.headers_mut().insert(name, "a".repeat(1024).parse().unwrap());
        }
        let _ = incoming.1.send_response(response, true);
        true
    })
    .await;
    let failure = fetch(&upstream(secured(&authority)), https(&origin, "/")).await.unwrap_err();
    assert_eq!((failure.fault, failure.progress), (Fault::HeadTooLarge, Progress::Sent));
}

#[tokio::test]
async fn above_the_providers_limit_of_streams_another_connection_is_made() {
    let authority = authority(&[b"h2"]);
    let acceptor = authority.acceptor.clone();
    let held = Arc::new(Mutex::new(Vec::new()));
    let holds = held.clone();
    let origin = Origin::new(move |stream, _| {
        let (acceptor, holds) = (acceptor.clone(), holds.clone());
        async move {
            let stream = acceptor.accept(stream).await.unwrap();
            let mut builder = h2::server::Builder::new();
            let mut connection =
                builder.max_concurrent_streams(1).handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok(incoming)) = connection.accept().await {
                if incoming.0.uri().path() == "/warm" {
                    say_ok(incoming);
                } else {
                    holds.lock().unwrap().push(incoming);
                }
            }
        }
    })
    .await;
    let mut settings = secured(&authority);
    settings.http = HttpVersion::Http2;
    let upstream = upstream(settings);
    // After one whole exchange the provider's settings are known.
    fetch(&upstream, https(&origin, "/warm")).await.unwrap();
    let mut running = Vec::new();
    for round in 1..=2 {
        let (upstream_, request) = (upstream.clone(), https(&origin, "/"));
        running.push(tokio::spawn(async move { fetch(&upstream_, request).await.unwrap().1 }));
        eventually("the stream is open", || held.lock().unwrap().len() == round).await;
    }
    assert_eq!(origin.accepted(), 2);
    held.lock().unwrap().drain(..).for_each(say_ok);
    for one in running {
        assert_eq!(one.await.unwrap(), "ok");
    }
}

struct Rotating(std::sync::atomic::AtomicU64, String, String);

impl IdentitySource for Rotating {
    fn version(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn current(&self) -> Result<ClientIdentity, SecretMissing> {
        match self.version() {
            9 => Err(SecretMissing("never read".into())),
            version => Ok(ClientIdentity {
                version,
                certificate_pem: self.1.clone().into_bytes(),
                key_pem: self.2.clone().into_bytes().into(),
            }),
        }
    }
}

#[tokio::test]
async fn connections_belong_to_one_version_of_the_client_certificate() {
    let authority = authority(&[b"h2"]);
    let origin = http2_origin(authority.acceptor.clone(), |incoming, _| {
        say_ok(incoming);
        true
    })
    .await;
    let made = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
    let identity = Arc::new(Rotating(1.into(), made.cert.pem(), made.signing_key.serialize_pem()));
    let upstream = Upstream::new(secured(&authority), env(), Some(identity.clone()), None).unwrap();
    for (version, accepted) in [(1, 1), (1, 1), (2, 2), (2, 2)] {
        identity.0.store(version, Ordering::SeqCst);
        assert_eq!(fetch(&upstream, https(&origin, "/")).await.unwrap().0, 200);
        assert_eq!(origin.accepted(), accepted);
    }
    identity.0.store(9, Ordering::SeqCst);
    let failure = fetch(&upstream, https(&origin, "/")).await.unwrap_err();
    assert_eq!((failure.fault, failure.progress), (Fault::Credential, Progress::NotSent));
}

#[tokio::test]
async fn an_upgrade_offers_http1_only() {
    let authority = authority(&[b"h2", b"http/1.1"]);
    let acceptor = authority.acceptor.clone();
    let origin = Origin::new(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            let mut head = [0; 1024];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            let agreed = b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(agreed).await.unwrap();
            stream.flush().await.unwrap();
        }
    })
    .await;
    let mut request = https(&origin, "/ws");
    request.upgrade = true;
    assert_eq!(upstream(secured(&authority)).send(request).await.unwrap().status(), 101);
}

/// A provider that takes one stream at a time: what waits does so in the pool, where a credential that ended is noticed, and
/// not inside the connection.
#[tokio::test]
async fn a_burst_on_a_cold_connection_waits_outside_of_it() {
    let authority = authority(&[b"h2"]);
    let (asked, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let (count, permits, acceptor) = (asked.clone(), answers.clone(), authority.acceptor.clone());
    let origin = Origin::new(move |stream, _| {
        let (count, permits, acceptor) = (count.clone(), permits.clone(), acceptor.clone());
        async move {
            let stream = acceptor.accept(stream).await.unwrap();
            let mut builder = h2::server::Builder::new();
            let mut connection =
                builder.max_concurrent_streams(1).handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok(incoming)) = connection.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let permits = permits.clone();
                tokio::spawn(async move {
                    permits.acquire().await.unwrap().forget();
                    say_ok(incoming);
                });
            }
        }
    })
    .await;
    let pool =
        crate::upstream::settings::PoolSettings { max_connections: 1, idle_timeout: Duration::from_secs(60) };
    let upstream = upstream(UpstreamSettings { pool, ..secured(&authority) });
    let requests: Vec<_> = (0..3).map(|number| https(&origin, &format!("/{number}"))).collect();
    let exchanges: Vec<_> = requests.iter().map(|request| request.exchange.clone()).collect();
    let clients: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let upstream = upstream.clone();
            tokio::spawn(async move { fetch(&upstream, request).await })
        })
        .collect();
    eventually("one is there, and two are in line", || {
        asked.load(Ordering::SeqCst) == 1 && upstream.stats().waiting == 2
    })
    .await;
    for exchange in &exchanges[1..] {
        exchange.facts().credential_ends = Some(End::at(tokio::time::Instant::now()));
    }
    answers.add_permits(3);
    let mut outcomes = Vec::new();
    for client in clients {
        outcomes.push(client.await.unwrap().map(|(status, _)| status).map_err(|failure| failure.fault));
    }
    assert_eq!(outcomes, [Ok(200), Err(Fault::Credential), Err(Fault::Credential)]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
