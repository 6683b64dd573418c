//! Answers of stores: JSON that holds secrets, and is wiped when it is dropped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use zeroize::Zeroizing;

use super::field;
use crate::secret::SecretBytes;
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::reference::SecretRef;

/// A JSON answer. No `Debug`: its strings are secrets.
pub struct Document(Value);

impl Drop for Document {
    fn drop(&mut self) {
        field::wipe(&mut self.0);
    }
}

impl Document {
    /// Reads an answer.
    ///
    /// # Errors
    /// [`StoreFault::Garbled`].
    pub fn parse(bytes: &[u8]) -> Result<Self, StoreFault> {
        serde_json::from_slice(bytes).map(Self).map_err(|_| StoreFault::Garbled("it is not JSON"))
    }

    /// What stands at a path of keys; none also for null.
    #[must_use]
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        let found = path.iter().try_fold(&self.0, |value, key| value.as_object()?.get(*key));
        found.filter(|value| !value.is_null())
    }

    /// A string at a path of keys.
    #[must_use]
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_str()
    }

    /// A whole number at a path of keys; also one that is written as a string, as some APIs do.
    #[must_use]
    pub fn number(&self, path: &[&str]) -> Option<u64> {
        let value = self.at(path)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    }

    /// The field that `reference` asks for, of the object at a path of keys.
    ///
    /// # Errors
    /// There is no such object or field; or the reference asks for none.
    pub fn field(&self, path: &[&str], reference: &SecretRef) -> Result<SecretBytes, SecretError> {
        let fault = |fault| SecretError::store(reference, fault);
        let name = reference.field().ok_or_else(|| {
            fault(StoreFault::Reference("a value here has several fields, so `#field` must say which"))
        })?;
        let object = self.at(path).filter(|value| value.is_object());
        let object = object.ok_or_else(|| fault(StoreFault::Garbled("it holds no data")))?;
        field::pick(object, name, reference)
    }
}

/// Decodes base64 into memory that is wiped.
///
/// # Errors
/// [`StoreFault::Garbled`].
pub fn base64(text: &[u8]) -> Result<SecretBytes, StoreFault> {
    let mut bytes = Zeroizing::new(vec![0; text.len() / 4 * 3 + 3]);
    let length =
        STANDARD.decode_slice(text, &mut bytes).map_err(|_| StoreFault::Garbled("a value is not base64"))?;
    bytes.truncate(length);
    Ok(bytes)
}
