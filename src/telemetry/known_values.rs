//! Values that must stand in no line, wherever the text comes from: an app may write a key into a path, a name or a method.

use std::fmt;

use super::RequestEvent;

/// Finds values that must not be written. What they are is known above this layer.
pub trait KnownValues: Send + Sync {
    /// The text with every such value masked; `None` where there is none.
    fn masked(&self, text: &str) -> Option<String>;
}

impl fmt::Debug for dyn KnownValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownValues")
    }
}

/// The event with its free texts masked; `None` where nothing is to be masked, which is nearly always.
pub(super) fn masked(event: &RequestEvent, values: &dyn KnownValues) -> Option<RequestEvent> {
    let of = |text: Option<&str>| text.and_then(|text| values.masked(text));
    let path = of(event.path.as_deref());
    let query = of(event.query.as_deref());
    let host = of(event.host.as_deref());
    let method = of(event.method.as_ref().map(http::Method::as_str));
    if path.is_none() && query.is_none() && host.is_none() && method.is_none() {
        return None;
    }
    let mut event = event.clone();
    event.path = path.or(event.path);
    event.query = query.or(event.query);
    event.host = host.map(Into::into).or(event.host);
    // Asterisks are legal in a method.
    let method = method.and_then(|method| http::Method::from_bytes(method.as_bytes()).ok());
    event.method = method.or(event.method);
    Some(event)
}
