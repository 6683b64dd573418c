//! Connections at rest: a kept-alive connection on which nothing happens keeps its socket, and nothing of what parses HTTP.
//!
//! hyper holds two buffers for every connection, busy or not, which is most of what an idle client costs. So one that was
//! idle for a moment is taken out of hyper, and given back when its next byte comes. That is only sound between requests:
//! [`Activity`](super::socket::Activity) says when the last answer is out and the last request was read to its end, and
//! hyper has just said that it has nothing to do.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose next byte can be waited for with room for that byte and no more.
pub struct Awaited<T> {
    io: T,
    /// Read already, and read again first.
    early: Bytes,
}

impl<T> Awaited<T> {
    /// For hyper.
    pub fn new(io: T) -> TokioIo<Self> {
        TokioIo::new(Self { io, early: Bytes::new() })
    }

    /// The stream inside, and what nobody has read yet.
    pub fn into_parts(self) -> (T, Bytes) {
        (self.io, self.early)
    }

    /// Gives bytes back that were read too early; they are read again first.
    pub fn unread(&mut self, bytes: Bytes) {
        self.early =
            if self.early.is_empty() { bytes } else { [bytes, self.early.split_off(0)].concat().into() };
    }
}

impl<T: AsyncRead + Unpin> Awaited<T> {
    /// Waits for a byte, which is read again later. False when the stream has ended.
    pub async fn arrives(&mut self) -> io::Result<bool> {
        if !self.early.is_empty() {
            return Ok(true);
        }
        let mut byte = [0_u8; 1];
        let mut buffer = ReadBuf::new(&mut byte);
        std::future::poll_fn(|cx| Pin::new(&mut self.io).poll_read(cx, &mut buffer)).await?;
        self.early = Bytes::copy_from_slice(buffer.filled());
        Ok(!self.early.is_empty())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Awaited<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let length = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early[..length]);
        self.early.advance(length);
        if self.early.is_empty() && buffer.remaining() > 0 {
            self.early = Bytes::new();
            // What came with it, if anything did, so that a head is parsed once. An error is told again by the next read.
            let _ = Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Awaited<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
