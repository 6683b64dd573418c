//! Where a credential stands in a request, and how what the client sent there is taken out.
//!
//! Removal covers the twins by which a server could still read the client's value: other letter case, underscore for
//! hyphen (CGI servers see them as one), trailers; a query parameter in another case, percent-encoded, or as PHP and Rails
//! read names (`api_key[]`, `api.key`, `api[key`); and beside a field such as `X-Api-Key` the parameter of its name. What the client sent
//! at the place and once more in `Authorization` (clients of Supabase do) is a dummy there too, and goes.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use percent_encoding::percent_decode_str;

/// A place of a request that belongs to outgate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// A header field.
    Header(HeaderName),
    /// A query parameter, by its decoded name.
    Query(String),
}

impl Location {
    /// The parameter that some servers take in place of a credential's field: that of its name (`?x-api-key=`). Only a name with a
    /// hyphen is surely nobody's parameter for something else: `token`, `key` or `authorization` may be one.
    pub fn query_twin(&self) -> Option<Self> {
        match self {
            Self::Header(name) if name.as_str().contains('-') => Some(Self::Query(name.as_str().to_owned())),
            Self::Header(_) | Self::Query(_) => None,
        }
    }
}

/// All places of one credential.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locations(Vec<Location>);

impl Locations {
    /// Collects places; equal ones once.
    pub fn new(places: impl IntoIterator<Item = Location>) -> Self {
        let mut all = Vec::new();
        for place in places {
            if !all.contains(&place) {
                all.push(place);
            }
        }
        Self(all)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The places, for `explain`.
    pub fn iter(&self) -> impl Iterator<Item = &Location> {
        self.0.iter()
    }

    /// Takes out of the header section what the client sent at these places.
    pub fn strip_headers(&self, headers: &mut HeaderMap) {
        if self.is_repeated(headers) {
            headers.remove(AUTHORIZATION);
        }
        for location in &self.0 {
            let Location::Header(owned) = location else { continue };
            headers.remove(owned);
            if headers.keys().any(|name| name != owned && is_twin(name.as_str(), owned.as_str())) {
                let twins: Vec<HeaderName> =
                    headers.keys().filter(|name| is_twin(name.as_str(), owned.as_str())).cloned().collect();
                for twin in twins {
                    headers.remove(twin);
                }
            }
        }
    }

    /// Whether what stands at one of these places stands in `Authorization` too, with or without the name of a scheme.
    fn is_repeated(&self, headers: &HeaderMap) -> bool {
        let Some(sent) = headers.get(AUTHORIZATION).map(without_scheme) else { return false };
        let others = headers.iter().filter(|(name, _)| **name != AUTHORIZATION && self.owns_header(name));
        others.into_iter().any(|(_, value)| !sent.is_empty() && without_scheme(value) == sent)
    }

    /// Whether a field of this name belongs to outgate; for trailers.
    pub fn owns_header(&self, name: &HeaderName) -> bool {
        self.0.iter().any(
            |location| matches!(location, Location::Header(owned) if is_twin(name.as_str(), owned.as_str())),
        )
    }

    /// Takes out of the query what the client sent at these places. Nothing else of it changes, byte for byte.
    pub fn strip_query(&self, target: PathAndQuery) -> PathAndQuery {
        let owned = |pair: &str| {
            self.0.iter().any(|location| matches!(location, Location::Query(name) if is_pair_of(pair, name)))
        };
        let Some(query) = target.query() else { return target };
        let Some(kept) = without_pairs(query, owned) else { return target };
        let text =
            if kept.is_empty() { target.path().to_owned() } else { format!("{}?{kept}", target.path()) };
        // The parts come from a valid target, so the shorter one is valid too.
        PathAndQuery::try_from(text).unwrap_or(target)
    }
}

/// What stands behind the name of a scheme (`Bearer`), or the whole.
fn without_scheme(value: &HeaderValue) -> &[u8] {
    value.as_bytes().rsplit(|byte| *byte == b' ').next().unwrap_or_default()
}

/// A query or form without the pairs that are `owned`; nothing where there are none.
pub(super) fn without_pairs(pairs: &str, owned: impl Fn(&str) -> bool) -> Option<String> {
    // Some servers part pairs at `;` too (the first HTML forms did).
    if !pairs.split(['&', ';']).any(&owned) {
        return None;
    }
    let mut kept = String::with_capacity(pairs.len());
    for pair in pairs.split_inclusive(['&', ';']) {
        if !owned(pair.trim_end_matches(['&', ';'])) {
            kept.push_str(pair);
        }
    }
    if !pairs.ends_with(['&', ';']) && kept.ends_with(['&', ';']) {
        kept.pop();
    }
    Some(kept)
}

/// Names are compared without case and with `_` and `-` as one.
fn is_twin(name: &str, owned: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == owned.len() && name.bytes().map(fold).eq(owned.bytes().map(fold))
}

/// Whether some server takes a pair of a query or form for the one called `owned`. Names are compared decoded, without case,
/// with `.`, `-` and space as `_` (PHP), up to a NUL, and without what makes them a list or map (`key[]`, `key[x]`); a
/// bracket that is never closed is a `_` to PHP. Where `owned` has brackets itself, what lies in it is its own too, and dots
/// lead as brackets do (ASP.NET).
pub(super) fn is_pair_of(pair: &str, owned: &str) -> bool {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name);
    // What cannot be it is told without a copy.
    let nested = owned.contains('[');
    if !nested && name.len() < owned.len() {
        return false;
    }
    let name = if name.contains('+') { Cow::Owned(name.replace('+', " ")) } else { Cow::Borrowed(name) };
    let decoded = || {
        let bytes = percent_decode_str(&name).skip_while(u8::is_ascii_whitespace);
        bytes.take_while(|byte| *byte != 0)
    };
    if nested {
        let (name, owned) = (steps(decoded()), steps(owned.bytes()));
        return name.starts_with(&owned);
    }
    let owned = || owned.bytes().map(fold);
    let unclosed = || decoded().all(|byte| byte != b']') && decoded().map(fold).eq(owned());
    decoded().take_while(|byte| *byte != b'[').map(fold).eq(owned()) || unclosed()
}

fn fold(byte: u8) -> u8 {
    if matches!(byte, b'.' | b' ' | b'-' | b'[') { b'_' } else { byte.to_ascii_lowercase() }
}

/// The steps of `a[b][c]`.
fn steps(name: impl Iterator<Item = u8>) -> Vec<Vec<u8>> {
    let name: Vec<u8> = name.collect();
    let parts = name.split(|byte| matches!(byte, b'[' | b']' | b'.')).filter(|part| !part.is_empty());
    parts.map(|part| part.iter().copied().map(fold).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locations() -> Locations {
        Locations::new([
            Location::Header(HeaderName::from_static("x-api-key")),
            Location::Header(HeaderName::from_static("x-api-key")),
            Location::Query("api key".to_owned()),
            Location::Query("token".to_owned()),
            Location::Query("auth[token]".to_owned()),
        ])
    }

    #[test]
    fn every_twin_of_a_header_goes() {
        let mut headers = HeaderMap::new();
        for name in ["X-Api-Key", "x_api_key", "X-API_KEY", "x-api-keys", "authorization"] {
            for value in ["v", "w"] {
                let value = if name == "authorization" { "other" } else { value };
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
        }
        locations().strip_headers(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-api-keys"]);
        assert!(locations().owns_header(&HeaderName::from_static("x_api_key")));
    }

    #[test]
    fn what_stands_in_authorization_too_goes_there_and_a_users_token_stays() {
        let owned = Locations::new([Location::Header(HeaderName::from_static("apikey"))]);
        for (key, authorization, stays) in [
            ("dummy", "Bearer dummy", false),
            ("dummy", "bearer  dummy", false),
            ("dummy", "dummy", false),
            ("dummy", "Bearer dummy-2", true),
            ("dummy", "Bearer eyJ.user.token", true),
            ("", "Bearer ", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("ApiKey".parse::<HeaderName>().unwrap(), key.parse().unwrap());
            headers.insert(AUTHORIZATION, authorization.parse().unwrap());
            headers.insert("x-other", key.parse().unwrap());
            owned.strip_headers(&mut headers);
            assert_eq!(headers.contains_key(AUTHORIZATION), stays, "{key} {authorization}");
            assert!(!headers.contains_key("apikey") && headers.contains_key("x-other"));
        }
    }

    #[test]
    fn every_twin_of_a_parameter_goes_and_the_rest_stays_byte_for_byte() {
        for (before, after) in [
            ("/a?token=1&b=%2f", "/a?b=%2f"),
            ("/a?TOKEN=1", "/a"),
            ("/a?%74oken=1&&x", "/a?&x"),
            ("/a?api+key=1&api%20key=2&token&c", "/a?c"),
            ("/a?tokens=1&x=token&tok=1", "/a?tokens=1&x=token&tok=1"),
            ("/a?token[]=1&token%5B%5D=2&token[x][y]=3&token%5bx]=4&b", "/a?b"),
            ("/a?api.key=1&api-key=2&api_key=3&api[key=4&api%5Bkey=5&API%2Ekey=6&b", "/a?b"),
            ("/a?api[key]=1&%20token=2&+token=3&token%00x=4&b", "/a?api[key]=1&b"),
            ("/a?auth[token]=1&auth[token][]=2&AUTH%5Btoken%5D=3&auth.token=4&auth[token=5&b", "/a?b"),
            ("/a?auth[other]=1&auth=2&auth[tokens]=3", "/a?auth[other]=1&auth=2&auth[tokens]=3"),
            ("/a?b=1;token=2;c=3", "/a?b=1;c=3"),
            ("/a?b=1;token=2", "/a?b=1"),
            ("/a", "/a"),
            ("/a?", "/a?"),
        ] {
            assert_eq!(locations().strip_query(before.parse().unwrap()).as_str(), after, "{before}");
        }
    }

    #[test]
    fn a_field_with_a_hyphen_has_a_twin_in_the_query() {
        let twin = |name: &'static str| Location::Header(HeaderName::from_static(name)).query_twin();
        assert_eq!(twin("x-api-key"), Some(Location::Query("x-api-key".to_owned())));
        for name in ["authorization", "token", "apikey", "cookie"] {
            assert_eq!(twin(name), None, "{name}");
        }
        let locations = Locations::new(twin("x-api-key"));
        for (before, after) in [
            ("/a?x-api-key=1&b=2", "/a?b=2"),
            ("/a?X%2DApi_Key=1", "/a"),
            ("/a?api-key=1&key=2", "/a?api-key=1&key=2"),
        ] {
            assert_eq!(locations.strip_query(before.parse().unwrap()).as_str(), after, "{before}");
        }
    }
}
