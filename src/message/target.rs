//! Hosts, ports and targets: the only place of the program that parses and normalises them.
//!
//! One normal form (lower case, no final dot, ASCII, plain dotted quads, canonical IPv6) is used for policy, DNS, SNI, the
//! certificate check, the `Host` that is sent, the pool key, metric labels and log fields. What cannot be brought into
//! that form is refused, so no two places can disagree about a name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Why a host or an authority was refused. The text is static: it is shown to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetFault {
    /// Nothing there.
    #[error("the host is empty")]
    Empty,
    /// `user:password@` before the host (RFC 9110 section 4.2.4).
    #[error("user information in the target is refused")]
    UserInfo,
    /// A byte that no host name may hold.
    #[error("the host holds a character that no host name may hold")]
    Character,
    /// An empty or over-long label, or a name above 253 bytes (RFC 1035 section 2.3.4).
    #[error("the host name has an empty or over-long label")]
    Label,
    /// A number form of IPv4 other than four plain decimal numbers.
    #[error("the host looks like a number but is not a plain IPv4 address")]
    NumberForm,
    /// A bracketed text that is not an IPv6 address, or one with a zone.
    #[error("the bracketed host is not an IPv6 address")]
    Ipv6,
    /// Not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

/// A normalised host: a DNS name or an IP address. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Host {
    text: Arc<str>,
    ip: Option<IpAddr>,
}

impl Host {
    /// Parses a host without port. IPv6 addresses stand in brackets.
    pub fn parse(text: &str) -> Result<Self, TargetFault> {
        if text.is_empty() {
            return Err(TargetFault::Empty);
        }
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(TargetFault::Ipv6)?;
            return inner
                .parse::<Ipv6Addr>()
                .map(|ip| Self::from_ip(ip.into()))
                .map_err(|_| TargetFault::Ipv6);
        }
        Self::parse_name(text)
    }

    /// A host that is an address.
    pub fn from_ip(ip: IpAddr) -> Self {
        Self { text: ip.to_string().into(), ip: Some(ip) }
    }

    fn parse_name(text: &str) -> Result<Self, TargetFault> {
        if text.contains('@') {
            return Err(TargetFault::UserInfo);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() || name.len() > 253 {
            return Err(TargetFault::Label);
        }
        for label in name.split('.') {
            check_label(label)?;
        }
        if looks_like_number(name) {
            return name
                .parse::<Ipv4Addr>()
                // The standard form is the only one that parses, so the text is the normal form already.
                .map(|ip| Self { text: name.into(), ip: Some(ip.into()) })
                .map_err(|_| TargetFault::NumberForm);
        }
        Ok(Self { text: name.to_ascii_lowercase().into(), ip: None })
    }

    /// The normal form without brackets: for DNS, SNI, labels and logs.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The normal form, shared.
    pub fn shared(&self) -> Arc<str> {
        self.text.clone()
    }

    /// The address, where the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.ip
    }
}

/// Letters, digits, hyphen and underscore: underscores are legal in DNS and occur in real API hosts.
fn check_label(label: &str) -> Result<(), TargetFault> {
    if label.is_empty() || label.len() > 63 {
        return Err(TargetFault::Label);
    }
    if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
        return Err(TargetFault::Character);
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(TargetFault::Label);
    }
    Ok(())
}

/// Whether a resolver might read the name as a number: libc turns `0x7f.1`, `017700000001` and `2130706433` into
/// 127.0.0.1. As in the WHATWG URL standard, the last label decides.
fn looks_like_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    last.bytes().all(|byte| byte.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .or_else(|| last.strip_prefix("0X"))
            .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl fmt::Display for Host {
    /// As it stands in an authority: IPv6 in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(IpAddr::V6(_)) => write!(f, "[{}]", self.text),
            Some(IpAddr::V4(_)) | None => f.write_str(&self.text),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `host[:port]`, as in a `Host` field, an absolute target or a CONNECT target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// The normalised host.
    pub host: Host,
    /// The port, where one was given.
    pub port: Option<u16>,
}

impl Authority {
    /// Parses `host[:port]`. An empty port (`host:`) is refused: RFC 9110 section 9.3.6 wants it refused in CONNECT, and no
    /// client sends it elsewhere.
    pub fn parse(text: &str) -> Result<Self, TargetFault> {
        if text.contains('@') {
            return Err(TargetFault::UserInfo);
        }
        let (host, port) = split_port(text)?;
        Ok(Self { host: Host::parse(host)?, port: port.map(parse_port).transpose()? })
    }
}

fn split_port(text: &str) -> Result<(&str, Option<&str>), TargetFault> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or(TargetFault::Ipv6)? + 1;
        let (host, rest) = text.split_at(end);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(TargetFault::Ipv6),
        };
    }
    match text.split_once(':') {
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, TargetFault> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(TargetFault::Port);
    }
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(TargetFault::Port),
        Ok(port) => Ok(port),
    }
}

/// How a provider is spoken to, or how the app addressed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// The scheme's own port: 80 or 443.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Where a request goes: the origin, without path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// The normalised host.
    pub host: Host,
    /// The port, always known.
    pub port: u16,
}

impl Target {
    /// The `Host` field for this target: the port only where it is not the scheme's own.
    pub fn host_header(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.host_header())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_normal_form() {
        for (text, normal) in [
            ("API.Example.COM", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("a_b.example.com", "a_b.example.com"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("[::1]", "::1"),
            ("[0:0:0:0:0:0:0:1]", "::1"),
            ("[::FFFF:10.0.0.5]", "::ffff:10.0.0.5"),
            ("xn--bcher-kva.example.test", "xn--bcher-kva.example.test"),
            ("0.0.0.0", "0.0.0.0"),
        ] {
            assert_eq!(Host::parse(text).unwrap().as_str(), normal, "{text}");
        }
    }

    #[test]
    fn what_has_no_normal_form_is_refused() {
        for text in [
            "",
            ".",
            "..",
            "a..b",
            "-a.example",
            "a-.example",
            "%65vil.example",
            "a b",
            "b\u{fc}cher.example",
            "user@host",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "017700000001",
            "127.1",
            "127.0.1",
            "00000177.0.0.1",
            "0",
            "169.254.43518",
            "0xA9FEA9FE",
            "0251.0376.0251.0376",
            "256.1.1.1",
            "[::1",
            "[fe80::1%25lo]",
            "[::1%lo]",
            "[]",
            "*",
            "a,b",
            "a/b",
            "1.2.3.0x4",
        ] {
            assert!(Host::parse(text).is_err(), "{text}");
        }
        assert!(Host::parse(&format!("{}.example", "a".repeat(64))).is_err());
        assert!(Host::parse(&[&*"a".repeat(63); 4].join(".")).is_err());
    }

    #[test]
    fn authorities() {
        let authority = Authority::parse("Api.Example.com:8443").unwrap();
        assert_eq!((authority.host.as_str(), authority.port), ("api.example.com", Some(8443)));
        assert_eq!(Authority::parse("[::1]:443").unwrap().port, Some(443));
        assert_eq!(Authority::parse("[::1]").unwrap().port, None);
        for text in
            ["a:", "a:0", "a:65536", "a:80:443", "a:+80", ":443", "[::1 :443", "u@a:80", "a:http", "::1"]
        {
            assert!(Authority::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn host_header_names_only_odd_ports() {
        let host = Host::parse("[2001:db8::1]").unwrap();
        let mut target = Target { scheme: Scheme::Https, host, port: 443 };
        assert_eq!(target.host_header(), "[2001:db8::1]");
        target.port = 80;
        assert_eq!(target.to_string(), "https://[2001:db8::1]:80");
    }
}
