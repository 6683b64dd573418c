//! `quota:` what the provider allows, learned from its own answers and kept before it has to say 429.
//!
//! Every answer tells: the fields that the policy names, the IETF's `RateLimit` fields, and refusals with their
//! `Retry-After` (as the [verdict](super::verdict) says). A request is let through only if what is left, less what is on its
//! way already, is above the reserve; otherwise it waits for the reset, first in first out. A refusal pauses the whole key,
//! and not only the request that met it.
//!
//! ```yaml
//! quota:
//!   reserve: 5%
//!   headers: { remaining: X-RateLimit-Remaining, limit: X-RateLimit-Limit, reset: X-RateLimit-Reset, reset_format: epoch_s }
//!   bucket: { header: X-RateLimit-Resource }
//!   max_wait: 10s
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `fields` | what an answer's head says |
//! | `meter` | one thing that the provider counts: what is left, until when |
//! | `learned_rate` | the rate of providers that tell nothing but 429 |
//! | `key_state` | all that is known of one key, and the decision; pure |
//! | `entry` | one key with its queue |
//! | `state` | the keys of a provider, hints of other instances, counters |
//! | `buckets` | which bucket a request falls in, where they have names |
//! | `look` | the name of a bucket, looked for in the body of a request |
//! | `layer` | the layer |
//! | `recheck` | the second look, behind the waits for limits and permits |
//!
//! **A key** is the credential, the tenant, the host, and the route, the path's beginning, or the bucket that the provider
//! or the request names. Ports of one host
//! share a quota.
//!
//! **All buckets** of a host pause together where a row of `responses` says so (`pauses: host`): a second layer stands around the one
//! that keeps the buckets ([`QuotaLayer::wide`]).
//!
//! **Its place** is around the rate limits: a held request has taken no token yet, and a hold that ends lets requests go on
//! to the limit, which has the last word on their pace. The other way round tokens would be spent long before their
//! requests are sent, and a hold that ends would send more at once than the limit allows. What waits there when the provider
//! throttles, or tells that less is left than is on its way, must not rush it: behind the waits ([`Recheck`]) such a request
//! is handed back, unsent and with its token and permit returned, to wait here again. `max_wait` counts for all its waits
//! for quota together.
//!
//! **After a pause**, and after a window that was used up, one request asks first and the rest follow when it is answered;
//! one more each second, so that a slow answer holds nobody for long. Where the last windows were seen full after their
//! reset, nothing is asked.
//!
//! **Limits.** Until the first answer nothing is known, and nothing is held. Others that use the same credential are seen
//! only in what the provider tells. A provider that tells its reset in whole seconds is waited for up to a second longer:
//! fixed windows of three seconds and more lose nothing by it; sliding ones are used to about W / (W + 1 s), and windows
//! of one second to about a half. Where a provider's windows slide *and* answers take long and overtake one another, a few
//! requests may still be refused (seen: up to eight in a hundred seconds of full load); each pauses the key as any other.

mod buckets;
pub mod config;
mod entry;
mod fields;
mod key_state;
mod layer;
mod learned_rate;
mod look;
mod meter;
mod recheck;
mod state;

pub use config::{QuotaConfig, QuotaSettings};
pub use layer::QuotaLayer;
pub use look::NameBucket;
pub use recheck::Recheck;
pub use state::{KeyStatus, MOST_KEYS, MeterStatus, OnThrottle, Quota, QuotaStatus};

#[cfg(test)]
const METER_SIZE: usize = size_of::<meter::Meter>();

#[cfg(test)]
mod simulation;
