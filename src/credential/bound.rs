//! A credential bound to its live secrets: which member a request takes, and what is done after a 401.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::error::CredentialError;
use super::kinds::MemberSettings;
use super::location::Locations;
use super::member::{Member, Prepared};
use super::overlap::{self, News, Overlap};
use super::scope::Scope;
use super::token::TokenEnv;
use crate::secret::cache::{RefreshOutcome, SecretCache, SecretEntry};
use crate::telemetry::{HealResult, OverlapEvent, ProviderMetrics};

/// How long the member of a list that worked is used first; then the newer one is tried again.
const PREFER: Duration = Duration::from_secs(30);

/// The credential of one provider or route, live.
pub struct Credential {
    account: u64,
    members: Vec<Member>,
    locations: Locations,
    started: Instant,
    /// Member that is preferred, and until when: milliseconds since `started`, times [`SLOTS`], plus the member.
    preference: AtomicU64,
    overlap: Overlap,
    tenant: Option<Arc<str>>,
    metrics: Arc<ProviderMetrics>,
}

const SLOTS: u64 = 16;
/// The number of the next credential that is bound. 0 is none's.
static NEXT_ACCOUNT: AtomicU64 = AtomicU64::new(1);

impl Credential {
    /// Binds the members of a compiled credential to the secrets of the cache.
    pub fn bind(
        members: &[MemberSettings],
        cache: &SecretCache,
        env: &TokenEnv,
        metrics: Arc<ProviderMetrics>,
    ) -> Self {
        let scope = Scope { cache, env, tenant: None };
        // Without a tenant no name can fail to fit.
        Self::bind_in(members, &scope, metrics.clone()).unwrap_or_else(|_| Self::of(Vec::new(), &[], metrics))
    }

    /// The same in a scope: for a tenant, or for nobody in particular.
    ///
    /// # Errors
    /// The tenant's name does not fit.
    pub fn bind_in(
        members: &[MemberSettings],
        scope: &Scope<'_>,
        metrics: Arc<ProviderMetrics>,
    ) -> Result<Self, CredentialError> {
        let bound = members.iter().map(|member| Member::bind(member, scope)).collect::<Result<_, _>>()?;
        Ok(Self { tenant: scope.tenant.map(Arc::from), ..Self::of(bound, members, metrics) })
    }

    fn of(members: Vec<Member>, settings: &[MemberSettings], metrics: Arc<ProviderMetrics>) -> Self {
        let locations = Locations::new(settings.iter().flat_map(MemberSettings::locations));
        Self {
            account: NEXT_ACCOUNT.fetch_add(1, Ordering::Relaxed),
            members,
            locations,
            started: Instant::now(),
            preference: AtomicU64::new(0),
            overlap: Overlap::default(),
            tenant: None,
            metrics,
        }
    }

    /// The number of this credential, each tenant's apart: its connections are nobody else's.
    pub fn account(&self) -> u64 {
        self.account
    }

    /// The places that belong to it.
    pub fn locations(&self) -> &Locations {
        &self.locations
    }

    /// Whether a 401 can lead to anything: another member, or a secret that may have changed.
    pub fn can_heal(&self) -> bool {
        self.members.len() > 1 || self.members.iter().any(Member::can_change)
    }

    /// The references of its members, in order of preference.
    pub fn references(&self) -> Arc<[Arc<str>]> {
        self.members.iter().map(|member| member.reference().clone()).collect()
    }

    /// Which preparation a request would carry now; the last known one while there is none.
    pub fn version(&self) -> u64 {
        match self.choose(self.preferred()) {
            Ok((_, _, prepared)) => prepared.stamp,
            Err(_) => self.members.iter().find_map(Member::last_stamp).unwrap_or(0),
        }
    }

    /// Whether a request could be sent with it now.
    pub fn is_available(&self) -> bool {
        self.choose(self.preferred()).is_ok()
    }

    /// Whether some member has values for all of its secrets.
    pub fn has_values(&self) -> bool {
        self.members.iter().any(Member::has_values)
    }

    /// How many members it has.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether it has no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member to inject and its place in the list: the chosen one, or the next that can be had. In an overlap one
    /// secret may be there and the other not yet, or not any more.
    pub fn choose(&self, choice: usize) -> Result<(usize, &Member, Arc<Prepared>), CredentialError> {
        let mut first_error = None;
        for step in 0..self.members.len() {
            let at = (choice + step) % self.members.len();
            let member = &self.members[at];
            match member.prepared() {
                Ok(prepared) => return Ok((at, member, prepared)),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error
            .unwrap_or(CredentialError::NotUsable { reference: String::new(), place: "any request" }))
    }

    /// Like [`Credential::choose`], and waits for a token that is missing while that may help: until the one try that is
    /// under way, or begins now, has ended. The future may be dropped.
    ///
    /// # Errors
    /// No member can be had.
    pub async fn obtain(&self, choice: usize) -> Result<(usize, &Member, Arc<Prepared>), CredentialError> {
        for step in 0..self.members.len() {
            self.members[(choice + step) % self.members.len()].obtain().await;
            if let Ok(chosen) = self.choose(choice) {
                return Ok(chosen);
            }
        }
        self.choose(choice)
    }

    /// [`Credential::choose`], or where that is of no avail and waiting may help, [`Credential::obtain`].
    ///
    /// # Errors
    /// No member can be had.
    pub async fn choose_or_obtain(
        &self,
        choice: usize,
    ) -> Result<(usize, &Member, Arc<Prepared>), CredentialError> {
        match self.choose(choice) {
            Err(_) if self.waits() => self.obtain(choice).await,
            chosen => chosen,
        }
    }

    /// Whether [`Credential::obtain`] is worth a try where nothing could be chosen: it waits, or finds what came meanwhile.
    pub fn waits(&self) -> bool {
        self.members.iter().any(Member::waits)
    }

    /// How long until the store of a missing secret has been asked again: before that no request can succeed.
    pub fn asked_again_in(&self) -> Option<Duration> {
        let next = self.members.iter().filter_map(Member::asked_again_at).min()?;
        Some(next.saturating_duration_since(Instant::now()))
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
            changed |= self.has_changed(entry).await;
        }
        if changed {
            return Some(tried);
        }
        // The next that can be had, and never the one that was just refused.
        let count = self.members.len();
        (1..count).map(|step| (tried + step) % count).find(|next| self.members[*next].prepared().is_ok())
    }
}

impl Credential {
    /// Reads a refused secret again; whether there is another one now. A token that outgate signs itself is another one each time it
    /// is made: in an overlap that is news only where its key is another one.
    async fn has_changed(&self, entry: &SecretEntry) -> bool {
        let mut other = self.members.len() == 1;
        let Some(keys) = entry.made_alone_from() else { return is_changed(entry).await };
        for key in keys {
            other |= is_changed(&key).await;
        }
        is_changed(entry).await && other
    }
}

async fn is_changed(entry: &SecretEntry) -> bool {
    matches!(entry.heal_refresh().await, RefreshOutcome::Changed)
}

/// What the attempt loop asks of it and tells it.
impl Credential {
    /// Which member a request takes first.
    pub fn preferred(&self) -> usize {
        let packed = self.preference.load(Ordering::Relaxed);
        if packed == 0 || self.now() >= packed / SLOTS {
            return 0;
        }
        usize::try_from(packed % SLOTS).unwrap_or(0)
    }

    /// After `tried` was refused: which member to take now, or nothing.
    pub async fn heal(&self, tried: usize, stamp: u64) -> Option<usize> {
        let next = self.heal_after(tried, stamp).await;
        if next.is_none() {
            self.metrics.healed(HealResult::Failed);
        }
        next
    }

    /// The member was accepted after another had been refused.
    pub fn worked(&self, choice: usize) {
        self.metrics.healed(HealResult::Healed);
        let until = self.now() + u64::try_from(PREFER.as_millis()).unwrap_or(0);
        self.preference.store(until * SLOTS + choice as u64 % SLOTS, Ordering::Relaxed);
    }

    /// A member was not refused; `success` where the answer shows that it was accepted. In an overlap that says whether the
    /// older ones are still needed.
    pub fn accepted(&self, choice: usize, success: bool) {
        if self.members.len() < 2 || choice == 0 && !success {
            return;
        }
        if choice > 0 {
            self.metrics.overlap(OverlapEvent::OldNeeded);
        }
        let Some(news) = self.overlap.accepted(choice, Instant::now()) else { return };
        if news == News::SafeToRemove {
            self.metrics.overlap(OverlapEvent::SafeToRemove);
        }
        let reference = |at: usize| self.members.get(at).map_or("", |member| member.reference());
        overlap::tell(news, "provider", (reference(0), reference(choice.max(1))), self.tenant.as_deref());
    }
}
