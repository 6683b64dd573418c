//! The attempt loop: sends a request again where that is safe and makes sense, and heals its credential.
//!
//! A request is sent again on one of four grounds and on no other: (1) nothing was sent, or the provider said that it did
//! not process it; (2) the answer proves that it did not act (`acted: false`); (3) an idempotency key that the provider
//! honours went with it, the same on each attempt; (4) its method is in `methods`. A ground alone is not enough: the class
//! of the outcome must stand in `on` as well (or the provider's own hint ask for it), and attempts, budget, body and
//! deadline must allow it. All of that is one pure function, [`decide`].
//!
//! ```yaml
//! retry:
//!   attempts: 3                     # in all, the first included
//!   on: [connect, reset, timeout, throttle, concurrency, conflict, overload, unavailable]
//!   methods: [GET, HEAD, OPTIONS, PUT, DELETE]
//!   backoff: { base: 250ms, factor: 2, max: 8s, jitter: full }
//!   max_retry_after: 60s            # a longer Retry-After is handed to the app at once
//!   budget: { ratio: 20%, min_per_second: 3 }
//!   replay_buffer: 64KiB            # a longer body is streamed, and is not replayed once bytes went out
//!   hint: { header: x-should-retry }
//! ```
//!
//! `hint` names the field by which a provider tells SDKs whether to try again. `false` of the provider is obeyed: then only
//! grounds (1) and (2) hold. `true` permits a class that is not in `on`, and never makes an unsafe request safe. Where
//! outgate gives up on a request that may have acted, and that the app could not repeat safely, the answer carries the
//! field with `false`, so that the SDK does not do what outgate refused; and a short answer to such a request is read whole
//! before its head is handed on, so that one that is cut in the middle can say so too. Short is: 64 KiB at most, by its stated
//! length; without one, of a type that is of use only as a whole (JSON, XML, forms), or an error. Streams are not held back.
//! It waits no longer than `timeouts.idle` for a byte, and at the deadline what is there is handed on.
//!
//! Without such a field an answer that SDKs repeat would invite the app to send again, under another key, what went out under a key
//! that outgate made. Where an attempt before it may have acted, the app gets the error of that attempt instead: an answer of
//! outgate's own with `Outgate-Sent: maybe`.
//!
//! **Healing**: after an answer of class `unauthorized` the credential is re-read, or the next of a list is taken, and the
//! request is sent again under ground (2). Once per request, outside `attempts` and the budget.
//!
//! Limits: a wait never passes the request's deadline (if it would, what there is is handed over at once); the head of an
//! answer once handed on is never taken back, and bodies are never glued; of an answer that is thrown away at most 64 KiB
//! are read, for at most 100 ms, to save its connection. An upgrade is repeated on ground (1) alone.

use futures_util::future::BoxFuture;

mod answer;
mod aside;
pub mod backoff;
pub mod budget;
pub mod config;
mod course;
pub mod decide;
mod layer;
pub mod settings;
#[cfg(test)]
mod tests;

pub use budget::Budget;
pub use config::RetryConfig;
pub use layer::Retry;
pub use settings::RetrySettings;

/// What a credential can do about an `unauthorized` answer. `tenant` is whom the request named: each may have its own.
pub trait Heal: Send + Sync {
    /// Which member of the credential a request takes first.
    fn preferred(&self, tenant: Option<&str>) -> usize;

    /// After `tried` was refused: which member to take now, or nothing if there is no other and re-reading changed nothing.
    /// `tried` and `stamp` are what the refused attempt really carried (`Facts::credential_choice`, `credential_stamp`).
    fn heal<'a>(&'a self, tenant: Option<&'a str>, tried: usize, stamp: u64) -> BoxFuture<'a, Option<usize>>;

    /// The member was accepted after another had been refused.
    fn worked(&self, tenant: Option<&str>, choice: usize);

    /// Whether there are several members: only then it wants to know which were accepted.
    fn overlaps(&self) -> bool {
        false
    }

    /// The provider did not refuse the member; `success` where the answer shows that it was accepted.
    fn accepted(&self, _tenant: Option<&str>, _choice: usize, _success: bool) {}
}

/// `retry.reason` of a request that was sent again with another credential.
pub const REASON_UNAUTHORIZED: &str = "unauthorized";
