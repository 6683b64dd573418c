//! Writing: one field of a secret of its own, in a KV of version 2, by check-and-set.
//!
//! The policy of outgate's token allows `create`, `read` and `update` on `<mount>/data/<path>`, and `read` on
//! `<mount>/metadata/<path>` for the case that the newest version was deleted.

use std::time::SystemTime;

use futures_util::future::BoxFuture;
use http::Method;
use http::header::{CONTENT_TYPE, DATE, HeaderValue};
use zeroize::Zeroizing;

use super::{Place, VaultStore};
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::http::{HttpAnswer, HttpCall};
use crate::secret::reference::SecretRef;
use crate::secret::stores::document::Document;
use crate::secret::{Ledger, LedgerEntry, Written};

/// The field that holds the text.
const FIELD: &str = "outgate";

/// What the server's clock said (RFC 9110 section 6.6.1), to the second.
fn date_of(answer: &HttpAnswer) -> Option<SystemTime> {
    httpdate::parse_http_date(answer.headers.get(DATE)?.to_str().ok()?).ok()
}

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
        if let Some(entry) = self.newest(&mount, &path).await? {
            return Ok(entry);
        }
        // What was deleted goes on counting.
        let version = match self.server.read(&format!("{mount}/metadata/{path}")).await {
            Ok(about) => about.number(&["data", "current_version"]).unwrap_or(0),
            Err(StoreFault::NotFound | StoreFault::Status(403)) => 0,
            Err(fault) => return Err(fault),
        };
        // Who has written between the two looks is not taken for deleted: that version is written over only if it was not
        // there after it was counted.
        let entry = if version > 0 { self.newest(&mount, &path).await? } else { None };
        Ok(entry.unwrap_or(LedgerEntry { text: None, version, now: None }))
    }

    /// The newest version, where it is there.
    async fn newest(&self, mount: &str, path: &str) -> Result<Option<LedgerEntry>, StoreFault> {
        let url = self.server.url(&format!("{mount}/data/{path}"));
        let answer =
            match self.server.answered(|| HttpCall::get(&self.server.address.target, url.clone())).await {
                Ok(answer) => answer,
                Err(StoreFault::NotFound) => return Ok(None),
                Err(fault) => return Err(fault),
            };
        let now = date_of(&answer);
        let document = Document::parse(&answer.body)?;
        let version = document.number(&["data", "metadata", "version"]);
        let version = version.ok_or(StoreFault::Garbled("it names no version"))?;
        answer.verdict.works();
        let text = document.text(&["data", "data", FIELD]);
        Ok(Some(LedgerEntry { text: text.map(|text| Zeroizing::new(text.to_owned())), version, now }))
    }

    async fn put_now(
        &self,
        reference: &SecretRef,
        text: &str,
        version: u64,
    ) -> Result<Option<Written>, StoreFault> {
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
        match self.server.answered(call).await {
            Ok(answer) => {
                let now = date_of(&answer);
                answer.verdict.works();
                Ok(Some(Written { now }))
            }
            // What Vault answers where the version is another one.
            Err(StoreFault::Status(400)) => Ok(None),
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
    ) -> BoxFuture<'a, Result<Option<Written>, SecretError>> {
        Box::pin(async move {
            let put = self.put_now(reference, text, version).await;
            put.map_err(|fault| SecretError::store(reference, fault))
        })
    }
}
