//! From a stream to a connection that speaks HTTP, with every limit of hyper's stated.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Instant, sleep};

use crate::message::failure::{Failure, Fault, Progress};

use super::connector::{Connected, Purpose};
use super::error::exchange_fault;
use super::pool::{Http1, Http1Lease, Lease, Made, Origin, Place, Pool};
use super::socket::Socket;
use super::upload::UploadBody;

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
/// How often it is looked whether they have come, and how many times: for ten seconds.
const LOOK: Duration = Duration::from_millis(1);
const MOST_LOOKS: u32 = 10_000;

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
    let limit = Arc::new(AtomicUsize::new(1));
    let told = Told { pool: Arc::downgrade(pool), origin: origin.clone(), id: made.id, limit: limit.clone() };
    // Known to the pool before it may tell it anything.
    let lease = pool.made_http2(&origin, sender, made, limit);
    tokio::spawn(log_end(run_http2(connection, told)));
    Ok(Lease::Http2(lease))
}

/// Where it is noted how many streams the provider takes.
struct Told {
    pool: Weak<Pool>,
    origin: Arc<Origin>,
    id: u64,
    limit: Arc<AtomicUsize>,
}

impl Told {
    fn note(&self, limit: Option<usize>) {
        if let Some(limit) = limit {
            self.limit.store(limit, Ordering::Relaxed);
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.streams_told(&self.origin, self.id);
        }
    }
}

type Http2Connection = http2::Connection<TokioIo<Socket<Place>>, UploadBody, TokioExecutor>;

/// Runs a connection, and notes the provider's limit of streams. hyper tells that only on the connection, which is polled with
/// every request, so the figure is one request old at most; h2 itself keeps the limit exactly. Until the provider has told it
/// for the first time it is looked for now and then: one request goes meanwhile, and the others wait in the pool, where
/// they can still be given up. Inside the connection they would wait with a credential that may end.
async fn run_http2(connection: Http2Connection, told: Told) -> hyper::Result<()> {
    let mut connection = std::pin::pin!(connection);
    let mut look = std::pin::pin!(sleep(LOOK));
    let (mut known, mut looks) = (UNTOLD, 0);
    poll_fn(move |cx| {
        let polled = connection.as_mut().poll(cx);
        let now = connection.current_max_send_streams();
        if now != known {
            known = now;
            told.note(Some(now));
        }
        while known == UNTOLD && looks < MOST_LOOKS && look.as_mut().poll(cx).is_ready() {
            looks += 1;
            look.as_mut().reset(Instant::now() + LOOK);
            if looks == MOST_LOOKS {
                told.note(None);
            }
        }
        polled
    })
    .await
}

fn made(place: &Place, connected: &Connected) -> Made {
    Made { id: place.id(), account: place.account(), version: connected.version, peer: connected.peer }
}

/// The request that ran on the connection was told by its own error; here it is for whoever debugs the pool.
async fn log_end(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to a provider ended with an error");
    }
}
