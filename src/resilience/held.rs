//! A body of which the beginning was read before it is handed on, or all of it. Nothing of it is lost or changed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::message::body::{Body, BodyError};

/// Pieces shorter than this are copied together, because a handle on a piece keeps the whole buffer that it was read into.
const SMALL: usize = 4 * 1024;

/// A body whose beginning is here.
pub struct Held {
    pieces: VecDeque<Bytes>,
    /// Small pieces, not yet one of `pieces`.
    tail: BytesMut,
    /// Bytes in `pieces` and `tail`.
    left: u64,
    /// Its length was stated in its head.
    stated: bool,
    /// What is still to come.
    rest: Option<Body>,
    trailers: Option<HeaderMap>,
}

impl Held {
    /// Nothing of `body` is read yet.
    pub fn new(body: Body) -> Self {
        let stated = body.exact_length().is_some();
        let (pieces, tail) = (VecDeque::new(), BytesMut::new());
        Self { pieces, tail, left: 0, stated, rest: Some(body), trailers: None }
    }

    /// Reads until the end, or until more than `most` bytes are here. May be dropped at any time: what came is kept.
    ///
    /// # Errors
    /// The body broke.
    pub async fn read(&mut self, most: u64) -> Result<(), BodyError> {
        while self.left <= most
            && let Some(rest) = &mut self.rest
        {
            match rest.frame().await {
                Some(frame) => self.keep(frame?),
                None => self.rest = None,
            }
        }
        Ok(())
    }

    /// Whether all of it is here.
    pub fn is_here(&self) -> bool {
        self.rest.is_none()
    }

    /// The first byte that is no white space, of what is here.
    pub fn first_byte(&self) -> Option<u8> {
        self.bytes().find(|byte| !byte.is_ascii_whitespace())
    }

    /// All of it, where all is here and no trailers follow.
    pub fn whole(&self) -> Option<Bytes> {
        if self.rest.is_some() || self.trailers.is_some() {
            return None;
        }
        // Most short bodies come in one piece, which need not be copied.
        match self.pieces.front() {
            Some(only) if only.len() as u64 == self.left => Some(only.clone()),
            _ => Some(self.bytes().collect()),
        }
    }

    fn bytes(&self) -> impl Iterator<Item = u8> {
        self.pieces.iter().flatten().chain(&self.tail).copied()
    }

    fn keep(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => {
                self.left += data.len() as u64;
                self.keep_data(data);
            }
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
    }

    fn keep_data(&mut self, data: Bytes) {
        if data.len() >= SMALL || (self.pieces.is_empty() && self.tail.is_empty()) {
            self.settle();
            self.pieces.push_back(data);
        } else {
            self.tail.extend_from_slice(&data);
        }
    }

    fn settle(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.settle();
        if let Some(data) = self.pieces.pop_front() {
            self.left -= data.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(rest) = &mut self.rest {
            return Pin::new(rest).poll_frame(cx);
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.rest.as_ref().is_none_or(HttpBody::is_end_stream);
        self.left == 0 && self.trailers.is_none() && ended
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + self.left);
        // With a length instead of chunks, HTTP/1.1 would have no place for trailers.
        if let Some(upper) = rest.upper().filter(|_| self.stated || self.trailers.is_none()) {
            hint.set_upper(upper + self.left);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::timeout::tests::channel;

    #[tokio::test]
    async fn what_was_read_comes_first_and_nothing_is_lost() {
        for most in [0, 1, 5_000, 20_000] {
            let (sender, body) = channel();
            let pieces =
                ["  ", "{", "", "a", &"b".repeat(SMALL), "c", "d", &"e".repeat(SMALL)].map(str::to_owned);
            let all = pieces.concat();
            tokio::spawn(async move {
                for piece in pieces {
                    sender.send(Bytes::from(piece)).await.unwrap();
                }
            });
            let mut held = Held::new(body);
            held.read(most).await.unwrap();
            assert!(held.left > most || held.rest.is_none());
            assert_eq!(held.first_byte(), (most > 1).then_some(b'{'));
            assert_eq!(held.whole(), (most == 20_000).then(|| Bytes::from(all.clone())));
            assert_eq!(held.size_hint().exact(), (most == 20_000).then_some(all.len() as u64));
            assert_eq!(held.collect().await.unwrap().to_bytes(), all, "{most}");
        }
    }

    #[tokio::test]
    async fn small_pieces_are_copied_together_and_a_short_body_is_not_copied() {
        let (sender, body) = channel();
        tokio::spawn(async move {
            for _ in 0..10_000 {
                sender.send(Bytes::from_static(b"x")).await.unwrap();
            }
        });
        let mut held = Held::new(body);
        held.read(20_000).await.unwrap();
        assert!(held.pieces.len() == 1 && held.tail.len() == 9_999);
        assert_eq!(held.collect().await.unwrap().to_bytes().len(), 10_000);

        let short = Bytes::from_static(b"short");
        let mut held = Held::new(Body::full(short.clone()));
        held.read(10).await.unwrap();
        assert_eq!(held.whole().unwrap().as_ptr(), short.as_ptr());
        let mut empty = Held::new(Body::empty());
        empty.read(10).await.unwrap();
        assert!(empty.is_end_stream() && empty.whole() == Some(Bytes::new()));
    }
}
