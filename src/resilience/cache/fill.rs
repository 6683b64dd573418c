//! An answer on its way to the app, copied as it goes.
//!
//! Nothing waits for the copy. It is kept when the body has ended whole: what was cut, has trailers, or is longer than
//! `max_entry`, is passed on and not kept.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::entry::{KeptHead, Stored};
use super::flight::{Landed, Leader};
use super::place::Place;
use super::state::{ResponseCache, count};
use crate::message::body::{Body, BodyError};

/// What becomes of an answer when its body has ended.
pub(super) struct Filling {
    pub state: Arc<ResponseCache>,
    pub place: Place,
    /// The fields of the request, by which the answer is selected.
    pub asked: HeaderMap,
    pub head: KeptHead,
    /// Who waits for it.
    pub leader: Option<Leader>,
}

impl Filling {
    /// The body as the app gets it.
    pub fn body(self, body: Body) -> Body {
        if body.is_end_stream() {
            self.keep(Bytes::new());
            return Body::empty();
        }
        let copy = Gathered { bytes: BytesMut::new(), filling: self };
        Body::boxed(FillBody { body, copy: Some(copy) })
    }

    /// Whether a body of this length can be kept; one of unknown length is tried.
    pub fn may_fit(state: &ResponseCache, body: &Body) -> bool {
        body.exact_length().is_none_or(|length| length <= state.max_entry())
    }

    fn keep(self, body: Bytes) {
        let Self { state, place, asked, head, leader } = self;
        let declared = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let whole = declared.is_none_or(|length: usize| length == body.len());
        let landed = if whole && head.epoch.lasts() {
            state.keep(place, Arc::new(Stored { head, body }), &asked);
            count(&state.counters.stored);
            Landed::Kept
        } else {
            Landed::Abandoned
        };
        if let Some(leader) = leader {
            leader.land(landed);
        }
    }

    fn give_up(self) {
        count(&self.state.counters.not_storable);
        land_useless(&self.state, self.place, self.leader);
    }
}

/// Tells those who wait that they wait in vain, and spares the next ones the wait.
pub(super) fn land_useless(state: &ResponseCache, place: Place, leader: Option<Leader>) {
    if leader.is_some_and(|leader| leader.land(Landed::Useless)) {
        state.useless_to_wait(place);
    }
}

struct Gathered {
    bytes: BytesMut,
    filling: Filling,
}

impl Gathered {
    /// Whether there was room for the piece.
    fn take(&mut self, piece: &Bytes) -> bool {
        let state = &self.filling.state;
        let length = (self.bytes.len() + piece.len()) as u64;
        if length > state.max_entry() || !state.reserve(piece.len() as u64) {
            return false;
        }
        self.bytes.extend_from_slice(piece);
        true
    }

    fn finish(self) {
        self.filling.state.release(self.bytes.len() as u64);
        // A buffer that grew is up to twice as long as what is in it.
        self.filling.keep(Bytes::copy_from_slice(&self.bytes));
    }

    fn give_up(self) {
        self.filling.state.release(self.bytes.len() as u64);
        self.filling.give_up();
    }

    /// The body was cut, or the app went away.
    fn cut(self) {
        self.filling.state.release(self.bytes.len() as u64);
    }
}

struct FillBody {
    body: Body,
    copy: Option<Gathered>,
}

impl FillBody {
    fn note(&mut self, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
        let Some(mut copy) = self.copy.take() else { return };
        match frame {
            None => copy.finish(),
            Some(Err(_)) => copy.cut(),
            Some(Ok(frame)) => match frame.data_ref() {
                Some(piece) if copy.take(piece) => {
                    // Who knows the length does not ask again after the last piece.
                    if self.body.is_end_stream() { copy.finish() } else { self.copy = Some(copy) }
                }
                Some(_) | None => copy.give_up(),
            },
        }
    }
}

impl HttpBody for FillBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.note(frame.as_ref());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for FillBody {
    fn drop(&mut self) {
        let Some(copy) = self.copy.take() else { return };
        // Whole, though nobody asked for the end.
        if self.body.is_end_stream() { copy.finish() } else { copy.cut() }
    }
}
