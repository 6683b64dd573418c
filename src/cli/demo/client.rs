//! The app: it has a placeholder instead of a key, and sends one request by one door, on a connection of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::columns::{Line, Tone};
use super::provider::version;
use super::{DemoError, spawn};

/// What the app has instead of a key; with a blind tunnel, it is the app's own key.
pub const PLACEHOLDER: &str = "placeholder-of-the-app";
/// What the app posts.
const POSTED: &str = r#"{"item":"lamp"}"#;
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// How the app comes to outgate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The local endpoint, by the provider's path prefix.
    Local {
        /// `/<provider>`.
        prefix: &'static str,
    },
    /// `HTTP_PROXY`, with an http:// URL.
    HttpProxy,
    /// `HTTPS_PROXY`: CONNECT, then TLS.
    HttpsProxy {
        /// Whose certificates the app believes.
        trust: Trust,
        /// Whether it speaks HTTP/2 inside.
        http2: bool,
    },
}

/// What the app asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// By which door.
    pub way: Way,
    /// With which method.
    pub verb: Verb,
    /// Of whom.
    pub host: &'static str,
    /// Path at the provider.
    pub path: &'static str,
}

/// The methods that the app uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Without a body.
    Get,
    /// With a small JSON document.
    Post,
}

/// Whose certificates the app believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// outgate's bundle.
    Bundle,
    /// The provider's authority, and nobody else: a blind tunnel or nothing.
    Provider,
}

/// The app.
pub struct Client {
    /// Where outgate listens.
    pub outgate: SocketAddr,
    /// Believes outgate's bundle.
    pub bundle: Arc<ClientConfig>,
    /// Believes the provider's authority only.
    pub provider: Arc<ClientConfig>,
}

/// One request and its answer, as the app knows them.
#[derive(Debug)]
pub struct Call {
    /// What it sent.
    pub sent: Vec<Line>,
    /// What it got.
    pub got: Vec<Line>,
    /// The answer's status.
    pub status: StatusCode,
    /// The fields of the answer.
    pub headers: HeaderMap,
    /// Under which id the request is in outgate's log.
    pub request_id: String,
    /// Every byte of header values and body that the app got, to be searched.
    pub received: Vec<u8>,
}

impl Client {
    /// Sends a request, and reads the answer.
    pub async fn call(&self, ask: Ask) -> Result<Call, DemoError> {
        let mut call = Call::new();
        let Ask { verb, host, path, .. } = ask;
        match ask.way {
            Way::Local { prefix } => {
                let uri = format!("{prefix}{path}");
                let request = request(verb, &uri, Some(&self.outgate.to_string()))?;
                call.exchange_http1(TokioIo::new(dial(self.outgate).await?), request).await?;
            }
            Way::HttpProxy => {
                let request = request(verb, &format!("http://{host}{path}"), Some(host))?;
                call.exchange_http1(TokioIo::new(dial(self.outgate).await?), request).await?;
            }
            Way::HttpsProxy { trust, http2 } => {
                self.through_connect(&mut call, trust, http2, ask).await?;
            }
        }
        Ok(call)
    }

    /// Fetches a page of outgate's own, such as its metrics.
    pub async fn page(&self, address: SocketAddr, path: &str) -> Result<Vec<u8>, DemoError> {
        let mut call = Call::new();
        let request = request(Verb::Get, path, Some(&address.to_string()))?;
        call.exchange_http1(TokioIo::new(dial(address).await?), request).await?;
        Ok(call.received)
    }

    async fn through_connect(
        &self,
        call: &mut Call,
        trust: Trust,
        http2: bool,
        ask: Ask,
    ) -> Result<(), DemoError> {
        let Ask { verb, host, path, .. } = ask;
        let Some(tls) = self.tunnel(call, trust, http2, host).await? else { return Ok(()) };
        if http2 {
            // The URI goes as `:authority`: no `Host`.
            let mut request = request(verb, &format!("https://{host}{path}"), None)?;
            *request.version_mut() = Version::HTTP_2;
            call.exchange_http2(TokioIo::new(tls), request).await
        } else {
            call.exchange_http1(TokioIo::new(tls), request(verb, path, Some(host))?).await
        }
    }

    /// CONNECT and the handshake inside; nothing where CONNECT was refused, and `call` says why.
    async fn tunnel(
        &self,
        call: &mut Call,
        trust: Trust,
        http2: bool,
        host: &str,
    ) -> Result<Option<TlsStream<TokioIo<hyper::upgrade::Upgraded>>>, DemoError> {
        let target = format!("{host}:443");
        let request =
            Request::builder().method(Method::CONNECT).uri(target.parse::<Uri>().map_err(http::Error::from)?);
        let request = request.header(HOST, &target).body(Full::default())?;
        call.note_sent(&request);
        let response = send_http1(TokioIo::new(dial(self.outgate).await?), request).await?;
        if response.status() != StatusCode::OK {
            call.note_answer(response).await?;
            return Ok(None);
        }
        call.note_request_id(response.headers());
        let upgraded = TokioIo::new(hyper::upgrade::on(response).await?);
        let mut config = match trust {
            Trust::Bundle => ClientConfig::clone(&self.bundle),
            Trust::Provider => ClientConfig::clone(&self.provider),
        };
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let name = ServerName::try_from(host.to_owned())?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, upgraded).await;
        let tls = tls.map_err(DemoError::io("TLS handshake of the app"))?;
        let issuer = issuer(&tls).unwrap_or_else(|| "nobody".to_owned());
        call.sent.push(Line::new(Tone::Faint, format!("(200; TLS, certificate by {issuer})")));
        Ok(Some(tls))
    }
}

/// The one place where the demo dials: the app's connections, all of them to outgate.
#[expect(clippy::disallowed_methods, reason = "the demo is the app here, and dials outgate")]
async fn dial(address: SocketAddr) -> Result<TcpStream, DemoError> {
    let stream = TcpStream::connect(address).await.map_err(DemoError::io("connection to outgate"))?;
    // Only a matter of speed.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

fn request(verb: Verb, uri: &str, host: Option<&str>) -> Result<Request<Full<Bytes>>, DemoError> {
    let request = Request::builder().uri(uri);
    let request = if let Some(host) = host { request.header(HOST, host) } else { request };
    let request =
        request.header(AUTHORIZATION, format!("Bearer {PLACEHOLDER}")).header(USER_AGENT, "app/1.0");
    Ok(match verb {
        Verb::Get => request.body(Full::default())?,
        Verb::Post => {
            let request = request.method(Method::POST).header(CONTENT_TYPE, "application/json");
            request.body(Full::from(POSTED))?
        }
    })
}

/// Who signed the certificate that was shown.
fn issuer<I>(tls: &TlsStream<I>) -> Option<String> {
    let certificate = tls.get_ref().1.peer_certificates()?.first()?;
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.issuer().iter_common_name().next()?.as_str().ok()?;
    Some(format!("\"{name}\""))
}

async fn send_http1<I>(io: I, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, DemoError>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(io).await?;
    spawn(async move {
        // What breaks the connection breaks the request too, and is told there.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender.send_request(request).await?)
}

impl Call {
    fn new() -> Self {
        Self {
            sent: Vec::new(),
            got: Vec::new(),
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            request_id: String::new(),
            received: Vec::new(),
        }
    }

    async fn exchange_http1<I>(&mut self, io: I, request: Request<Full<Bytes>>) -> Result<(), DemoError>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        self.note_sent(&request);
        let response = send_http1(io, request).await?;
        self.note_answer(response).await
    }

    async fn exchange_http2<I>(&mut self, io: I, request: Request<Full<Bytes>>) -> Result<(), DemoError>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        self.note_sent(&request);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        spawn(async move {
            let _ = connection.await;
        });
        let response = sender.send_request(request).await?;
        self.note_answer(response).await
    }

    fn note_sent(&mut self, request: &Request<Full<Bytes>>) {
        let line = format!("{} {} {}", request.method(), request.uri(), version(request.version()));
        self.sent.push(Line::new(Tone::Bold, line));
        self.sent.extend(fields(request.headers()));
    }

    fn note_request_id(&mut self, headers: &HeaderMap) {
        if let Some(id) = headers.get("outgate-request-id").and_then(|id| id.to_str().ok()) {
            id.clone_into(&mut self.request_id);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the body is limited before it is collected")]
    async fn note_answer(&mut self, response: Response<Incoming>) -> Result<(), DemoError> {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(DemoError::Body)?.to_bytes();
        self.status = parts.status;
        // Through a blind tunnel outgate adds nothing: the id stays that of the CONNECT.
        self.note_request_id(&parts.headers);
        for value in parts.headers.values() {
            self.received.extend_from_slice(value.as_bytes());
            self.received.push(b'\n');
        }
        self.received.extend_from_slice(&body);
        let tone = if parts.status.is_success() { Tone::Good } else { Tone::Bad };
        self.got.push(Line::new(tone, format!("{} {}", version(parts.version), parts.status)));
        self.got.extend(fields(&parts.headers));
        self.got.push(Line::plain(String::from_utf8_lossy(&body).trim_end()));
        self.headers = parts.headers;
        Ok(())
    }

    /// A field of the answer, as text.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `Outgate-Error`, where outgate itself answered.
    pub fn error(&self) -> Option<&str> {
        self.field("outgate-error")
    }
}

/// The fields that say something here.
fn fields(headers: &HeaderMap) -> impl Iterator<Item = Line> {
    const NOISE: [&str; 3] = ["date", "content-length", "connection"];
    // Every answer of outgate's own has it.
    let own = |name: &HeaderName, value: &HeaderValue| *name == CACHE_CONTROL && value == "no-store";
    let shown =
        headers.iter().filter(move |(name, value)| !NOISE.contains(&name.as_str()) && !own(name, value));
    shown.map(|(name, value)| Line::plain(format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))))
}
