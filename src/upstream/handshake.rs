//! From a stream to a connection that speaks HTTP, with every limit of hyper's stated.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use crate::message::failure::{Failure, Fault, Progress};

use super::connector::{Connected, Purpose};
use super::error::exchange_fault;
use super::pool::{Http1, Http1Lease, Lease, Made, Place, Pool};
use super::socket::Socket;

/// Fields in one head.
const MAX_FIELDS: usize = 300;
/// Longest head of an answer, and longest trailer section, in bytes.
const MAX_HEAD: u32 = 48 * 1024;
/// Bytes read ahead of HTTP/1.1: room for the longest head. Of an answer that the app does not take, a few pieces of this
/// size wait on the way, so it decides what a client that stops reading costs.
const READ_AHEAD: usize = MAX_HEAD as usize;
/// What one HTTP/2 stream may have in flight towards us.
const STREAM_WINDOW: u32 = 192 * 1024;
/// What one HTTP/2 connection may have in flight towards us.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What one HTTP/2 stream buffers towards the provider.
const SEND_BUFFER: usize = 64 * 1024;
/// While streams are open, a shared connection is asked for a sign of life this often ...
const PING: Duration = Duration::from_secs(15);
/// ... and given up when none comes for this long; otherwise every request would be sent into a dead connection.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts HTTP on a stream. The connection's own task ends with the connection.
pub async fn begin(
    pool: &Arc<Pool>,
    place: Place,
    connected: Connected,
    purpose: Purpose,
) -> Result<Lease, Failure> {
    if connected.http2 {
        begin_http2(pool, place, connected).await
    } else {
        begin_http1(pool, place, connected, purpose).await
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a connection to a provider lives in a task of its own, and ends with its pool"
)]
async fn begin_http1(
    pool: &Arc<Pool>,
    place: Place,
    connected: Connected,
    purpose: Purpose,
) -> Result<Lease, Failure> {
    let (origin, made) = (place.origin().clone(), made(&place, &connected));
    let socket = Socket::new(connected.stream, place, purpose == Purpose::Ordinary);
    let written = socket.written();
    let (sender, connection) = http1::Builder::new()
        .max_headers(MAX_FIELDS)
        .max_header_size(MAX_HEAD as usize)
        .max_buf_size(READ_AHEAD)
        .handshake(TokioIo::new(socket))
        .await
        .map_err(|error| exchange_fault(error, Progress::NotSent))?;
    let task = match purpose {
        Purpose::Ordinary => Some(tokio::spawn(log_end(connection)).abort_handle()),
        Purpose::Upgrade => {
            tokio::spawn(log_end(connection.with_upgrades()));
            None
        }
    };
    pool.made_http1(&origin, made.id, purpose);
    let connection = Http1::new(origin, made, sender, written, task);
    Ok(Lease::Http1(Http1Lease::new(pool.clone(), connection, true)))
}

/// What hyper says of the provider's limit of streams before the provider's settings have come; no limit that one would tell.
const UNTOLD: usize = 1_000_003;

#[expect(
    clippy::disallowed_methods,
    reason = "a connection to a provider lives in a task of its own, and ends with its pool"
)]
async fn begin_http2(pool: &Arc<Pool>, place: Place, connected: Connected) -> Result<Lease, Failure> {
    let (origin, made) = (place.origin().clone(), made(&place, &connected));
    let socket = Socket::new(connected.stream, place, false);
    // hyper's client announces ENABLE_PUSH = 0 by itself, and ends the connection on a push.
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false)
        .initial_max_send_streams(UNTOLD)
        .handshake(TokioIo::new(socket))
        .await;
    let (sender, connection) =
        handshake.map_err(|error| Failure::not_sent(Fault::Protocol).because(error))?;
    // hyper tells the provider's limit of streams only on the connection, which moves into its task. Until the provider has
    // told it, one request goes and the others wait in the pool, where they can still be given up: inside the connection
    // they would wait with a credential that may end.
    let limit = Arc::new(AtomicUsize::new(1));
    let told = limit.clone();
    let (weak, of, id) = (Arc::downgrade(pool), origin.clone(), made.id);
    let mut known = UNTOLD;
    let mut connection = Box::pin(connection);
    tokio::spawn(log_end(poll_fn(move |cx| {
        let polled = connection.as_mut().poll(cx);
        let now = connection.current_max_send_streams();
        if now != known {
            known = now;
            told.store(now, Ordering::Relaxed);
            if let Some(pool) = weak.upgrade() {
                pool.streams_told(&of, id);
            }
        }
        polled
    })));
    Ok(Lease::Http2(pool.made_http2(&origin, sender, made, limit)))
}

fn made(place: &Place, connected: &Connected) -> Made {
    Made { id: place.id(), version: connected.version, peer: connected.peer }
}

/// The request that ran on the connection was told by its own error; here it is for whoever debugs the pool.
async fn log_end(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to a provider ended with an error");
    }
}
