//! `idempotency:` as written in the policy, and as it is.

use std::sync::Arc;

use http::{HeaderName, Method};
use schemars::JsonSchema;
use serde::Deserialize;

use super::field::{Found, find};
use crate::resilience::mistake::Mistakes;
use crate::resilience::pointer::{Pointer, Step};
use crate::resilience::retry::config::{field_name, methods};

/// A key by which the provider knows a request again. Only where the provider honours it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyConfig {
    /// The field that carries the key. Default: `Idempotency-Key`.
    pub header: Option<String>,
    /// Instead of `header`, for providers that want it in the body: a JSON Pointer to it (a step `*` is each element of a
    /// list, and each gets a key of its own). Where one is made, it is written into JSON of at most `retry.replay_buffer`.
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
    /// Where the key stands in a JSON body; then no header is read or written.
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
        let pointer = Pointer::parse(text).filter(|_| !text.is_empty());
        let writable = |last: &Step| matches!(last, Step::Named(name) if !name.contains(char::is_control));
        match pointer.as_ref().and_then(|pointer| pointer.steps().last()) {
            None => mistakes.hint("field", "not a JSON Pointer (RFC 6901)", "such as `/idempotency_key`"),
            Some(last) if self.add != Some(false) && !writable(last) => {
                let hint = "a name at the end, or `add: false`: then the app's own keys are read";
                mistakes.hint("field", "a key can only be written into a field that has a name", hint);
            }
            Some(_) => {}
        }
        pointer
    }
}

impl IdempotencySettings {
    /// Whether a JSON body carries the app's key at the place that the policy names: a text or a number that is not empty, in
    /// each element where the pointer goes through a list.
    pub fn in_body(&self, method: &Method, body: &[u8]) -> bool {
        let Some(field) = self.field.as_ref().filter(|_| self.methods.contains(method)) else { return false };
        find(body, field) == Ok(Found::Own)
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
            ("{ field: /key }", 0),
            ("{ field: /key, add: true }", 0),
            ("{ field: \"/keys/*\" }", 1),
            ("{ field: \"/keys/*\", add: false }", 0),
            ("{ field: \"/a\\tb\" }", 1),
            ("{ field: key }", 1),
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
            (&one, r#"{"key":"k","key":"l"}"#, false),
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
