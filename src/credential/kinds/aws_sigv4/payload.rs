//! What is signed in the body's place, and whether the body has to be held for it.

use std::borrow::Cow;

use http::HeaderMap;

use super::Settings;
use crate::credential::rewrite::collect;
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;
use crate::message::target::Scheme;
use crate::secret::aws::sign::{EMPTY_SHA256, Rules, sha256_hex};

/// The field in which a client declares what its body is.
pub(super) const CONTENT_SHA256: &str = "x-amz-content-sha256";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const UNSIGNED_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
const CHUNKED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const CHUNKED_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";

/// What is signed in the body's place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Payload {
    /// A hash, or one of S3's words.
    pub text: Cow<'static, str>,
    /// The chunks of the body are signed, and maybe its trailer.
    pub chunks: Option<Chunks>,
}

/// How the chunks of a body are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    /// They alone.
    Plain,
    /// And a trailer section behind them.
    Trailer,
}

/// What a client declared.
#[derive(Debug, PartialEq, Eq)]
enum Declared {
    Nothing,
    Hash(String),
    Unsigned,
    UnsignedTrailer,
    Chunked(Chunks),
    Other,
}

fn declared(headers: &HeaderMap) -> Declared {
    let mut values = headers.get_all(CONTENT_SHA256).into_iter();
    let (first, more) = (values.next(), values.next());
    let text = match (first.map(|value| value.to_str()), more) {
        (None, _) => return Declared::Nothing,
        (Some(Ok(text)), None) => text,
        _ => return Declared::Other,
    };
    match text {
        UNSIGNED => Declared::Unsigned,
        UNSIGNED_TRAILER => Declared::UnsignedTrailer,
        CHUNKED => Declared::Chunked(Chunks::Plain),
        CHUNKED_TRAILER => Declared::Chunked(Chunks::Trailer),
        hash if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Declared::Hash(hash.to_ascii_lowercase())
        }
        _ => Declared::Other,
    }
}

/// Whether the body has to be held for its hash.
pub(super) fn is_held(request: &EgressRequest, rules: Rules) -> bool {
    let unsigned = request.target.scheme == Scheme::Https;
    request.body.exact_length() != Some(0)
        && match declared(&request.headers) {
            Declared::Nothing => !(unsigned && rules == Rules::S3),
            Declared::Unsigned => !unsigned,
            Declared::Hash(_) | Declared::UnsignedTrailer | Declared::Chunked(_) | Declared::Other => false,
        }
}

/// Settles it. Takes the client's declaration out of the head; the signature brings its own.
pub(super) async fn settle(
    settings: &Settings,
    request: &mut EgressRequest,
    rules: Rules,
) -> Result<Payload, Failure> {
    const OVER_HTTP: &str = "an unsigned body is sent over TLS alone";
    const OTHER: &str =
        "x-amz-content-sha256 is neither a SHA-256 in hex nor a kind of payload that can be signed anew";
    let declared = declared(&request.headers);
    let secure = request.target.scheme == Scheme::Https;
    let empty = request.body.exact_length() == Some(0);
    let plain = |text: &'static str| Ok(Payload { text: text.into(), chunks: None });
    let payload = match declared {
        Declared::Hash(hash) => Ok(Payload { text: hash.into(), chunks: None }),
        Declared::Chunked(chunks) if rules == Rules::S3 => {
            let text = if chunks == Chunks::Trailer { CHUNKED_TRAILER } else { CHUNKED };
            Ok(Payload { text: text.into(), chunks: Some(chunks) })
        }
        Declared::UnsignedTrailer if secure => plain(UNSIGNED_TRAILER),
        Declared::UnsignedTrailer => Err(Failure::not_sent(Fault::Forbidden(OVER_HTTP))),
        Declared::Chunked(_) | Declared::Other => Err(Failure::not_sent(Fault::Unfit(OTHER))),
        _ if empty => plain(EMPTY_SHA256),
        Declared::Unsigned if secure => plain(UNSIGNED),
        Declared::Nothing if secure && rules == Rules::S3 => plain(UNSIGNED),
        Declared::Nothing | Declared::Unsigned => hashed(settings, request).await,
    }?;
    request.headers.remove(CONTENT_SHA256);
    Ok(payload)
}

async fn hashed(settings: &Settings, request: &mut EgressRequest) -> Result<Payload, Failure> {
    let body = std::mem::replace(&mut request.body, Body::empty());
    let bytes = collect(body, settings.max_buffer).await?;
    let text = sha256_hex(&bytes).into();
    request.body = Body::full(bytes);
    Ok(Payload { text, chunks: None })
}
