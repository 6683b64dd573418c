//! Clients: raw sockets for what libraries would repair, and hyper for the rest.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ca::trusting;
use super::proxy::Proxy;

/// Nothing in a test waits longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An answer read whole.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// `error=` of Proxy-Status.
    pub fn proxy_error(&self) -> Option<&str> {
        self.header("proxy-status")?.split("; ").find_map(|part| part.strip_prefix("error="))
    }

    pub async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let collected = timeout(PATIENCE, body.collect()).await.unwrap().unwrap();
        let trailers = collected.trailers().cloned();
        Self { status: parts.status.as_u16(), headers: parts.headers, body: collected.to_bytes(), trailers }
    }
}

/// A connection whose bytes the test writes itself.
pub struct Raw<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Reads one HTTP/1 answer: head, and a body of Content-Length or chunks, or to the end of the stream.
    pub async fn answer(&mut self) -> Got {
        timeout(PATIENCE, self.read_answer(false)).await.expect("an answer in time").expect("an answer")
    }

    /// The same for an answer without body (HEAD, 2xx to CONNECT).
    pub async fn head(&mut self) -> Got {
        timeout(PATIENCE, self.read_answer(true)).await.expect("an answer in time").expect("an answer")
    }

    /// One answer, or nothing if the connection ends without.
    pub async fn answer_or_end(&mut self) -> Option<Got> {
        timeout(PATIENCE, self.read_answer(false)).await.expect("an answer or the end in time")
    }

    /// Whether the connection ends (with whatever is still sent).
    pub async fn ends(&mut self) -> bool {
        let mut rest = [0_u8; 4096];
        timeout(PATIENCE, async { while matches!(self.stream.read(&mut rest).await, Ok(n) if n > 0) {} })
            .await
            .is_ok()
    }

    /// Whether the connection is still open and silent for a moment.
    pub async fn stays(&mut self) -> bool {
        let mut byte = [0_u8; 1];
        self.buffer.is_empty()
            && timeout(Duration::from_millis(150), self.stream.read(&mut byte)).await.is_err()
    }

    async fn more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(n) if n > 0)
    }

    async fn read_answer(&mut self, head_only: bool) -> Option<Got> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if !self.more().await {
                return None;
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = HeaderMap::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            headers.append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                http::HeaderValue::from_bytes(value.trim().as_bytes()).unwrap(),
            );
        }
        if head_only || status == 204 || status == 304 || status / 100 == 1 {
            return Some(Got { status, headers, body: Bytes::new(), trailers: None });
        }
        let (body, trailers) = self.read_body(&headers).await;
        Some(Got { status, headers, body, trailers })
    }

    async fn read_body(&mut self, headers: &HeaderMap) -> (Bytes, Option<HeaderMap>) {
        if headers.get("transfer-encoding").is_some() {
            return self.read_chunks().await;
        }
        if let Some(length) = headers.get("content-length") {
            let length: usize = length.to_str().unwrap().parse().unwrap();
            while self.buffer.len() < length && self.more().await {}
            let length = length.min(self.buffer.len());
            return (self.buffer.drain(..length).collect::<Vec<u8>>().into(), None);
        }
        while self.more().await {}
        (std::mem::take(&mut self.buffer).into(), None)
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return String::from_utf8_lossy(&line[..end]).into_owned();
            }
            if !self.more().await {
                return String::new();
            }
        }
    }

    async fn read_chunks(&mut self) -> (Bytes, Option<HeaderMap>) {
        let mut body = Vec::new();
        loop {
            let line = self.line().await;
            let Ok(size) = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16) else {
                return (body.into(), None);
            };
            if size == 0 {
                break;
            }
            while self.buffer.len() < size + 2 && self.more().await {}
            let size = size.min(self.buffer.len());
            body.extend(self.buffer.drain(..size));
            if self.buffer.len() >= 2 {
                self.buffer.drain(..2);
            }
        }
        let mut trailers = HeaderMap::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(':') else { break };
            trailers.append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                http::HeaderValue::from_str(value.trim()).unwrap(),
            );
        }
        (body.into(), (!trailers.is_empty()).then_some(trailers))
    }
}

/// CONNECT, then whatever the test does with the open tunnel.
pub async fn tunnel(proxy: &Proxy, target: &str) -> Raw {
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).await;
    let got = raw.head().await;
    assert_eq!(got.status, 200, "CONNECT {target}: {got:?}");
    raw
}

/// CONNECT and TLS inside, trusting outgate's CA.
pub async fn intercepted(proxy: &Proxy, host: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
    intercepted_trusting(proxy, host, 443, &proxy.ca(), alpn).await
}

/// The same with another port and other roots.
pub async fn intercepted_trusting(
    proxy: &Proxy,
    host: &str,
    port: u16,
    pem: &str,
    alpn: &[&str],
) -> TlsStream<TcpStream> {
    let raw = tunnel(proxy, &format!("{host}:{port}")).await;
    over_tls(raw, host, pem, alpn).await
}

/// TLS inside an open tunnel.
pub async fn over_tls(raw: Raw, host: &str, pem: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
    let connector = TlsConnector::from(trusting(pem, alpn));
    timeout(PATIENCE, connector.connect(name, raw.stream)).await.unwrap().unwrap()
}

/// A request with hyper over a stream, HTTP/1.1.
pub async fn over_http1<S>(stream: S, request: Request<Full<Bytes>>) -> Got
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
    Got::read(response).await
}

/// A sender with hyper over a stream, HTTP/2.
pub async fn http2<S>(stream: S) -> hyper::client::conn::http2::SendRequest<Full<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A GET of a path at the local endpoint.
pub async fn local_get(proxy: &Proxy, path: &str) -> Got {
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", proxy.address())).await;
    raw.answer().await
}

/// A request with any head lines at the admin listener.
pub async fn admin(proxy: &Proxy, method: &str, path: &str) -> Got {
    let mut raw = Raw::connect(proxy.admin()).await;
    raw.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await;
    raw.answer().await
}

/// A simple request for hyper.
pub fn request(method: &str, uri: &str, host: Option<&str>, body: &'static str) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(uri);
    if let Some(host) = host {
        builder = builder.header("host", host);
    }
    builder.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

/// A request at the local endpoint, with further head lines (each ended by CRLF) and a body.
pub async fn local_request(address: SocketAddr, method: &str, path: &str, lines: &str, body: &str) -> Got {
    let mut raw = Raw::connect(address).await;
    raw.send(format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{lines}\r\n{body}",
        body.len()
    ))
    .await;
    raw.answer().await
}

/// The value of a sample of `/metrics`: the one of this name whose labels hold all of `labels`.
pub fn sample(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut found = metrics.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    let line = found.next()?;
    assert!(found.next().is_none(), "more than one {name} {labels:?}");
    line.rsplit(' ').next()?.parse().ok()
}

/// Asks for `/api/x` so many times at once over one HTTP/2 connection; the statuses.
pub async fn get_many(address: SocketAddr, count: usize) -> Vec<u16> {
    let mut sender = http2(TcpStream::connect(address).await.unwrap()).await;
    let mut answers = Vec::new();
    for _ in 0..count {
        sender.ready().await.unwrap();
        answers.push(sender.send_request(request("GET", &format!("http://{address}/api/x"), None, "")));
    }
    join_all(answers.into_iter().map(async |answer| Got::read(answer.await.unwrap()).await.status)).await
}
