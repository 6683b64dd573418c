//! Credentials of tenants: `{tenant}` in a secret reference.
//!
//! ```yaml
//! tenant: { header: X-Tenant, required: true }
//! credential: { bearer: "payments:kv/tenants/{tenant}#stripe_key" }
//! ```
//!
//! Where no reference is per tenant, there is one credential for all requests. Else each tenant has its own, bound when it is
//! first named: that request waits for the read of its secrets, or for its token, and all that come meanwhile wait for the
//! same read. An unknown tenant is answered 503 `credential_unavailable`; its store is not asked again before the time that
//! any failed read has to wait.
//!
//! Bounds: [`MOST`] tenants for each credential. One that was not named for [`IDLE`] goes, and so do its secrets; if there is no
//! room, the one that was named longest ago goes, and of those without a value first, so that names which nobody knows push
//! out no tenant that works. Nothing is shared between tenants but what the policy shares: not a value, not a token, not
//! the count of failures.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::bound::Credential;
use super::error::CredentialError;
use super::kinds::MemberSettings;
use super::location::Locations;
use super::scope::Scope;
use super::token::TokenEnv;
use crate::resilience::retry::Heal;
use crate::secret::SecretCache;
use crate::telemetry::ProviderMetrics;

/// Tenants that a credential is bound for at a time.
pub const MOST: usize = 1000;
/// How long a tenant stays that nobody names.
pub const IDLE: Duration = Duration::from_secs(3600);
/// How often it is looked for those.
const SWEEP: Duration = Duration::from_secs(60);

/// The credential of a provider or route: one for all, or one for each tenant.
pub enum Credentials {
    /// The same for every request.
    One(Arc<Credential>),
    /// Each tenant's own.
    PerTenant(Box<Tenants>),
}

impl Credentials {
    /// Binds the members of a compiled credential to the secrets of the cache; those of tenants when they are named.
    pub fn bind(
        members: &[MemberSettings],
        cache: &Arc<SecretCache>,
        env: &TokenEnv,
        metrics: Arc<ProviderMetrics>,
    ) -> Self {
        if members.iter().any(MemberSettings::is_per_tenant) {
            return Self::PerTenant(Box::new(Tenants::new(members, cache, env, metrics)));
        }
        Self::One(Arc::new(Credential::bind(members, cache, env, metrics)))
    }

    /// The credential of a request; `tenant` is whom the request named.
    ///
    /// # Errors
    /// It is per tenant, and the request named none, or one whose name does not fit.
    pub fn of(&self, tenant: Option<&str>) -> Result<Arc<Credential>, CredentialError> {
        match self {
            Self::One(credential) => Ok(credential.clone()),
            Self::PerTenant(tenants) => tenants.of(tenant.ok_or(CredentialError::NoTenant)?),
        }
    }

    fn live(&self, tenant: Option<&str>) -> Option<Arc<Credential>> {
        match self {
            Self::One(credential) => Some(credential.clone()),
            Self::PerTenant(tenants) => tenants.live(tenant?),
        }
    }

    /// The places that belong to it.
    pub fn locations(&self) -> Locations {
        match self {
            Self::One(credential) => credential.locations().clone(),
            Self::PerTenant(tenants) => {
                Locations::new(tenants.members.iter().flat_map(MemberSettings::locations))
            }
        }
    }

    /// Whether a 401 can lead to anything: another member, or a secret that may have changed.
    pub fn can_heal(&self) -> bool {
        match self {
            Self::One(credential) => credential.can_heal(),
            Self::PerTenant(tenants) => {
                tenants.members.len() > 1 || tenants.members.iter().any(MemberSettings::can_change)
            }
        }
    }

    /// The references of its members as they stand in the policy, in order of preference.
    pub fn references(&self) -> Arc<[Arc<str>]> {
        match self {
            Self::One(credential) => credential.references(),
            Self::PerTenant(tenants) => tenants.members.iter().map(MemberSettings::reference).collect(),
        }
    }

    /// Which preparation a request of the tenant would carry now; the last known one while there is none.
    pub fn version(&self, tenant: Option<&str>) -> u64 {
        self.of(tenant).map_or(0, |credential| credential.version())
    }

    /// Whether a request of the tenant could be sent with it now.
    pub fn is_available(&self, tenant: Option<&str>) -> bool {
        self.of(tenant).is_ok_and(|credential| credential.is_available())
    }

    /// Lets go of tenants that were not named for [`IDLE`]; requests do that too, where there are any.
    pub fn sweep(&self) {
        if let Self::PerTenant(tenants) = self {
            drop(tenants.seats().sweep(Instant::now()));
        }
    }
}

impl Heal for Credentials {
    fn preferred(&self, tenant: Option<&str>) -> usize {
        match self {
            Self::One(credential) => credential.preferred(),
            // Nobody is bound for this: the layer that injects does it.
            Self::PerTenant(_) => self.live(tenant).map_or(0, |credential| credential.preferred()),
        }
    }

    fn heal<'a>(&'a self, tenant: Option<&'a str>, tried: usize, stamp: u64) -> BoxFuture<'a, Option<usize>> {
        Box::pin(async move {
            match self.live(tenant) {
                Some(credential) => credential.heal(tried, stamp).await,
                None => None,
            }
        })
    }

    fn worked(&self, tenant: Option<&str>, choice: usize) {
        if let Some(credential) = self.live(tenant) {
            credential.worked(choice);
        }
    }

    fn overlaps(&self) -> bool {
        match self {
            Self::One(credential) => credential.len() > 1,
            Self::PerTenant(tenants) => tenants.members.len() > 1,
        }
    }

    fn accepted(&self, tenant: Option<&str>, choice: usize, success: bool) {
        if let Some(credential) = self.live(tenant) {
            credential.accepted(choice, success);
        }
    }
}

/// The credentials of the tenants that were named of late.
pub struct Tenants {
    members: Vec<MemberSettings>,
    cache: Arc<SecretCache>,
    env: TokenEnv,
    metrics: Arc<ProviderMetrics>,
    /// Locked for look-ups alone.
    seats: Mutex<Seats>,
}

impl Tenants {
    fn new(
        members: &[MemberSettings],
        cache: &Arc<SecretCache>,
        env: &TokenEnv,
        metrics: Arc<ProviderMetrics>,
    ) -> Self {
        let (members, cache, env) = (members.to_vec(), cache.clone(), env.clone());
        Self { members, cache, env, metrics, seats: Mutex::new(Seats::new()) }
    }

    fn live(&self, name: &str) -> Option<Arc<Credential>> {
        self.seats().by_name.get(name).map(|seat| seat.credential.clone())
    }

    fn of(&self, name: &str) -> Result<Arc<Credential>, CredentialError> {
        let now = Instant::now();
        if let Some(seat) = self.seats().by_name.get_mut(name) {
            seat.used = now;
            return Ok(seat.credential.clone());
        }
        // Not under the lock: a client of a token endpoint takes a while to be set up.
        let scope = Scope { cache: &self.cache, env: &self.env, tenant: Some(name) };
        let bound = Credential::bind_in(&self.members, &scope, self.metrics.clone())?;
        let (credential, left) = self.seats().take(name, Arc::new(bound), now);
        // What left goes here, where nobody waits for the lock.
        drop(left);
        Ok(credential)
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Seat {
    credential: Arc<Credential>,
    used: Instant,
}

struct Seats {
    by_name: HashMap<Arc<str>, Seat>,
    swept: Instant,
}

impl Seats {
    fn new() -> Self {
        Self { by_name: HashMap::new(), swept: Instant::now() }
    }

    /// The credential of a new tenant, or the one that another request was faster with; and those that had to leave.
    fn take(
        &mut self,
        name: &str,
        credential: Arc<Credential>,
        now: Instant,
    ) -> (Arc<Credential>, Vec<Seat>) {
        if let Some(seat) = self.by_name.get_mut(name) {
            seat.used = now;
            return (seat.credential.clone(), Vec::new());
        }
        let mut left = Vec::new();
        if now.saturating_duration_since(self.swept) >= SWEEP {
            left = self.sweep(now);
        }
        if self.by_name.len() >= MOST
            && let Some(name) = self.least_needed()
        {
            left.extend(self.by_name.remove(&name));
        }
        self.by_name.insert(name.into(), Seat { credential: credential.clone(), used: now });
        (credential, left)
    }

    fn sweep(&mut self, now: Instant) -> Vec<Seat> {
        self.swept = now;
        let is_idle = |_: &Arc<str>, seat: &mut Seat| now.saturating_duration_since(seat.used) >= IDLE;
        self.by_name.extract_if(is_idle).map(|(_, seat)| seat).collect()
    }

    fn least_needed(&self) -> Option<Arc<str>> {
        let first = self.by_name.iter().min_by_key(|(_, seat)| (seat.credential.has_values(), seat.used));
        first.map(|(name, _)| name.clone())
    }
}

#[cfg(test)]
mod tests;
