//! Puts secrets in the place of dummies, each written as its place wants it.

use std::borrow::Cow;
use std::rc::Rc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, percent_encode};
use zeroize::Zeroizing;

use super::Places;
use crate::credential::member::QUERY;
use crate::message::json;
use crate::message::media::Media;

/// A dummy, and what takes its place now.
pub struct Replacement<'a> {
    pub token: &'a [u8],
    pub value: &'a [u8],
    pub places: Places,
}

/// What RFC 3986 lets stand in a path segment and nobody reads as anything else.
const PATH: &AsciiSet = &QUERY.remove(b':').remove(b'@');

/// Why a dummy cannot be replaced.
#[derive(Debug, PartialEq, Eq)]
pub enum Unable {
    /// It stands there more than [`MOST`] times: each time makes the request longer.
    TooOften,
    /// The secret holds what the field cannot.
    NotAField,
    /// The URL would be too long.
    TooLong,
}

/// More of one dummy, or of all together, are no credential.
const MOST: usize = 64;

/// Where a dummy begins and ends, and what takes its place.
type Hit = (usize, usize, Rc<Zeroizing<Vec<u8>>>);

/// Every occurrence replaced by what `write` makes of the value; nothing where there is none.
fn swap(
    text: &[u8],
    replacements: &[&Replacement<'_>],
    write: impl Fn(&[u8]) -> Zeroizing<Vec<u8>>,
) -> Result<Option<Zeroizing<Vec<u8>>>, Unable> {
    let mut hits: Vec<Hit> = Vec::new();
    for one in replacements {
        let mut found = memchr::memmem::find_iter(text, one.token).take(MOST + 1).peekable();
        if found.peek().is_some() {
            let value = Rc::new(write(one.value));
            hits.extend(found.map(|at| (at, at + one.token.len(), value.clone())));
        }
    }
    match hits.len() {
        0 => return Ok(None),
        1..=MOST => hits.sort_by_key(|(start, _, _)| *start),
        _ => return Err(Unable::TooOften),
    }
    // The whole length at once: a buffer that grows would leave pieces of a secret behind.
    let added: usize = hits.iter().map(|(_, _, value)| value.len()).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() + added));
    let mut done = 0;
    for (start, end, value) in &hits {
        // The end of one may be the begin of another; the first counts.
        if *start >= done {
            out.extend_from_slice(&text[done..*start]);
            out.extend_from_slice(value);
            done = *end;
        }
    }
    out.extend_from_slice(&text[done..]);
    Ok(Some(out))
}

fn as_it_is(value: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(value.to_vec())
}

fn encoded(value: &[u8], set: &'static AsciiSet) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(3 * value.len()));
    percent_encode(value, set).for_each(|piece| out.extend_from_slice(piece.as_bytes()));
    out
}

/// Replaces in the values of fields, and inside of `Authorization: Basic`.
pub fn headers(headers: &mut HeaderMap, replacements: &[Replacement<'_>]) -> Result<(), Unable> {
    let ours: Vec<&Replacement<'_>> = replacements.iter().filter(|one| one.places.header).collect();
    if ours.is_empty() {
        return Ok(());
    }
    for (name, value) in headers.iter_mut() {
        let swapped = match swap(value.as_bytes(), &ours, as_it_is)? {
            None if name == AUTHORIZATION => in_pair(value, &ours)?,
            swapped => swapped,
        };
        let Some(swapped) = swapped else { continue };
        let mut swapped =
            HeaderValue::from_maybe_shared(Bytes::from_owner(swapped)).map_err(|_| Unable::NotAField)?;
        swapped.set_sensitive(true);
        *value = swapped;
    }
    Ok(())
}

fn in_pair(value: &HeaderValue, ours: &[&Replacement<'_>]) -> Result<Option<Zeroizing<Vec<u8>>>, Unable> {
    let Some(pair) = basic(value) else { return Ok(None) };
    Ok(swap(&pair, ours, as_it_is)?.map(|pair| {
        let text = Zeroizing::new(STANDARD.encode(pair.as_slice()));
        Zeroizing::new([b"Basic ", text.as_bytes()].concat())
    }))
}

/// As servers read it that do not look closely: padded or not, whatever the last bits are.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The pair inside of a `Basic` credential (RFC 7617); also with tabs around it, or in the alphabet of base64url, as some servers
/// take it.
pub fn basic(value: &HeaderValue) -> Option<Zeroizing<Vec<u8>>> {
    let (scheme, rest) = value.as_bytes().split_at_checked(5)?;
    if !scheme.eq_ignore_ascii_case(b"basic") || !rest.starts_with(b" ") && !rest.starts_with(b"\t") {
        return None;
    }
    let standard = |byte: &u8| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    };
    let text: Zeroizing<Vec<u8>> = Zeroizing::new(rest.trim_ascii().iter().map(standard).collect());
    LENIENT.decode(text.as_slice()).ok().map(Zeroizing::new)
}

/// Replaces in path and query; nothing where there is nothing to replace.
pub fn target(
    target: &PathAndQuery,
    replacements: &[Replacement<'_>],
) -> Result<Option<PathAndQuery>, Unable> {
    let pick = |wanted: fn(&Places) -> bool| -> Vec<&Replacement<'_>> {
        replacements.iter().filter(|one| wanted(&one.places)).collect()
    };
    let path = escaped(target.path(), &pick(|places| places.path), PATH)?;
    let query = match target.query() {
        Some(query) => escaped(query, &pick(|places| places.query), QUERY)?,
        None => None,
    };
    if path.is_none() && query.is_none() {
        return Ok(None);
    }
    let path = path.as_ref().map_or(target.path().as_bytes(), |path| path.as_slice());
    let query = query.as_ref().map(|query| query.as_slice()).or(target.query().map(str::as_bytes));
    let joint: &[u8] = if query.is_some() { b"?" } else { b"" };
    let whole = Bytes::from_owner(Zeroizing::new([path, joint, query.unwrap_or_default()].concat()));
    if whole.len() >= usize::from(u16::MAX) {
        return Err(Unable::TooLong);
    }
    PathAndQuery::from_maybe_shared(whole).map(Some).map_err(|_| Unable::TooLong)
}

/// In what is percent-encoded: also where the app escaped what it need not.
fn escaped(
    text: &str,
    ours: &[&Replacement<'_>],
    set: &'static AsciiSet,
) -> Result<Option<Zeroizing<Vec<u8>>>, Unable> {
    if ours.is_empty() {
        return Ok(None);
    }
    let write = |value: &[u8]| encoded(value, set);
    let count = |text: &str| -> usize {
        ours.iter()
            .map(|one| memchr::memmem::find_iter(text.as_bytes(), one.token).take(MOST + 1).count())
            .sum()
    };
    match unescaped(text) {
        Some(plain) if count(&plain) > count(text) => swap(plain.as_bytes(), ours, write),
        _ => swap(text.as_bytes(), ours, write),
    }
}

/// The same URL with those escapes undone that stand for what need not be escaped (RFC 3986 section 6.2.2.2); nothing where
/// there are none.
pub fn unescaped(text: &str) -> Option<Cow<'_, str>> {
    let mut out = String::new();
    let (mut done, mut at) = (0, 0);
    let bytes = text.as_bytes();
    while at + 2 < bytes.len() {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        if bytes[at] == b'%'
            && let (Some(high), Some(low)) = (digit(bytes[at + 1]), digit(bytes[at + 2]))
            && let Ok(byte) = u8::try_from(high * 16 + low)
        {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push_str(&text[done..at]);
                out.push(char::from(byte));
                done = at + 3;
            }
            at += 2;
        }
        at += 1;
    }
    if done == 0 {
        return None;
    }
    out.push_str(&text[done..]);
    Some(Cow::Owned(out))
}

/// Replaces in a body; nothing where there is nothing to replace.
pub fn body(
    body: &[u8],
    media: Media,
    ours: &[&Replacement<'_>],
) -> Result<Option<Zeroizing<Vec<u8>>>, Unable> {
    match media {
        Media::Form => match std::str::from_utf8(body) {
            Ok(text) => escaped(text, ours, QUERY),
            Err(_) => swap(body, ours, |value| encoded(value, QUERY)),
        },
        Media::Json => swap(body, ours, |value| {
            let mut out = Zeroizing::new(Vec::with_capacity(2 * value.len()));
            json::escape(value, &mut out);
            out
        }),
        Media::Text => swap(body, ours, as_it_is),
        Media::Other => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::kinds::placeholder::PlaceConfig;

    const ALL: [PlaceConfig; 4] =
        [PlaceConfig::Header, PlaceConfig::Query, PlaceConfig::Path, PlaceConfig::Body];

    fn both() -> [Replacement<'static>; 2] {
        let one = |token: &'static str, value: &'static str| Replacement {
            token: token.as_bytes(),
            value: value.as_bytes(),
            places: Places::of(&ALL),
        };
        [one("dummy-000000", r#"a/b:c "&\"#), one("dummy-111111", "KEY")]
    }

    #[test]
    fn a_url_is_replaced_whatever_its_escapes() {
        for (before, after) in [
            ("/bot/dummy-111111/send", Some("/bot/KEY/send")),
            ("/botdummy-111111x", Some("/botKEYx")),
            ("/%64ummy%2D111111/%2f", Some("/KEY/%2f")),
            ("/dummy-000000", Some("/a%2Fb:c%20%22%26%5C")),
            ("/?k=dummy-000000&j=dummy-111111", Some("/?k=a%2Fb%3Ac%20%22%26%5C&j=KEY")),
            ("/a?k=%64ummy-111111", Some("/a?k=KEY")),
            ("/dummy-111111?dummy-111111", Some("/KEY?KEY")),
            ("/dummy-11111?x=%", None),
            ("/a?", None),
            ("/%2", None),
        ] {
            let got = target(&before.parse().unwrap(), &both()).unwrap();
            assert_eq!(got.as_ref().map(PathAndQuery::as_str), after, "{before}");
        }
        let long = format!("/{}", "dummy-111111".repeat(5000));
        let grows =
            [Replacement { token: b"dummy-111111", value: b"0123456789abcdef", places: Places::of(&ALL) }];
        assert_eq!(target(&long.parse().unwrap(), &grows), Err(Unable::TooOften));
        let long = format!("/dummy-111111{}", "x".repeat(65_520));
        assert_eq!(target(&long.parse().unwrap(), &grows), Err(Unable::TooLong));
    }

    #[test]
    fn fields_and_basic_pairs_are_replaced() {
        for (name, before, after) in [
            ("authorization", "Bearer dummy-111111", "Bearer KEY".to_owned()),
            ("x-api-key", "dummy-111111", "KEY".to_owned()),
            ("x-api-key", "dummy-000000,dummy-111111", r#"a/b:c "&\,KEY"#.to_owned()),
            ("authorization", "Basic ZHVtbXktMTExMTExOg==", format!("Basic {}", STANDARD.encode("KEY:"))),
            ("authorization", "basic  ZHVtbXktMTExMTExOg", format!("Basic {}", STANDARD.encode("KEY:"))),
            ("x-basic", "Basic ZHVtbXktMTExMTExOg==", "Basic ZHVtbXktMTExMTExOg==".to_owned()),
            ("authorization", "Basic %%%", "Basic %%%".to_owned()),
            ("authorization", "Bas", "Bas".to_owned()),
        ] {
            let mut map = HeaderMap::new();
            map.insert(http::HeaderName::from_static(name), before.parse().unwrap());
            headers(&mut map, &both()).unwrap();
            assert_eq!(map[name], after.as_str(), "{before}");
            assert_eq!(map[name].is_sensitive(), before != after);
        }
    }

    #[test]
    fn bodies_are_replaced_as_they_are_written() {
        let text = |before: &str, media| {
            let replacements = both();
            let ours: Vec<_> = replacements.iter().collect();
            body(before.as_bytes(), media, &ours)
                .unwrap()
                .map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
        };
        assert_eq!(text("k=dummy-000000&x=1", Media::Form).unwrap(), "k=a%2Fb%3Ac%20%22%26%5C&x=1");
        assert_eq!(text("k=%64ummy-111111", Media::Form).unwrap(), "k=KEY");
        assert_eq!(text(r#"{"k":"dummy-000000"}"#, Media::Json).unwrap(), r#"{"k":"a/b:c \"&\\"}"#);
        assert_eq!(text("xdummy-111111x", Media::Text).unwrap(), "xKEYx");
        assert_eq!(text("nothing", Media::Text), None);
        assert_eq!(text("dummy-111111", Media::Other), None);
    }

    #[test]
    fn only_the_named_places_are_touched() {
        let one = [Replacement {
            token: b"dummy-111111",
            value: b"KEY",
            places: Places::of(&[PlaceConfig::Query]),
        }];
        let mut map = HeaderMap::new();
        map.insert("x", "dummy-111111".parse().unwrap());
        headers(&mut map, &one).unwrap();
        assert_eq!(map["x"], "dummy-111111");
        let got = target(&"/dummy-111111?dummy-111111".parse().unwrap(), &one).unwrap().unwrap();
        assert_eq!(got.as_str(), "/dummy-111111?KEY");
    }
}
