//! Objects of Kubernetes as JSON: what is absent and what is null are the same there.

use serde_json::{Map, Value};

use super::Refusal;

/// The text at a key.
pub fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

/// The member at a path of keys; none where it is absent or null on the way.
pub fn at<'a>(object: &'a Map<String, Value>, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(object.get(*first)?, |value, key| value.get(key)).filter(|value| !value.is_null())
}

/// Whether `true` stands at a path.
pub fn is_true(object: &Map<String, Value>, path: &[&str]) -> bool {
    at(object, path).and_then(Value::as_bool) == Some(true)
}

/// The list at a key, empty where there is none.
///
/// # Errors
///
/// [`Refusal::NotAPod`] with the key, where something else than a list of objects stands there.
pub fn objects<'a>(parent: &'a Map<String, Value>, key: &'static str) -> Result<&'a [Value], Refusal> {
    match parent.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) if list.iter().all(Value::is_object) => Ok(list),
        Some(_) => Err(Refusal::NotAPod(key)),
    }
}

/// The list at a key, made where there is none.
///
/// # Errors
///
/// [`Refusal::NotAPod`] with the key, where something else than a list stands there.
pub fn list_mut<'a>(
    parent: &'a mut Map<String, Value>,
    key: &'static str,
) -> Result<&'a mut Vec<Value>, Refusal> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().ok_or(Refusal::NotAPod(key))
}

/// The object at a key, made where there is none.
///
/// # Errors
///
/// [`Refusal::NotAPod`] with the key, where something else than an object stands there.
pub fn object_mut<'a>(
    parent: &'a mut Map<String, Value>,
    key: &'static str,
) -> Result<&'a mut Map<String, Value>, Refusal> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().ok_or(Refusal::NotAPod(key))
}

/// Whether all that `part` says stands in `whole` too: Kubernetes fills in defaults, and objects grow by that.
pub fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part.iter().all(|(key, part)| match whole.get(key) {
            Some(whole) => contains(whole, part),
            None => part.is_null(),
        }),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        (whole, part) => whole == part,
    }
}
