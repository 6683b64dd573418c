//! Copies bytes both ways between two streams: tunnels and upgraded connections.
//!
//! Half-close is kept: an end of one direction is passed on, and the other goes on. The relay ends when both directions
//! have ended, when nothing moved for the idle time, or when it is cancelled.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::message::body::Side;

/// Bytes per direction; below 64 KiB a tunnel spends its time in system calls.
const BUFFER: usize = 64 * 1024;

/// How a relay ended.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both sides closed.
    Closed,
    /// Nothing moved for the idle time.
    Idle,
    /// One of the sides broke: this one did so first.
    Broken(Side, io::Error),
    /// outgate is shutting down.
    Drained,
}

/// What a relay has moved; readable while it runs.
#[derive(Default)]
pub struct Moved {
    /// Bytes from the app to the provider.
    pub up: AtomicU64,
    /// Bytes from the provider to the app.
    pub down: AtomicU64,
    last: AtomicU64,
    broke: OnceLock<Side>,
}

/// Copies until one of the ends of [`RelayEnd`].
pub async fn relay<D, U>(
    downstream: D,
    upstream: U,
    idle: Duration,
    moved: &Arc<Moved>,
    cancel: &CancellationToken,
) -> RelayEnd
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let started = Instant::now();
    let mut downstream =
        Counted { stream: downstream, moved: moved.clone(), started, side: Side::Downstream };
    let mut upstream = Counted { stream: upstream, moved: moved.clone(), started, side: Side::Upstream };
    let copy = copy_bidirectional_with_sizes(&mut downstream, &mut upstream, BUFFER, BUFFER);
    tokio::pin!(copy);
    let timer = sleep_until(started + idle);
    tokio::pin!(timer);
    loop {
        tokio::select! {
            biased;
            result = &mut copy => {
                return match result {
                    Ok(_) => RelayEnd::Closed,
                    // Only the streams fail, and each says so; copying itself does not.
                    Err(error) => RelayEnd::Broken(*moved.broke.get_or_init(|| Side::Upstream), error),
                };
            }
            () = cancel.cancelled() => return RelayEnd::Drained,
            () = &mut timer => {
                let due = started + Duration::from_millis(moved.last.load(Ordering::Relaxed)) + idle;
                if due <= Instant::now() {
                    return RelayEnd::Idle;
                }
                timer.as_mut().reset(due);
            }
        }
    }
}

/// A stream that counts what is read from it, and says when it breaks.
struct Counted<S> {
    stream: S,
    moved: Arc<Moved>,
    started: Instant,
    side: Side,
}

impl<S> Counted<S> {
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = polled {
            self.moved.broke.get_or_init(|| self.side);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let read = (buffer.filled().len() - before) as u64;
        if read > 0 {
            let counter = match self.side {
                Side::Downstream => &self.moved.up,
                Side::Upstream => &self.moved.down,
            };
            counter.fetch_add(read, Ordering::Relaxed);
            let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.moved.last.store(elapsed, Ordering::Relaxed);
        }
        self.noted(polled)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.noted(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.noted(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.noted(polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn half_close_is_kept() {
        let (mut app, downstream) = duplex(64);
        let (mut provider, upstream) = duplex(64);
        let moved = Arc::new(Moved::default());
        let (seen, cancel) = (moved.clone(), CancellationToken::new());
        let running = tokio::spawn(async move {
            relay(downstream, upstream, Duration::from_secs(60), &seen, &cancel).await
        });
        app.write_all(b"question").await.unwrap();
        app.shutdown().await.unwrap();
        let mut text = String::new();
        provider.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        provider.write_all(b"a long answer").await.unwrap();
        drop(provider);
        let mut text = String::new();
        app.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "a long answer");
        assert!(matches!(running.await.unwrap(), RelayEnd::Closed));
        assert_eq!((moved.up.load(Ordering::Relaxed), moved.down.load(Ordering::Relaxed)), (8, 13));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_movement_does_not() {
        let (mut app, downstream) = duplex(64);
        let (_provider, upstream) = duplex(64);
        let started = Instant::now();
        let idle = Duration::from_secs(60);
        let moved = Arc::default();
        let cancel = CancellationToken::new();
        let relay = relay(downstream, upstream, idle, &moved, &cancel);
        let ((), end) = tokio::join!(
            async {
                tokio::time::sleep(Duration::from_secs(50)).await;
                app.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1000)).await;
            },
            async {
                let end = relay.await;
                assert_eq!(started.elapsed(), Duration::from_secs(110));
                end
            }
        );
        assert!(matches!(end, RelayEnd::Idle));
    }
}
