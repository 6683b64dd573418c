//! `Cache-Control` (RFC 9111 section 5.2), read once and written anew for the crate that judges by it.
//!
//! The crate compares names with their case, cuts quoted texts at commas, reads a number above `u64` as zero and passes over
//! fields with bytes outside of ASCII. So it gets a field in which none of these occurs.

use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, PRAGMA};

/// What RFC 9111 section 1.2.2 takes for infinity: 68 years.
pub(super) const MOST_SECONDS: u64 = 1 << 31;

/// Directives whose value is a number of seconds.
const SECONDS: [&str; 6] =
    ["max-age", "s-maxage", "max-stale", "min-fresh", "stale-while-revalidate", "stale-if-error"];

/// The directives of a request or an answer, names in lower case.
#[derive(Clone, Debug, Default)]
pub(super) struct Directives(Vec<(String, Option<String>)>);

impl Directives {
    /// All `Cache-Control` fields of a head. What cannot be read forbids to store.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            match value.to_str() {
                Ok(text) if closes_its_quotes(text) => {
                    split_list(text).into_iter().for_each(|member| found.add(member));
                }
                Ok(_) | Err(_) => found.0.push(("no-store".to_owned(), None)),
            }
        }
        if found.0.is_empty() && has_pragma(headers) {
            found.0.push(("no-cache".to_owned(), None));
        }
        found
    }

    fn add(&mut self, member: &str) {
        let (name, value) = match member.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (member.trim(), None),
        };
        // Nothing but a token is the name of a directive.
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return;
        }
        let name = name.to_ascii_lowercase();
        // Lists of fields (`private="x"`, `no-cache="y"`) are taken as the directive without them: the stricter reading.
        let value = value.filter(|_| SECONDS.contains(&name.as_str())).map(|text| seconds(text).to_string());
        self.0.push((name, value));
    }

    /// Whether the directive is there, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// The number of seconds of a directive; the least where it stands there twice.
    pub fn seconds(&self, name: &str) -> Option<u64> {
        let all = self.0.iter().filter(|(known, _)| known == name);
        all.filter_map(|(_, value)| value.as_deref()?.parse().ok()).min()
    }

    /// Sets a number of seconds in place of what stood there.
    pub fn set_seconds(&mut self, name: &str, seconds: u64) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), Some(seconds.min(MOST_SECONDS).to_string())));
    }

    /// The field as the crate reads it rightly; nothing if there is no directive.
    pub fn value(&self) -> Option<HeaderValue> {
        let members: Vec<_> = self
            .0
            .iter()
            .map(|(name, value)| match value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            })
            .collect();
        if members.is_empty() { None } else { HeaderValue::try_from(members.join(", ")).ok() }
    }
}

/// `Pragma: no-cache`, which counts only where there is no `Cache-Control` (RFC 9111 section 5.4).
fn has_pragma(headers: &HeaderMap) -> bool {
    headers
        .get_all(PRAGMA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|text| text.split(',').any(|member| member.trim().to_ascii_lowercase().starts_with("no-cache")))
}

/// A number of seconds; what is none counts as zero (RFC 9111 section 4.2.1), what is too large as infinity.
pub(super) fn seconds(text: &str) -> u64 {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    text.parse().unwrap_or(MOST_SECONDS).min(MOST_SECONDS)
}

/// Whether no quote is left open, behind which a directive could hide.
fn closes_its_quotes(text: &str) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
    }
    !quoted
}

/// Splits at the commas that stand outside of quotes (RFC 9110 section 5.6).
pub(super) fn split_list(text: &str) -> Vec<&str> {
    let (mut members, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                members.push(text[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    members.push(text[begin..].trim());
    members.retain(|member| !member.is_empty());
    members
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(fields: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(CACHE_CONTROL, HeaderValue::from_bytes(field.as_bytes()).unwrap());
        }
        Directives::of(&headers)
    }

    #[test]
    fn what_peers_write_is_read_in_one_way() {
        for (fields, value) in [
            (vec!["Max-Age=60"], "max-age=60"),
            (vec!["NO-STORE"], "no-store"),
            (vec!["max-age=\"60\""], "max-age=60"),
            (vec!["private=\"a, no-store\", max-age=5"], "private, max-age=5"),
            (vec!["max-age=99999999999999999999999"], "max-age=2147483648"),
            (vec!["max-age=-1"], "max-age=0"),
            (vec!["max-age=1.5"], "max-age=0"),
            (vec!["max-age="], "max-age=0"),
            (vec!["max-age=NaN", "public"], "max-age=0, public"),
            (vec!["max-age = 10"], "max-age=10"),
            (vec!["max-stale"], "max-stale"),
            (vec!["max-stale=soon"], "max-stale=0"),
            (vec![",, ,public,"], "public"),
            (vec!["max-age=5, x=\", no-cache"], "no-store"),
            (vec!["max-age=5, x=\"\\\", no-cache\""], "max-age=5, x"),
            (vec!["\"a\"=1, b c, public"], "public"),
            (vec!["max-age=5\u{e9}"], "no-store"),
        ] {
            assert_eq!(of(&fields).value().unwrap(), value, "{fields:?}");
        }
        assert!(of(&[]).value().is_none());
        assert_eq!(of(&["max-age=60, max-age=5"]).seconds("max-age"), Some(5));
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        let mut headers = HeaderMap::new();
        headers.insert(PRAGMA, HeaderValue::from_static("No-Cache"));
        assert!(Directives::of(&headers).has("no-cache"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=1"));
        assert!(!Directives::of(&headers).has("no-cache"));
    }

    proptest! {
        #[test]
        fn what_was_written_anew_is_read_the_same(text in "[ -~]{0,60}") {
            let once = of(&[&text]);
            let Some(value) = once.value() else { return Ok(()) };
            let twice = of(&[value.to_str().unwrap()]);
            prop_assert_eq!(twice.value().unwrap(), value);
        }
    }
}
