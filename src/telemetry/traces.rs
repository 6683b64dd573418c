//! Identities of requests: the W3C trace context that comes and goes in `traceparent`, and outgate's own request id.
//!
//! Both are fixed arrays that are copied, so that a request costs no heap for its identity. The random parts come from a fast
//! generator that is not cryptographic: the ids tell requests apart, and prove nothing.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Length of a version 00 `traceparent`: `00-` + 32 + `-` + 16 + `-` + 2.
const TRACEPARENT_LEN: usize = 55;

/// A trace's id: 16 bytes, never all zero (W3C Trace Context, 3.2.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// The 32 lower-case hex digits.
    pub fn text(self) -> HexText<32> {
        HexText(hex_of(&self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

/// A piece of ASCII text of `N` bytes without heap.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HexText<const N: usize>([u8; N]);

impl<const N: usize> HexText<N> {
    /// The text.
    pub fn as_str(&self) -> &str {
        // Made from ASCII only; the empty string stands in for what cannot happen.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What a `traceparent` field says (W3C Trace Context, 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: TraceId,
    parent_id: [u8; 8],
    flags: u8,
}

impl TraceParent {
    /// Reads a field value strictly: lower-case hex, no surrounding space, no all-zero id, version `ff` refused. Of versions
    /// above 00 the known part is read, as the specification wants (4.3). `None` means: start a new trace.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(TRACEPARENT_LEN)?;
        let [version] = bytes_of(&known[..2])?;
        let later_version = version != 0 && version != 0xff;
        let ends_well = rest.is_empty() || (later_version && rest[0] == b'-');
        let dashed = [2, 35, 52].iter().all(|&at| known[at] == b'-');
        if !(dashed && ends_well && (version == 0 || later_version)) {
            return None;
        }
        let (trace_id, parent_id) = (bytes_of(&known[3..35])?, bytes_of(&known[36..52])?);
        let [flags] = bytes_of(&known[53..])?;
        (trace_id != [0; 16] && parent_id != [0; 8]).then_some(Self {
            trace_id: TraceId(trace_id),
            parent_id,
            flags,
        })
    }

    /// The root of a new trace.
    pub fn new_root(sampled: bool) -> Self {
        let trace_id = fastrand::u128(1..).to_be_bytes();
        Self { trace_id: TraceId(trace_id), parent_id: new_span(), flags: u8::from(sampled) }
    }

    /// The same trace with a new span as the parent: what is sent upstream.
    pub fn child(self) -> Self {
        // Only the flag `sampled` is defined by version 00, which is what we send; others must be zero.
        Self { parent_id: new_span(), flags: self.flags & 1, ..self }
    }

    /// The id of the trace.
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// The id of the span, as 16 hex digits.
    pub fn span_id(&self) -> HexText<16> {
        HexText(hex_of(&self.parent_id))
    }

    /// Whether the caller records this trace.
    pub fn sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The field value, of version 00.
    pub fn text(&self) -> HexText<TRACEPARENT_LEN> {
        let mut text = *b"00-................................-................-..";
        write_hex(&self.trace_id.0, &mut text[3..35]);
        write_hex(&self.parent_id, &mut text[36..52]);
        write_hex(&[self.flags], &mut text[53..]);
        HexText(text)
    }
}

fn new_span() -> [u8; 8] {
    fastrand::u64(1..).to_be_bytes()
}

/// The id of one request: a UUID of version 7 (RFC 9562, 5.7), which sorts by time. It is in the log, in the answer's
/// `Outgate-Request-Id`, and in error bodies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 36]);

impl RequestId {
    /// The 36 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Lays out 48 bits of milliseconds, and 74 of `random` around version and variant.
    fn from_parts(millis: u64, random: u128) -> Self {
        let mut bytes = random.to_be_bytes();
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        bytes[6] = 0x70 | (bytes[6] & 0x0f);
        bytes[8] = 0x80 | (bytes[8] & 0x3f);
        let mut text = [b'-'; 36];
        for (from, to) in [(0..4, 0..8), (4..6, 9..13), (6..8, 14..18), (8..10, 19..23), (10..16, 24..36)] {
            write_hex(&bytes[from], &mut text[to]);
        }
        Self(text)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A new request id, of now.
pub fn new_request_id() -> RequestId {
    // A clock before 1970 gives ids that do not sort; they still tell requests apart.
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    RequestId::from_parts(millis, fastrand::u128(..))
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes two digits a byte, as far as `text` has room.
fn write_hex(bytes: &[u8], text: &mut [u8]) {
    for (byte, pair) in bytes.iter().zip(text.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

fn hex_of<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut text = [b'0'; N];
    write_hex(bytes, &mut text);
    text
}

/// Reads exactly `2 * N` lower-case hex digits.
fn bytes_of<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (text.len() == 2 * N).then_some(bytes)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_back() {
        let parsed = TraceParent::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(parsed.text().as_str(), GOOD);
        assert_eq!(parsed.trace_id().text().as_str(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parsed.span_id().as_str(), "00f067aa0ba902b7");
        assert!(parsed.sampled());
    }

    #[test]
    fn malformed_traceparents_are_refused() {
        let replaced = |at: usize, with: &str| {
            let mut text = GOOD.to_owned();
            text.replace_range(at..at + with.len(), with);
            text
        };
        let bad = [
            String::new(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-"),
            format!("{GOOD} "),
            format!(" {GOOD}"),
            GOOD.to_uppercase(),
            replaced(0, "ff"),
            replaced(0, "0x"),
            replaced(2, "_"),
            replaced(35, "0"),
            replaced(52, "0"),
            replaced(3, &"0".repeat(32)),
            replaced(36, &"0".repeat(16)),
            replaced(10, "g"),
            replaced(53, " 1"),
            format!("01{}x", &GOOD[2..]),
        ];
        for text in bad {
            assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        for text in [format!("01{}", &GOOD[2..]), format!("cc{}-what-comes", &GOOD[2..])] {
            let parsed = TraceParent::parse(text.as_bytes()).unwrap();
            assert_eq!(parsed.text().as_str(), GOOD, "{text}");
        }
    }

    #[test]
    fn a_child_keeps_the_trace_and_changes_the_span() {
        let parent = TraceParent::parse(GOOD.replace("-01", "-ff").as_bytes()).unwrap();
        let child = parent.child();
        assert_eq!(child.trace_id(), parent.trace_id());
        assert_ne!(child.span_id().as_str(), parent.span_id().as_str());
        assert!(child.text().as_str().ends_with("-01"));
    }

    #[test]
    fn new_roots_can_be_read_back_and_differ() {
        let (a, b) = (TraceParent::new_root(true), TraceParent::new_root(false));
        assert_ne!(a.trace_id(), b.trace_id());
        assert!(a.sampled() && !b.sampled());
        assert_eq!(TraceParent::parse(a.text().as_str().as_bytes()), Some(a));
    }

    #[test]
    fn a_request_id_is_a_uuid_of_version_7() {
        let id = RequestId::from_parts(0x017f_22e2_79b0, 0x0cc3_18c4_dc0c_0c07_398f);
        assert_eq!(id.as_str(), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
        let all_ones = RequestId::from_parts(u64::MAX, u128::MAX);
        assert_eq!(all_ones.as_str(), "ffffffff-ffff-7fff-bfff-ffffffffffff");
    }

    #[test]
    fn request_ids_differ_and_sort_by_time() {
        let ids: HashSet<String> = (0..1000).map(|_| new_request_id().to_string()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(RequestId::from_parts(1, u128::MAX).as_str() < RequestId::from_parts(2, 0).as_str());
    }
}
