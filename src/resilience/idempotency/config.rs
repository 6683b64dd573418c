//! `idempotency:` as written in the policy, and as it is.

use std::sync::Arc;

use http::{HeaderName, Method};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::resilience::mistake::Mistakes;
use crate::resilience::pointer::Pointer;
use crate::resilience::retry::config::{field_name, methods};

/// A key by which the provider knows a request again. Only where the provider honours it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyConfig {
    /// The field that carries the key. Default: `Idempotency-Key`.
    pub header: Option<String>,
    /// Instead of `header`, for providers that want it in the body: a JSON Pointer (a step `*` is each element of a list) to
    /// the app's own key. It is only read, so `add` must be false.
    pub field: Option<String>,
    /// Methods for which the provider honours it. Default: POST.
    pub methods: Option<Vec<String>>,
    /// Whether one is made where the app sent none. Default: true.
    pub add: Option<bool>,
}

/// Where a key stands, and for which requests it holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencySettings {
    /// The field that carries the key.
    pub header: HeaderName,
    /// Where the app's key stands in a JSON body; then no header is read or written.
    pub field: Option<Pointer>,
    /// Methods for which the provider honours it.
    pub methods: Arc<[Method]>,
    /// Whether one is made where the app sent none.
    pub add: bool,
}

impl IdempotencyConfig {
    /// The settings, with every value that is wrong told.
    pub fn compile(&self, mistakes: &mut Mistakes) -> IdempotencySettings {
        const USUAL: HeaderName = HeaderName::from_static("idempotency-key");
        let given =
            self.header.as_deref().and_then(|name| field_name("header", name, "Idempotency-Key", mistakes));
        let methods = methods("methods", self.methods.as_deref(), &[Method::POST], mistakes);
        if self.methods.as_ref().is_some_and(Vec::is_empty) {
            mistakes.hint("methods", "no request would carry a key", "`idempotency: off` says that");
        }
        let field = self.field.as_deref().and_then(|text| self.field(text, mistakes));
        IdempotencySettings {
            header: given.unwrap_or(USUAL),
            field,
            methods: methods.into(),
            add: self.add.unwrap_or(true),
        }
    }

    fn field(&self, text: &str, mistakes: &mut Mistakes) -> Option<Pointer> {
        if self.header.is_some() {
            mistakes.hint("field", "a key stands in a header or in the body", "one of the two");
        }
        if self.add != Some(false) {
            mistakes.hint(
                "add",
                "keys are not written into bodies",
                "`add: false`: the app's own key is read",
            );
        }
        let pointer = Pointer::parse(text).filter(|_| !text.is_empty());
        if pointer.is_none() {
            mistakes.hint("field", "not a JSON Pointer (RFC 6901)", "such as `/idempotency_key`");
        }
        pointer
    }
}

impl IdempotencySettings {
    /// Whether a JSON body carries the key that the policy names: a text or a number that is not empty, in each element where
    /// the pointer goes through a list.
    pub fn in_body(&self, method: &Method, body: &[u8]) -> bool {
        let Some(field) = self.field.as_ref().filter(|_| self.methods.contains(method)) else { return false };
        let is_key = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => !text.trim().is_empty(),
            serde_json::Value::Number(_) => true,
            _ => false,
        };
        let document = serde_json::from_slice::<serde_json::Value>(body);
        document.is_ok_and(|document| field.all(&document, &mut |value| is_key(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(yaml: &str) -> (IdempotencySettings, usize) {
        let config: IdempotencyConfig = serde_yaml::from_str(yaml).unwrap();
        let mut mistakes = Mistakes::default();
        let settings = config.compile(&mut mistakes);
        (settings, mistakes.into_vec().len())
    }

    #[test]
    fn defaults_and_mistakes() {
        let (settings, none) = compile("{}");
        assert_eq!(none, 0);
        assert_eq!(compile("{ header: Idempotency-Key, methods: [POST], add: true }"), (settings, 0));
        let (paypal, none) = compile("{ header: PayPal-Request-Id, methods: [POST, DELETE], add: false }");
        assert_eq!(
            (paypal.header.as_str(), paypal.methods.len(), paypal.add, none),
            ("paypal-request-id", 2, false, 0)
        );
        for (yaml, count) in [
            ("{ header: Authorization }", 1),
            ("{ header: \"\" }", 1),
            ("{ methods: [] }", 1),
            ("{ methods: [post, CONNECT], header: Host }", 3),
            ("{ field: /key }", 1),
            ("{ field: key, add: false }", 1),
            ("{ field: \"\", add: false }", 1),
            ("{ field: /key, header: X-Key, add: false }", 1),
            ("{ field: /key, add: false }", 0),
        ] {
            assert_eq!(compile(yaml).1, count, "{yaml}");
        }
    }

    #[test]
    fn keys_in_bodies() {
        let (one, _) = compile("{ field: /key, add: false }");
        let (each, _) = compile("{ field: \"/batch/*/id\", add: false }");
        for (settings, body, found) in [
            (&one, r#"{"key":"k"}"#, true),
            (&one, r#"{"key":7}"#, true),
            (&one, r#"{"key":" "}"#, false),
            (&one, r#"{"key":null}"#, false),
            (&one, r#"{"other":"k"}"#, false),
            (&one, "key=k", false),
            (&one, "", false),
            (&each, r#"{"batch":[{"id":"a"},{"id":"b"}]}"#, true),
            (&each, r#"{"batch":[{"id":"a"},{}]}"#, false),
            (&each, r#"{"batch":[]}"#, false),
        ] {
            assert_eq!(settings.in_body(&Method::POST, body.as_bytes()), found, "{body}");
            assert!(!settings.in_body(&Method::PATCH, body.as_bytes()), "{body}");
        }
        let (header, _) = compile("{}");
        assert!(!header.in_body(&Method::POST, br#"{"key":"k"}"#));
    }
}
