//! Keys that are bytes, written as text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

/// Base64 of either alphabet (RFC 4648 sections 4 and 5), padded or not; white space around it is left out. None where it is none.
#[must_use]
pub fn base64(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let standard: Zeroizing<Vec<u8>> = Zeroizing::new(
        text.trim_ascii()
            .iter()
            .map(|byte| match byte {
                b'-' => b'+',
                b'_' => b'/',
                other => *other,
            })
            .collect(),
    );
    let padding = standard.iter().rev().take_while(|byte| **byte == b'=').count();
    STANDARD_NO_PAD.decode(&standard[..standard.len() - padding]).ok().map(Zeroizing::new)
}

/// Hex of either case; white space around it is left out. None where it is none.
#[must_use]
pub fn hex(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.trim_ascii();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let bytes = text.chunks(2).map(|pair| Some(digit(pair[0])? * 16 + digit(pair[1])?));
    bytes.collect::<Option<Vec<u8>>>().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_or_refused() {
        for (text, bytes) in [
            ("a-_/", Some(&[0x6b, 0xef, 0xff][..])),
            ("YQ==", Some(b"a")),
            (" YWI\n", Some(b"ab")),
            ("YQ=", Some(b"a")),
            ("Y", None),
            ("no base64!", None),
        ] {
            assert_eq!(base64(text.as_bytes()).as_deref().map(Vec::as_slice), bytes, "{text}");
        }
        for (text, bytes) in
            [("00fF\n", Some(&[0, 255][..])), ("0", None), ("0g", None), ("zz", None), ("+1", None)]
        {
            assert_eq!(hex(text.as_bytes()).as_deref().map(Vec::as_slice), bytes, "{text}");
        }
    }
}
