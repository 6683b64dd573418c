//! Header fields at the border: which are refused, which never cross it, and what outgate adds.
//!
//! What goes out is written anew from parsed values (hyper frames it), so fields that frame a message or speak about one
//! connection are removed in both directions. hyper accepts several things that RFC 9110 and 9112 tell a proxy to refuse;
//! they are refused here, in [`check_request`].

use http::header::{
    ALT_SVC, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version};

/// `Keep-Alive`, a hop-by-hop field of HTTP/1.0 times.
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// `Proxy-Connection`, which was never standard and is still sent.
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// `Proxy`, the vector of httpoxy.
pub const PROXY: HeaderName = HeaderName::from_static("proxy");
/// `HTTP2-Settings`, part of the h2c upgrade.
pub const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Prefix of outgate's own fields; none of them comes from a peer.
pub const OWN_PREFIX: &str = "outgate-";
/// `Outgate-Timeout`: the app shortens its deadline.
pub const OUTGATE_TIMEOUT: HeaderName = HeaderName::from_static("outgate-timeout");

/// Why a request's head is refused. Static text: it is shown to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    /// RFC 9112 section 3.2: HTTP/1.1 without `Host`.
    #[error("the request has no Host field")]
    NoHost,
    /// More than one `Host`.
    #[error("the request has more than one Host field")]
    ManyHosts,
    /// A transfer coding other than exactly `chunked` (RFC 9112 section 6.1).
    #[error("Transfer-Encoding is not exactly `chunked`")]
    TransferEncoding,
    /// A length given twice.
    #[error("Content-Length is ambiguous")]
    ContentLength,
    /// Something other than `100-continue`.
    #[error("the expectation is not `100-continue`")]
    Expectation,
    /// A field that HTTP/2 forbids (RFC 9113 section 8.2.2).
    #[error("a connection-specific field in HTTP/2")]
    Http2Connection,
    /// A field value with a control character.
    #[error("a field value holds a control character")]
    Control,
    /// A field value that begins or ends with white space in HTTP/2 (RFC 9113 section 8.2.1).
    #[error("a field value begins or ends with white space")]
    Padded,
}

/// Checks what hyper lets through: `Host` count, transfer coding, ambiguous lengths, expectations, control characters.
pub fn check_request(version: Version, headers: &HeaderMap) -> Result<(), HeadFault> {
    check_hosts(version, headers)?;
    check_framing(headers)?;
    if version == Version::HTTP_2 {
        check_http2(headers)?;
    }
    match headers.get(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            return Err(HeadFault::Expectation);
        }
        Some(_) | None => {}
    }
    // hyper passes tab and every byte from 0x20 on but also ESC and other controls in some builds of its parser; a value
    // with one can rewrite a terminal or split a naive log.
    if headers.values().any(|value| value.as_bytes().iter().any(|byte| is_control(*byte))) {
        return Err(HeadFault::Control);
    }
    Ok(())
}

fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

fn check_hosts(version: Version, headers: &HeaderMap) -> Result<(), HeadFault> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(HeadFault::ManyHosts),
        (None, None) if version == Version::HTTP_11 => Err(HeadFault::NoHost),
        // HTTP/1.0 knows no Host (Python before 3.12 sends CONNECT so); HTTP/2 has :authority.
        _ => Ok(()),
    }
}

fn check_framing(headers: &HeaderMap) -> Result<(), HeadFault> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, None) => {}
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {}
        _ => return Err(HeadFault::TransferEncoding),
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (Some(_), Some(_)) => Err(HeadFault::ContentLength),
        (Some(length), None) if !length.as_bytes().iter().all(u8::is_ascii_digit) => {
            Err(HeadFault::ContentLength)
        }
        _ => Ok(()),
    }
}

fn check_http2(headers: &HeaderMap) -> Result<(), HeadFault> {
    let forbidden = [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE];
    if forbidden.iter().any(|name| headers.contains_key(name)) {
        return Err(HeadFault::Http2Connection);
    }
    // HTTP/1 drops such white space while parsing; here two readers could disagree about the value.
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let is_padded =
        |value: &HeaderValue| is_space(value.as_bytes().first()) || is_space(value.as_bytes().last());
    if headers.values().any(is_padded) {
        return Err(HeadFault::Padded);
    }
    match headers.get(TE) {
        Some(value) if value != "trailers" => Err(HeadFault::Http2Connection),
        Some(_) | None => Ok(()),
    }
}

/// Whether a request asks to become a WebSocket (RFC 6455 section 4.1). Any other upgrade is dropped: a forwarded h2c
/// upgrade would open a tunnel in which no rule is applied.
pub fn wants_websocket(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    method == Method::GET
        && version == Version::HTTP_11
        && headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && connection_members(headers).any(|member| member.eq_ignore_ascii_case("upgrade"))
}

fn connection_members(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|member| !member.is_empty())
}

/// Fields that a `Connection` field cannot take away: a client must not be able to have a proxy remove what routes,
/// frames or describes the message.
const NOT_REMOVABLE: [&str; 8] =
    ["host", "content-length", "content-type", "content-encoding", "authorization", "cookie", "date", "te"];

/// Which of the fields that concern the border a head has. One pass over its names: most heads have one or none of them,
/// and looking each of them up by hash costs more than the whole pass.
#[derive(Clone, Copy)]
struct Present(u32);

impl Present {
    const CONNECTION: u32 = 1;
    const TRANSFER_ENCODING: u32 = 1 << 1;
    const CONTENT_LENGTH: u32 = 1 << 2;
    const KEEP_ALIVE: u32 = 1 << 3;
    const TE: u32 = 1 << 4;
    const EXPECT: u32 = 1 << 5;
    const ALT_SVC: u32 = 1 << 6;
    /// `Proxy-Authorization`, `Proxy-Authenticate` and whatever else begins so.
    const PROXY: u32 = 1 << 7;
    const OWN: u32 = 1 << 8;
    const PROXY_CONNECTION: u32 = 1 << 9;
    const UPGRADE: u32 = 1 << 10;
    const HTTPOXY: u32 = 1 << 11;
    const HTTP2_SETTINGS: u32 = 1 << 12;
    /// Those that go without further thought, in both directions.
    const HOP_BY_HOP: [(u32, HeaderName); 5] = [
        (Self::KEEP_ALIVE, KEEP_ALIVE),
        (Self::PROXY_CONNECTION, PROXY_CONNECTION),
        (Self::HTTPOXY, PROXY),
        (Self::HTTP2_SETTINGS, HTTP2_SETTINGS),
        (Self::UPGRADE, UPGRADE),
    ];

    fn of(headers: &HeaderMap) -> Self {
        Self(headers.keys().fold(0, |found, name| found | Self::bit(name.as_str())))
    }

    fn bit(name: &str) -> u32 {
        match name {
            "connection" => Self::CONNECTION,
            "transfer-encoding" => Self::TRANSFER_ENCODING,
            "content-length" => Self::CONTENT_LENGTH,
            "keep-alive" => Self::KEEP_ALIVE,
            "upgrade" => Self::UPGRADE,
            "proxy" => Self::HTTPOXY,
            "http2-settings" => Self::HTTP2_SETTINGS,
            "proxy-connection" => Self::PROXY_CONNECTION | Self::PROXY,
            "te" => Self::TE,
            "expect" => Self::EXPECT,
            "alt-svc" => Self::ALT_SVC,
            _ if name.starts_with("proxy-") => Self::PROXY,
            _ if name.starts_with(OWN_PREFIX) => Self::OWN,
            _ => 0,
        }
    }

    fn any(self, bits: u32) -> bool {
        self.0 & bits != 0
    }
}

/// Removes what belongs to one connection (RFC 9110 section 7.6.1), including the fields that `Connection` names.
/// Framing fields go too: hyper frames the outgoing message from the body. `Content-Length` stays where it is the only
/// statement of length, and must be removed by the caller when the body is changed.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip_present(headers, Present::of(headers));
}

fn strip_present(headers: &mut HeaderMap, present: Present) {
    if present.any(Present::CONNECTION) {
        let nominated: Vec<HeaderName> = connection_members(headers)
            // The two that nearly every peer sends: one names no field, the other one that goes anyway.
            .filter(|member| !matches!(*member, "close" | "keep-alive"))
            .filter_map(|member| HeaderName::from_bytes(member.as_bytes()).ok())
            .filter(|name| !NOT_REMOVABLE.contains(&name.as_str()))
            .collect();
        for name in nominated {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if present.any(Present::TRANSFER_ENCODING) && headers.remove(TRANSFER_ENCODING).is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    for (bit, name) in Present::HOP_BY_HOP {
        if present.any(bit) {
            headers.remove(name);
        }
    }
}

/// Cleans a request before anything else looks at it: hop-by-hop fields, `Proxy-*`, `TE` other than `trailers`, `Expect`
/// (outgate itself answers 100-continue) and fields that only outgate may set.
pub fn clean_request(headers: &mut HeaderMap) {
    let present = Present::of(headers);
    let trailers = present.any(Present::TE) && takes_trailers(headers);
    strip_present(headers, present);
    if present.any(Present::TE) {
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    if present.any(Present::PROXY) {
        headers.remove(PROXY_AUTHORIZATION);
    }
    if present.any(Present::EXPECT) {
        headers.remove(EXPECT);
    }
    if present.any(Present::OWN) {
        remove_prefixed(headers, OWN_PREFIX);
    }
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|member| member.trim().eq_ignore_ascii_case("trailers"))
}

/// Cleans a provider's answer: hop-by-hop fields, `Alt-Svc` (a client that follows it leaves the proxy), `Proxy-*`, and
/// fields that only outgate may set. Returns whether its length was ambiguous (both framing fields).
pub fn clean_response(headers: &mut HeaderMap) -> bool {
    let present = Present::of(headers);
    let ambiguous = present.any(Present::TRANSFER_ENCODING) && present.any(Present::CONTENT_LENGTH);
    strip_present(headers, present);
    if present.any(Present::CONTENT_LENGTH) && !has_one_length(headers) {
        headers.remove(CONTENT_LENGTH);
    }
    if present.any(Present::ALT_SVC) {
        headers.remove(ALT_SVC);
    }
    if present.any(Present::PROXY) {
        remove_prefixed(headers, "proxy-");
    }
    if present.any(Present::OWN) {
        remove_prefixed(headers, OWN_PREFIX);
    }
    ambiguous
}

fn has_one_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (Some(length), None) => length.as_bytes().iter().all(u8::is_ascii_digit),
        (None, _) => true,
        (Some(_), Some(_)) => false,
    }
}

fn remove_prefixed(headers: &mut HeaderMap, prefix: &str) {
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Whether a trailer section may carry the field (RFC 9110 section 6.5.1): nothing that frames, routes, authenticates or
/// describes the content.
pub fn allowed_in_trailers(name: &HeaderName) -> bool {
    const REFUSED: [&str; 21] = [
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "max-forwards",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "www-authenticate",
    ];
    let name = name.as_str();
    !REFUSED.contains(&name) && !name.starts_with(OWN_PREFIX)
}

/// Whether a `Via` field of the request names this very process: the request has come round in a circle.
pub fn has_looped(headers: &HeaderMap, pseudonym: &str) -> bool {
    headers
        .get_all(http::header::VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|member| member.split_whitespace().nth(1) == Some(pseudonym))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        let host = ("host", "a.example");
        for (lines, fault) in [
            (vec![], HeadFault::NoHost),
            (vec![host, host], HeadFault::ManyHosts),
            (vec![host, ("transfer-encoding", "gzip, chunked")], HeadFault::TransferEncoding),
            (vec![host, ("transfer-encoding", "chunked, chunked")], HeadFault::TransferEncoding),
            (
                vec![host, ("transfer-encoding", "identity"), ("transfer-encoding", "chunked")],
                HeadFault::TransferEncoding,
            ),
            (vec![host, ("content-length", "5"), ("content-length", "5")], HeadFault::ContentLength),
            (vec![host, ("content-length", "5, 5")], HeadFault::ContentLength),
            (vec![host, ("expect", "200-maybe")], HeadFault::Expectation),
        ] {
            assert_eq!(check_request(Version::HTTP_11, &map(&lines)), Err(fault), "{lines:?}");
        }
        assert_eq!(check_request(Version::HTTP_10, &map(&[])), Ok(()));
        assert_eq!(check_request(Version::HTTP_11, &map(&[host, ("Expect", "100-Continue")])), Ok(()));
        assert_eq!(check_request(Version::HTTP_2, &map(&[("te", "gzip")])), Err(HeadFault::Http2Connection));
        assert_eq!(check_request(Version::HTTP_2, &map(&[("te", "trailers")])), Ok(()));
        for padded in [" 1", "1 ", "\t1", "1\t", " "] {
            assert_eq!(check_request(Version::HTTP_2, &map(&[("x-a", padded)])), Err(HeadFault::Padded));
        }
        assert_eq!(check_request(Version::HTTP_2, &map(&[("x-a", ""), ("x-b", "1 2")])), Ok(()));
    }

    #[test]
    fn nothing_of_one_connection_crosses() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Drop, authorization, Host"),
            ("x-drop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Bearer local"),
            ("proxy", "http://evil.example"),
            ("te", "gzip, trailers"),
            ("authorization", "Bearer app"),
            ("host", "a.example"),
            ("expect", "100-continue"),
            ("outgate-timeout", "3s"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("x-keep", "1"),
        ]);
        clean_request(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(
            left,
            [("authorization", "Bearer app"), ("host", "a.example"), ("te", "trailers"), ("x-keep", "1")]
        );
    }

    #[test]
    fn answers_lose_what_would_lead_clients_away() {
        let mut headers = map(&[
            ("alt-svc", "h3=\":443\""),
            ("proxy-authenticate", "Basic"),
            ("proxy-status", "x"),
            ("outgate-error", "denied"),
            ("content-length", "3, 3"),
            ("etag", "x"),
        ]);
        assert!(!clean_response(&mut headers));
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["etag"]);
        let mut both = map(&[("transfer-encoding", "chunked"), ("content-length", "30")]);
        assert!(clean_response(&mut both));
        assert!(both.is_empty());
    }

    #[test]
    fn only_a_real_websocket_request_is_one() {
        let asks = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert!(wants_websocket(&Method::GET, Version::HTTP_11, &asks));
        assert!(!wants_websocket(&Method::POST, Version::HTTP_11, &asks));
        assert!(!wants_websocket(&Method::GET, Version::HTTP_11, &map(&[("upgrade", "websocket")])));
        assert!(!wants_websocket(
            &Method::GET,
            Version::HTTP_11,
            &map(&[("connection", "upgrade"), ("upgrade", "h2c")])
        ));
    }

    #[test]
    fn loops_are_seen_by_our_own_name_only() {
        let headers = map(&[("via", "1.1 other, 1.1 outgate-ab12"), ("via", "2 third")]);
        assert!(has_looped(&headers, "outgate-ab12"));
        assert!(!has_looped(&headers, "outgate-ab13"));
    }
}
