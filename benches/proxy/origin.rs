//! The origin: 1 KiB of JSON for whoever brings the credential, `/bytes/N` for tunnels, and a token endpoint.

use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;
use futures_util::stream;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{Outcome, certificates, process};

/// The credential that outgate injects; all other clients of the origin send it themselves.
pub const TOKEN: &str = "bench-9f3c1e7a5d2b4860";
/// What the origin wants in `Authorization`.
pub const CREDENTIAL: &str = "Bearer bench-9f3c1e7a5d2b4860";
/// A field that says that no credential was meant to come.
pub const FREE: &str = "x-bench-free";
const DOCUMENT: usize = 1024;
const CHUNK: &[u8] = &[b'x'; 64 * 1024];

/// Serves until standard input ends; says its address on standard output.
pub async fn run(directory: &Path) -> Outcome<()> {
    let acceptor = TlsAcceptor::from(certificates::origin(directory)?);
    let document = document();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    process::announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, document) = (acceptor.clone(), document.clone());
        // A client that goes away is no event here.
        tokio::spawn(async move { drop(serve(acceptor, stream, document).await) });
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, document: Bytes) -> Outcome<()> {
    let stream = acceptor.accept(stream).await?;
    let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| {
        let document = document.clone();
        async move { Ok::<_, Infallible>(answer(&request, document)) }
    });
    let stream = TokioIo::new(stream);
    if two {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.serve_connection(stream, service).await?;
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await?;
    }
    Ok(())
}

fn answer(request: &Request<Incoming>, document: Bytes) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    if let Some(length) = request.uri().path().strip_prefix("/bytes/").and_then(|count| count.parse().ok()) {
        return stream_of(length);
    }
    if request.uri().path() == "/oauth/token" {
        let token = format!("{{\"access_token\":\"{TOKEN}\",\"expires_in\":3600}}");
        return Response::new(Full::new(token.into()).boxed_unsync());
    }
    // So that every request of the load proves that the credential was injected.
    let known = match request.headers().get(AUTHORIZATION) {
        Some(value) => value == CREDENTIAL || value.as_bytes().starts_with(b"AWS4-HMAC-SHA256 "),
        None => request.headers().contains_key(FREE),
    };
    let mut response = Response::new(Full::new(document).boxed_unsync());
    *response.status_mut() = if known { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// `length` bytes, 64 KiB at a time.
fn stream_of(length: u64) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let chunks = stream::unfold(length, |left| async move {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK.len());
        (size > 0).then(|| (Ok(Frame::data(Bytes::from_static(&CHUNK[..size]))), left - size as u64))
    });
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response
}

/// A JSON document of 1 KiB, as an API might answer it.
fn document() -> Bytes {
    let mut text = r#"{"object":"list","has_more":false,"data":[{"id":"item_1","note":""#.to_owned();
    let end = r#""}]}"#;
    text.extend(std::iter::repeat_n('a', DOCUMENT - text.len() - end.len()));
    text.push_str(end);
    Bytes::from(text)
}
