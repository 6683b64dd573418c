//! Writing: one field of a secret of its own, in a KV of version 2, by check-and-set.
//!
//! The policy of outgate's token allows `create`, `read` and `update` on `<mount>/data/<path>`, and `read` on
//! `<mount>/metadata/<path>` for the case that the newest version was deleted.

use futures_util::future::BoxFuture;
use http::Method;
use http::header::{CONTENT_TYPE, HeaderValue};
use zeroize::Zeroizing;

use super::{Place, VaultStore};
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::http::HttpCall;
use crate::secret::reference::SecretRef;
use crate::secret::{Ledger, LedgerEntry};

/// The field that holds the text.
const FIELD: &str = "outgate";

impl VaultStore {
    async fn ledger_place(&self, reference: &SecretRef) -> Result<(String, String), StoreFault> {
        match self.place(reference).await? {
            Place::Versioned { mount, path } => Ok((mount, path)),
            Place::Plain { .. } | Place::Leased { .. } => {
                Err(StoreFault::Reference("only a KV of version 2 is written, because it has check-and-set"))
            }
        }
    }

    async fn look_now(&self, reference: &SecretRef) -> Result<LedgerEntry, StoreFault> {
        let (mount, path) = self.ledger_place(reference).await?;
        match self.server.read(&format!("{mount}/data/{path}")).await {
            Ok(answer) => {
                let version = answer.number(&["data", "metadata", "version"]);
                let version = version.ok_or(StoreFault::Garbled("it names no version"))?;
                let text = answer.text(&["data", "data", FIELD]);
                Ok(LedgerEntry { text: text.map(|text| Zeroizing::new(text.to_owned())), version })
            }
            Err(StoreFault::NotFound) => {
                // What was deleted goes on counting.
                let version = match self.server.read(&format!("{mount}/metadata/{path}")).await {
                    Ok(about) => about.number(&["data", "current_version"]).unwrap_or(0),
                    Err(StoreFault::NotFound | StoreFault::Status(403)) => 0,
                    Err(fault) => return Err(fault),
                };
                Ok(LedgerEntry { text: None, version })
            }
            Err(fault) => Err(fault),
        }
    }

    async fn put_now(&self, reference: &SecretRef, text: &str, version: u64) -> Result<bool, StoreFault> {
        let (mount, path) = self.ledger_place(reference).await?;
        let url = self.server.url(&format!("{mount}/data/{path}"));
        let body = serde_json::json!({ "options": { "cas": version }, "data": { FIELD: text } }).to_string();
        let call = || {
            // Not to be repeated: a second write of the same version is refused, and looks like another's.
            let mut call = HttpCall::get(&self.server.address.target, url.clone());
            (call.method, call.repeat) = (Method::POST, false);
            call.body = Zeroizing::new(body.clone().into_bytes());
            call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            call
        };
        match self.server.logged_in(call).await {
            Ok(_) => Ok(true),
            // What Vault answers where the version is another one.
            Err(StoreFault::Status(400)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}

impl Ledger for VaultStore {
    fn look<'a>(&'a self, reference: &'a SecretRef) -> BoxFuture<'a, Result<LedgerEntry, SecretError>> {
        Box::pin(async move {
            self.look_now(reference).await.map_err(|fault| SecretError::store(reference, fault))
        })
    }

    fn put<'a>(
        &'a self,
        reference: &'a SecretRef,
        text: &'a str,
        version: u64,
    ) -> BoxFuture<'a, Result<bool, SecretError>> {
        Box::pin(async move {
            let put = self.put_now(reference, text, version).await;
            put.map_err(|fault| SecretError::store(reference, fault))
        })
    }
}
