//! What of a URL may be logged.
//!
//! URLs carry credentials: in the query (`?access_token=`), in the path (`/bot<token>/send`), in the userinfo. So the query is
//! logged in one of three modes, and paths are masked by the patterns of the provider:
//!
//! ```yaml
//! telemetry: { query: keys }                    # none | keys | redacted
//! providers:
//!   telegram:
//!     redact: { query: [chat_pass], path: ["/bot*/**"] }
//! ```
//!
//! - `none`: nothing.
//! - `keys` (the default): names without values, `a=&b=`.
//! - `redacted`: values too, except those whose name is on a list, or says what it is (`..token..`, `..secret..`).
//!
//! Where it is unclear whether something is a secret it is masked: a log line with too many stars is a nuisance, one with a
//! secret is an incident. At most 32 parameters are shown, and of a name 64 bytes.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use super::KeyShapes;

/// What stands in place of a masked value.
pub const MASK: &str = "***";

/// Parameters shown of one query.
const MAX_PARAMETERS: usize = 32;
/// Bytes shown of one parameter's name.
const MAX_NAME: usize = 64;

/// Names (without case, `-` and `_`) whose values are always masked.
const MASKED_NAMES: &[&str] = &[
    "assertion",
    "auth",
    "authorization",
    "bearer",
    "code",
    "codeverifier",
    "cookie",
    "googleaccessid",
    "hmac",
    "jwt",
    "key",
    "nonce",
    "otp",
    "passcode",
    "passwd",
    "pin",
    "pw",
    "pwd",
    "sas",
    "samlresponse",
    "samlrequest",
    "session",
    "sessionid",
    "sid",
    "sig",
    "sign",
    "state",
    "ticket",
];
/// A name that contains one of these says what it is: `access_token`, `client_secret`, `X-Amz-Security-Token`, `X-Amz-Credential`.
const MASKED_PARTS: &[&str] = &[
    "token",
    "secret",
    "passw",
    "passphrase",
    "signature",
    "credential",
    "apikey",
    "accesskey",
    "privatekey",
    "subscriptionkey",
];

/// What of a URL's query is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QueryMode {
    /// Nothing.
    None,
    /// The names of the parameters.
    #[default]
    Keys,
    /// Names and values, credentials masked.
    Redacted,
}

/// The rules for one provider: made when the policy is compiled, read by every request.
#[derive(Clone, Debug, Default)]
pub struct Redaction {
    mode: QueryMode,
    names: HashSet<String>,
    paths: Vec<PathPattern>,
    keys: Arc<KeyShapes>,
}

impl Redaction {
    /// `names` are masked besides the built-in ones. In `paths` a `*` stands for the secret: a whole segment
    /// (`/services/*/*`) or its end (`/bot*`). A pattern covers what lies below it too; `/**` at its end masks all of that.
    pub fn new<N: AsRef<str>, P: AsRef<str>>(mode: QueryMode, names: &[N], paths: &[P]) -> Self {
        Self {
            mode,
            names: names.iter().map(|name| plain(name.as_ref())).collect(),
            paths: paths.iter().map(|path| PathPattern::new(path.as_ref())).collect(),
            keys: Arc::default(),
        }
    }

    /// Masks what looks like one of these keys as well, wherever it stands.
    #[must_use]
    pub fn with_keys(self, keys: Arc<KeyShapes>) -> Self {
        Self { keys, ..self }
    }

    /// The method, which may be any word: with a key masked that its shape tells. Asterisks are legal in a method.
    pub fn method(&self, method: &Method) -> Method {
        match self.keys.mask(method.as_str()) {
            Cow::Borrowed(_) => method.clone(),
            Cow::Owned(masked) => Method::from_bytes(masked.as_bytes()).unwrap_or_default(),
        }
    }

    /// What is logged of a query (without its `?`); `None`: nothing.
    pub fn query(&self, query: &str) -> Option<String> {
        if self.mode == QueryMode::None || query.is_empty() {
            return None;
        }
        let mut shown = String::with_capacity(query.len().min(512));
        // Some servers split at `;` as well, so a secret may hide behind one.
        let mut parameters = query.split(['&', ';']).filter(|parameter| !parameter.is_empty());
        for (count, parameter) in parameters.by_ref().take(MAX_PARAMETERS).enumerate() {
            if count > 0 {
                shown.push('&');
            }
            self.parameter(parameter, &mut shown);
        }
        if parameters.next().is_some() {
            shown.push_str("&…");
        }
        Some(match self.keys.mask(&shown) {
            Cow::Owned(masked) => masked,
            Cow::Borrowed(_) => shown,
        })
    }

    fn parameter(&self, parameter: &str, shown: &mut String) {
        let Some((name, value)) = parameter.split_once('=') else {
            // A bare word is a switch (`?acl`), or a secret without a name.
            return shown.push_str(if is_switch(parameter) { parameter } else { MASK });
        };
        // A key that is cut has no shape any more.
        let whole = self.keys.mask(name);
        shown.push_str(cut(&whole));
        if cut(&whole).len() < whole.len() {
            shown.push('…');
        }
        shown.push('=');
        match self.mode {
            QueryMode::Redacted if self.is_masked(name) => shown.push_str(MASK),
            QueryMode::Redacted => shown.push_str(value),
            QueryMode::Keys | QueryMode::None => {}
        }
    }

    fn is_masked(&self, name: &str) -> bool {
        let name = percent_decode_str(name).decode_utf8_lossy();
        let whole = plain(&name);
        if MASKED_PARTS.iter().any(|part| whole.contains(part)) || self.names.contains(&whole) {
            return true;
        }
        // `auth[key]` and `user.key` are names made of names.
        name.split(['[', ']', '.', ' ', '+'])
            .map(plain)
            .any(|part| MASKED_NAMES.contains(&part.as_str()) || self.names.contains(&part))
    }

    /// The path with the segments masked that a pattern calls secret, and keys masked. Borrowed where nothing is.
    pub fn path<'a>(&self, path: &'a str) -> Cow<'a, str> {
        match self.by_pattern(path) {
            Cow::Borrowed(path) => self.keys.mask(path),
            Cow::Owned(path) => Cow::Owned(self.keys.mask(&path).into_owned()),
        }
    }

    fn by_pattern<'a>(&self, path: &'a str) -> Cow<'a, str> {
        if self.paths.is_empty() {
            return Cow::Borrowed(path);
        }
        let segments: Vec<&str> = path.split('/').collect();
        let mut cover = Cover { shown: vec![None; segments.len()], end: segments.len() };
        for pattern in self.paths.iter().filter(|pattern| pattern.fits(&segments)) {
            pattern.mark(&segments, &mut cover);
        }
        match cover.is_empty() {
            true => Cow::Borrowed(path),
            false => Cow::Owned(cover.write(&segments)),
        }
    }
}

/// The authority without its userinfo, which is never logged.
pub fn without_userinfo(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// A name as it is compared: without case, `-` and `_`.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase()).collect()
}

/// Short and of letters only: what APIs use as switches (`uploads`, `versioning`), and no key looks like.
fn is_switch(word: &str) -> bool {
    word.len() <= 16 && word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-')
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME)]
}

/// A path pattern: what each segment must begin with, and whether the rest of it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PathPattern {
    segments: Vec<Segment>,
    /// It ended with `/**`: all that follows is secret.
    mask_rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// Compared without case: servers differ, and a mask too many does no harm.
    Literal(String),
    /// What stands before the `*`.
    Secret(String),
}

impl PathPattern {
    fn new(pattern: &str) -> Self {
        let mask_rest = pattern.ends_with("/**");
        let segments =
            pattern.strip_suffix("/**").unwrap_or(pattern).split('/').filter(|segment| !segment.is_empty());
        let segments = segments.map(|segment| match segment.split_once('*') {
            Some((before, _)) => Segment::Secret(before.to_owned()),
            None => Segment::Literal(segment.to_owned()),
        });
        Self { segments: segments.collect(), mask_rest }
    }

    /// A path that is shorter than the pattern fits as far as it goes: half a secret is one too.
    fn fits(&self, segments: &[&str]) -> bool {
        significant(segments).zip(&self.segments).all(|((_, segment), pattern)| match pattern {
            Segment::Literal(literal) => is_same(literal, segment),
            Segment::Secret(before) => starts_with(segment, before),
        })
    }

    fn mark<'p>(&'p self, segments: &[&str], cover: &mut Cover<'p>) {
        for ((place, _), pattern) in significant(segments).zip(&self.segments) {
            if let Segment::Secret(before) = pattern {
                let shown = cover.shown[place].get_or_insert(before);
                *shown = if before.len() < shown.len() { before } else { shown };
            }
        }
        if self.mask_rest
            && let Some((place, _)) = significant(segments).nth(self.segments.len())
        {
            cover.end = cover.end.min(place);
        }
    }
}

/// The segments that a server would see: empty ones and dots do not uncover a secret behind them.
fn significant<'a>(segments: &'a [&'a str]) -> impl Iterator<Item = (usize, &'a str)> {
    segments.iter().copied().enumerate().filter(|(_, segment)| !matches!(*segment, "" | "."))
}

/// What all patterns together hide of one path.
struct Cover<'p> {
    /// Of a hidden segment, what is shown before the mask.
    shown: Vec<Option<&'p str>>,
    /// From this segment on, everything is one mask.
    end: usize,
}

impl Cover<'_> {
    fn is_empty(&self) -> bool {
        self.end == self.shown.len() && self.shown.iter().all(Option::is_none)
    }

    fn write(&self, segments: &[&str]) -> String {
        let mut path = String::new();
        for (place, segment) in segments.iter().enumerate().take(self.end + 1) {
            if place > 0 {
                path.push('/');
            }
            match self.shown[place] {
                _ if place == self.end => path.push_str(MASK),
                Some(before) => path.extend([before, MASK]),
                None => path.push_str(segment),
            }
        }
        path
    }
}

fn is_same(literal: &str, segment: &str) -> bool {
    percent_decode_str(segment).decode_utf8_lossy().eq_ignore_ascii_case(literal)
}

fn starts_with(segment: &str, before: &str) -> bool {
    let segment = percent_decode_str(segment).decode_utf8_lossy();
    segment.get(..before.len()).is_some_and(|start| start.eq_ignore_ascii_case(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(mode: QueryMode, query: &str) -> Option<String> {
        Redaction::new::<&str, &str>(mode, &["Chat-Pass"], &[]).query(query)
    }

    #[test]
    fn the_query_is_shown_as_its_mode_says() {
        use QueryMode::{Keys, None as Nothing, Redacted};
        let cases = [
            (Nothing, "a=1", None),
            (Keys, "", None),
            (Keys, "a=1&b=2", Some("a=&b=")),
            (Keys, "a=CANARY;b=CANARY", Some("a=&b=")),
            (Keys, "acl", Some("acl")),
            (Keys, "sk_live_CANARY", Some("***")),
            (Keys, "averylongwordthatmaybeasecret", Some("***")),
            (Redacted, "limit=10&q=a%20b", Some("limit=10&q=a%20b")),
            (Redacted, "limit=10&api_key=CANARY", Some("limit=10&api_key=***")),
            (Redacted, "API-KEY=CANARY&Key=CANARY", Some("API-KEY=***&Key=***")),
            (Redacted, "api%5Fkey=CANARY&%6bey=CANARY", Some("api%5Fkey=***&%6bey=***")),
            (Redacted, "chat_pass=CANARY", Some("chat_pass=***")),
            (Redacted, "auth[key]=CANARY&user.sig=CANARY", Some("auth[key]=***&user.sig=***")),
            (Redacted, "a=1;token=CANARY", Some("a=1&token=***")),
            (Redacted, "CANARY-0123456789", Some("***")),
            (Redacted, "monkey=1&keyboard=2&author=x", Some("monkey=1&keyboard=2&author=x")),
            (Redacted, "a==b=c", Some("a==b=c")),
        ];
        for (mode, raw, want) in cases {
            assert_eq!(query(mode, raw).as_deref(), want, "{mode:?} {raw}");
        }
    }

    #[test]
    fn a_key_that_is_a_name_or_a_method_is_masked_before_it_is_cut() {
        let digits = (b'0'..=b'9').fold(0, |set, byte| set | 1 << byte);
        let keys = KeyShapes::new([super::super::key_shapes::KeyShape::new("SG.", digits, 66)]);
        let redaction = Redaction::new::<&str, &str>(QueryMode::Keys, &[], &[]).with_keys(Arc::new(keys));
        for name in ["SG.", "%53G%2E"] {
            let key = format!("{name}{}", "7".repeat(66));
            assert_eq!(redaction.query(&format!("{key}=1")), Some(format!("{name}***=")));
            let method = Method::from_bytes(key.as_bytes()).unwrap();
            assert_eq!(redaction.method(&method).as_str(), format!("{name}***"));
        }
        assert_eq!(redaction.method(&Method::PATCH), Method::PATCH);
    }

    #[test]
    fn every_usual_name_of_a_credential_is_masked() {
        let names = "access_token api_key apikey key token secret signature sig X-Amz-Signature X-Amz-Credential \
            X-Amz-Security-Token code client_secret password auth refresh_token id_token session_token private_key \
            X-Goog-Signature AWSAccessKeyId Ocp-Apim-Subscription-Key passphrase";
        for name in names.split_whitespace() {
            let shown = query(QueryMode::Redacted, &format!("{name}=CANARY"));
            assert_eq!(shown, Some(format!("{name}=***")));
        }
    }

    #[test]
    fn what_is_shown_is_bounded() {
        let many: Vec<String> = (0..40).map(|n| format!("p{n}=1")).collect();
        let shown = query(QueryMode::Keys, &many.join("&")).unwrap();
        assert_eq!(shown.matches('=').count(), MAX_PARAMETERS);
        assert!(shown.ends_with("&p31=&…"), "{shown}");
        let long = query(QueryMode::Keys, &format!("{}=1", "é".repeat(50))).unwrap();
        assert_eq!(long, format!("{}…=", "é".repeat(32)));
    }

    #[test]
    fn paths_are_masked_by_pattern() {
        let cases = [
            ("/services/*/*", "/services/T0/B0/x", "/services/***/***/x"),
            ("/services/*/*", "/services/T0", "/services/***"),
            ("/services/*/*", "/other/T0/B0", "/other/T0/B0"),
            ("/services/*", "//./services//T0", "//./services//***"),
            ("/Services/*", "/%73ervices/T0", "/%73ervices/***"),
            ("/bot*/**", "/bot12:AB/send/x", "/bot***/***"),
            ("/bot*", "/bot12:AB/send", "/bot***/send"),
            ("/bot*", "/botany", "/bot***"),
            ("/é*", "/%C3%A9CANARY", "/é***"),
            ("/é*", "/e", "/e"),
            ("/v1/hooks/**", "/v1/hooks/a/b?", "/v1/hooks/***"),
            ("/v1/hooks/**", "/v1/hooks", "/v1/hooks"),
        ];
        for (pattern, path, want) in cases {
            let redaction = Redaction::new::<&str, _>(QueryMode::None, &[], &[pattern]);
            assert_eq!(redaction.path(path), want, "{pattern} {path}");
        }
    }

    #[test]
    fn several_patterns_add_up() {
        let redaction = Redaction::new::<&str, _>(QueryMode::None, &[], &["/a/*", "/a/b/*", "/x"]);
        assert_eq!(redaction.path("/a/b/c"), "/a/***/***");
    }

    #[test]
    fn userinfo_is_never_shown() {
        assert_eq!(without_userinfo("user:CANARY@host:1"), "host:1");
        assert_eq!(without_userinfo("a@CANARY@host"), "host");
        assert_eq!(without_userinfo("host:1"), "host:1");
    }
}
