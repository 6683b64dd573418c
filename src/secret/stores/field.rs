//! `#field`: one field of a value that is a JSON object.
//!
//! `#stripe.key` is the field of that very name if there is one (`tls.key` is a usual name in Kubernetes), else `key`
//! inside `stripe`. The field is a string, or a whole number of 64 bits, which is taken as its decimal digits.

use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use crate::secret::SecretBytes;
use crate::secret::error::SecretError;
use crate::secret::reference::SecretRef;

/// The whole value, or the field that `reference` asks for.
///
/// # Errors
/// [`SecretError::NotJson`], [`SecretError::FieldMissing`], [`SecretError::FieldNotText`].
pub fn select(bytes: SecretBytes, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
    let Some(field) = reference.field() else {
        return Ok(bytes);
    };
    let mut document = serde_json::from_slice::<Value>(&bytes).map_err(|error| SecretError::NotJson {
        reference: reference.clone(),
        offset: offset_of(&error, &bytes),
    })?;
    let found = pick(&document, field, reference);
    wipe(&mut document);
    found
}

/// The field `name` of an object.
///
/// # Errors
/// [`SecretError::FieldMissing`], [`SecretError::FieldNotText`].
pub fn pick(value: &Value, name: &str, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
    match find(value, name) {
        Some(value) => {
            text_of(value).ok_or_else(|| SecretError::FieldNotText { reference: reference.clone() })
        }
        None => Err(SecretError::FieldMissing { reference: reference.clone() }),
    }
}

fn find<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object.get(path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        find(object.get(first)?, rest)
    })
}

fn text_of(value: &Value) -> Option<SecretBytes> {
    match value {
        Value::String(text) => Some(Zeroizing::new(text.as_bytes().to_vec())),
        // A fraction or a longer number has been rounded by now: it would be another secret.
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            Some(Zeroizing::new(number.to_string().into_bytes()))
        }
        _ => None,
    }
}

/// Wipes every string of a document: it holds more secrets than the one asked for. (Depth is bounded by the JSON reader, at 128.)
pub fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The reader counts lines and columns from 1; columns are bytes.
fn offset_of(error: &serde_json::Error, bytes: &[u8]) -> usize {
    let before: usize = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    (before + error.column().saturating_sub(1)).min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_dotted_path() {
        let document = r#"{"key":"plain","stripe":{"key":"nested","deep":{"er":"x"}},"tls.key":"dotted","tls":{"key":"other"},
            "number":4711,"negative":-1,"huge":123456789012345678901234567890,"half":1.5,"yes":true,"none":null,"list":["a"]}"#;
        let table = [
            ("key", "plain"),
            ("stripe.key", "nested"),
            ("stripe.deep.er", "x"),
            ("tls.key", "dotted"),
            ("number", "4711"),
            ("negative", "-1"),
            ("huge", "field_not_text"),
            ("half", "field_not_text"),
            ("yes", "field_not_text"),
            ("none", "field_not_text"),
            ("list", "field_not_text"),
            ("stripe", "field_not_text"),
            ("missing", "field_missing"),
            ("stripe.missing", "field_missing"),
            ("key.key", "field_missing"),
            ("list.0", "field_missing"),
        ];
        for (field, expected) in table {
            let reference: SecretRef = format!("file:/app.json#{field}").parse().unwrap();
            let got = match select(Zeroizing::new(document.as_bytes().to_vec()), &reference) {
                Ok(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                Err(error) => error.code().to_owned(),
            };
            assert_eq!(got, expected, "{field}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_offset() {
        let reference: SecretRef = "file:/app.json#key".parse().unwrap();
        for (text, expected) in
            [("CANARY", 0), ("{\n  \"key\": CANARY}", 11), ("{\"key\":\"CANARY\"} CANARY", 17)]
        {
            match select(Zeroizing::new(text.as_bytes().to_vec()), &reference) {
                Err(error @ SecretError::NotJson { offset, .. }) => {
                    assert_eq!(offset, expected, "{text}");
                    assert!(!format!("{error} {error:?}").contains("CANARY"));
                }
                _ => panic!("{text} was taken"),
            }
        }
    }
}
