//! The socket under a connection: plain or TLS, a count of what was written, and the place in the pool that it occupies.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A stream to the provider.
pub enum Stream {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// How many bytes of HTTP the socket has taken: the proof that a request was, or was not, begun.
#[derive(Clone, Default)]
pub struct Written(Arc<AtomicU64>);

impl Written {
    /// Bytes taken since the connection was made.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// What a connection gets in place of the bare stream. `P` is dropped with the socket, wherever that lives by then (an
/// upgraded connection leaves the pool and still counts as open).
pub struct Socket<P> {
    stream: Stream,
    written: Written,
    outlive_broken_writes: bool,
    broken: bool,
    _place: P,
}

impl<P: Unpin> Socket<P> {
    /// Wraps a stream. `outlive_broken_writes`: for HTTP/1.1, see [`Socket::judge`].
    pub fn new(stream: Stream, place: P, outlive_broken_writes: bool) -> Self {
        Self { stream, written: Written::default(), outlive_broken_writes, broken: false, _place: place }
    }

    /// The count of bytes written, shared.
    pub fn written(&self) -> Written {
        self.written.clone()
    }

    /// A provider may answer (413, say) and close before it has read the upload. The next write then fails, and hyper
    /// would end the exchange although the answer is waiting to be read. So a failed write of HTTP/1.1 never becomes
    /// ready again: reading goes on, and finds either the answer or the end of the connection, which ends the exchange
    /// with the right error.
    fn judge<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(error)) if self.outlive_broken_writes => {
                tracing::debug!(%error, "writing to the provider failed; what it sent is still read");
                self.broken = true;
                Poll::Pending
            }
            other => other,
        }
    }

    fn count(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let taken = match &result {
            Poll::Ready(Ok(bytes)) => *bytes as u64,
            // One write to TLS is several to the socket: records may have gone out before the one that failed, and a request
            // of which a part was sent is not sent again as if nothing was.
            Poll::Ready(Err(_)) if matches!(self.stream, Stream::Tls(_)) => 1,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        if taken > 0 {
            self.written.0.fetch_add(taken, Ordering::Release);
        }
        self.judge(result)
    }
}

impl<P: Unpin> AsyncRead for Socket<P> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<P: Unpin> AsyncWrite for Socket<P> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.broken {
            return Poll::Pending;
        }
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.count(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.broken {
            return Poll::Pending;
        }
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.count(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.broken {
            return Poll::Pending;
        }
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        this.judge(result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.broken {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
