//! Texts with `*` for any run of characters, the empty one included.

/// A pattern, split at its stars. Matching goes through the text once for each piece and never back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Glob {
    pieces: Box<[Box<str>]>,
}

impl Glob {
    /// Any text is a pattern; there is no escape for a star.
    pub(super) fn new(pattern: &str) -> Self {
        Self { pieces: pattern.split('*').map(Into::into).collect() }
    }

    /// Whether the whole text matches; letters count as they are.
    pub(super) fn matches(&self, text: &[u8]) -> bool {
        let [first, middle @ .., last] = &*self.pieces else {
            return self.pieces.first().is_some_and(|only| only.as_bytes() == text);
        };
        let Some(mut rest) = text.strip_prefix(first.as_bytes()) else { return false };
        for piece in middle {
            let Some(at) = find(rest, piece.as_bytes()) else { return false };
            rest = &rest[at + piece.len()..];
        }
        rest.ends_with(last.as_bytes())
    }
}

fn find(text: &[u8], piece: &[u8]) -> Option<usize> {
    if piece.is_empty() { Some(0) } else { text.windows(piece.len()).position(|window| window == piece) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, yes, no) in [
            ("abc", "abc", "abcd"),
            ("*", "", "-"),
            ("a*", "a", "ba"),
            ("*secondary rate*", "the secondary rate limit", "the secondary limit"),
            ("a*b*c", "a-b-b-c", "a-c"),
            ("ab*ba", "abba", "aba"),
            ("", "", "x"),
        ] {
            assert!(Glob::new(pattern).matches(yes.as_bytes()), "{pattern}");
            assert!(no == "-" || !Glob::new(pattern).matches(no.as_bytes()), "{pattern}");
        }
    }
}
