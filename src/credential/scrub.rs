//! Searches a provider's answer for the credential and masks each hit with as many `*`.
//!
//! Searched are the reason phrase, the header section, trailers, and the body where its coding is identity. A secret of 12
//! bytes or more is looked for as it is, in base64 (its three alignments, both alphabets) and percent-encoded; a shorter
//! one would hit by chance. While a body streams only bytes that begin a match are held back, and since a mask has the
//! length of what it hides, `Content-Length` stays right.
//!
//! On a stream that stays open, such as a call of gRPC in both directions, the app may have to read a message to its end
//! before the provider sends the next. So what is held is let go as soon as nothing follows at once, if it is shorter than
//! `TELLING` bytes: what a secret begins with says that little of it. It is remembered, and if the rest of the secret does
//! follow, it is masked from there on. A longer begin is not let go before other bytes or the end show what it is: a message
//! that ends in 8 or more bytes of the credential waits.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::message::body::{Body, BodyError};
use crate::message::failure::{Failure, Fault};
use crate::message::request::Exchange;

/// How far answers are searched for the credential.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scrub {
    /// Not at all.
    Off,
    /// Reason phrase, header section, trailers, and bodies that are not compressed.
    #[default]
    Standard,
    /// As `standard`, and the provider is asked for uncompressed answers only; a compressed one is refused.
    Full,
}

/// Secrets shorter than this are not searched for.
pub const SHORTEST: usize = 12;

/// A piece of a secret of this many bytes counts as a leak; shorter ones occur by chance. Every form has at least as many
/// characters as the bytes it spells, so a begin of a form that is shorter spells a shorter piece.
const TELLING: usize = 8;

/// Finds the forms of a credential's secrets.
pub struct Scrubber {
    automaton: AhoCorasick,
    forms: Vec<Zeroizing<Vec<u8>>>,
    longest: usize,
    /// Whether a form begins with the byte: most tails are dismissed by it alone.
    begins: [bool; 256],
}

impl Scrubber {
    /// Prepares the search, or nothing if every secret is too short for it.
    pub fn new(secrets: &[&[u8]]) -> Option<Self> {
        let mut forms: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST) {
            for form in forms_of(secret) {
                if !forms.contains(&form) {
                    forms.push(form);
                }
            }
        }
        let longest = forms.iter().map(|form| form.len()).max()?;
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(forms.iter().map(|form| form.as_slice()))
            .ok()?;
        let mut begins = [false; 256];
        for first in forms.iter().filter_map(|form| form.first()) {
            begins[usize::from(*first)] = true;
        }
        Some(Self { automaton, forms, longest, begins })
    }

    /// Masks every hit in place and returns how many there were.
    fn mask(&self, bytes: &mut [u8]) -> u64 {
        let hits: Vec<_> = self.automaton.find_iter(&*bytes).map(|hit| hit.range()).collect();
        for range in &hits {
            bytes[range.clone()].fill(b'*');
        }
        hits.len() as u64
    }

    /// How many bytes at the end could be the begin of a hit that goes on in the next piece.
    fn held(&self, bytes: &[u8]) -> usize {
        let window = bytes.len().min(self.longest.saturating_sub(1));
        (1..=window)
            .rev()
            .find(|length| {
                let tail = &bytes[bytes.len() - length..];
                self.begins[usize::from(tail[0])]
                    && self.forms.iter().any(|form| form.len() > *length && form.starts_with(tail))
            })
            .unwrap_or(0)
    }

    /// Masks a header section; returns the hits.
    fn mask_headers(&self, headers: &mut HeaderMap) -> u64 {
        let mut hits = 0;
        for value in headers.values_mut() {
            if !self.automaton.is_match(value.as_bytes()) {
                continue;
            }
            let mut bytes = value.as_bytes().to_vec();
            hits += self.mask(&mut bytes);
            // Asterisks are legal wherever the hit was.
            if let Ok(masked) = HeaderValue::from_bytes(&bytes) {
                *value = masked;
            }
        }
        hits
    }
}

/// What encoders of query parameters leave as it is (RFC 3986 section 2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What may also stand in a path as it is.
const PATH: &AsciiSet = &UNRESERVED.remove(b':').remove(b'@');

/// Every spelling in which a secret is looked for.
pub(super) fn forms_of(secret: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut forms = vec![Zeroizing::new(secret.to_vec())];
    for shift in 0..3 {
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            forms.push(aligned_base64(secret, shift, engine));
        }
    }
    let all = Zeroizing::new(percent_encode(secret, NON_ALPHANUMERIC).to_string());
    let usual = Zeroizing::new(percent_encode(secret, UNRESERVED).to_string());
    forms.push(Zeroizing::new(all.as_bytes().to_vec()));
    forms.push(Zeroizing::new(usual.as_bytes().to_vec()));
    forms.push(Zeroizing::new(lower_hex_escapes(&usual)));
    // As a placeholder stands in a path, and as JSON writes what it escapes.
    let path = Zeroizing::new(percent_encode(secret, PATH).to_string());
    forms.push(Zeroizing::new(lower_hex_escapes(&path)));
    forms.push(Zeroizing::new(path.as_bytes().to_vec()));
    forms.push(json_escaped(secret, b"\"\\"));
    forms.push(json_escaped(secret, b"\"\\/"));
    forms
}

/// The characters of base64 that depend on the secret alone when it stands at an offset of `shift` bytes in what is encoded.
fn aligned_base64(secret: &[u8], shift: usize, engine: &impl base64::Engine) -> Zeroizing<Vec<u8>> {
    let padded = Zeroizing::new([&[0_u8; 2][..shift], secret].concat());
    let encoded = Zeroizing::new(engine.encode(padded.as_slice()).into_bytes());
    // The first characters mix in the bytes before, the last ones the bytes after.
    let skip = [0, 2, 3][shift];
    let keep = padded.len() * 8 / 6;
    Zeroizing::new(encoded[skip..keep.max(skip)].to_vec())
}

/// The text with a backslash before each of `escaped`.
fn json_escaped(secret: &[u8], escaped: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::with_capacity(secret.len() * 2));
    for byte in secret {
        if escaped.contains(byte) {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text
}

/// `%2F` as `%2f`.
fn lower_hex_escapes(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    let mut index = 0;
    while index + 2 < bytes.len() {
        if bytes[index] == b'%' {
            bytes[index + 1].make_ascii_lowercase();
            bytes[index + 2].make_ascii_lowercase();
            index += 2;
        }
        index += 1;
    }
    bytes
}

/// Searches one answer. With [`Scrub::Full`] an answer that is compressed all the same is refused.
pub fn scrub_response(
    mut response: Response<Body>,
    scrubber: Arc<Scrubber>,
    scrub: Scrub,
    exchange: Arc<Exchange>,
) -> Result<Response<Body>, Failure> {
    let mut hits = scrubber.mask_headers(response.headers_mut());
    hits += mask_reason(&mut response, &scrubber);
    if hits > 0 {
        exchange.facts().scrubbed += hits;
    }
    let identity = response
        .headers()
        .get(CONTENT_ENCODING)
        .is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if !identity && scrub == Scrub::Full && !response.body().is_end_stream() {
        return Err(Failure::sent(Fault::Protocol)
            .because("the answer is compressed though `scrub: full` asked for none"));
    }
    if response.body().is_end_stream() || response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    Ok(response.map(|body| {
        let pending = VecDeque::new();
        Body::boxed(ScrubbedBody {
            body,
            scrubber,
            identity,
            exchange,
            held: BytesMut::new(),
            let_go: 0,
            pending,
            ended: false,
        })
    }))
}

fn mask_reason(response: &mut Response<Body>, scrubber: &Scrubber) -> u64 {
    let Some(reason) = response.extensions().get::<hyper::ext::ReasonPhrase>() else { return 0 };
    if !scrubber.automaton.is_match(reason.as_bytes()) {
        return 0;
    }
    // The canonical phrase of the status takes its place.
    response.extensions_mut().remove::<hyper::ext::ReasonPhrase>();
    1
}

struct ScrubbedBody {
    body: Body,
    scrubber: Arc<Scrubber>,
    identity: bool,
    exchange: Arc<Exchange>,
    /// What could be the begin of a hit.
    held: BytesMut,
    /// How many bytes at the front of `held` the app has already.
    let_go: usize,
    pending: VecDeque<Frame<Bytes>>,
    ended: bool,
}

impl ScrubbedBody {
    fn search(&mut self, data: Bytes) -> Bytes {
        // The common case: nothing is held, nothing is found, nothing begins at the end. No copy.
        if self.held.is_empty() && !self.scrubber.automaton.is_match(&data) && self.scrubber.held(&data) == 0
        {
            return data;
        }
        self.held.extend_from_slice(&data);
        self.count(|scrubber, held| scrubber.mask(held));
        let done = self.held.len() - self.scrubber.held(&self.held);
        let mut out = self.held.split_to(done);
        let known = self.let_go.min(done);
        self.let_go -= known;
        out.split_off(known).freeze()
    }

    /// Nothing follows at once: what is held, where it is too short to tell anything.
    fn let_go(&mut self) -> Option<Bytes> {
        let open = self.let_go < self.held.len() && self.held.len() < TELLING;
        open.then(|| {
            let bytes = Bytes::copy_from_slice(&self.held[self.let_go..]);
            self.let_go = self.held.len();
            bytes
        })
    }

    /// How many bytes the app has still to get of what is held.
    fn kept_back(&self) -> usize {
        self.held.len() - self.let_go
    }

    fn count(&mut self, mask: impl FnOnce(&Scrubber, &mut [u8]) -> u64) {
        let hits = mask(&self.scrubber, &mut self.held);
        if hits > 0 {
            self.exchange.facts().scrubbed += hits;
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Option<Frame<Bytes>> {
        self.ended = true;
        if let Some(mut trailers) = trailers {
            let hits = self.scrubber.mask_headers(&mut trailers);
            if hits > 0 {
                self.exchange.facts().scrubbed += hits;
            }
            self.pending.push_back(Frame::trailers(trailers));
        }
        if self.kept_back() > 0 {
            let rest = self.held.split().split_off(self.let_go).freeze();
            self.let_go = 0;
            self.pending.push_front(Frame::data(rest));
        }
        self.pending.pop_front()
    }
}

impl HttpBody for ScrubbedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.ended {
                return Poll::Ready(self.pending.pop_front().map(Ok));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return match self.let_go() {
                    Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                    None => Poll::Pending,
                };
            };
            let frame = match frame {
                None => return Poll::Ready(self.end(None).map(Ok)),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => frame,
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    let trailers = frame.into_trailers().ok();
                    return Poll::Ready(self.end(trailers).map(Ok));
                }
            };
            if !self.identity {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            let out = self.search(data);
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.kept_back() == 0 && self.pending.is_empty() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self.body.size_hint().exact() {
            Some(left) => SizeHint::with_exact(left + self.kept_back() as u64),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;
    use crate::resilience::timeout::tests::channel;

    const SECRET: &[u8] = b"sk_live_CANARY/0123+456=";

    async fn through(pieces: Vec<Vec<u8>>) -> (Vec<u8>, u64) {
        let (sender, body) = channel();
        let exchange = Arc::new(Exchange::new(None));
        let scrubber = Arc::new(Scrubber::new(&[SECRET]).unwrap());
        let response =
            scrub_response(Response::new(body), scrubber, Scrub::Standard, exchange.clone()).unwrap();
        tokio::spawn(async move {
            for piece in pieces {
                if !piece.is_empty() && sender.send(piece.into()).await.is_err() {
                    return;
                }
            }
        });
        let bytes = response.into_body().collect().await.unwrap().to_bytes().to_vec();
        let hits = exchange.facts().scrubbed;
        (bytes, hits)
    }

    fn cut(bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
        bytes.chunks(size).map(<[u8]>::to_vec).collect()
    }

    fn haystacks() -> Vec<Vec<u8>> {
        let mut all = vec![SECRET.to_vec()];
        for before in 0..4 {
            let plain = [&b"user:pass"[..before], SECRET, b"tail"].concat();
            all.push(STANDARD_NO_PAD.encode(&plain).into_bytes());
            all.push(URL_SAFE_NO_PAD.encode(&plain).into_bytes());
        }
        all.push(percent_encode(SECRET, NON_ALPHANUMERIC).to_string().into_bytes());
        all.push(b"sk_live_CANARY%2F0123%2B456%3D".to_vec());
        all.push(b"sk_live_CANARY%2f0123%2b456%3d".to_vec());
        all
    }

    #[tokio::test]
    async fn every_spelling_is_masked_however_it_is_cut() {
        for haystack in haystacks() {
            let text = [b"{\"echo\":\"", haystack.as_slice(), b"\"}"].concat();
            for size in [1, 2, 3, 7, 11, 64, 4096] {
                let (bytes, hits) = through(cut(&text, size)).await;
                assert_eq!(bytes.len(), text.len());
                assert_eq!(hits, 1, "{} in pieces of {size}", String::from_utf8_lossy(&text));
                assert!(bytes.windows(8).all(|window| !SECRET.windows(8).any(|piece| piece == window)));
            }
        }
    }

    #[tokio::test]
    async fn what_only_begins_like_a_secret_arrives_whole() {
        let text = b"sk_live_CANARY/0123+45 and sk_live_".to_vec();
        for size in [1, 5, 100] {
            assert_eq!(through(cut(&text, size)).await, (text.clone(), 0));
        }
    }

    /// The frames of a stream that stays open, until it falls silent.
    async fn open_stream(body: &mut Body) -> Vec<u8> {
        let mut got = Vec::new();
        loop {
            tokio::select! {
                biased;
                frame = body.frame() => got.extend(frame.unwrap().unwrap().into_data().unwrap()),
                () = tokio::task::yield_now() => return got,
            }
        }
    }

    #[tokio::test]
    async fn an_open_stream_gets_what_is_too_short_to_tell_and_the_rest_is_masked() {
        // Each row: what the provider sends, piece by piece, and what the app has after each of them.
        let rows: [&[(&[u8], &[u8])]; 5] = [
            &[(b"a message s", b"a message s"), (b"o it goes on", b"o it goes on")],
            &[(b"key: sk_live", b"key: sk_live"), (b"_CANARY/0123+456=.", b"*****************.")],
            // In small pieces: together they never tell 8 bytes of it.
            &[(b"sk_l", b"sk_l"), (b"ive", b"ive"), (b"_", b""), (b"CANARY/0123+456=", b"*****************")],
            &[(b"sk_live_", b""), (b"x", b"sk_live_x")],
            // What was let go begins another match further on.
            &[(b"sk_s", b"sk_s"), (b"k_live_CANARY/0123+456=s", b"***********************s"), (b"k", b"k")],
        ];
        for row in rows {
            let (sender, body) = channel();
            let exchange = Arc::new(Exchange::new(None));
            let scrubber = Arc::new(Scrubber::new(&[SECRET]).unwrap());
            let response = scrub_response(Response::new(body), scrubber, Scrub::Standard, exchange).unwrap();
            let mut body = response.into_body();
            for (sent, wanted) in row {
                sender.send(Bytes::copy_from_slice(sent)).await.unwrap();
                let got = open_stream(&mut body).await;
                let text = String::from_utf8_lossy;
                assert_eq!(text(&got), text(wanted), "{row:?}");
            }
            drop(sender);
            assert!(body.frame().await.is_none(), "nothing comes twice");
        }
    }

    #[test]
    fn headers_are_masked_and_short_secrets_are_not_searched_for() {
        let scrubber = Scrubber::new(&[SECRET, b"short"]).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-echo", HeaderValue::from_bytes(&[b"Bearer ", SECRET].concat()).unwrap());
        headers.insert("x-short", HeaderValue::from_static("short"));
        assert_eq!(scrubber.mask_headers(&mut headers), 1);
        assert_eq!(headers["x-echo"], "Bearer ************************");
        assert_eq!(headers["x-short"], "short");
        assert!(Scrubber::new(&[b"short"]).is_none());
    }

    #[tokio::test]
    async fn full_refuses_what_it_cannot_read() {
        let scrubber = Arc::new(Scrubber::new(&[SECRET]).unwrap());
        let compressed =
            || Response::builder().header("content-encoding", "gzip").body(Body::full("x")).unwrap();
        let exchange = Arc::new(Exchange::new(None));
        let refused =
            scrub_response(compressed(), scrubber.clone(), Scrub::Full, exchange.clone()).err().unwrap();
        assert_eq!(refused.fault, Fault::Protocol);
        assert!(scrub_response(compressed(), scrubber, Scrub::Standard, exchange).is_ok());
    }

    proptest! {
        #[test]
        fn other_bytes_pass_unchanged(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1_usize..50) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (out, hits) = runtime.block_on(through(cut(&bytes, size)));
            prop_assert_eq!(hits, 0);
            prop_assert_eq!(out, bytes);
        }
    }
}
