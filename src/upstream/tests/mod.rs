//! The upstream against scripted origins on loopback.

mod accounts;
mod http1;
mod http2;
mod reach;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use http_body_util::BodyExt;
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::{EgressParts, EgressRequest, Exchange};
use crate::message::target::{Host, Scheme, Target};

use super::connector::UpstreamEnv;
use super::guard::{AddressRules, OwnListeners};
use super::resolver::Resolver;
use super::service::Upstream;
use super::settings::UpstreamSettings;

/// The name that resolves to loopback.
const HOST: &str = "api.test";

fn env_with(addresses: Vec<IpAddr>) -> Arc<UpstreamEnv> {
    Arc::new(UpstreamEnv {
        metrics: Arc::new(crate::telemetry::Metrics::new()),
        resolver: Resolver::scripted(Arc::new(move |name| match name {
            HOST => Ok(addresses.clone()),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        })),
        roots: Arc::new(RootCertStore::empty()),
        own_listeners: ArcSwap::from_pointee(OwnListeners::default()),
    })
}

fn env() -> Arc<UpstreamEnv> {
    env_with(vec!["127.0.0.1".parse().unwrap()])
}

fn settings(scheme: Scheme) -> UpstreamSettings {
    let rules =
        AddressRules { allow_private: vec!["127.0.0.0/8".parse().unwrap()], allow_metadata: Vec::new() };
    let mut settings = UpstreamSettings::new("test".into(), Arc::new(rules));
    settings.scheme = scheme;
    settings
}

fn upstream(settings: UpstreamSettings) -> Arc<Upstream> {
    Upstream::new(settings, env(), None, None).unwrap()
}

fn plain() -> Arc<Upstream> {
    upstream(settings(Scheme::Http))
}

fn request(scheme: Scheme, port: u16, path: &str) -> EgressRequest {
    EgressRequest::from(EgressParts {
        method: Method::GET,
        target: Target { scheme, host: Host::parse(HOST).unwrap(), port },
        path_and_query: path.parse().unwrap(),
        headers: HeaderMap::new(),
        body: Body::empty(),
        upgrade: false,
        credential_choice: 0,
        tenant: None,
        leave: None,
        exchange: Arc::new(Exchange::new(None)),
    })
}

fn get(origin: &Origin, path: &str) -> EgressRequest {
    request(Scheme::Http, origin.address.port(), path)
}

/// The whole answer: status and body.
async fn fetch(upstream: &Upstream, request: EgressRequest) -> Result<(u16, Bytes), Failure> {
    let answer = upstream.send(request).await?;
    Ok(collect(answer).await)
}

async fn collect(answer: Response<Body>) -> (u16, Bytes) {
    let status = answer.status().as_u16();
    (status, answer.into_body().collect().await.unwrap().to_bytes())
}

/// A server on loopback that counts its connections.
struct Origin {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Origin {
    /// Runs `serve` for every connection.
    async fn new<F, S>(serve: S) -> Self
    where
        S: Fn(TcpStream, usize) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, count.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { address, accepted }
    }

    /// Answers every request on every connection with the same bytes.
    async fn saying(answer: &'static [u8]) -> Self {
        Self::new(move |mut stream, _| async move {
            while read_head(&mut stream).await.is_some() {
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// The head of the next request; none at the end of the connection.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Lets everything else run until the condition holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(5), async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}
