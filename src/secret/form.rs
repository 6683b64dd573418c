//! Forms (`application/x-www-form-urlencoded`) that hold secrets, in memory that is wiped: what token endpoints, identity
//! providers and STS are asked with.

use http::HeaderValue;
use http::header::CONTENT_TYPE;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use zeroize::Zeroizing;

use super::SecretBytes;
use super::http::HttpCall;
use crate::message::target::Target;

/// What may stand in a form as it is (RFC 3986 section 2.3).
pub const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A form. No `Debug`: it holds secrets.
#[derive(Default)]
pub struct Form(SecretBytes);

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
        let joint = if self.0.is_empty() { "" } else { "&" };
        // Counted first: when a string grows by itself, a copy stays behind.
        let more = joint.len() + name.clone().map(str::len).sum::<usize>() + 1 + value.len() * 3;
        let mut text = Zeroizing::new(Vec::with_capacity(self.0.len() + more));
        text.extend_from_slice(&self.0);
        text.extend_from_slice(joint.as_bytes());
        name.for_each(|piece| text.extend_from_slice(piece.as_bytes()));
        text.push(b'=');
        percent_encode(value, UNRESERVED).for_each(|piece| text.extend_from_slice(piece.as_bytes()));
        Self(text)
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
        let mut call = HttpCall::login(target, path, self.0);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        call
    }

    /// What is sent.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
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
}
