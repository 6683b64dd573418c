//! Keeping while the body streams by.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body as HttpBody, Frame, SizeHint};

use super::*;
use crate::message::body::BodyError;

/// A body of given pieces.
struct Pieces {
    pieces: VecDeque<Result<Frame<Bytes>, BodyError>>,
    length: Option<u64>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.pieces.pop_front())
    }
    fn is_end_stream(&self) -> bool {
        self.length.is_some() && self.pieces.is_empty()
    }
    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn pieces(length: Option<u64>, pieces: Vec<Result<Frame<Bytes>, BodyError>>) -> Body {
    Body::boxed(Pieces { pieces: pieces.into(), length })
}

fn data(length: usize) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(vec![b'x'; length].into()))
}

#[tokio::test(start_paused = true)]
async fn what_ends_whole_is_kept_and_nothing_else() {
    let trailers = || Ok(Frame::trailers(map(&[("x-sum", "1")])));
    for (what, body, kept) in [
        ("whole", pieces(None, vec![data(500), data(500)]), true),
        ("of known length", pieces(Some(1000), vec![data(500), data(500)]), true),
        ("none", Body::empty(), true),
        ("at the bound", pieces(None, vec![data(1024)]), true),
        ("beyond the bound", pieces(None, vec![data(1024), data(1)]), false),
        ("known to be beyond it", pieces(Some(1025), vec![data(1025)]), false),
        ("cut", pieces(None, vec![data(500), Err(BodyError::UpstreamIdle)]), false),
        ("trailers", pieces(None, vec![data(500), trailers()]), false),
    ] {
        let rig = Rig::new(r#"{"max_size": "64KiB", "max_entry": "1KiB"}"#);
        rig.origin.reply(Reply::ok(FRESH, "").streaming(body));
        let answer = rig.call(request(Method::GET, "/v1/items", &[])).await.unwrap();
        let mut body = answer.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { break };
            length += frame.data_ref().map_or(0, Bytes::len);
        }
        rig.origin.reply(Reply::ok(&[], "two"));
        let second = rig.get(&[]).await;
        assert_eq!(second.is_hit(), kept, "{what}");
        assert!(!kept || second.body.len() == length, "{what}");
        drop(body);
        assert_eq!(rig.state.filling(), 0, "{what}");
        assert_eq!(rig.state.flights.count(), 0, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_knows_the_length_need_not_ask_for_the_end() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(FRESH, "").streaming(pieces(Some(3), vec![data(3)])));
    let answer = rig.call(request(Method::GET, "/v1/items", &[])).await.unwrap();
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    assert!(rig.get(&[]).await.is_hit());
}

#[tokio::test(start_paused = true)]
async fn the_app_does_not_wait_for_the_copy_and_an_app_that_leaves_keeps_nothing() {
    let rig = Rig::new("{}");
    let (sender, body) = fed();
    rig.origin.reply(Reply::ok(FRESH, "").streaming(body));
    let mut answer = rig.call(request(Method::GET, "/v1/items", &[])).await.unwrap();
    sender.send("one".into()).await.unwrap();
    assert_eq!(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    assert_eq!(rig.state.filling(), 3);
    drop(answer);
    assert_eq!(rig.state.filling(), 0);
    rig.origin.reply(Reply::ok(&[], "two"));
    assert_eq!(rig.get(&[]).await.body, "two");
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_being_read_hold_no_more_than_the_cache() {
    let rig = Rig::new(r#"{"max_size": "2KiB", "max_entry": "1KiB"}"#);
    let mut bodies = Vec::new();
    for number in 0..10 {
        rig.origin.reply(Reply::ok(FRESH, "").streaming(pieces(None, vec![data(1000), data(1)])));
        let path = format!("/v1/items/{number}");
        let mut body = rig.call(request(Method::GET, &path, &[])).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        assert!(rig.state.filling() <= 2048);
        bodies.push(body);
    }
    assert_eq!(rig.state.filling(), 2000);
    drop(bodies);
    assert_eq!(rig.state.filling(), 0);
}
