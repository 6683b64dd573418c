//! The floor: the least that a proxy in this language and on these libraries has to do.
//!
//! hyper's HTTP/1 server in front, hyper-util's pooled client with rustls behind, one thread, `TCP_NODELAY` on both
//! sides. It forwards method, path, headers and body, and streams the answer back. No policy, no credential, no log, no
//! timeout, no header is looked at. What outgate costs above this is what its features cost.

use std::io::{IoSlice, Result as IoResult};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Uri};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{Outcome, certificates, process};

/// Serves until standard input ends; says its address on standard output.
pub async fn run(origin: SocketAddr, directory: &Path) -> Outcome<()> {
    let tls = TlsConnector::from(certificates::trusting(&directory.join(certificates::ORIGIN_CA))?);
    let connector = tower::service_fn(move |_: Uri| Box::pin(connect(origin, tls.clone())));
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    process::announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let client = client.clone();
        let service = service_fn(move |request| client.request(onward(request)));
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // A client that goes away is no event here.
        tokio::spawn(async move { drop(connection.await) });
    }
}

/// The same request for the origin: the pool wants an absolute URI as its key, and sends the path alone.
fn onward(mut request: Request<Incoming>) -> Request<Incoming> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTPS);
    parts.authority = Some(http::uri::Authority::from_static(certificates::BENCH_HOST));
    // Scheme, authority and path are all there, so this cannot fail; the empty URI would be answered by an error.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    request
}

async fn connect(origin: SocketAddr, tls: TlsConnector) -> IoResult<Upstream> {
    let stream = TcpStream::connect(origin).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(certificates::BENCH_HOST).map_err(std::io::Error::other)?;
    Ok(Upstream(TokioIo::new(tls.connect(name, stream).await?)))
}

/// A connection to the origin, with the one trait that the pool asks for.
struct Upstream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Upstream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<IoResult<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Upstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<IoResult<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<IoResult<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
