//! `idempotency:` as written in the policy, and as it is.

use std::sync::Arc;

use http::{HeaderName, Method};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::resilience::mistake::Mistakes;
use crate::resilience::retry::config::{field_name, methods};

/// A key by which the provider knows a request again. Only where the provider honours it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyConfig {
    /// The field that carries the key. Default: `Idempotency-Key`.
    pub header: Option<String>,
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
        IdempotencySettings {
            header: given.unwrap_or(USUAL),
            methods: methods.into(),
            add: self.add.unwrap_or(true),
        }
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
        ] {
            assert_eq!(compile(yaml).1, count, "{yaml}");
        }
    }
}
