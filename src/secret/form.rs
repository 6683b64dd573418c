//! Forms (`application/x-www-form-urlencoded`) that hold secrets, in memory that is wiped: what token endpoints, identity
//! providers and STS are asked with.

use http::HeaderValue;
use http::header::CONTENT_TYPE;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use zeroize::Zeroizing;

use super::SecretBytes;
use super::http::HttpCall;
use crate::message::target::Target;

/// What may stand in a form as it is (RFC 3986 section 2.3).
pub const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A form, or its fields as JSON. No `Debug`: it holds secrets.
#[derive(Default)]
pub struct Form {
    /// The fields, percent-encoded.
    fields: SecretBytes,
    /// They are sent as one object of JSON.
    json: bool,
}

impl Form {
    /// A form with its grant type (RFC 6749).
    #[must_use]
    pub fn grant(grant_type: &str) -> Self {
        Self::default().field("grant_type", grant_type.as_bytes())
    }

    /// The form with one more field. Bytes are percent-encoded.
    #[must_use]
    pub fn field(self, name: &str, value: &[u8]) -> Self {
        let name = percent_encode(name.as_bytes(), UNRESERVED);
        let joint = if self.fields.is_empty() { "" } else { "&" };
        // Counted first: when a string grows by itself, a copy stays behind.
        let more = joint.len() + name.clone().map(str::len).sum::<usize>() + 1 + value.len() * 3;
        let mut text = Zeroizing::new(Vec::with_capacity(self.fields.len() + more));
        text.extend_from_slice(&self.fields);
        text.extend_from_slice(joint.as_bytes());
        name.for_each(|piece| text.extend_from_slice(piece.as_bytes()));
        text.push(b'=');
        percent_encode(value, UNRESERVED).for_each(|piece| text.extend_from_slice(piece.as_bytes()));
        Self { fields: text, json: self.json }
    }

    /// The same, where there is a value.
    #[must_use]
    pub fn maybe(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.field(name, value.as_bytes()),
            None => self,
        }
    }

    /// The request that posts it, which may be repeated.
    #[must_use]
    pub fn call(self, target: &Target, path: String) -> HttpCall {
        let (body, written) = match self.json {
            true => (self.object(), "application/json"),
            false => (self.fields, "application/x-www-form-urlencoded"),
        };
        let mut call = HttpCall::login(target, path, body);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static(written));
        call
    }

    /// The same fields, to be sent as one object of JSON: RFC 6749 knows forms alone, and some endpoints JSON alone.
    #[must_use]
    pub fn as_json(self) -> Self {
        Self { json: true, ..self }
    }

    /// The fields as one object, its values texts.
    fn object(&self) -> SecretBytes {
        // Counted first, as for fields: a byte is six at most (`\u001f`), and a pair has five signs around it.
        let pairs = self.fields.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
        let mut text =
            Zeroizing::new(Vec::with_capacity(2 + self.fields.len() * 6 + pairs.clone().count() * 5));
        text.push(b'{');
        for (number, pair) in pairs.enumerate() {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            if number > 0 {
                text.push(b',');
            }
            write_text(&pair[..at], &mut text);
            text.push(b':');
            write_text(pair.get(at + 1..).unwrap_or_default(), &mut text);
        }
        text.push(b'}');
        text
    }

    /// What is sent.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.fields
    }
}

/// A percent-encoded text as a string of JSON (RFC 8259 section 7).
fn write_text(encoded: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in percent_decode(encoded) {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            0..=0x1f => {
                out.extend(*b"\\u00");
                out.extend([byte >> 4, byte & 0xf].map(|half| b"0123456789abcdef"[usize::from(half)]));
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_encoded_and_grows_field_by_field() {
        let form = Form::grant("client_credentials")
            .field("scope", b"a b/c")
            .maybe("x", None)
            .maybe("y", Some("1+1"));
        assert_eq!(form.bytes(), b"grant_type=client_credentials&scope=a%20b%2Fc&y=1%2B1");
    }

    #[test]
    fn fields_as_json() {
        let secret = "a\"b\\c\u{1f}&=% +é";
        let form = Form::grant("refresh_token").as_json().field("client_secret", secret.as_bytes());
        let value: serde_json::Value = serde_json::from_slice(&form.object()).unwrap();
        assert_eq!(value, serde_json::json!({ "grant_type": "refresh_token", "client_secret": secret }));
        assert_eq!(**Form::default().object(), *b"{}");
        let capacity = form.object().capacity();
        assert!(capacity >= form.object().len(), "it did not grow: {capacity}");
    }
}
