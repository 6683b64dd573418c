//! `hmac`: a signature over parts of the request, made with a key that never leaves outgate. For the many providers that have
//! a scheme of their own.
//!
//! ```yaml
//! credential:                                     # Binance
//!   hmac:
//!     key: env:BINANCE_SECRET
//!     key_id: env:BINANCE_KEY
//!     key_id_in: { header: X-MBX-APIKEY }
//!     timestamp: { query: timestamp, format: epoch_ms }
//!     content: "{query}{body}"
//!     signature: { query: signature }
//! credential:                                     # Coinbase Exchange
//!   hmac:
//!     key: file:/run/secrets/coinbase
//!     key_encoding: base64
//!     key_id: "plain:5f1a9b"
//!     key_id_in: { header: CB-ACCESS-KEY }
//!     timestamp: { header: CB-ACCESS-TIMESTAMP }
//!     content: "{timestamp}{method}{target}{body}"
//!     encoding: base64
//!     signature: { header: CB-ACCESS-SIGN }
//! ```
//!
//! Time, nonce, id and digest are written first, and then what is there is signed: `{query}` holds what was added to it. What
//! the app sent at these places is removed. Each attempt is signed anew. A body is held, up to `max`, only where `{body}` or
//! `{digest}` is used; a digest that the app sends itself can be signed as `{header:Content-Digest}`, and the body streams.

mod config;
mod sign;
mod template;

use futures_util::future::BoxFuture;

use config::KeyEncoding;
pub use config::{Config, Settings};

use super::{Half, Used};
use crate::credential::location::Location;
use crate::credential::rewrite::{Rewrite, Secrets};
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::secret::ValueRules;

impl Rewrite for Settings {
    fn secrets(&self) -> Vec<Used> {
        let key = Used { reference: self.key.clone(), rules: self.key_encoding.rules() };
        let id = match &self.key_id {
            Some(Half::Secret(reference)) => {
                Some(Used { reference: reference.clone(), rules: ValueRules::HeaderSafe })
            }
            Some(Half::Plain(_)) | None => None,
        };
        std::iter::once(key).chain(id).collect()
    }

    fn locations(&self) -> Vec<Location> {
        self.all_locations()
    }

    fn holds(&self, request: &EgressRequest) -> Option<u64> {
        (self.wants_body() && request.body.exact_length() != Some(0)).then_some(self.max)
    }

    fn rewrite<'a>(
        &'a self,
        request: EgressRequest,
        secrets: &'a Secrets,
    ) -> BoxFuture<'a, Result<EgressRequest, Failure>> {
        Box::pin(sign::sign(self, request, secrets, sign::Now::take()))
    }
}

impl KeyEncoding {
    /// What a key that is written so has to be. Judged when it is read: what is none leaves the last good one in its place.
    fn rules(self) -> ValueRules {
        match self {
            Self::Text => ValueRules::Any,
            Self::Base64 => ValueRules::Base64,
            Self::Hex => ValueRules::Hex,
        }
    }
}

#[cfg(test)]
mod tests;
