//! What a limit counts by: the provider as a whole, or a part of its traffic.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::message::request::EgressRequest;

/// `per:` of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All requests to the provider together.
    #[default]
    Provider,
    /// Each credential (member of a list, and tenant where secrets are per tenant) apart.
    Credential,
    /// Each tenant apart.
    Tenant,
    /// Each route apart.
    Route,
}

/// A key of counted state: 128 bits, so that a million tenants cost little and no name of a tenant is kept.
///
/// Made with a secret of this process, so nobody can look for two names with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u128);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.halves().0);
    }
}

/// What is hashed already is not hashed again.
#[derive(Default)]
pub struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// A table of what is a hash by itself: [`Key`], or a part of one.
pub type ByHash<K, V> = HashMap<K, V, BuildHasherDefault<Hashed>>;

static HASHERS: LazyLock<(RandomState, RandomState)> = LazyLock::new(Default::default);

impl Key {
    /// The key of a limit that counts everything together.
    pub const ALL: Self = Self(0);

    /// The key of some names, in order.
    pub fn of(names: &[&str]) -> Self {
        let (high, low) = &*HASHERS;
        Self(u128::from(high.hash_one(names)) << 64 | u128::from(low.hash_one(names)))
    }

    /// The two halves: each is a hash already, and together they align to 8 bytes where a table of a million counts them.
    pub const fn halves(self) -> (u64, u64) {
        ((self.0 >> 64) as u64, self.0 as u64)
    }
}

/// What a route's keys are made of, prepared when its stack is built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySource {
    /// The route's name.
    pub route: Arc<str>,
    /// References of the credential's members, in order of preference; empty = no credential.
    pub credential: Arc<[Arc<str>]>,
}

impl KeySource {
    /// The key under which a request is counted.
    pub fn key(&self, per: Per, request: &EgressRequest) -> Key {
        match per {
            Per::Provider => Key::ALL,
            Per::Route => Key::of(&[&self.route]),
            Per::Tenant => Key::of(&[request.tenant.as_deref().unwrap_or_default()]),
            Per::Credential => Key::of(&self.credential_names(request)),
        }
    }

    /// What names the credential that an attempt carries: its reference, and the tenant.
    pub fn credential_names<'a>(&'a self, request: &'a EgressRequest) -> [&'a str; 2] {
        let member = self.credential.get(request.credential_choice).or_else(|| self.credential.first());
        [member.map_or("", |reference| reference), request.tenant.as_deref().unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::body::Body;
    use crate::resilience::timeout::tests::request_with;

    #[test]
    fn keys_tell_apart_what_they_shall() {
        let source = KeySource { route: "r".into(), credential: ["env:A".into(), "env:B".into()].into() };
        let mut one = request_with(Body::empty(), None);
        one.tenant = Some("acme".into());
        let mut two = request_with(Body::empty(), None);
        two.credential_choice = 1;
        for (per, same) in
            [(Per::Provider, true), (Per::Route, true), (Per::Tenant, false), (Per::Credential, false)]
        {
            assert_eq!(source.key(per, &one) == source.key(per, &two), same, "{per:?}");
            assert_eq!(source.key(per, &one), source.key(per, &one), "{per:?}");
        }
        assert_ne!(Key::of(&["ab", "c"]), Key::of(&["a", "bc"]));
        assert_eq!(size_of::<Key>(), 16);
    }
}
