//! Serves one connection: HTTP/1.1 or HTTP/2, drained when outgate stops, and recorded where hyper answers by itself.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::context::{ConnectionContext, Proxy};
use super::dispatch::{Arrival, note_connection};
use super::original::Redirected;
use super::rest::Awaited;
use super::socket::Socket;
use super::stalls::Stalls;
use crate::message::record::Record;
use crate::telemetry::{Door, Flag, HttpVersion, new_request_id};

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

// What a client of HTTP/2 can make outgate hold: of uploads, at most the connection's window for all streams together; of
// answers, for each stream the send buffer and a few pieces of what was read ahead of the provider. That is about 130 KiB a
// stream, so 14 MiB for a connection that opens all of its streams wide and then reads nothing.

/// Streams of one connection.
const STREAMS: u32 = 100;
/// What one stream may have in flight towards us.
const STREAM_WINDOW: u32 = 128 * 1024;
/// What one connection may have in flight towards us.
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Where h2 stops asking a body for more: one frame. What is on its way is in the socket's buffer, not in this one.
const SEND_BUFFER: usize = 16 * 1024;

/// What an HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection of a listener. `context.stalls` is decided here, with the protocol.
pub async fn serve(proxy: Arc<Proxy>, mut context: ConnectionContext, mut socket: Socket) {
    let sniffed = tokio::select! {
        sniffed = sniff(&mut socket) => sniffed,
        // A connection on which nothing was asked holds nothing up.
        () = proxy.drain.cancelled() => return,
    };
    let protocol = match sniffed {
        Ok(Some(protocol)) => protocol,
        // Nothing was ever sent, or it broke before a request began: there is nothing to record.
        Ok(None) | Err(_) => return,
    };
    if protocol == Protocol::Http2 {
        context.stalls = Some(Stalls::default());
    }
    serve_http(proxy, Arc::new(context), socket, protocol).await;
}

/// Tells HTTP/2 by prior knowledge from HTTP/1 by its preface; the bytes are read again by whoever serves.
async fn sniff(socket: &mut Socket) -> std::io::Result<Option<Protocol>> {
    let mut buffer = Vec::with_capacity(2048);
    loop {
        let read = socket.read_buf(&mut buffer).await?;
        let begins = buffer.len().min(PREFACE.len());
        let decided = if buffer[..begins] != PREFACE[..begins] {
            Some(Protocol::Http1)
        } else if begins == PREFACE.len() {
            Some(Protocol::Http2)
        } else if read == 0 {
            if buffer.is_empty() {
                return Ok(None);
            }
            Some(Protocol::Http1)
        } else {
            None
        };
        if let Some(protocol) = decided {
            socket.unread(Bytes::from(buffer));
            return Ok(Some(protocol));
        }
    }
}

/// Serves HTTP on a connection until it ends.
pub async fn serve_http<IO>(proxy: Arc<Proxy>, context: Arc<ConnectionContext>, io: IO, protocol: Protocol)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut io = Awaited::new(io);
    // Boxed, so that a connection has room for what it speaks, and not for both in every task around it.
    match protocol {
        Protocol::Http1 => {
            // Each turn ends when the connection has come to rest.
            while let Some(resting) = Box::pin(serve_http1(&proxy, &context, io)).await {
                let Some(woken) = wake(&proxy, &context, resting).await else { return };
                io = woken;
            }
        }
        Protocol::Http2 => Box::pin(serve_http2(proxy, context, io)).await,
    }
}

/// Waits for the next byte of a connection at rest. Nothing is recorded where it ends instead: no request had begun.
async fn wake<IO>(
    proxy: &Proxy,
    context: &ConnectionContext,
    mut io: TokioIo<Awaited<IO>>,
) -> Option<TokioIo<Awaited<IO>>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let _resting = context.listener.metrics.rest();
    let woken = tokio::select! {
        woken = io.inner_mut().arrives() => matches!(woken, Ok(true)),
        () = proxy.drain.cancelled() => false,
    };
    if woken {
        return Some(io);
    }
    tokio::select! {
        _ = io.inner_mut().shutdown() => {}
        () = proxy.abort.cancelled() => {}
    }
    None
}

/// Serves HTTP/1 until the connection ends, or until it has come to rest: then it is given back.
async fn serve_http1<IO>(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    io: TokioIo<Awaited<IO>>,
) -> Option<TokioIo<Awaited<IO>>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let bounds = proxy.bounds;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // The socket has the head's clock; hyper's would also run while a kept-alive connection is idle.
        .header_read_timeout(None)
        .max_headers(bounds.max_headers)
        .max_header_size(bounds.max_header_bytes)
        // Room for the largest head, and no more: a client that stops reading makes outgate hold this much of an answer.
        .max_buf_size(bounds.max_header_bytes.max(64 * 1024));
    let service = service(proxy, context);
    let mut connection = builder.serve_connection(io, service).with_upgrades();
    // Nothing is left to do, and the socket says that it has been so for a while.
    let end_or_rest = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Pending if context.activity.rests() => Poll::Ready(None),
        polled => polled.map(Some),
    });
    let end = tokio::select! {
        end = end_or_rest => end,
        () = proxy.drain.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            tokio::select! {
                end = &mut connection => Some(end),
                () = proxy.abort.cancelled() => return None,
            }
        }
    };
    match end {
        Some(Ok(())) => None,
        Some(Err(error)) => {
            record_unread(proxy, context, &error);
            None
        }
        None => connection.into_parts().map(|mut parts| {
            parts.io.inner_mut().unread(parts.read_buf);
            parts.io
        }),
    }
}

async fn serve_http2<IO>(proxy: Arc<Proxy>, context: Arc<ConnectionContext>, io: TokioIo<Awaited<IO>>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    context.activity.set_framed();
    let bounds = proxy.bounds;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(bounds.max_header_bytes).unwrap_or(64 * 1024))
        // Rapid reset (CVE-2023-44487; what the library does not see of it is counted by `resets`) and made-you-reset
        // (CVE-2025-8671).
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1024);
    let service = service(&proxy, &context);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut abused = pin!(abused(&context, bounds.socket.write));
    tokio::select! {
        _ = connection.as_mut() => {}
        () = abused.as_mut() => {}
        () = proxy.drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                _ = connection.as_mut() => {}
                () = abused => {}
                () = proxy.abort.cancelled() => {}
            }
        }
    }
}

/// Returns when the client takes nothing of what it asked for, or asks only to reset.
async fn abused(context: &ConnectionContext, write_timeout: std::time::Duration) {
    let stalled = async {
        match &context.stalls {
            Some(stalls) => stalls.stalled(write_timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stalled => {}
        () = context.resets.too_many() => {}
    }
}

/// The service of a connection. Every request gets an answer, so its error type has no value.
fn service(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
) -> impl hyper::service::Service<
    http::Request<hyper::body::Incoming>,
    Response = http::Response<crate::message::body::Body>,
    Error = Infallible,
    Future: Send + 'static,
> + Clone
+ use<> {
    let (proxy, context) = (proxy.clone(), context.clone());
    service_fn(move |request| {
        let (proxy, context) = (proxy.clone(), context.clone());
        // Here and not in the future, which hyper drops unpolled where the client is gone by now: a request that was read has a
        // record. One allocation holds what a request is until it is sent; the futures that pass it on stay small.
        let arrival = Box::new(Arrival::open(&proxy, &context, request));
        // Boxed per request: hyper keeps room for this future in every connection, idle ones included.
        Box::pin(async move {
            let begun = context.resets.begin();
            let response = super::panics::caught(proxy, context.clone(), arrival).await;
            begun.answered();
            Ok::<_, Infallible>(response)
        })
    })
}

/// hyper answers what it cannot parse by itself (400, 414, 431); such a request gets its record here, and so does a head that
/// never came whole.
fn record_unread(proxy: &Arc<Proxy>, context: &ConnectionContext, error: &hyper::Error) {
    if context.activity.running() > 0 {
        return;
    }
    let text = error.to_string();
    let (flag, status) = if error.is_parse() {
        let too_large = if text.contains("URI") { 414 } else { 431 };
        (Flag::DownstreamProtocol, Some(if error.is_parse_too_large() { too_large } else { 400 }))
    } else if context.activity.reads_body() {
        return;
    } else if error.is_incomplete_message() {
        (Flag::DownstreamGone, None)
    } else if context.intercepted.is_none() && context.activity.has_begun_head() {
        // Inside TLS the bytes may have been an alert that says goodbye, which is no head.
        (if is_timeout(error) { Flag::DownstreamTimeout } else { Flag::DownstreamGone }, None)
    } else {
        return;
    };
    let door = match (context.redirected, &context.intercepted) {
        (Some(_), _) => Door::Transparent,
        (None, Some(_)) => Door::Intercept,
        (None, None) => Door::Local,
    };
    let mut record =
        Record::open(&proxy.telemetry, &proxy.abort, new_request_id(), door, context.listener.name.clone());
    record.event.client = Some(context.client);
    record.event.original = context.redirected.map(Redirected::noted);
    record.event.downstream_version = Some(HttpVersion::Http11);
    record.event.generation = proxy.generation.load().number;
    note_connection(&mut record, context);
    record.event.error_detail = Some(match std::error::Error::source(error) {
        Some(source) => format!("{text}: {source}"),
        None => text,
    });
    record.flag(flag);
    if let Some(status) = status {
        record.event.error = Some(if status == 414 { "uri_too_long" } else { "bad_request" });
        record.answered(status);
    }
    record.finish();
}

/// Whether a clock of the socket ended the connection.
fn is_timeout(error: &hyper::Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}
