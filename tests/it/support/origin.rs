//! Origins: a scripted one that sends exact bytes, and an ordinary HTTP one that echoes what it got.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Any byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// An origin that does with each connection what the test says. Everything it received is kept.
pub struct RawOrigin {
    pub address: SocketAddr,
    pub received: Arc<Mutex<Vec<u8>>>,
    pub connections: Arc<AtomicUsize>,
}

/// A script: gets the stream and the number of the connection, from 0.
pub type Script =
    Arc<dyn Fn(Box<dyn Stream>, usize) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

impl RawOrigin {
    /// Runs `script` for each connection. With `tls` the script sees the plain bytes inside.
    pub async fn start(tls: Option<Arc<rustls::ServerConfig>>, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (received, connections) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<AtomicUsize>::default());
        let (bytes, count) = (received.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (tls, script, bytes) = (tls.clone(), script.clone(), bytes.clone());
                tokio::spawn(async move {
                    let stream: Box<dyn Stream> = match tls {
                        None => Box::new(stream),
                        Some(tls) => match TlsAcceptor::from(tls).accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    script(Box::new(Tee { stream, bytes }), number).await;
                });
            }
        });
        Self { address, received, connections }
    }

    /// Reads one request (its head, and a body of Content-Length), then writes `answer`, and closes.
    pub async fn answering(tls: Option<Arc<rustls::ServerConfig>>, answer: &'static [u8]) -> Self {
        Self::start(
            tls,
            Arc::new(move |mut stream, _| {
                Box::pin(async move {
                    if read_request(&mut stream).await.is_some() {
                        let _ = stream.write_all(answer).await;
                        let _ = stream.shutdown().await;
                    }
                })
            }),
        )
        .await
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().unwrap()).into_owned()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads one HTTP/1 request with a body of Content-Length; returns it whole, or nothing at the end of the stream.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .map_or(0, |value| value.trim().parse().unwrap());
            if bytes.len() >= end + 4 + length {
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

struct Tee {
    stream: Box<dyn Stream>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Tee {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.bytes.lock().unwrap().extend_from_slice(&buffer.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Tee {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request as an [`HttpOrigin`] got it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub type Answer = Response<BoxBody<Bytes, std::io::Error>>;
type Handler = Arc<dyn Fn(Seen) -> Answer + Send + Sync>;

/// An ordinary HTTP server, HTTP/1.1 or HTTP/2 as ALPN says (plain: HTTP/1.1).
pub struct HttpOrigin {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl HttpOrigin {
    /// Answers 200 with `{"ok":true}`.
    pub async fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        Self::with(tls, |_| text(200, "{\"ok\":true}")).await
    }

    /// Answers what the handler says, after the request's body was read whole.
    pub async fn with(
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (log, handler): (_, Handler) = (seen.clone(), Arc::new(handler));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, tls.clone(), log.clone(), handler.clone()));
            }
        });
        Self { address, seen }
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn only(&self) -> Seen {
        let all = self.requests();
        assert_eq!(all.len(), 1, "{all:#?}");
        all[0].clone()
    }
}

/// A short answer.
pub fn text(status: u16, body: &str) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes())).map_err(|never| match never {}).boxed();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

async fn serve(
    stream: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    handler: Handler,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (seen, handler) = (seen.clone(), handler.clone());
        async move {
            let (parts, body) = request.into_parts();
            let Ok(collected) = body.collect().await else {
                return Err(std::io::Error::other("the request was cut"));
            };
            let trailers = collected.trailers().cloned();
            let one = Seen {
                method: parts.method,
                uri: parts.uri,
                version: parts.version,
                headers: parts.headers,
                body: collected.to_bytes(),
                trailers,
            };
            seen.lock().unwrap().push(one.clone());
            Ok::<_, std::io::Error>(handler(one))
        }
    });
    match tls {
        None => {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
        Some(tls) => {
            let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            } else {
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        }
    }
}

impl HttpOrigin {
    /// The same on a listener of the test's own, such as on another loopback address.
    pub fn on(
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (log, handler): (_, Handler) = (seen.clone(), Arc::new(handler));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, tls.clone(), log.clone(), handler.clone()));
            }
        });
        Self { address, seen }
    }
}
