//! Idempotency keys: a field by which the provider knows a request again, and answers it without acting twice.
//!
//! ```yaml
//! idempotency: { header: Idempotency-Key, methods: [POST], add: true }
//! ```
//!
//! Only where the provider honours such a key: the policy or the preset says so, nothing is guessed. The app's own key is
//! kept. Without one, and with `add: true`, one is made, once per request, so that all its attempts carry the same. A
//! request that carries a key may be sent again though it may have acted (ground 3 of [`super::retry`]).
//!
//! Where the key belongs into the body (`field: /idempotency_key`), it is written into a JSON object in which the app wrote
//! none, before the first attempt; every other byte stays. For that the body is held, as long as it could still be such an
//! object of at most `retry.replay_buffer` bytes. What is longer, compressed, of another type, or could be read in two ways,
//! goes on as it came and counts as without key. With `add: false` the app's own key is looked for when an attempt has
//! failed, in what is kept of the body to send it again; none is written then.
//!
//! Limits: keys in bodies other than JSON, or longer than `retry.replay_buffer`, are neither seen nor written. How long a provider
//! remembers a key is not known here; it is longer than any deadline.

mod body;
mod config;
mod field;
mod key;

pub use config::{IdempotencyConfig, IdempotencySettings};
pub use key::{KeyFault, Keyed};
