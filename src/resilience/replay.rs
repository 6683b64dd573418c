//! The replay body: keeps the first bytes of an upload while they stream, so that they can be sent once more.
//!
//! Nothing waits for the buffer: pieces go through at once, and a second handle on them (no copy) is kept until the whole
//! is larger than the bound; from then on the body is streamed and cannot be replayed. An attempt that ends early hands
//! the rest of the body back, so the next one continues where it stopped.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::message::body::{Body, BodyError};

/// The kept part of one request body, shared between its attempts.
#[derive(Clone)]
pub struct Replay {
    shared: Arc<Mutex<Kept>>,
}

struct Kept {
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    bound: usize,
    /// More came than is kept, or the body broke.
    lost: bool,
    /// What no attempt has read yet. Absent while an attempt holds it.
    rest: Option<Body>,
    exact: Option<u64>,
}

impl Replay {
    /// Starts to keep `body`, up to `bound` bytes.
    pub fn new(body: Body, bound: usize) -> Self {
        let exact = body.exact_length();
        // A body that is known to be too long is not kept at all.
        let lost = exact.is_some_and(|length| length > bound as u64);
        let kept =
            Kept { pieces: Vec::new(), trailers: None, bytes: 0, bound, lost, rest: Some(body), exact };
        Self { shared: Arc::new(Mutex::new(kept)) }
    }

    /// The body for the next attempt, or nothing if it cannot be sent again.
    pub fn attempt(&self) -> Option<Body> {
        let mut kept = self.lock();
        if kept.lost && kept.bytes > 0 {
            return None;
        }
        let rest = kept.rest.take()?;
        if kept.pieces.is_empty() && kept.trailers.is_none() && rest.is_end_stream() {
            kept.rest = Some(rest);
            return Some(Body::empty());
        }
        let replayed = kept.pieces.iter().cloned().collect();
        let trailers = kept.trailers.clone();
        let exact = kept.exact;
        drop(kept);
        let left = exact;
        Some(Body::boxed(ReplayBody { replay: self.clone(), replayed, trailers, rest: Some(rest), left }))
    }

    /// Whether another attempt could have the whole body, once the present one has given it back.
    pub fn can_repeat(&self) -> bool {
        let kept = self.lock();
        !(kept.lost && kept.bytes > 0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ReplayBody {
    replay: Replay,
    replayed: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    rest: Option<Body>,
    left: Option<u64>,
}

impl ReplayBody {
    fn keep(&self, frame: &Frame<Bytes>) {
        let mut kept = self.replay.lock();
        if let Some(data) = frame.data_ref() {
            kept.bytes += data.len();
            if kept.lost || kept.bytes > kept.bound {
                kept.lost = true;
                kept.pieces = Vec::new();
            } else {
                kept.pieces.push(data.clone());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            kept.trailers = Some(trailers.clone());
        }
    }

    fn count(&mut self, data: &Bytes) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(data.len() as u64);
        }
    }
}

impl HttpBody for ReplayBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.replayed.pop_front() {
            self.count(&data);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(rest).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.keep(frame);
                if let Some(data) = frame.data_ref() {
                    let data = data.clone();
                    self.count(&data);
                }
            }
            Some(Err(_)) => {
                let mut kept = self.replay.lock();
                kept.lost = true;
                kept.bytes = kept.bytes.max(1);
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.replayed.is_empty()
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for ReplayBody {
    fn drop(&mut self) {
        self.replay.lock().rest = self.rest.take();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::resilience::timeout::tests::channel;

    async fn text(body: Body) -> String {
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_short_body_is_sent_again_whole() {
        let replay = Replay::new(Body::full("hello"), 10);
        let first = replay.attempt().unwrap();
        assert_eq!(first.exact_length(), Some(5));
        assert_eq!(text(first).await, "hello");
        let second = replay.attempt().unwrap();
        assert_eq!(second.exact_length(), Some(5));
        assert_eq!(text(second).await, "hello");
    }

    #[tokio::test]
    async fn an_attempt_that_stopped_early_gives_the_rest_back() {
        let (sender, body) = channel();
        let replay = Replay::new(body, 100);
        let mut first = replay.attempt().unwrap();
        assert!(replay.attempt().is_none(), "an attempt holds the rest");
        sender.send(Bytes::from_static(b"one ")).await.unwrap();
        first.frame().await.unwrap().unwrap();
        drop(first);
        let second = replay.attempt().unwrap();
        tokio::spawn(async move { sender.send(Bytes::from_static(b"two")).await });
        assert_eq!(text(second).await, "one two");
    }

    #[tokio::test]
    async fn a_long_body_is_streamed_and_never_sent_again() {
        let (sender, body) = channel();
        let replay = Replay::new(body, 4);
        let first = replay.attempt().unwrap();
        tokio::spawn(async move {
            sender.send(Bytes::from_static(b"abc")).await.unwrap();
            sender.send(Bytes::from_static(b"de")).await.unwrap();
        });
        assert_eq!(text(first).await, "abcde");
        assert!(!replay.can_repeat());
        assert!(replay.attempt().is_none());
    }

    #[tokio::test]
    async fn a_body_known_to_be_too_long_may_be_sent_as_long_as_nothing_was_read() {
        let replay = Replay::new(Body::full("too long"), 4);
        drop(replay.attempt().unwrap());
        assert_eq!(text(replay.attempt().unwrap()).await, "too long");
        assert!(replay.attempt().is_none());
    }

    #[tokio::test]
    async fn no_body_can_always_be_sent_again() {
        let replay = Replay::new(Body::empty(), 0);
        for _ in 0..3 {
            assert!(replay.attempt().unwrap().is_end_stream());
        }
    }
}
