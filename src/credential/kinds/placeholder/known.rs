//! Dummies that are sent where they do not belong.
//!
//! An app that sends the dummy of one provider to another has a bug, or somebody makes it talk to the wrong host. Nothing
//! secret is in it, but it is the sign that the real key would have gone there. So all dummies of a policy are known, and a
//! request that holds one at a place where it would not be replaced is refused. Looked at are path, query and the values
//! of fields, of the head and of the trailer section (each as it is written and percent-decoded once; inside
//! `Authorization: Basic` too), and bodies as they go by, for the dummy as it is written: nothing is held for that but the last
//! bytes of a piece, and what was sent before is cut off. A body passes with the dummies of its own route, whatever places these name.
//! Not looked at are the names of fields and the host's name. A policy without placeholders pays nothing.

use std::sync::Arc;

use aho_corasick::AhoCorasick;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;

use super::replace::{basic, unescaped};
use super::{Places, Settings};
use crate::credential::kinds::{MemberSettings, PerRequest};

/// All dummies of a policy.
pub struct Known {
    search: AhoCorasick,
    tokens: Vec<String>,
}

/// The same as one route sees it.
pub struct Guard {
    known: Arc<Known>,
    /// By number of the token: where this route replaces it.
    allowed: Vec<Places>,
}

/// A dummy stands where it must not be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Misplaced;

/// The dummies of a member.
fn tokens_of(member: &MemberSettings) -> impl Iterator<Item = (&str, Places)> {
    let settings: Option<&Settings> = match &member.per_request {
        Some(PerRequest::Placeholder(settings)) => Some(settings),
        _ => None,
    };
    settings.into_iter().flat_map(Settings::tokens)
}

impl Known {
    /// Collects the dummies of all members; nothing where there are none.
    pub fn new<'a>(members: impl IntoIterator<Item = &'a MemberSettings>) -> Option<Arc<Self>> {
        let mut tokens: Vec<String> = Vec::new();
        for (token, _) in members.into_iter().flat_map(tokens_of) {
            if !tokens.iter().any(|known| known == token) {
                tokens.push(token.to_owned());
            }
        }
        if tokens.is_empty() {
            return None;
        }
        let search = AhoCorasick::new(&tokens).ok()?;
        Some(Arc::new(Self { search, tokens }))
    }

    /// What a route with these members lets pass.
    pub fn guard(self: &Arc<Self>, members: &[MemberSettings]) -> Guard {
        let mut allowed = vec![Places::default(); self.tokens.len()];
        // Members are alternatives of the same dummies.
        for (token, places) in members.iter().flat_map(tokens_of) {
            if let Some(at) = self.tokens.iter().position(|known| known == token) {
                allowed[at] = places;
            }
        }
        Guard { known: self.clone(), allowed }
    }
}

impl Guard {
    /// Looks for dummies in a request that came in.
    ///
    /// # Errors
    /// One stands where this route does not replace it.
    pub fn check(&self, headers: &HeaderMap, target: &PathAndQuery) -> Result<(), Misplaced> {
        self.url(target.path(), |places| places.path)?;
        self.url(target.query().unwrap_or_default(), |places| places.query)?;
        self.fields(headers, |places| places.header)
    }

    /// Looks for dummies in a trailer section, where none is ever replaced.
    ///
    /// # Errors
    /// There is one.
    pub fn check_trailers(&self, trailers: &HeaderMap) -> Result<(), Misplaced> {
        self.fields(trailers, |_| false)
    }

    /// Looks for dummies of other routes in the next piece of a body. `before` is the end of what came before it, at first empty.
    ///
    /// # Errors
    /// There is one, which ends in this piece.
    pub fn check_body(&self, before: &mut Vec<u8>, piece: &[u8]) -> Result<(), Misplaced> {
        let own = |places: &Places| places.header || places.query || places.path || places.body;
        if self.allowed.iter().all(own) {
            return Ok(());
        }
        let most = self.known.tokens.iter().map(String::len).max().unwrap_or(1) - 1;
        if !before.is_empty() {
            before.extend_from_slice(&piece[..piece.len().min(most)]);
            self.text(before, own)?;
        }
        self.text(piece, own)?;
        if piece.len() >= most {
            before.clear();
            before.extend_from_slice(&piece[piece.len() - most..]);
        } else if before.is_empty() {
            before.extend_from_slice(piece);
        } else {
            before.drain(..before.len().saturating_sub(most));
        }
        Ok(())
    }

    fn fields(&self, fields: &HeaderMap, allows: fn(&Places) -> bool) -> Result<(), Misplaced> {
        for (name, value) in fields {
            self.text(value.as_bytes(), allows)?;
            // Cookies are percent-encoded as often as not.
            if memchr::memchr(b'%', value.as_bytes()).is_some()
                && let Some(plain) = unescaped(&String::from_utf8_lossy(value.as_bytes()))
            {
                self.text(plain.as_bytes(), allows)?;
            }
            if name == AUTHORIZATION
                && let Some(pair) = basic(value)
            {
                self.text(&pair, allows)?;
            }
        }
        Ok(())
    }

    fn url(&self, text: &str, allows: fn(&Places) -> bool) -> Result<(), Misplaced> {
        self.text(text.as_bytes(), allows)?;
        match unescaped(text) {
            Some(plain) => self.text(plain.as_bytes(), allows),
            None => Ok(()),
        }
    }

    fn text(&self, text: &[u8], allows: fn(&Places) -> bool) -> Result<(), Misplaced> {
        let mut hits = self.known.search.find_overlapping_iter(text);
        let bad = hits.any(|hit| !self.allowed.get(hit.pattern().as_usize()).is_some_and(allows));
        if bad { Err(Misplaced) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::CredentialConfig;

    fn members(text: &str) -> Vec<MemberSettings> {
        let config: CredentialConfig = serde_yaml::from_str(text).unwrap();
        config.members(std::path::Path::new(".")).unwrap()
    }

    #[test]
    fn a_dummy_of_another_route_is_found_in_a_body_however_it_is_cut() {
        let own = members("{ placeholder: { token: dummy-000000, value: env:A, in: [header] } }");
        let other = members("{ placeholder: { token: dummy-11111111, value: env:B, in: [query] } }");
        let known = Known::new(own.iter().chain(&other)).unwrap();
        let guard = known.guard(&own);
        let passes = |text: &str, size: usize| {
            let mut before = Vec::new();
            let mut pieces = text.as_bytes().chunks(size);
            let passes = pieces.all(|piece| guard.check_body(&mut before, piece).is_ok());
            assert!(before.len() <= 2 * 13, "{}", before.len());
            passes
        };
        for size in 1..60 {
            for text in [
                "dummy-11111111",
                "{\"key\":\"dummy-11111111\"}",
                "a dummy-1111dummy-11111111 and more behind it",
            ] {
                assert!(!passes(text, size), "{text} {size}");
            }
            for text in [
                "",
                "dummy-1111111",
                "dummy-000000",
                "dummy-1111 dummy-11111 dummy_11111111 and so on and on",
            ] {
                assert!(passes(text, size), "{text} {size}");
            }
        }
        let all = Known::new(&own).unwrap();
        assert!(all.guard(&own).check_body(&mut Vec::new(), b"dummy-000000").is_ok());
        assert!(all.guard(&[]).check_body(&mut Vec::new(), b"dummy-000000").is_err());
    }

    #[test]
    fn a_dummy_passes_where_it_is_replaced_and_nowhere_else() {
        let own = members("{ placeholder: { token: dummy-000000, value: env:A, in: [header, path] } }");
        let other = members("{ placeholder: { token: dummy-111111, value: env:B, in: [query] } }");
        let known = Known::new(own.iter().chain(&other)).unwrap();
        let guard = known.guard(&own);
        let check = |field: &'static str, value: &str, target: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(field, value.parse().unwrap());
            guard.check(&headers, &target.parse().unwrap()).is_ok()
        };
        assert!(check("authorization", "Bearer dummy-000000", "/x/dummy-000000?y"));
        assert!(check("authorization", "Basic ZHVtbXktMDAwMDAwOg==", "/"));
        assert!(check("x", "dummy-00000", "/dummy-11111?dummy_111111"));
        for (field, value, target) in [
            ("x", "dummy-111111", "/"),
            ("x", "dummy-000000 dummy-111111", "/"),
            ("authorization", "Basic ZHVtbXktMTExMTExOg==", "/"),
            // With a tab, without padding, in base64url, with bits that mean nothing.
            ("authorization", "basic\tZHVtbXktMTExMTExOg==\t", "/"),
            ("authorization", "BASIC \t ZHVtbXktMTExMTExOg", "/"),
            ("authorization", "Basic ZHVtbXktMTExMTExOj8_Pz8-", "/"),
            ("authorization", "Basic ZHVtbXktMTExMTExOh==", "/"),
            ("cookie", "a=%20; session=dummy%2D111111", "/"),
            ("cookie", "session=%64ummy%2d111111%zz", "/"),
            ("x", "y", "/dummy-111111"),
            ("x", "y", "/%64ummy-111111"),
            ("x", "y", "/?dummy-000000"),
            ("x", "y", "/?a=dummy%2d000000"),
            ("x", "y", "/?dummy-111111"),
        ] {
            assert!(!check(field, value, target), "{field}: {value} {target}");
        }
        assert!(check("cookie", "a=%64; session=dummy%2D00000", "/"));
        assert!(Known::new(&members("{ bearer: env:A }")).is_none());
        // In a trailer section no dummy is replaced, so none passes.
        let trailer = |name: &'static str, value: &str| {
            let mut trailers = HeaderMap::new();
            trailers.insert(name, value.parse().unwrap());
            guard.check_trailers(&trailers).is_ok()
        };
        assert!(trailer("x-checksum", "%64ummy"));
        for value in ["dummy-000000", "x dummy-111111", "dummy%2D000000"] {
            assert!(!trailer("x-checksum", value), "{value}");
        }
        assert!(!trailer("authorization", "Basic ZHVtbXktMTExMTExOg=="));
    }
}
