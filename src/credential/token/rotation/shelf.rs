//! The places where a grant is kept. Each can do two things: be looked at, and be written if nobody wrote since that look.

use std::sync::Arc;
use std::time::SystemTime;

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
    /// The time by the clock of the place, or by this machine's where it has none. All that share a place judge by it, so that
    /// it does not matter how far their own clocks are apart.
    pub now: SystemTime,
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
            Self::File(file) => Ok(Sheet { text: file.look().await?, version: 0, now: SystemTime::now() }),
            Self::Redis(redis) => {
                let (text, now) = redis.look().await?;
                Ok(Sheet { text, version: 0, now })
            }
            Self::Store { store, reference } => {
                let ledger = store.ledger().ok_or(NOT_WRITABLE)?;
                let entry = ledger.look(reference).await.map_err(|_| UNREADABLE)?;
                Ok(Sheet {
                    text: entry.text,
                    version: entry.version,
                    now: entry.now.unwrap_or_else(SystemTime::now),
                })
            }
        }
    }

    /// Writes, if what stands there is still what `before` saw; gives what stands there then, or none where it is not.
    pub(super) async fn put(
        &self,
        before: &Sheet,
        text: Zeroizing<String>,
    ) -> Result<Option<Sheet>, TokenFault> {
        let written = match self {
            Self::File(file) => file.put(before.text.clone(), text.clone()).await?.then(SystemTime::now),
            Self::Redis(redis) => redis.put(before.text.as_deref(), &text).await?,
            Self::Store { store, reference } => {
                let ledger = store.ledger().ok_or(NOT_WRITABLE)?;
                let put = ledger.put(reference, &text, before.version).await.map_err(|_| UNWRITABLE)?;
                put.map(|put| put.now.unwrap_or_else(SystemTime::now))
            }
        };
        Ok(written.map(|now| Sheet { text: Some(text), version: before.version + 1, now }))
    }
}

const NOT_WRITABLE: TokenFault = TokenFault::NotKept("this kind of store cannot be written");
const UNREADABLE: TokenFault = TokenFault::NotKept("the store cannot be read");
const UNWRITABLE: TokenFault = TokenFault::NotKept("the store cannot be written");
