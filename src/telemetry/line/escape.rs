//! Strings and numbers as bytes of a line.
//!
//! Clients choose hosts, paths and methods, so what they chose must neither end a line, nor close a JSON string, nor speak to
//! the terminal of who reads it: control characters (C0, DEL, C1), the separators U+2028 and U+2029, and the marks that turn
//! the direction of text are written as `\uXXXX`.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use std::io::Write;

/// Bytes shown of a string.
pub(super) const MAX_STRING: usize = 1024;
/// Bytes shown of a path.
pub(super) const MAX_PATH: usize = 2048;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Which bytes need a look: those to escape, and the first bytes (0xC2, 0xE2) of the characters to escape beyond ASCII.
const LOOK: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = byte < 0x20 || matches!(byte as u8, b'"' | b'\\' | 0x7f | 0xc2 | 0xe2);
        byte += 1;
    }
    table
};

/// Appends `text` escaped, at most `max` bytes of it (counted before escaping), and what was cut as `…[cut N]`.
pub(super) fn string(text: &str, max: usize, line: &mut Vec<u8>) {
    let shown = &text[..text.floor_char_boundary(max)];
    let bytes = shown.as_bytes();
    // Start of the run of bytes that go out as they are.
    let mut run = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if LOOK[usize::from(byte)]
            && let Some(code) = code_to_escape(shown, at)
        {
            line.extend_from_slice(&bytes[run..at]);
            escaped(code, line);
            run = at + char::from_u32(code).map_or(1, char::len_utf8);
        }
    }
    line.extend_from_slice(&bytes[run..]);
    if shown.len() < text.len() {
        line.extend_from_slice("…[cut ".as_bytes());
        number((text.len() - shown.len()) as u64, line);
        line.push(b']');
    }
}

/// The character that begins at `at`, if it must be escaped.
fn code_to_escape(text: &str, at: usize) -> Option<u32> {
    let character = text[at..].chars().next()?;
    let escape = character.is_control()
        || matches!(character, '"' | '\\' | '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}')
        || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    escape.then_some(character as u32)
}

/// None of the characters lies beyond U+FFFF, so four digits do.
fn escaped(code: u32, line: &mut Vec<u8>) {
    if let Ok(byte @ (b'"' | b'\\')) = u8::try_from(code) {
        return line.extend_from_slice(&[b'\\', byte]);
    }
    line.extend_from_slice(b"\\u");
    line.extend([12, 8, 4, 0].map(|shift| DIGITS[(code >> shift & 15) as usize]));
}

/// Appends `value` in decimal.
pub(super) fn number(value: u64, line: &mut Vec<u8>) {
    padded(value, 1, line);
}

/// Appends `value` in decimal with at least `width` (up to 20) digits.
fn padded(mut value: u64, width: usize, line: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    while value > 0 {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    line.extend_from_slice(&digits[start.min(digits.len() - width)..]);
}

/// Appends milliseconds with three decimals.
pub(super) fn millis(duration: Duration, line: &mut Vec<u8>) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    number(micros / 1000, line);
    line.push(b'.');
    padded(micros % 1000, 3, line);
}

/// Appends the time as RFC 3339 with milliseconds, UTC.
pub(super) fn timestamp(time: SystemTime, line: &mut Vec<u8>) {
    // The formatter refuses times before 1970 by panicking; a clock that is that wrong shows as 1970.
    let time = time.max(SystemTime::UNIX_EPOCH);
    let _ = write!(line, "{}", humantime::format_rfc3339_millis(time));
}

/// Appends an address. Writing into a `Vec` does not fail.
pub(super) fn ip(address: IpAddr, line: &mut Vec<u8>) {
    match address {
        // On every line, and three times cheaper than through `Display`.
        IpAddr::V4(address) => {
            for (place, octet) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    line.push(b'.');
                }
                number(octet.into(), line);
            }
        }
        IpAddr::V6(address) => {
            let _ = write!(line, "{address}");
        }
    }
}
