//! The places where a grant is kept. Each can do two things: be looked at, and be written if nobody wrote since that look.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::file::FileShelf;
use super::redis::RedisShelf;
use crate::secret::reference::SecretRef;
use crate::secret::{SecretStore, TokenFault};

/// What a look found.
pub(super) struct Sheet {
    /// The text; none where nothing was written yet.
    pub text: Option<Zeroizing<String>>,
    /// Its version, where the place counts them.
    pub version: u64,
}

/// A place.
pub enum Shelf {
    /// A file of this pod.
    File(FileShelf),
    /// A key in Redis.
    Redis(RedisShelf),
    /// A secret of a store that can be written.
    Store {
        /// The store.
        store: Arc<dyn SecretStore>,
        /// Where in it.
        reference: SecretRef,
    },
}

impl Shelf {
    pub(super) async fn look(&self) -> Result<Sheet, TokenFault> {
        match self {
            Self::File(file) => Ok(Sheet { text: file.look().await?, version: 0 }),
            Self::Redis(redis) => Ok(Sheet { text: redis.look().await?, version: 0 }),
            Self::Store { store, reference } => {
                let ledger = store.ledger().ok_or(NOT_WRITABLE)?;
                let entry = ledger.look(reference).await.map_err(|_| UNREADABLE)?;
                Ok(Sheet { text: entry.text, version: entry.version })
            }
        }
    }

    /// Writes, if what stands there is still what `before` saw; gives what stands there then, or none where it is not.
    pub(super) async fn put(
        &self,
        before: &Sheet,
        text: Zeroizing<String>,
    ) -> Result<Option<Sheet>, TokenFault> {
        let done = match self {
            Self::File(file) => file.put(before.text.clone(), text.clone()).await?,
            Self::Redis(redis) => redis.put(before.text.as_deref(), &text).await?,
            Self::Store { store, reference } => {
                let ledger = store.ledger().ok_or(NOT_WRITABLE)?;
                ledger.put(reference, &text, before.version).await.map_err(|_| UNWRITABLE)?
            }
        };
        Ok(done.then(|| Sheet { text: Some(text), version: before.version + 1 }))
    }
}

const NOT_WRITABLE: TokenFault = TokenFault::NotKept("this kind of store cannot be written");
const UNREADABLE: TokenFault = TokenFault::NotKept("the store cannot be read");
const UNWRITABLE: TokenFault = TokenFault::NotKept("the store cannot be written");
