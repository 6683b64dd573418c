//! A credential bound to its live secrets: which member a request takes, and what is done after a 401.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::error::CredentialError;
use super::kinds::Part;
use super::location::Locations;
use super::member::{Member, Prepared};
use crate::resilience::retry::Heal;
use crate::secret::cache::{RefreshOutcome, SecretCache};

/// How long the member of a list that worked is used first; then the newer one is tried again.
const PREFER: Duration = Duration::from_secs(30);

/// The credential of one provider or route, live.
pub struct Credential {
    members: Vec<Member>,
    locations: Locations,
    started: Instant,
    /// Member that is preferred, and until when: milliseconds since `started`, times [`SLOTS`], plus the member.
    preference: AtomicU64,
    healed: AtomicU64,
    heal_failed: AtomicU64,
}

const SLOTS: u64 = 16;

impl Credential {
    /// Binds the members of a compiled credential to the secrets of the cache.
    pub fn bind(members: &[Vec<Part>], cache: &SecretCache) -> Self {
        let locations = Locations::new(members.iter().flatten().map(|part| part.location.clone()));
        let members = members.iter().map(|parts| Member::bind(parts.clone(), cache)).collect();
        Self {
            members,
            locations,
            started: Instant::now(),
            preference: AtomicU64::new(0),
            healed: AtomicU64::new(0),
            heal_failed: AtomicU64::new(0),
        }
    }

    /// The places that belong to it.
    pub fn locations(&self) -> &Locations {
        &self.locations
    }

    /// Whether a 401 can lead to anything: another member, or a secret that may have changed.
    pub fn can_heal(&self) -> bool {
        self.members.len() > 1 || self.members.iter().any(Member::can_change)
    }

    /// How many members it has.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether it has no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How often a 401 was healed, and how often nothing could be done.
    pub fn heals(&self) -> (u64, u64) {
        (self.healed.load(Ordering::Relaxed), self.heal_failed.load(Ordering::Relaxed))
    }

    /// The member to inject: the chosen one, or the next that can be had. In an overlap one secret may be there and the
    /// other not yet, or not any more.
    pub fn choose(&self, choice: usize) -> Result<(&Member, Arc<Prepared>), CredentialError> {
        let mut first_error = None;
        for step in 0..self.members.len() {
            let member = &self.members[(choice + step) % self.members.len()];
            match member.prepared() {
                Ok(prepared) => return Ok((member, prepared)),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error
            .unwrap_or(CredentialError::NotUsable { reference: String::new(), place: "any request" }))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX / SLOTS)
    }

    async fn heal_after(&self, tried: usize, stamp: u64) -> Option<usize> {
        let member = self.members.get(tried)?;
        // The value was replaced while the request was on its way: what was refused is the old one.
        if member.prepared().is_ok_and(|now| now.stamp != stamp) {
            return Some(tried);
        }
        // A rotated secret shows itself first to whoever holds the old value.
        let mut changed = false;
        for entry in member.secrets() {
            changed |= matches!(entry.heal_refresh().await, RefreshOutcome::Changed);
        }
        if changed {
            return Some(tried);
        }
        let next = (tried + 1) % self.members.len();
        (next != tried && self.members[next].prepared().is_ok()).then_some(next)
    }
}

impl Heal for Credential {
    fn preferred(&self) -> usize {
        let packed = self.preference.load(Ordering::Relaxed);
        if packed == 0 || self.now() >= packed / SLOTS {
            return 0;
        }
        usize::try_from(packed % SLOTS).unwrap_or(0)
    }

    fn heal(&self, tried: usize, stamp: u64) -> BoxFuture<'_, Option<usize>> {
        Box::pin(async move {
            let next = self.heal_after(tried, stamp).await;
            if next.is_none() {
                self.heal_failed.fetch_add(1, Ordering::Relaxed);
            }
            next
        })
    }

    fn worked(&self, choice: usize) {
        self.healed.fetch_add(1, Ordering::Relaxed);
        let until = self.now() + u64::try_from(PREFER.as_millis()).unwrap_or(0);
        self.preference.store(until * SLOTS + choice as u64 % SLOTS, Ordering::Relaxed);
    }
}
