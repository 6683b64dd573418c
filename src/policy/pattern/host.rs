//! Host patterns, and the map that finds what was configured for a host.
//!
//! ```yaml
//! hosts: [geo.example.com, "*.geo.example.net", "geo.example.com:8443", 10.0.0.5, "[2001:db8::1]"]
//! ```
//!
//! A `*` stands at the left, for exactly one label, above at least two more: `*.com` or a bare `*` would hand a credential
//! to strangers. Names of other alphabets are turned into their A-labels (UTS #46), as a request names them. Exact names
//! win over wildcards.

use std::collections::HashMap;
use std::fmt;

use crate::message::target::{Authority, Host, TargetFault};

/// Why a text is no host pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPatternFault {
    /// `https://` before the host.
    #[error("a host has no scheme; write it without `https://`, and set `upstream.scheme` for http")]
    Scheme,
    /// A path or a CIDR after the host.
    #[error(
        "a host has no path and is no network; write the name or address alone, and paths under `routes`"
    )]
    Path,
    /// A bare `*` or `**`.
    #[error("a bare `*` would match every host; name the hosts")]
    Everything,
    /// `*` elsewhere than as the whole first label.
    #[error("`*` may stand only as the first label, as in `*.example.com`")]
    Star,
    /// `*.com`.
    #[error("at least two labels must follow `*.`")]
    TopLevel,
    /// A name that IDNA does not allow.
    #[error("this name is not allowed by IDNA")]
    Idna,
    /// Not a host or port.
    #[error(transparent)]
    Target(#[from] TargetFault),
}

/// A pattern of hosts, with a port where one was named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    /// The exact host, or what follows `*.`.
    host: Host,
    wildcard: bool,
    port: Option<u16>,
}

impl HostPattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, HostPatternFault> {
        if text.contains("://") {
            return Err(HostPatternFault::Scheme);
        }
        if text.contains(['/', '\\', '?', '#']) {
            return Err(HostPatternFault::Path);
        }
        if text
            .split(':')
            .next()
            .is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte == b'*'))
        {
            return Err(HostPatternFault::Everything);
        }
        let (name, wildcard) = text.strip_prefix("*.").map_or((text, false), |rest| (rest, true));
        if name.contains('*') {
            return Err(HostPatternFault::Star);
        }
        let Authority { host, port } = Authority::parse(&to_ascii(name)?)?;
        if wildcard && (host.ip().is_some() || !host.as_str().contains('.')) {
            return Err(HostPatternFault::TopLevel);
        }
        Ok(Self { host, wildcard, port })
    }

    /// The host, where the pattern has no `*`.
    pub fn exact_host(&self) -> Option<Host> {
        (!self.wildcard).then(|| self.host.clone())
    }

    /// The port, where one was named; else the scheme's own is meant.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether a host matches, whatever the port.
    pub fn matches_host(&self, host: &Host) -> bool {
        if self.wildcard { parent(host.as_str()) == Some(self.host.as_str()) } else { *host == self.host }
    }
}

/// What follows the first label. Of an address nothing follows that could be a wildcard's name: those are never numbers.
fn parent(host: &str) -> Option<&str> {
    host.split_once('.').map(|(_, rest)| rest)
}

/// A-labels where the name has others. ASCII goes through untouched: IDNA would refuse the underscores that some API hosts
/// have.
fn to_ascii(text: &str) -> Result<std::borrow::Cow<'_, str>, HostPatternFault> {
    if text.is_ascii() {
        return Ok(text.into());
    }
    let (name, port) = text.rsplit_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let ascii = idna::domain_to_ascii_strict(name).map_err(|_| HostPatternFault::Idna)?;
    Ok(port.map_or(ascii.clone(), |port| format!("{ascii}:{port}")).into())
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.wildcard { "*." } else { "" }, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

super::text_form!(
    HostPattern,
    "a host such as `api.example.com` or `*.example.com`, with or without port",
    "api.example.com"
);

/// What was configured for hosts, by host and port. A lookup takes at most two hash probes and allocates nothing.
#[derive(Clone, Debug)]
pub struct HostMap<T> {
    exact: HashMap<Box<str>, Vec<(u16, T)>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Vec<(u16, T)>>,
}

fn find<'a, T>(by_name: &'a HashMap<Box<str>, Vec<(u16, T)>>, name: &str, port: u16) -> Option<&'a T> {
    by_name.get(name)?.iter().find(|(known, _)| *known == port).map(|(_, value)| value)
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new() }
    }
}

impl<T> HostMap<T> {
    /// Nothing configured.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pattern; `default_port` is its scheme's own.
    ///
    /// # Errors
    /// What the same pattern and port stand for already. The map is left as it was.
    pub fn insert(&mut self, pattern: &HostPattern, default_port: u16, value: T) -> Result<(), T>
    where
        T: Clone,
    {
        let port = pattern.port.unwrap_or(default_port);
        let by_name = if pattern.wildcard { &mut self.wildcard } else { &mut self.exact };
        let ports = by_name.entry(pattern.host.as_str().into()).or_default();
        match ports.iter().find(|(known, _)| *known == port) {
            Some((_, taken)) => Err(taken.clone()),
            None => {
                ports.push((port, value));
                Ok(())
            }
        }
    }

    /// What stands for this host and port: the exact name's, else the wildcard's. The host is in the normal form of
    /// [`Host::as_str`].
    pub fn get(&self, host: &str, port: u16) -> Option<&T> {
        find(&self.exact, host, port)
            .or_else(|| parent(host).and_then(|suffix| find(&self.wildcard, suffix, port)))
    }

    /// Whether some port of this host is configured: tells "wrong port" from "unknown host".
    pub fn knows_host(&self, host: &str) -> bool {
        self.exact.contains_key(host) || parent(host).is_some_and(|suffix| self.wildcard.contains_key(suffix))
    }

    /// Whether nothing is configured.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    #[test]
    fn patterns_have_one_form() {
        for (text, printed) in [
            ("API.Example.com", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("api.example.com:8443", "api.example.com:8443"),
            ("*.example.com", "*.example.com"),
            ("*.Geo.Example.net:8443", "*.geo.example.net:8443"),
            ("localhost", "localhost"),
            ("a_b.example.com", "a_b.example.com"),
            ("10.0.0.5", "10.0.0.5"),
            ("10.0.0.5:8080", "10.0.0.5:8080"),
            ("[2001:DB8:0::1]", "[2001:db8::1]"),
            ("[::1]:443", "[::1]:443"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example:8443", "xn--bcher-kva.example:8443"),
            ("*.bücher.example", "*.xn--bcher-kva.example"),
        ] {
            assert_eq!(HostPattern::parse(text).unwrap().to_string(), printed, "{text}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        use HostPatternFault as Fault;
        for (text, fault) in [
            ("api.*.com", Fault::Star),
            ("*api.example.test", Fault::Star),
            ("*.*.example.test", Fault::Star),
            ("api.example.*", Fault::Star),
            ("*", Fault::Everything),
            ("*:443", Fault::Everything),
            ("**", Fault::Everything),
            ("*.", Fault::Target(TargetFault::Empty)),
            ("https://api.example.test", Fault::Scheme),
            ("api.example.test/v1", Fault::Path),
            ("10.0.0.0/8", Fault::Path),
            ("*.com", Fault::TopLevel),
            ("*.com.", Fault::TopLevel),
            ("*.com:443", Fault::TopLevel),
            ("*.localhost", Fault::TopLevel),
            ("*.10.0.0.1", Fault::TopLevel),
            ("*.[::1]", Fault::TopLevel),
            ("api.example.test:443:80", Fault::Target(TargetFault::Port)),
            ("api.example.test:0", Fault::Target(TargetFault::Port)),
            ("api.example.test:", Fault::Target(TargetFault::Port)),
            ("user@api.example.test", Fault::Target(TargetFault::UserInfo)),
            ("", Fault::Target(TargetFault::Empty)),
            ("a b.example.test", Fault::Target(TargetFault::Character)),
            ("127.1", Fault::Target(TargetFault::NumberForm)),
            ("-ü.example", Fault::Idna),
            ("ü_.example", Fault::Idna),
        ] {
            assert_eq!(HostPattern::parse(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn a_star_is_one_label() {
        let pattern = HostPattern::parse("*.example.com").unwrap();
        assert!(pattern.matches_host(&host("a.example.com")));
        for other in ["example.com", "a.b.example.com", "aexample.com", "a.example.com.evil.test"] {
            assert!(!pattern.matches_host(&host(other)), "{other}");
        }
        assert!(HostPattern::parse("A.test.").unwrap().matches_host(&host("a.test")));
    }

    #[test]
    fn exact_names_win_and_ports_count() {
        let mut map = HostMap::new();
        for (pattern, value) in [
            ("api.example.com", "exact"),
            ("*.example.com", "star"),
            ("api.example.com:8443", "odd"),
            ("*.b.example.com:8443", "odd star"),
            ("10.0.0.5", "v4"),
            ("[::1]", "v6"),
        ] {
            map.insert(&HostPattern::parse(pattern).unwrap(), 443, value).unwrap();
        }
        for (name, port, found) in [
            ("api.example.com", 443, Some("exact")),
            ("API.example.com.", 443, Some("exact")),
            ("api.example.com", 8443, Some("odd")),
            ("api.example.com", 80, None),
            ("www.example.com", 443, Some("star")),
            ("www.example.com", 8443, None),
            ("a.www.example.com", 443, None),
            ("example.com", 443, None),
            ("x.b.example.com", 8443, Some("odd star")),
            ("b.example.com", 443, Some("star")),
            ("10.0.0.5", 443, Some("v4")),
            ("[0::1]", 443, Some("v6")),
            ("com", 443, None),
            ("10.0.0.6", 443, None),
            ("[::ffff:10.0.0.5]", 443, None),
        ] {
            assert_eq!(map.get(host(name).as_str(), port).copied(), found, "{name}:{port}");
        }
        assert!(map.knows_host("api.example.com") && !map.knows_host("other.test"));
    }

    #[test]
    fn a_pattern_taken_is_told_and_kept() {
        let mut map = HostMap::new();
        let pattern = |text: &str| HostPattern::parse(text).unwrap();
        assert_eq!(map.insert(&pattern("a.test"), 443, 1), Ok(()));
        assert_eq!(map.insert(&pattern("A.test:443"), 80, 2), Err(1));
        assert_eq!(map.insert(&pattern("a.test"), 80, 3), Ok(()));
        assert_eq!(map.get("a.test", 443), Some(&1));
        assert_eq!(map.insert(&pattern("*.a.test"), 443, 4), Ok(()));
        assert_eq!(map.insert(&pattern("*.a.test"), 443, 5), Err(4));
    }
}
