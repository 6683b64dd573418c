//! The bytes of a secret: wiped when dropped, impossible to print by accident, compared in constant time.

use std::hint::black_box;

use zeroize::Zeroizing;

use super::error::SecretError;
use super::reference::SecretRef;
use super::{SecretBytes, aws, key_text};

/// A secret's bytes.
///
/// It has no `Debug`, `Display`, `Clone`, `Hash` or `Serialize`, so that no derive, log line or snapshot can hold a
/// copy; the compiler checks that below. To use the bytes is to call [`SecretValue::expose`], which is easy to search for.
pub struct SecretValue(SecretBytes);

impl SecretValue {
    /// Takes bytes that are already known to be good, such as a token that outgate itself obtained and checked.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Takes what a store read, if it may be used under `rules`.
    ///
    /// # Errors
    /// [`SecretError::Empty`] for nothing or only white space, [`SecretError::Malformed`] with the offset of the first
    /// byte that `rules` refuse, [`SecretError::NotInForm`] for what is not written as they want it. All name `reference` and not the value.
    pub fn checked(
        bytes: SecretBytes,
        rules: ValueRules,
        reference: &SecretRef,
    ) -> Result<Self, SecretError> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(SecretError::Empty { reference: reference.clone() });
        }
        if let Some(offset) = rules.first_refused(&bytes) {
            return Err(SecretError::Malformed { reference: reference.clone(), offset });
        }
        match rules.missed_form(&bytes) {
            Some(form) => Err(SecretError::NotInForm { reference: reference.clone(), form }),
            None => Ok(Self(bytes)),
        }
    }

    /// The bytes, for the one who puts them where they belong. Header values made of them are marked sensitive.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether both hold the same bytes, in a time that depends on the lengths alone.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.same_bytes(other.expose())
    }

    /// Whether it holds exactly `other`, in a time that depends on the lengths alone; for a token that a peer presents.
    #[must_use]
    pub fn same_bytes(&self, other: &[u8]) -> bool {
        if self.0.len() != other.len() {
            return false;
        }
        let difference = self.0.iter().zip(other).fold(0_u8, |sum, (a, b)| black_box(sum | (a ^ b)));
        black_box(difference) == 0
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes; never so for a value that a store read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Which bytes a value may hold, chosen by who uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ValueRules {
    /// Printable ASCII and space only: fit for a header or a query. Stricter than a field value of RFC 9110 section 5.5
    /// (no tab, no bytes from 0x80), because what providers issue is ASCII, and anything else is a damaged file.
    #[default]
    HeaderSafe,
    /// Any bytes, for what is not sent as it is: private keys with line ends, keys of signatures.
    Any,
    /// Keys of AWS in one JSON object ([`aws::parse`]).
    AwsKeys,
    /// A key in base64, of either alphabet.
    Base64,
    /// A key in hex.
    Hex,
}

impl ValueRules {
    fn first_refused(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::HeaderSafe => bytes.iter().position(|byte| !(0x20..0x7f).contains(byte)),
            Self::Any | Self::AwsKeys | Self::Base64 | Self::Hex => None,
        }
    }

    /// What it ought to be, and is not.
    fn missed_form(self, bytes: &[u8]) -> Option<&'static str> {
        let (good, form) = match self {
            Self::HeaderSafe | Self::Any => return None,
            Self::AwsKeys => (aws::parse(bytes).is_some(), aws::NO_KEYS),
            Self::Base64 => (is_key(key_text::base64(bytes)), "it is not a key in base64"),
            Self::Hex => (is_key(key_text::hex(bytes)), "it is not a key in hex"),
        };
        (!good).then_some(form)
    }
}

fn is_key(decoded: Option<Zeroizing<Vec<u8>>>) -> bool {
    decoded.is_some_and(|key| !key.is_empty())
}

/// Fails to compile if the type implements one of the traits: then the call below is ambiguous.
macro_rules! never_implements {
    ($type:ty: $($trait:path),+ $(,)?) => {
        const _: fn() = || {
            trait Ambiguous<Marker> {
                fn check() {}
            }
            impl<T: ?Sized> Ambiguous<()> for T {}
            $({
                struct Marker;
                impl<T: ?Sized + $trait> Ambiguous<Marker> for T {}
            })+
            let _ = <$type as Ambiguous<_>>::check;
        };
    };
}
never_implements!(
    SecretValue: std::fmt::Debug,
    std::fmt::Display,
    Clone,
    std::hash::Hash,
    PartialEq,
    serde::Serialize,
    AsRef<[u8]>,
    std::ops::Deref,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_when_loaded() {
        let reference: SecretRef = "env:KEY".parse().unwrap();
        // (bytes, header-safe, any): `ok`, or the code with its offset.
        let table: &[(&[u8], &str, &str)] = &[
            (b"sk_live_1", "ok", "ok"),
            (b"with space ", "ok", "ok"),
            (b"", "empty", "empty"),
            (b"   ", "empty", "empty"),
            (b"\r\n\t", "empty", "empty"),
            (b"CANARY\r\nX-Evil: 1", "malformed@6", "ok"),
            (b"CANARY\nX: 1", "malformed@6", "ok"),
            (b"CANARY\r", "malformed@6", "ok"),
            (b"\0CANARY", "malformed@0", "ok"),
            (b"CAN\tARY", "malformed@3", "ok"),
            (b"CANARY\x7f", "malformed@6", "ok"),
            (b"CANAR\xc3\xbf", "malformed@5", "ok"),
            (b"~!", "ok", "ok"),
        ];
        for (bytes, header_safe, any) in table {
            for (rules, expected) in [(ValueRules::HeaderSafe, header_safe), (ValueRules::Any, any)] {
                let got = match SecretValue::checked(Zeroizing::new(bytes.to_vec()), rules, &reference) {
                    Ok(value) => {
                        assert_eq!(value.expose(), *bytes);
                        "ok".to_owned()
                    }
                    Err(SecretError::Malformed { offset, .. }) => format!("malformed@{offset}"),
                    Err(error) => error.code().to_owned(),
                };
                assert_eq!(&got, expected, "{} under {rules:?}", bytes.escape_ascii());
            }
        }
    }

    #[test]
    fn keys_are_judged_by_how_they_are_written() {
        let reference: SecretRef = "env:KEY".parse().unwrap();
        for (rules, bytes, expected) in [
            (ValueRules::AwsKeys, "{\"AccessKeyId\":\"A\",\n\"SecretAccessKey\":\"CANARY\"}", "ok"),
            (ValueRules::AwsKeys, "{\"AccessKeyId\":\"A\"}", "malformed"),
            (ValueRules::AwsKeys, "CANARY", "malformed"),
            (ValueRules::AwsKeys, "", "empty"),
            (ValueRules::Base64, "Q0FOQVJZ\n", "ok"),
            (ValueRules::Base64, "CANARY!", "malformed"),
            (ValueRules::Base64, "==", "malformed"),
            (ValueRules::Hex, "00ff", "ok"),
            (ValueRules::Hex, "00f", "malformed"),
            (ValueRules::Hex, "CANARY", "malformed"),
        ] {
            let value = SecretValue::checked(Zeroizing::new(bytes.into()), rules, &reference);
            let code = value.as_ref().map_or_else(SecretError::code, |_| "ok");
            assert_eq!(code, expected, "{bytes} under {rules:?}");
            assert!(value.err().is_none_or(|error| !format!("{error} {error:?}").contains("CANARY")));
        }
    }

    #[test]
    fn equality_looks_at_every_byte_and_at_the_length() {
        let value = SecretValue::new(b"secret".to_vec());
        for (other, same) in [
            ("secret", true),
            ("Secret", false),
            ("secreT", false),
            ("secre", false),
            ("secret0", false),
            ("", false),
        ] {
            assert_eq!(value.same_bytes(other.as_bytes()), same, "{other}");
            assert_eq!(value.same_as(&SecretValue::new(other.as_bytes().to_vec())), same, "{other}");
        }
    }
}
