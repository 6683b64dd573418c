//! Credentials: what is put into a request for a provider, where, and what is done when the provider refuses it.
//!
//! A kind is one file under `kinds/`: its wire `Config`, and how it turns the secrets it names into [`kinds::Part`]s: header
//! fields or query parameters. A kind whose secret is a token that outgate gets itself says in the same file how
//! ([`token::Grant`]). Everything else (stripping, injection, lists, the life of tokens, healing, scrubbing) is the same
//! for all kinds and stands here once.
//!
//! To add a kind: one file under `kinds/`, one variant of [`Kind`] and its line in the table of [`config`]; for tokens one
//! variant of [`token::TokenSettings`].
//!
//! ```yaml
//! credential: { bearer: env:STRIPE_KEY }
//! credential: { bearer: [file:/run/secrets/new, file:/run/secrets/old], required: true }
//! credential: { header: { name: X-Api-Key, value: env:GEO_KEY, format: "Key {secret}" } }
//! ```

pub mod bound;
pub mod config;
pub mod error;
pub mod jwt;
pub mod kinds;
pub mod known_values;
pub mod layer;
pub mod location;
pub mod member;
pub mod overlap;
pub mod per_key;
pub mod rewrite;
pub mod scope;
pub mod scrub;
pub mod tenants;
pub mod token;

pub use bound::Credential;
pub use config::{CredentialConfig, Kind};
pub use error::CredentialError;
pub use location::{Location, Locations};
pub use tenants::Credentials;
