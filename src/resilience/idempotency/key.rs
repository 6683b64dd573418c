//! The key of one request.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue, Method};

use super::config::IdempotencySettings;

/// No random number could be had for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no random number could be had for an idempotency key")]
pub struct KeyFault;

/// Whether a request carries a key that the provider honours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed {
    /// It carries none.
    No,
    /// The app's own: the app may send the request again as well.
    ByApp,
    /// One that outgate made: the app does not know it.
    ByOutgate,
}

impl IdempotencySettings {
    /// The same for a key that stands in a header.
    ///
    /// # Errors
    ///
    /// The system gives no random numbers.
    pub(super) fn ensure(&self, method: &Method, headers: &mut HeaderMap) -> Result<Keyed, KeyFault> {
        if !self.methods.contains(method) || self.field.is_some() {
            return Ok(Keyed::No);
        }
        // An empty field is no key; a provider may take it for one that all such requests share. Beside one that is a key nobody
        // knows which of them the provider reads.
        let (blank, keys): (Vec<_>, Vec<_>) =
            headers.get_all(&self.header).iter().partition(|value| value.as_bytes().trim_ascii().is_empty());
        match (keys.is_empty(), blank.is_empty()) {
            (false, true) => return Ok(Keyed::ByApp),
            (false, false) => return Ok(Keyed::No),
            (true, _) if !self.add => return Ok(Keyed::No),
            (true, _) => {}
        }
        let key = HeaderValue::from_str(&make()?).map_err(|_| KeyFault)?;
        headers.insert(self.header.clone(), key);
        Ok(Keyed::ByOutgate)
    }
}

/// Bytes of a key that outgate makes.
pub(super) const KEY_LENGTH: usize = 36;

/// A UUID of version 4 (RFC 9562 section 5.4): 122 random bits from the generator that TLS uses. A key that somebody could
/// foresee could be used up by him before.
pub(super) fn make() -> Result<String, KeyFault> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyFault)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(KEY_LENGTH);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use http::HeaderName;

    use super::*;

    const KEY: HeaderName = HeaderName::from_static("idempotency-key");

    fn settings(add: bool) -> IdempotencySettings {
        IdempotencySettings { header: KEY, field: None, methods: [Method::POST].into(), add }
    }

    #[test]
    fn the_apps_key_is_kept_and_a_missing_one_is_made() {
        for (method, sent, add, keyed) in [
            (Method::POST, Some("app-1"), true, Keyed::ByApp),
            (Method::POST, Some("app-1"), false, Keyed::ByApp),
            (Method::POST, None, true, Keyed::ByOutgate),
            (Method::POST, Some(" "), true, Keyed::ByOutgate),
            (Method::POST, None, false, Keyed::No),
            (Method::POST, Some(""), false, Keyed::No),
            (Method::PUT, None, true, Keyed::No),
            (Method::PUT, Some("app-1"), true, Keyed::No),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(sent) = sent {
                headers.insert(KEY, sent.parse().unwrap());
            }
            let before = headers.clone();
            assert_eq!(settings(add).ensure(&method, &mut headers), Ok(keyed), "{method} {sent:?} {add}");
            assert_eq!(headers == before, keyed != Keyed::ByOutgate, "{method} {sent:?} {add}");
        }
    }

    #[test]
    fn an_empty_field_beside_a_key_is_none_that_counts() {
        for (fields, keyed) in [
            (&["", "app-1"][..], Keyed::No),
            (&["app-1", " "], Keyed::No),
            (&["app-1", "app-1"], Keyed::ByApp),
            (&["", " "], Keyed::ByOutgate),
        ] {
            let mut headers = HeaderMap::new();
            for value in fields {
                headers.append(KEY, value.parse().unwrap());
            }
            assert_eq!(settings(true).ensure(&Method::POST, &mut headers), Ok(keyed), "{fields:?}");
            assert_eq!(headers.get_all(KEY).iter().count(), if keyed == Keyed::ByOutgate { 1 } else { 2 });
        }
    }

    #[test]
    fn keys_are_uuids_and_never_the_same() {
        let keys: HashSet<String> = (0..1000).map(|_| make().unwrap()).collect();
        assert_eq!(keys.len(), 1000);
        for key in keys {
            assert_eq!(key.len(), KEY_LENGTH);
            assert_eq!(&key[14..15], "4");
            assert!(matches!(&key[19..20], "8" | "9" | "a" | "b"), "{key}");
            assert!(key.split('-').map(str::len).eq([8, 4, 4, 4, 12]));
        }
    }
}
