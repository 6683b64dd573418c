//! Path patterns, and the form of a request's path that they are compared with.
//!
//! ```yaml
//! match: { path: "/v1/customers/*" }   # one segment
//! match: { path: "/v1/files/**" }      # /v1/files, /v1/files/ and all below
//! ```
//!
//! Escapes of unreserved characters are decoded first (RFC 3986 section 6.2.2: `%61` is `a`), hexadecimal digits are
//! upper case, and bytes outside ASCII are escaped, so one path has one form. Reserved characters stay as they are: `%3A`
//! and `:` differ. Paths that servers read in different ways (dot segments, empty segments, escaped slashes) have no such
//! form; a provider whose routes name paths refuses them. What is judged is not what is sent: the request's own bytes are.

use std::borrow::Cow;
use std::fmt;

/// Why a path has no form to be judged in. The text is static: it is shown to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It does not begin with a slash, or holds a query or fragment.
    #[error("the path does not begin with a slash")]
    NotAPath,
    /// `.` or `..`, also escaped or with parameters (`..;x`).
    #[error("the path holds a dot segment")]
    DotSegment,
    /// `//`.
    #[error("the path holds an empty segment")]
    EmptySegment,
    /// `%2F`, `%5C` or a backslash.
    #[error("the path holds an escaped slash or a backslash")]
    Slash,
    /// `%00`, or a raw control character.
    #[error("the path holds a control character")]
    Control,
    /// `%` without two hexadecimal digits.
    #[error("the path holds a broken percent escape")]
    BrokenEscape,
}

/// The form of a request's path, without its query, that patterns are compared with. Borrowed where nothing is to be
/// changed, which is nearly always. Idempotent.
pub fn canonical_path(raw: &str) -> Result<Cow<'_, str>, PathFault> {
    if !raw.starts_with('/') || raw.contains(['?', '#']) {
        return Err(PathFault::NotAPath);
    }
    let path = decode_unreserved(raw)?;
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        // The last may be empty: a final slash.
        if segment.is_empty() && segments.peek().is_some() {
            return Err(PathFault::EmptySegment);
        }
        // Some servers cut path parameters first, and then see the dots: `/..;/admin`.
        let name = segment.split(';').next().unwrap_or(segment);
        if name == "." || name == ".." {
            return Err(PathFault::DotSegment);
        }
    }
    Ok(path)
}

/// Whether some server could see a dot segment in this path, and take it for another one: also behind escaped slashes and
/// backslashes.
pub fn may_climb(raw: &str) -> bool {
    let plain = raw.replace("%2e", ".").replace("%2E", ".").replace('\\', "/");
    let plain = ["%2f", "%2F", "%5c", "%5C"].iter().fold(plain, |plain, slash| plain.replace(slash, "/"));
    plain.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}

fn decode_unreserved(raw: &str) -> Result<Cow<'_, str>, PathFault> {
    let stays = |byte: u8| byte.is_ascii_graphic() && byte != b'%' && byte != b'\\';
    if raw.bytes().all(stays) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut out = String::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => return Err(PathFault::Slash),
            b'%' => push_escape(&mut out, bytes.next(), bytes.next())?,
            0..=0x1f | 0x7f => return Err(PathFault::Control),
            b' ' | 0x80.. => push_escaped(&mut out, byte),
            _ => out.push(char::from(byte)),
        }
    }
    Ok(if out == raw { Cow::Borrowed(raw) } else { Cow::Owned(out) })
}

fn push_escape(out: &mut String, high: Option<u8>, low: Option<u8>) -> Result<(), PathFault> {
    let digit = |byte: Option<u8>| {
        let digit = byte.and_then(|byte| char::from(byte).to_digit(16));
        digit.and_then(|digit| u8::try_from(digit).ok()).ok_or(PathFault::BrokenEscape)
    };
    match digit(high)? * 16 + digit(low)? {
        b'/' | b'\\' => Err(PathFault::Slash),
        0 => Err(PathFault::Control),
        byte if is_unreserved(byte) => {
            out.push(char::from(byte));
            Ok(())
        }
        byte => {
            push_escaped(out, byte);
            Ok(())
        }
    }
}

fn push_escaped(out: &mut String, byte: u8) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    out.push('%');
    out.push(DIGITS[usize::from(byte >> 4)]);
    out.push(DIGITS[usize::from(byte & 0xf)]);
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Why a text is no path pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathPatternFault {
    /// No slash at the front.
    #[error("a path begins with `/`")]
    NoSlash,
    /// A query, which is not matched.
    #[error("a path is matched without query; leave out `?` and what follows")]
    Query,
    /// `**` elsewhere than at the end.
    #[error("`**` may stand only at the end, as `/**`")]
    DoubleStar,
    /// `v*`, which is neither one segment nor all.
    #[error("`*` stands for one whole segment")]
    PartialStar,
    /// A path that no request can have, because it is refused before.
    #[error("no request can match: {0}")]
    Path(PathFault),
}

/// A pattern of paths.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPattern {
    /// Each a segment, or `None` for `*`. A final slash is an empty last segment.
    segments: Box<[Option<Box<str>>]>,
    /// Whether `/**` follows.
    and_below: bool,
}

impl PathPattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, PathPatternFault> {
        if !text.starts_with('/') {
            return Err(PathPatternFault::NoSlash);
        }
        if text.contains(['?', '#']) {
            return Err(PathPatternFault::Query);
        }
        let (front, and_below) = text.strip_suffix("/**").map_or((text, false), |front| (front, true));
        if front.contains("**") {
            return Err(PathPatternFault::DoubleStar);
        }
        // `/**` leaves an empty front, which has no segment at all.
        let path = if front.is_empty() {
            Cow::Borrowed("")
        } else {
            canonical_path(front).map_err(PathPatternFault::Path)?
        };
        if and_below && path.ends_with('/') {
            return Err(PathPatternFault::Path(PathFault::EmptySegment));
        }
        let segments = path.split('/').skip(1).map(segment).collect::<Result<_, _>>()?;
        Ok(Self { segments, and_below })
    }

    /// Whether a path in its [`canonical_path`] form matches.
    pub fn matches(&self, path: &str) -> bool {
        let mut rest = path.split('/').skip(1);
        for wanted in &self.segments {
            let fits = match (wanted, rest.next()) {
                (_, None) => false,
                (None, Some(segment)) => !segment.is_empty(),
                (Some(wanted), Some(segment)) => **wanted == *segment,
            };
            if !fits {
                return false;
            }
        }
        self.and_below || rest.next().is_none()
    }
}

fn segment(text: &str) -> Result<Option<Box<str>>, PathPatternFault> {
    match text {
        "*" => Ok(None),
        _ if text.contains('*') => Err(PathPatternFault::PartialStar),
        _ => Ok(Some(text.into())),
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            write!(f, "/{}", segment.as_deref().unwrap_or("*"))?;
        }
        f.write_str(if self.and_below { "/**" } else { "" })
    }
}

super::text_form!(PathPattern, "a path such as `/v1/files/**`; `*` is one segment", "/v1/files/**");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_climbs_by_any_reading() {
        for (raw, climbs) in [
            ("/v1/../oauth/token", true),
            ("/v1/%2e%2E/oauth/token", true),
            ("/v1/x%2f..%2foauth/token", true),
            ("/v1/..;x/oauth", true),
            ("/v1/x%5C..%5coauth", true),
            ("/v1/..\\oauth", true),
            ("/v1/.", true),
            ("/v1/a%2Fb", false),
            ("/v1//b", false),
            ("/v1/a..b/.hidden", false),
            ("/v1/%252e%252e/b", false),
        ] {
            assert_eq!(may_climb(raw), climbs, "{raw}");
        }
    }

    #[test]
    fn one_path_has_one_form() {
        for (raw, canonical) in [
            ("/", "/"),
            ("/v1/charges", "/v1/charges"),
            ("/v1/", "/v1/"),
            ("/%76%31/%7Euser", "/v1/~user"),
            ("/a%3ab", "/a%3Ab"),
            ("/a:b", "/a:b"),
            ("/a%252Fb", "/a%252Fb"),
            ("/a%2ab", "/a%2Ab"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a b", "/a%20b"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a;b=c/d", "/a;b=c/d"),
            ("/A", "/A"),
        ] {
            assert_eq!(canonical_path(raw).as_deref(), Ok(canonical), "{raw}");
        }
        assert!(matches!(canonical_path("/v1/charges"), Ok(Cow::Borrowed(_))));
        assert!(matches!(canonical_path("/a%3Ab"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn what_servers_read_differently_has_none() {
        for (raw, fault) in [
            ("", PathFault::NotAPath),
            ("*", PathFault::NotAPath),
            ("v1", PathFault::NotAPath),
            ("/a?b", PathFault::NotAPath),
            ("/.", PathFault::DotSegment),
            ("/..", PathFault::DotSegment),
            ("/a/../b", PathFault::DotSegment),
            ("/a/./b", PathFault::DotSegment),
            ("/a/%2e%2E/b", PathFault::DotSegment),
            ("/a/.%2e", PathFault::DotSegment),
            ("/a/..;/b", PathFault::DotSegment),
            ("/a/.;x=1/b", PathFault::DotSegment),
            ("//", PathFault::EmptySegment),
            ("/a//b", PathFault::EmptySegment),
            ("/a//", PathFault::EmptySegment),
            ("/a%2Fb", PathFault::Slash),
            ("/a%2fb", PathFault::Slash),
            ("/a%5cb", PathFault::Slash),
            ("/a\\b", PathFault::Slash),
            ("/a%00", PathFault::Control),
            ("/a\u{1}", PathFault::Control),
            ("/a%", PathFault::BrokenEscape),
            ("/a%4", PathFault::BrokenEscape),
            ("/a%zz", PathFault::BrokenEscape),
            ("/a%+1", PathFault::BrokenEscape),
        ] {
            assert_eq!(canonical_path(raw), Err(fault), "{raw}");
        }
    }

    #[test]
    fn patterns_match_by_segment() {
        for (pattern, matching, other) in [
            (
                "/v1/charges",
                &["/v1/charges"][..],
                &["/v1/charges/", "/v1/charge", "/v1/Charges", "/", "/v1/charges/x"][..],
            ),
            ("/v1/charges/", &["/v1/charges/"], &["/v1/charges"]),
            ("/v1/*", &["/v1/a", "/v1/a%2Ab"], &["/v1", "/v1/", "/v1/a/", "/v1/a/b"]),
            ("/v1/*/refund", &["/v1/a/refund"], &["/v1/refund", "/v1/a/b/refund"]),
            (
                "/v1/files/**",
                &["/v1/files", "/v1/files/", "/v1/files/a", "/v1/files/a/b/"],
                &["/v1/filesystem", "/v1"],
            ),
            ("/*/files/**", &["/v1/files", "/v2/files/x"], &["/files", "/v1/x"]),
            ("/**", &["/", "/a", "/a/b/"], &[]),
            ("/", &["/"], &["/a"]),
            ("/%76%31", &["/v1"], &["/%76%31"]),
        ] {
            let parsed = PathPattern::parse(pattern).unwrap();
            for path in matching {
                assert!(parsed.matches(path), "{pattern} {path}");
            }
            for path in other {
                assert!(!parsed.matches(path), "{pattern} {path}");
            }
            assert_eq!(PathPattern::parse(&parsed.to_string()), Ok(parsed));
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for (text, fault) in [
            ("", PathPatternFault::NoSlash),
            ("v1/x", PathPatternFault::NoSlash),
            ("**", PathPatternFault::NoSlash),
            ("/v1?x=1", PathPatternFault::Query),
            ("/**/x", PathPatternFault::DoubleStar),
            ("/v1/**/", PathPatternFault::DoubleStar),
            ("/v1**", PathPatternFault::DoubleStar),
            ("/v1/***", PathPatternFault::DoubleStar),
            ("/**/**", PathPatternFault::DoubleStar),
            ("/v*", PathPatternFault::PartialStar),
            ("/*.json", PathPatternFault::PartialStar),
            ("/a//b", PathPatternFault::Path(PathFault::EmptySegment)),
            ("/a//**", PathPatternFault::Path(PathFault::EmptySegment)),
            ("//**", PathPatternFault::Path(PathFault::EmptySegment)),
            ("/a/../b", PathPatternFault::Path(PathFault::DotSegment)),
            ("/a%2fb", PathPatternFault::Path(PathFault::Slash)),
        ] {
            assert_eq!(PathPattern::parse(text), Err(fault), "{text}");
        }
    }

    proptest! {
        #[test]
        fn canonical_is_idempotent(raw in "/[/a.%2eEfF5cC0;\\\\ é~A-]{0,16}") {
            if let Ok(once) = canonical_path(&raw) {
                prop_assert_eq!(canonical_path(&once), Ok(Cow::Borrowed(&*once)));
                prop_assert!(PathPattern::parse("/**").is_ok_and(|all| all.matches(&once)));
            }
        }

        #[test]
        fn a_path_matches_itself(raw in "(/[a-c%:]{1,4}){1,4}/?") {
            if let Ok(path) = canonical_path(&raw) {
                prop_assert!(PathPattern::parse(&raw).is_ok_and(|pattern| pattern.matches(&path)));
            }
        }
    }
}
