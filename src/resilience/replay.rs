//! The replay body: keeps the first bytes of an upload while they stream, so that they can be sent once more.
//!
//! Nothing waits for the buffer: pieces go through at once, and a second handle on them (no copy, unless they are small) is
//! kept until the whole is larger than the bound; from then on the body is streamed and cannot be replayed.
//!
//! An attempt may end while its upload is still under way: a 429 comes before the last byte. The next attempt takes the upload
//! over in that moment. The body of the old one then ends with an error and not with an end, so that its connection can
//! never complete a request that is being sent again; and it takes no byte that belongs to the new one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::message::body::{Body, BodyError};

/// Pieces shorter than this are copied together, because a handle on a piece keeps the whole buffer that it was read into,
/// and thousands of small ones would cost more than what they hold.
const SMALL: usize = 4 * 1024;

/// The kept part of one request body, shared between its attempts. A request without a body costs nothing.
#[derive(Clone)]
pub struct Replay {
    shared: Option<Arc<Mutex<Kept>>>,
}

struct Kept {
    pieces: Vec<Bytes>,
    /// Small pieces, not yet one of `pieces`.
    tail: BytesMut,
    trailers: Option<HeaderMap>,
    bytes: usize,
    bound: usize,
    /// More came than is kept, or the body broke.
    lost: bool,
    /// What no attempt has read yet.
    rest: Body,
    ended: bool,
    exact: Option<u64>,
    /// The attempt that has the upload.
    turn: u32,
    /// Of the attempt that has it, while it waits for the app.
    waker: Option<Waker>,
}

impl Replay {
    /// Starts to keep `body`, up to `bound` bytes.
    pub fn new(body: Body, bound: usize) -> Self {
        if body.is_end_stream() {
            return Self { shared: None };
        }
        let exact = body.exact_length();
        let kept = Kept {
            pieces: Vec::new(),
            tail: BytesMut::new(),
            trailers: None,
            bytes: 0,
            bound,
            // A body that is known to be too long is not kept at all.
            lost: exact.is_some_and(|length| length > bound as u64),
            rest: body,
            ended: false,
            exact,
            turn: 0,
            waker: None,
        };
        Self { shared: Some(Arc::new(Mutex::new(kept))) }
    }

    /// The whole body for the next attempt, taken away from the one before; or nothing, and then the one before keeps it.
    pub fn attempt(&self) -> Option<Body> {
        let Some(shared) = &self.shared else { return Some(Body::empty()) };
        let mut kept = lock(shared);
        if kept.is_gone() {
            return None;
        }
        kept.turn += 1;
        kept.settle();
        let body = ReplayBody {
            shared: shared.clone(),
            turn: kept.turn,
            replayed: kept.pieces.iter().cloned().collect(),
            trailers: kept.trailers.clone(),
            left: kept.exact,
        };
        let before = kept.waker.take();
        drop(kept);
        if let Some(before) = before {
            before.wake();
        }
        Some(Body::boxed(body))
    }

    /// The whole body, where all of it came and is kept; none that has trailers.
    pub fn whole(&self) -> Option<Vec<u8>> {
        let shared = self.shared.as_ref()?;
        let kept = lock(shared);
        let complete = kept.ended || kept.exact == Some(kept.bytes as u64);
        let pieces = || kept.pieces.iter().flat_map(|piece| piece.iter()).chain(&kept.tail);
        (complete && !kept.lost && kept.trailers.is_none()).then(|| pieces().copied().collect())
    }

    /// Whether another attempt could have the whole body.
    pub fn can_repeat(&self) -> bool {
        self.shared.as_deref().is_none_or(|shared| !lock(shared).is_gone())
    }
}

fn lock(shared: &Mutex<Kept>) -> std::sync::MutexGuard<'_, Kept> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    /// What nobody has read yet can always be sent.
    fn is_gone(&self) -> bool {
        self.lost && self.bytes > 0
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.keep_data(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            self.ended = true;
        }
    }

    fn keep_data(&mut self, data: &Bytes) {
        self.bytes += data.len();
        if self.lost || self.bytes > self.bound {
            self.lost = true;
            (self.pieces, self.tail) = (Vec::new(), BytesMut::new());
        } else if data.len() >= SMALL || (self.pieces.is_empty() && self.tail.is_empty()) {
            self.settle();
            self.pieces.push(data.clone());
        } else {
            self.tail.extend_from_slice(data);
        }
    }

    fn settle(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.rest).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.keep(frame),
            Poll::Ready(Some(Err(_))) => {
                self.lost = true;
                self.bytes = self.bytes.max(1);
            }
            Poll::Ready(None) => self.ended = true,
            Poll::Pending => match &mut self.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => self.waker = Some(cx.waker().clone()),
            },
        }
        polled
    }
}

/// The body of one attempt.
struct ReplayBody {
    shared: Arc<Mutex<Kept>>,
    turn: u32,
    replayed: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    left: Option<u64>,
}

impl ReplayBody {
    fn count(&mut self, frame: &Frame<Bytes>) {
        if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
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
        let this = &mut *self;
        let mut kept = lock(&this.shared);
        if kept.turn != this.turn {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        let again = this.replayed.pop_front().map(Frame::data);
        let again = again.or_else(|| this.trailers.take().map(Frame::trailers));
        let polled = match again {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => kept.poll_rest(cx),
        };
        drop(kept);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.count(frame);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        if !self.replayed.is_empty() || self.trailers.is_some() {
            return false;
        }
        let kept = lock(&self.shared);
        // One that was taken over has no end.
        kept.turn == self.turn && (kept.ended || kept.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
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
    async fn the_next_attempt_takes_an_upload_over_and_the_old_one_never_ends_well() {
        let (sender, body) = channel();
        let replay = Replay::new(body, 100);
        let mut first = replay.attempt().unwrap();
        sender.send(Bytes::from_static(b"one ")).await.unwrap();
        first.frame().await.unwrap().unwrap();
        let old = tokio::spawn(async move {
            let last = first.frame().await;
            (last, first.is_end_stream())
        });
        tokio::task::yield_now().await;
        let second = replay.attempt().unwrap();
        let (last, ended) = old.await.unwrap();
        assert!(matches!(last, Some(Err(BodyError::Superseded))), "woken without a byte of the app");
        assert!(!ended);
        tokio::spawn(async move { sender.send(Bytes::from_static(b"two")).await });
        assert_eq!(text(second).await, "one two");
    }

    #[tokio::test]
    async fn an_old_attempt_that_had_read_all_does_not_look_complete() {
        let replay = Replay::new(Body::full("hello"), 10);
        let mut first = replay.attempt().unwrap();
        first.frame().await.unwrap().unwrap();
        assert!(first.is_end_stream());
        let _second = replay.attempt().unwrap();
        assert!(!first.is_end_stream());
        assert!(matches!(first.frame().await, Some(Err(BodyError::Superseded))));
    }

    #[tokio::test]
    async fn what_was_lost_stays_with_the_attempt_that_has_it() {
        let (sender, body) = channel();
        let replay = Replay::new(body, 4);
        let mut first = replay.attempt().unwrap();
        sender.send(Bytes::from_static(b"abcdef")).await.unwrap();
        first.frame().await.unwrap().unwrap();
        assert!(replay.attempt().is_none());
        drop(sender);
        assert!(first.frame().await.is_none(), "and goes on to its end");
    }

    #[tokio::test]
    async fn many_small_pieces_are_kept_as_few() {
        let (sender, body) = channel();
        let replay = Replay::new(body, 64 * 1024);
        let first = replay.attempt().unwrap();
        tokio::spawn(async move {
            for _ in 0..30_000 {
                sender.send(Bytes::from_static(b"x")).await.unwrap();
            }
            sender.send(Bytes::from(vec![b'y'; SMALL])).await.unwrap();
            sender.send(Bytes::from_static(b"z")).await.unwrap();
        });
        let whole = text(first).await;
        assert_eq!(text(replay.attempt().unwrap()).await, whole);
        assert_eq!(lock(replay.shared.as_ref().unwrap()).pieces.len(), 4);
    }

    #[tokio::test]
    async fn trailers_are_sent_again_too() {
        struct WithTrailers(Vec<Frame<Bytes>>);
        impl HttpBody for WithTrailers {
            type Data = Bytes;
            type Error = BodyError;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
                Poll::Ready(self.0.pop().map(Ok))
            }
        }
        let trailers: HeaderMap =
            [(http::header::ETAG, http::HeaderValue::from_static("x"))].into_iter().collect();
        let frames = vec![Frame::trailers(trailers.clone()), Frame::data(Bytes::from_static(b"abc"))];
        let replay = Replay::new(Body::boxed(WithTrailers(frames)), 10);
        for _ in 0..3 {
            let whole = replay.attempt().unwrap().collect().await.unwrap();
            assert_eq!(whole.trailers(), Some(&trailers));
            assert_eq!(whole.to_bytes(), "abc");
        }
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
