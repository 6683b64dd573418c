//! A bounded look into an answer's body, after which the app gets every byte as it came.

use std::collections::VecDeque;
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::response::Parts;
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::message::body::{Body, BodyError};
use crate::resilience::pointer::Pointer;

/// The longest body that is looked into, as it comes.
pub const MOST: usize = 64 * 1024;
/// The longest body that is looked into, decoded.
pub const MOST_DECODED: usize = 256 * 1024;
/// How long a look may take. A body that comes more slowly is handed on; within it the body's own idle timeout holds.
pub const LOOK_FOR: Duration = Duration::from_secs(5);

/// What a look has seen.
pub(super) struct Seen {
    bytes: Vec<u8>,
    json: Option<serde_json::Value>,
}

impl Seen {
    /// The document, where it is one.
    pub(super) fn json(&self) -> Option<&serde_json::Value> {
        self.json.as_ref()
    }

    /// The body, decoded.
    pub(super) fn text(&self) -> &[u8] {
        &self.bytes
    }

    /// The text or number that a pointer leads to; the first, where it leads to several.
    pub(super) fn scalar(&self, pointer: &Pointer) -> Option<String> {
        let mut found = None;
        pointer.any(self.json()?, &mut |value| {
            found = match value {
                serde_json::Value::String(text) => Some(text.clone()),
                serde_json::Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            found.is_some()
        });
        found
    }
}

/// Whether a body with this head can be looked into: JSON, and with `text` whatever is written for people and parsers.
pub(super) fn can_look(head: &Parts, body: &Body, text: bool) -> bool {
    head.status != StatusCode::SWITCHING_PROTOCOLS
        && head.status != StatusCode::PARTIAL_CONTENT
        && body.size_hint().lower() <= MOST as u64
        && !body.is_end_stream()
        && (is_json(&head.headers) || text && is_text(&head.headers))
        && coding(&head.headers).is_some()
}

fn media_type(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let media = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media.split_once('/').map(|(kind, subtype)| (kind.to_owned(), subtype.to_owned()))
}

fn is_text(headers: &HeaderMap) -> bool {
    let Some((kind, subtype)) = media_type(headers) else { return false };
    match (kind.as_str(), subtype.as_str()) {
        // Never complete.
        ("text", "event-stream") => false,
        ("text", _) | ("application", "xml" | "x-www-form-urlencoded") | ("multipart", "mixed") => true,
        (_, subtype) => subtype.ends_with("+xml"),
    }
}

pub(in crate::resilience) fn is_json(headers: &HeaderMap) -> bool {
    let Some((kind, subtype)) = media_type(headers) else { return false };
    // AWS answers in `application/x-amz-json-1.1`.
    matches!(kind.as_str(), "application" | "text")
        && (subtype == "json" || subtype.ends_with("+json") || subtype.starts_with("x-amz-json-"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Identity,
    Gzip,
}

/// The coding, where it is one that can be read.
fn coding(headers: &HeaderMap) -> Option<Coding> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let first = values.next();
    if values.next().is_some() {
        return None;
    }
    let Some(value) = first else { return Some(Coding::Identity) };
    match value.to_str().ok()?.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Some(Coding::Identity),
        "gzip" | "x-gzip" => Some(Coding::Gzip),
        _ => None,
    }
}

/// Reads a body up to the bound. Returns it whole again, and what was seen. With `maps_alone` nothing but a JSON map is of use, and
/// what begins otherwise (a list whose elements stream) is handed on with its first piece; of packed bodies the first byte is not seen.
pub(super) async fn look(head: &Parts, body: Body, maps_alone: bool) -> (Body, Option<Seen>) {
    let mut looked = Looked::new(body);
    looked.maps_alone = maps_alone && coding(&head.headers) == Some(Coding::Identity);
    // What was read before the time is over stays in `looked`.
    let whole = tokio::time::timeout(LOOK_FOR, looked.read()).await.unwrap_or(false);
    let bytes = coding(&head.headers).filter(|_| whole).and_then(|coding| looked.decoded(coding));
    let seen = bytes.map(|bytes| {
        let json = is_json(&head.headers).then(|| serde_json::from_slice(&bytes).ok()).flatten();
        Seen { bytes, json }
    });
    (Body::boxed(looked), seen)
}

/// A body whose beginning was read already.
pub(in crate::resilience) struct Looked {
    read: VecDeque<Result<Frame<Bytes>, BodyError>>,
    bytes: usize,
    rest: Body,
    ended: bool,
    /// Until the first byte that is no blank was seen: a body that does not begin as a map is not read on.
    maps_alone: bool,
    /// What is left of the exact length, where that is known.
    left: Option<u64>,
}

impl Looked {
    /// Nothing was read yet.
    pub(in crate::resilience) fn new(body: Body) -> Self {
        Self {
            read: VecDeque::new(),
            bytes: 0,
            left: body.exact_length(),
            ended: false,
            maps_alone: false,
            rest: body,
        }
    }

    /// Whether the whole body was read, without an error and within the bound.
    async fn read(&mut self) -> bool {
        while let Some(frame) = self.rest.frame().await {
            let good = frame.as_ref().is_ok_and(|frame| {
                let data = frame.data_ref().map_or(&[][..], Bytes::as_ref);
                self.bytes += data.len();
                self.bytes <= MOST && self.can_be_read(data)
            });
            self.ended = frame.is_err();
            self.read.push_back(frame);
            if !good {
                return false;
            }
        }
        self.ended = true;
        true
    }

    /// Whether the body may be one that is of use, going by its first byte that is no blank.
    fn can_be_read(&mut self, data: &[u8]) -> bool {
        match data.iter().find(|byte| !byte.is_ascii_whitespace()).filter(|_| self.maps_alone) {
            None => true,
            Some(first) => {
                self.maps_alone = false;
                *first == b'{'
            }
        }
    }

    /// Reads one piece more and adds it to `seen`; false at the end, at an error, and above the bound.
    pub(in crate::resilience) async fn read_into(&mut self, seen: &mut Vec<u8>) -> bool {
        let Some(frame) = self.rest.frame().await else {
            self.ended = true;
            return false;
        };
        let data = frame.as_ref().ok().and_then(Frame::data_ref);
        let good = data.is_some_and(|data| seen.len() + data.len() <= MOST);
        if let Some(data) = data.filter(|_| good) {
            seen.extend_from_slice(data);
        }
        self.ended = frame.is_err();
        self.read.push_back(frame);
        good
    }

    fn decoded(&self, coding: Coding) -> Option<Vec<u8>> {
        let pieces = self.read.iter().filter_map(|frame| frame.as_ref().ok()?.data_ref());
        let bytes: Vec<u8> = pieces.flat_map(|piece| piece.iter().copied()).collect();
        match coding {
            Coding::Identity => Some(bytes),
            Coding::Gzip => unpacked(&bytes),
        }
    }
}

/// Decodes gzip; nothing where it is broken or longer than the bound.
fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    let decoder = flate2::read::MultiGzDecoder::new(bytes);
    decoder.take(MOST_DECODED as u64 + 1).read_to_end(&mut decoded).ok()?;
    (decoded.len() <= MOST_DECODED).then_some(decoded)
}

impl HttpBody for Looked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match self.read.pop_front() {
            Some(frame) => Some(frame),
            None if self.ended => None,
            None => std::task::ready!(Pin::new(&mut self.rest).poll_frame(cx)),
        };
        if let (Some(Ok(frame)), Some(left)) = (&frame, &mut self.left) {
            *left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len) as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && (self.ended || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
