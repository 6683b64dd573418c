//! What keys of providers look like, so that one which stands where nobody expected it is masked in the log.
//!
//! Paths and queries are free text: an app may put a key anywhere in them. A shape is a beginning that no word has
//! (`sk_live_`, `ghp_`), the characters that follow, and the fewest of them. What fits is masked to its end; the beginning
//! stays, so that a reader sees what kind of key went astray. Keys without such a beginning are not found here: those are
//! masked by name, by place, and by exact value where outgate holds them ([`KnownValues`](super::KnownValues)).
//!
//! Limits: a key that is cut or encoded is found only as far as its characters go; the beginnings are compared as they are.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use super::MASK;

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
    fn length(&self, text: &str) -> Option<usize> {
        let rest = text.as_bytes().get(self.prefix.len()..)?;
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
        let mut masked = String::new();
        let mut done = 0;
        for found in beginnings.find_overlapping_iter(text) {
            // Inside a longer word (`risk_live_`) it is masked as well: a mask too many does no harm.
            let shape = &self.shapes[found.pattern().as_usize()];
            let Some(length) = shape.length(&text[found.start()..]) else { continue };
            let (shown, end) = (found.start() + shape.prefix.len(), found.start() + length);
            if end <= done {
                continue;
            }
            if shown >= done {
                masked.push_str(&text[done..shown]);
                masked.push_str(MASK);
            }
            done = end;
        }
        if done == 0 {
            return Cow::Borrowed(text);
        }
        masked.push_str(&text[done..]);
        Cow::Owned(masked)
    }
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
    }
}
