//! Reads a JSON text strictly (RFC 8259), and says where in it things stand, so that one field can be written and every other
//! byte stays as it is.
//!
//! The text is not parsed into values and written anew: that would lose the order of keys, the digits of numbers and the
//! app's own spacing. It is read to its last byte, because what parsers read in different ways is how a value of the app's
//! could win at the provider.

use std::ops::Range;

/// Deeper texts are refused: no API wants them, and reading one takes stack.
pub const DEEPEST: usize = 128;

/// Why a text is not read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It is no JSON, or parsers read it in different ways.
    Malformed,
    /// It is nested more than [`DEEPEST`] levels deep.
    Deep,
}

/// A JSON string. `text` holds no control characters.
pub fn quote(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    escape(text, out);
    out.push(b'"');
}

/// What stands between the quotes of a JSON string. `text` holds no control characters.
pub fn escape(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

/// Whether a parser might take `key` for `name`: letter case of any script is one to some, and to some a NUL ends a name.
#[must_use]
pub fn is_twin(key: &str, name: &str) -> bool {
    let fold = |text: &str| -> String {
        text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
    };
    let key = key.split('\0').next().unwrap_or_default();
    key == name || fold(key) == fold(name)
}

/// A place in a text, and how what follows is read. Stands at a value or between two after each call.
pub struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// Stands at the first value of `text`.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn new(text: &'a [u8]) -> Result<Self, Broken> {
        std::str::from_utf8(text).map_err(|_| Broken::Malformed)?;
        let mut scan = Self { text, at: 0 };
        scan.space();
        Ok(scan)
    }

    /// Where it stands, in bytes from the beginning.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// The byte it stands at.
    #[must_use]
    pub fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Enters the object or list that begins here, and stands behind its bracket.
    ///
    /// # Errors
    /// Another byte stands here.
    pub fn enter(&mut self, bracket: u8) -> Result<(), Broken> {
        self.take(bracket)
    }

    /// The next member of the object that was entered, `first` or not: where it begins, and its name, as the provider will
    /// read it. Stands at its value. Nothing where the object ends, and then stands behind it.
    ///
    /// # Errors
    /// What follows is no member.
    pub fn member(&mut self, first: bool) -> Result<Option<(usize, String)>, Broken> {
        if !self.another(first, b'}')? {
            return Ok(None);
        }
        let start = self.at;
        let key = self.key()?;
        self.colon()?;
        Ok(Some((start, key)))
    }

    /// Whether the list that was entered has another element, `first` or not; stands at it, or behind the list.
    ///
    /// # Errors
    /// What follows is no element.
    pub fn element(&mut self, first: bool) -> Result<bool, Broken> {
        self.another(first, b']')
    }

    /// One level below `depth`.
    ///
    /// # Errors
    /// [`Broken::Deep`].
    pub fn deeper(depth: usize) -> Result<usize, Broken> {
        if depth < DEEPEST { Ok(depth + 1) } else { Err(Broken::Deep) }
    }

    /// Reads any value, in a text that is `depth` levels deep here, and gives its bytes.
    ///
    /// # Errors
    /// It is malformed or too deep.
    pub fn value(&mut self, depth: usize) -> Result<&'a [u8], Broken> {
        let start = self.at;
        match self.peek() {
            Some(b'{') => self.skip_object(Self::deeper(depth)?),
            Some(b'[') => self.skip_array(Self::deeper(depth)?),
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => ["true", "false", "null"]
                .iter()
                .find(|word| self.text[self.at..].starts_with(word.as_bytes()))
                .map(|word| self.at += word.len())
                .ok_or(Broken::Malformed),
            None => Err(Broken::Malformed),
        }?;
        Ok(&self.text[start..self.at])
    }

    /// Reads to the end, where only space may stand.
    ///
    /// # Errors
    /// Something else stands there.
    pub fn end(&mut self) -> Result<(), Broken> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err(Broken::Malformed) }
    }

    fn take(&mut self, wanted: u8) -> Result<(), Broken> {
        if self.takes(wanted) { Ok(()) } else { Err(Broken::Malformed) }
    }

    fn takes(&mut self, wanted: u8) -> bool {
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn colon(&mut self) -> Result<(), Broken> {
        self.space();
        self.take(b':')?;
        self.space();
        Ok(())
    }

    fn another(&mut self, first: bool, close: u8) -> Result<bool, Broken> {
        self.space();
        if self.takes(close) {
            return Ok(false);
        }
        if !first {
            self.take(b',')?;
            self.space();
        }
        Ok(true)
    }

    fn skip_object(&mut self, depth: usize) -> Result<(), Broken> {
        self.take(b'{')?;
        let mut first = true;
        while self.another(first, b'}')? {
            self.string()?;
            self.colon()?;
            self.value(depth)?;
            first = false;
        }
        Ok(())
    }

    fn skip_array(&mut self, depth: usize) -> Result<(), Broken> {
        self.take(b'[')?;
        let mut first = true;
        while self.another(first, b']')? {
            self.value(depth)?;
            first = false;
        }
        Ok(())
    }

    /// Reads a string; what stands between its quotes.
    fn string(&mut self) -> Result<Range<usize>, Broken> {
        self.take(b'"')?;
        let start = self.at;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(start..self.at - 1);
                }
                Some(b'\\') => self.escaped()?,
                None | Some(0..0x20) => return Err(Broken::Malformed),
                Some(_) => self.at += 1,
            }
        }
    }

    fn escaped(&mut self) -> Result<(), Broken> {
        self.at += 1;
        let kind = self.peek().ok_or(Broken::Malformed)?;
        self.at += 1;
        match kind {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(()),
            b'u' => {
                let digits = self.text.get(self.at..self.at + 4).ok_or(Broken::Malformed)?;
                self.at += 4;
                if digits.iter().all(u8::is_ascii_hexdigit) { Ok(()) } else { Err(Broken::Malformed) }
            }
            _ => Err(Broken::Malformed),
        }
    }

    /// Reads a string that is a name, as the provider will read it. Half a surrogate pair is refused: parsers put different
    /// things in its place.
    fn key(&mut self) -> Result<String, Broken> {
        let range = self.string()?;
        serde_json::from_slice(&self.text[range.start - 1..=range.end]).map_err(|_| Broken::Malformed)
    }

    fn number(&mut self) -> Result<(), Broken> {
        let _ = self.takes(b'-');
        if !self.takes(b'0') {
            self.digits()?;
        }
        if self.takes(b'.') {
            self.digits()?;
        }
        if self.takes(b'e') || self.takes(b'E') {
            let _ = self.takes(b'+') || self.takes(b'-');
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Broken> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(Broken::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_elements_are_told_with_their_places() {
        let text = br#" {"a": 1.5e3 , "\u0062":[ true,{"x":"\"]"} ]}"#;
        let mut scan = Scan::new(text).unwrap();
        scan.enter(b'{').unwrap();
        assert_eq!(scan.member(true), Ok(Some((2, "a".to_owned()))));
        assert_eq!(scan.value(0), Ok(&b"1.5e3"[..]));
        assert_eq!(scan.member(false), Ok(Some((15, "b".to_owned()))));
        scan.enter(b'[').unwrap();
        assert_eq!((scan.element(true), scan.value(1)), (Ok(true), Ok(&b"true"[..])));
        assert_eq!((scan.element(false), scan.value(1)), (Ok(true), Ok(&br#"{"x":"\"]"}"#[..])));
        assert_eq!((scan.element(false), scan.member(false), scan.end()), (Ok(false), Ok(None), Ok(())));
        assert_eq!(scan.at(), text.len());
    }

    #[test]
    fn what_is_no_json_is_told() {
        for text in
            ["{,}", "{\"a\":1,}", "[1,]", "[1 2]", "{\"a\" 1}", "01", "1.", "nul", "\"\n\"", "\"\\x\"", ""]
        {
            let mut scan = Scan::new(text.as_bytes()).unwrap();
            let read = scan.value(0).map(drop).and_then(|()| scan.end());
            assert_eq!(read, Err(Broken::Malformed), "{text}");
        }
        assert_eq!(Scan::new(b"\xff").err(), Some(Broken::Malformed));
        assert_eq!(Scan::new("[".repeat(5_000).as_bytes()).unwrap().value(0), Err(Broken::Deep));
    }

    #[test]
    fn names_that_a_parser_may_take_for_one() {
        for (key, name, twin) in [
            ("key", "key", true),
            ("KEY", "key", true),
            ("\u{212A}ey", "key", true),
            ("key\0x", "key", true),
            ("keys", "key", false),
            ("", "key", false),
        ] {
            assert_eq!(is_twin(key, name), twin, "{key:?}");
        }
    }
}
