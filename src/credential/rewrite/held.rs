//! Bodies that are held whole, because a credential goes into them, or is made of them.

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use http_body_util::BodyExt;
use zeroize::Zeroizing;

use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;
use crate::upstream::error::body_fault;

/// Holds a body whole, of at most `max` bytes. What is known to be longer is refused before a byte of it is read. A trailer
/// section is dropped: forms and JSON have no use for one.
///
/// # Errors
/// [`Fault::BodyTooLargeToRewrite`], and what the app's side of it comes to.
pub async fn collect(mut body: Body, max: u64) -> Result<Bytes, Failure> {
    let too_large = || Failure::not_sent(Fault::BodyTooLargeToRewrite);
    if body.exact_length().is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let (mut first, mut more) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::not_sent(body_fault(&error)).because(error))?;
        let Ok(data) = frame.into_data() else { continue };
        if (first.len() + more.len() + data.len()) as u64 > max {
            return Err(too_large());
        }
        // Most bodies that are held come in one piece, which need not be copied.
        if first.is_empty() && more.is_empty() {
            first = data;
            continue;
        }
        if more.is_empty() {
            more.extend_from_slice(&std::mem::take(&mut first));
        }
        more.extend_from_slice(&data);
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

/// Digests that the app made of a body which is another one now.
const DIGESTS: [&str; 4] = ["content-md5", "digest", "content-digest", "repr-digest"];

/// Gives a request another body, which is wiped when its last copy goes; its length follows.
pub fn replace(request: &mut EgressRequest, body: Zeroizing<Vec<u8>>) {
    for name in DIGESTS {
        request.headers.remove(HeaderName::from_static(name));
    }
    if request.headers.contains_key(CONTENT_LENGTH) {
        request.headers.insert(CONTENT_LENGTH, body.len().into());
    }
    request.body = Body::full(Bytes::from_owner(body));
}

/// What a body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/x-www-form-urlencoded`.
    Form,
    /// `application/json`, or a type that ends in `+json` (RFC 6839 section 3.1).
    Json,
    /// Text of another kind.
    Text,
    /// Nothing that outgate looks into, or nothing that it can read: another charset, a content coding, two types.
    Other,
}

/// What the header section says of the body.
#[must_use]
pub fn media(headers: &HeaderMap) -> Media {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Media::Other;
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(stated), None) = (types.next(), types.next()) else { return Media::Other };
    let Ok(stated) = stated.to_str() else { return Media::Other };
    let mut parts = stated.split(';');
    let name = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    if !parts.all(is_harmless) {
        return Media::Other;
    }
    match name.as_str() {
        "application/x-www-form-urlencoded" => Media::Form,
        "application/json" => Media::Json,
        _ if name.ends_with("+json") => Media::Json,
        "text/plain" => Media::Text,
        _ => Media::Other,
    }
}

/// A parameter of a media type that does not say the bytes mean something else: a charset other than UTF-8 would.
fn is_harmless(parameter: &str) -> bool {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let value = value.trim().trim_matches('"');
    !name.trim().eq_ignore_ascii_case("charset")
        || value.eq_ignore_ascii_case("utf-8")
        || value.eq_ignore_ascii_case("utf8")
        || value.eq_ignore_ascii_case("us-ascii")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::timeout::tests::channel;

    #[test]
    fn only_what_is_surely_a_form_or_json_is_taken_for_it() {
        for (stated, coding, expected) in [
            ("application/json", None, Media::Json),
            ("Application/JSON; charset=UTF-8", None, Media::Json),
            ("application/json; charset=\"utf-8\"; profile=x", None, Media::Json),
            ("application/vnd.api+json", Some("identity"), Media::Json),
            ("application/x-www-form-urlencoded", None, Media::Form),
            ("text/plain", None, Media::Text),
            ("application/json; charset=utf-16", None, Media::Other),
            ("application/x-www-form-urlencoded; charset=iso-8859-1", None, Media::Other),
            ("application/json", Some("gzip"), Media::Other),
            ("application/json, text/plain", None, Media::Other),
            ("multipart/form-data; boundary=x", None, Media::Other),
            ("application/jsonx", None, Media::Other),
            ("", None, Media::Other),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, stated.parse().unwrap());
            if let Some(coding) = coding {
                headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static(coding));
            }
            assert_eq!(media(&headers), expected, "{stated} {coding:?}");
        }
        assert_eq!(media(&HeaderMap::new()), Media::Other);
        let mut headers = HeaderMap::new();
        for stated in ["application/json", "text/plain"] {
            headers.append(CONTENT_TYPE, stated.parse().unwrap());
        }
        assert_eq!(media(&headers), Media::Other);
    }

    #[tokio::test]
    async fn a_body_is_held_up_to_its_bound_however_it_comes() {
        let send = |pieces: &'static [&'static str], max: u64| async move {
            let (sender, body) = channel();
            let feed = async {
                for piece in pieces {
                    if sender.send(bytes::Bytes::from_static(piece.as_bytes())).await.is_err() {
                        break;
                    }
                }
                drop(sender);
            };
            let (held, ()) = tokio::join!(collect(body, max), feed);
            held.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).map_err(|failure| failure.fault)
        };
        assert_eq!(send(&[], 3).await, Ok(String::new()));
        assert_eq!(send(&["abc"], 3).await.unwrap(), "abc");
        assert_eq!(send(&["a", "b", "c"], 3).await.unwrap(), "abc");
        assert_eq!(send(&["a", "b", "cd"], 3).await, Err(Fault::BodyTooLargeToRewrite));
        assert_eq!(send(&["abcd"], 3).await, Err(Fault::BodyTooLargeToRewrite));
        let known = collect(Body::full("abcd"), 3).await.err().map(|failure| failure.fault);
        assert_eq!(known, Some(Fault::BodyTooLargeToRewrite));
    }
}
