//! One accepted connection as bytes: its timeouts, its early bytes and its end.
//!
//! hyper's own head timeout also runs while a kept-alive connection is idle, so it cannot tell a slow head from a patient
//! client. The socket can: it sees when bytes come, and the exchange tells it when a request is being served. It carries
//! three clocks, each armed only while a poll waits: idle (from the end of the last request), head (from its first byte,
//! never renewed) and write (a peer that takes nothing). An idle connection costs one timer and no wake-up.
//!
//! A request often ends after the last poll that it caused, and nothing polls the socket then. So the idle clock runs
//! while a request is served too; when it rings it looks at when the last request really ended. It rings twice: soon, when
//! an idle connection can be put to rest ([`super::rest`]), and when it has been idle for too long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};

use super::work::Work;

/// Timeouts of the app's side, from `runtime.downstream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketTimeouts {
    /// From the first byte of a head to its end.
    pub header: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Between bytes that the app takes.
    pub write: Duration,
}

/// How long a closed connection is still read from, so that the answer is not lost to a reset, and how much of it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;

/// How long a connection is idle until it is put to rest.
const REST: Duration = Duration::from_secs(1);

/// What the socket and the exchanges on it tell one another.
pub struct Activity {
    begun: Instant,
    /// Milliseconds from `begun` to the end of the last request.
    ended: AtomicU64,
    running: AtomicU32,
    head_begun: AtomicBool,
    /// HTTP/2 sends frames between requests, so a byte there is not the begin of a head.
    framed: AtomicBool,
    /// Bytes are copied (a tunnel, an upgrade): an end of one direction leaves the other alone.
    relaying: AtomicBool,
    /// The body of the last request was not read to its end: what comes next may belong to it.
    unread: AtomicBool,
    /// Nothing has happened for [`REST`].
    resting: AtomicBool,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            ended: AtomicU64::new(0),
            running: AtomicU32::new(0),
            head_begun: AtomicBool::new(false),
            framed: AtomicBool::new(false),
            relaying: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            resting: AtomicBool::new(false),
        }
    }
}

impl Activity {
    /// When the last request ended, or the connection began.
    fn idle_since(&self) -> Instant {
        self.begun + Duration::from_millis(self.ended.load(Ordering::Relaxed))
    }

    /// A request is being served from now until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> ActivityGuard {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.head_begun.store(false, Ordering::Relaxed);
        ActivityGuard(self.clone(), None)
    }

    /// The same for a request that is work of the process too.
    pub fn begin_work(self: &Arc<Self>, work: &Arc<Work>) -> ActivityGuard {
        work.begin();
        let mut guard = self.begin();
        guard.1 = Some(work.clone());
        guard
    }

    /// The connection speaks HTTP/2.
    pub fn set_framed(&self) {
        self.framed.store(true, Ordering::Relaxed);
    }

    /// Whether something of the present request's body is still to be read.
    pub fn set_unread(&self, unread: bool) {
        self.unread.store(unread, Ordering::Relaxed);
    }

    /// Whether the connection was idle for a moment, and is between two requests of HTTP/1. True once for each such moment.
    /// Asked right after the connection was polled and had nothing to do, by the task that polls it.
    pub fn rests(&self) -> bool {
        self.resting.load(Ordering::Relaxed)
            && self.resting.swap(false, Ordering::Relaxed)
            && self.running() == 0
            && !self.unread.load(Ordering::Relaxed)
            && !self.head_begun.load(Ordering::Relaxed)
    }

    /// Whether what comes next belongs to the body of a request that was answered already, and is no head.
    pub fn reads_body(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Whether a head has begun that has not come whole.
    pub fn has_begun_head(&self) -> bool {
        self.head_begun.load(Ordering::Relaxed)
    }

    /// How many requests are being served.
    pub fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }
}

/// Keeps a connection from being idle, and the process where it counts as work.
pub struct ActivityGuard(Arc<Activity>, Option<Arc<Work>>);

impl ActivityGuard {
    /// From now until the guard is dropped bytes are copied, and closing is half-closing.
    pub fn relay(&self) {
        self.0.relaying.store(true, Ordering::Relaxed);
    }
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.0.relaying.store(false, Ordering::Relaxed);
        let ended = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.ended.store(ended, Ordering::Relaxed);
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        if let Some(work) = &self.1 {
            work.end();
        }
    }
}

/// The transport of an accepted connection.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// An accepted connection.
pub struct Socket {
    stream: Stream,
    early: Bytes,
    timeouts: SocketTimeouts,
    activity: Arc<Activity>,
    read_timer: Clock,
    read_wait: ReadWait,
    write_timer: Clock,
    end: End,
}

/// What the read clock is armed for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadWait {
    Nothing,
    /// A request is served; the clock only looks in from time to time.
    Serving,
    Idle,
    Head,
}

enum End {
    Open,
    Lingering { left: usize },
    Closed,
}

/// A timer that is made on first use and re-armed without allocation.
#[derive(Default)]
struct Clock {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Clock {
    fn arm(&mut self, due: Instant) {
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(due),
            None => self.sleep = Some(Box::pin(sleep_until(due))),
        }
        self.armed = true;
    }

    fn disarm(&mut self) {
        self.armed = false;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.sleep {
            Some(sleep) if self.armed => sleep.as_mut().poll(cx),
            Some(_) | None => Poll::Pending,
        }
    }
}

impl Socket {
    /// A connection over TCP. Sets `TCP_NODELAY`: without it a small write that follows another waits for the peer's
    /// delayed acknowledgement, which costs a new intercepted connection 40 ms.
    pub fn tcp(stream: TcpStream, timeouts: SocketTimeouts) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        Self::new(Stream::Tcp(stream), timeouts)
    }

    /// A connection over a unix socket.
    pub fn unix(stream: UnixStream, timeouts: SocketTimeouts) -> Self {
        Self::new(Stream::Unix(stream), timeouts)
    }

    fn new(stream: Stream, timeouts: SocketTimeouts) -> Self {
        Self {
            stream,
            early: Bytes::new(),
            timeouts,
            activity: Arc::default(),
            read_timer: Clock::default(),
            read_wait: ReadWait::Nothing,
            write_timer: Clock::default(),
            end: End::Open,
        }
    }

    /// What the exchanges on this connection tell it.
    pub fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
    }

    /// Gives bytes back that were read too early; they are read again first.
    pub fn unread(&mut self, bytes: Bytes) {
        if self.early.is_empty() {
            self.early = bytes;
        } else if !bytes.is_empty() {
            self.early = [bytes, std::mem::take(&mut self.early)].concat().into();
        }
    }

    fn poll_raw_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }

    fn received(&mut self) {
        if self.activity.running() == 0 && !self.activity.framed.load(Ordering::Relaxed) {
            self.activity.head_begun.store(true, Ordering::Relaxed);
        }
        if self.read_wait != ReadWait::Head || self.activity.running() > 0 {
            self.read_timer.disarm();
            self.read_wait = ReadWait::Nothing;
        }
    }

    /// Arms the clock that fits what the connection is waiting for, and says whether it has run out.
    fn poll_read_clock(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let wait = if self.activity.running() > 0 {
            ReadWait::Serving
        } else if self.activity.head_begun.load(Ordering::Relaxed) {
            ReadWait::Head
        } else {
            ReadWait::Idle
        };
        if wait != self.read_wait {
            self.read_wait = wait;
            match wait {
                ReadWait::Nothing => self.read_timer.disarm(),
                ReadWait::Serving => self.read_timer.arm(Instant::now() + REST.min(self.timeouts.idle)),
                ReadWait::Idle => {
                    self.read_timer.arm(self.activity.idle_since() + REST.min(self.timeouts.idle))
                }
                ReadWait::Head => self.read_timer.arm(Instant::now() + self.timeouts.header),
            }
        }
        ready!(self.read_timer.poll(cx));
        if wait == ReadWait::Serving {
            // It rang while a request is served: it looks in again later.
            loop {
                self.read_timer.arm(Instant::now() + self.timeouts.idle);
                ready!(self.read_timer.poll(cx));
            }
        }
        let end = self.activity.idle_since() + self.timeouts.idle;
        if wait == ReadWait::Idle && Instant::now() < end {
            // An answer that the client does not take is still in hyper's buffer.
            self.activity.resting.store(!self.write_timer.armed, Ordering::Relaxed);
            self.read_timer.arm(end);
            ready!(self.read_timer.poll(cx));
        }
        let text =
            if wait == ReadWait::Head { "the head did not arrive in time" } else { "idle for too long" };
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, text))
    }

    fn after_write<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.write_timer.disarm();
            return polled;
        }
        if !self.write_timer.armed {
            self.write_timer.arm(Instant::now() + self.timeouts.write);
        }
        ready!(self.write_timer.poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }

    /// Half-closes, then reads and throws away what the client still sends, within bounds: closing with unread bytes
    /// would make the kernel send a reset, and the client could lose the answer it was about to read.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0_u8; 8 * 1024];
        while let End::Lingering { left } = self.end {
            let mut buffer = ReadBuf::new(&mut scratch);
            match self.poll_raw_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && left > buffer.filled().len() => {
                    self.end = End::Lingering { left: left - buffer.filled().len() };
                }
                Poll::Ready(_) => self.end = End::Closed,
                Poll::Pending => {
                    ready!(self.read_timer.poll(cx));
                    self.end = End::Closed;
                }
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let length = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early[..length]);
            self.early.advance(length);
            if self.early.is_empty() {
                // An empty slice would still hold its whole buffer, for as long as the connection is idle.
                self.early = Bytes::new();
            }
            self.received();
            return Poll::Ready(Ok(()));
        }
        match self.poll_raw_read(cx, buffer) {
            Poll::Ready(result) => {
                self.received();
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_read_clock(cx).map(Err),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.after_write(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        self.after_write(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.end, End::Open) {
            let closed = match &mut self.stream {
                Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
                Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            };
            ready!(closed)?;
            // What the client still sends is not ours to throw away.
            if self.activity.relaying.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            self.end = End::Lingering { left: LINGER_BYTES };
            self.read_timer.arm(Instant::now() + LINGER);
        }
        self.poll_linger(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Its fellow for dialled sockets stands where they are dialled.
    #[tokio::test]
    async fn accepted_sockets_send_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the client of a test")]
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert!(!stream.nodelay().unwrap(), "not set by itself");
        let second = Duration::from_secs(1);
        let timeouts = SocketTimeouts { header: second, idle: second, write: second };
        let Stream::Tcp(stream) = Socket::tcp(stream, timeouts).stream else { panic!("it is TCP") };
        assert!(stream.nodelay().unwrap());
    }
}
