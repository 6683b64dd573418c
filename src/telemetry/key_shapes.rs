//! What keys of providers look like, so that one which stands where nobody expected it is masked in the log.
//!
//! Paths and queries are free text: an app may put a key anywhere in them. A shape is a beginning that no word has
//! (`sk_live_`, `ghp_`), the characters that follow, and the fewest of them. What fits is masked to its end; the beginning
//! stays, so that a reader sees what kind of key went astray. Keys without such a beginning are not found here: those are
//! masked by name, by place, and by exact value where outgate holds them ([`KnownValues`](super::KnownValues)).
//!
//! A key may stand percent-encoded, in part or more than once (`sk%5Flive%5F..`, `sk%255Flive..`): a text with a `%` is matched again
//! with its escapes decoded, up to [`MOST_LAYERS`] times over, and masked where they stand.
//!
//! Limits: a key that is cut, or encoded otherwise, is found only as far as its characters go; the beginnings are compared as they are.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use super::MASK;

/// How often percent-escapes are decoded. A server decodes once, a gateway in front of it perhaps once more.
pub const MOST_LAYERS: usize = 3;

/// The shape of one kind of key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyShape {
    prefix: String,
    chars: u128,
    least: usize,
}

impl KeyShape {
    /// A key that begins with `prefix` and goes on with at least `least` of `chars`: bit n stands for the ASCII character n.
    pub fn new(prefix: impl Into<String>, chars: u128, least: usize) -> Self {
        Self { prefix: prefix.into(), chars, least }
    }

    /// How it begins.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The length of the key that stands at the beginning of `text`; none where there is none.
    fn length(&self, text: &[u8]) -> Option<usize> {
        let rest = text.get(self.prefix.len()..)?;
        let fits = |byte: &&u8| byte.is_ascii() && self.chars >> **byte & 1 == 1;
        let run = rest.iter().take_while(fits).count();
        (run >= self.least).then_some(self.prefix.len() + run)
    }
}

/// The shapes of all keys that are known, found in one pass.
#[derive(Clone, Debug, Default)]
pub struct KeyShapes {
    shapes: Vec<KeyShape>,
    beginnings: Option<AhoCorasick>,
}

impl KeyShapes {
    /// Of these shapes; those without a beginning are left out, for they would fit everywhere.
    pub fn new(shapes: impl IntoIterator<Item = KeyShape>) -> Self {
        let mut shapes: Vec<KeyShape> = shapes.into_iter().filter(|shape| shape.prefix.len() > 1).collect();
        shapes.sort_by(|a, b| (&a.prefix, a.least).cmp(&(&b.prefix, b.least)));
        shapes.dedup();
        let beginnings = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .build(shapes.iter().map(|shape| &shape.prefix))
            .ok()
            .filter(|_| !shapes.is_empty());
        Self { shapes, beginnings }
    }

    /// The shapes, by their beginnings.
    pub fn iter(&self) -> impl Iterator<Item = &KeyShape> {
        self.shapes.iter()
    }

    /// The text with every key masked after its beginning. Borrowed where there is none.
    pub fn mask<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let Some(beginnings) = &self.beginnings else { return Cow::Borrowed(text) };
        let mut found = Vec::new();
        self.find(beginnings, text.as_bytes(), |start, end| found.push((start, end)));
        if text.contains('%') {
            self.find_escaped(beginnings, text, &mut found);
        }
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        Cow::Owned(masked(text, found))
    }

    /// Every key in these bytes: from behind its beginning to its end.
    fn find(&self, beginnings: &AhoCorasick, text: &[u8], mut note: impl FnMut(usize, usize)) {
        for found in beginnings.find_overlapping_iter(text) {
            // Inside a longer word (`risk_live_`) it is masked as well: a mask too many does no harm.
            let shape = &self.shapes[found.pattern().as_usize()];
            if let Some(length) = shape.length(&text[found.start()..]) {
                note(found.start() + shape.prefix.len(), found.start() + length);
            }
        }
    }

    /// The keys that show once escapes are decoded, by where they stand in the text as it is.
    fn find_escaped(&self, beginnings: &AhoCorasick, text: &str, found: &mut Vec<(usize, usize)>) {
        let mut layer = Decoded::of(text);
        for _ in 0..MOST_LAYERS {
            let Some(decoded) = layer.decoded() else { return };
            layer = decoded;
            self.find(beginnings, &layer.bytes, |start, end| {
                found.push((layer.starts[start], layer.starts[end]));
            });
        }
    }
}

/// The text with stars over these spans, which may overlap.
fn masked(text: &str, mut spans: Vec<(usize, usize)>) -> String {
    spans.sort_unstable();
    let mut masked = String::with_capacity(text.len());
    let mut done = 0;
    for (start, end) in spans.into_iter().filter(|(start, end)| start < end) {
        if end <= done {
            continue;
        }
        // One that begins in another goes on under the same mask.
        if start >= done {
            masked.push_str(&text[done..start]);
            masked.push_str(MASK);
        }
        done = end;
    }
    masked.push_str(&text[done..]);
    masked
}

/// A text with its escapes decoded, and where each of its bytes began before.
struct Decoded {
    bytes: Vec<u8>,
    /// One more than there are bytes: the last is the end.
    starts: Vec<usize>,
}

impl Decoded {
    /// As it is.
    fn of(text: &str) -> Self {
        Self { bytes: text.as_bytes().to_vec(), starts: (0..=text.len()).collect() }
    }

    /// With its escapes decoded once; none where it has none.
    fn decoded(&self) -> Option<Self> {
        let mut next = Self { bytes: Vec::with_capacity(self.bytes.len()), starts: Vec::new() };
        let mut at = 0;
        while let Some(byte) = self.bytes.get(at) {
            next.starts.push(self.starts[at]);
            let escaped = self.bytes.get(at..at + 3).and_then(escaped);
            next.bytes.push(escaped.unwrap_or(*byte));
            at += if escaped.is_some() { 3 } else { 1 };
        }
        next.starts.push(self.starts[at]);
        (next.bytes.len() < self.bytes.len()).then_some(next)
    }
}

/// The byte that an escape stands for.
fn escaped(three: &[u8]) -> Option<u8> {
    let [b'%', high, low] = three else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(extra: &str) -> u128 {
        (b'a'..=b'z')
            .chain(b'A'..=b'Z')
            .chain(b'0'..=b'9')
            .chain(extra.bytes())
            .fold(0, |set, byte| set | 1 << byte)
    }

    fn shapes() -> KeyShapes {
        KeyShapes::new([
            KeyShape::new("sk_live_", letters("_"), 10),
            KeyShape::new("sk-", letters("_-"), 20),
            KeyShape::new("sk-proj-", letters("_-"), 20),
            KeyShape::new("ghs_", letters("._-"), 30),
            KeyShape::new("", letters(""), 1),
        ])
    }

    #[test]
    fn keys_are_masked_and_words_are_not() {
        let shapes = shapes();
        for (text, masked) in [
            ("/v1/charges", "/v1/charges"),
            ("/v1/sk_live_0123456789abc/x", "/v1/sk_live_***/x"),
            ("sk_live_short", "sk_live_short"),
            ("a=sk_live_0123456789&b=sk_live_0123456789abcdef", "a=sk_live_***&b=sk_live_***"),
            ("sk-proj-0123456789012345678901234", "sk-***"),
            ("ghs_eyJhbGciOi.JSUzI1NiIsInR5cCI6.IkpXVCJ9-abc_def end", "ghs_*** end"),
            ("sk_live_0123456789sk_live_0123456789", "sk_live_***"),
            ("äöü sk_live_0123456789ü", "äöü sk_live_***ü"),
            ("/v1/sk%5Flive%5F0123456789abc/x", "/v1/sk%5Flive%5F***/x"),
            ("/%73k_live_%30123456789/x", "/%73k_live_***/x"),
            ("a=sk%255flive%25255F0123456789&b=1", "a=sk%255flive%25255F***&b=1"),
            ("sk%5Flive%5Fshort%2", "sk%5Flive%5Fshort%2"),
            ("sk_live_0123456789%41%C3%BC", "sk_live_***%C3%BC"),
            ("100%/%zz%C3", "100%/%zz%C3"),
            ("", ""),
        ] {
            assert_eq!(shapes.mask(text), masked, "{text}");
        }
        assert!(matches!(shapes.mask("/v1/charges"), Cow::Borrowed(_)));
        assert_eq!(KeyShapes::default().mask("sk_live_0123456789"), "sk_live_0123456789");
    }

    proptest::proptest! {
        #[test]
        fn no_key_is_left(before in "[a-z/=&_sk]{0,12}", key in "[a-zA-Z0-9]{10,40}", after in "[/&?. ä]?[a-z/]{0,9}") {
            let text = format!("{before}sk_live_{key}{after}");
            proptest::prop_assert!(!shapes().mask(&text).contains(&key));
        }

        #[test]
        fn no_encoded_key_is_left(key in "[a-zA-Z0-9]{10,40}", which in proptest::collection::vec(0..3_u8, 48), after in "[/&]?") {
            let encode = |(byte, how): (u8, &u8)| match how {
                0 => char::from(byte).to_string(),
                1 => format!("%{byte:02X}"),
                _ => format!("%25{byte:02x}"),
            };
            let encoded: String = "sk_live_".bytes().zip(&which).map(encode).collect();
            let secret: String = key.bytes().zip(&which[8..]).map(encode).collect();
            let shown = shapes().mask(&format!("/x/{encoded}{secret}{after}")).into_owned();
            proptest::prop_assert_eq!(shown, format!("/x/{encoded}***{after}"));
        }
    }
}
