//! What a body is written in, by its header section.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

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
}
