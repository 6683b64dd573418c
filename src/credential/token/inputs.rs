//! The secrets that a token is got with, live.

use std::sync::Arc;

use super::rotation::GrantState;
use crate::credential::scope::Scope;
use crate::secret::cache::{RefreshOutcome, SecretEntry, SecretVersion};
use crate::secret::reference::SecretRef;
use crate::secret::{LiveStores, SecretError, SecretStore, TokenFault, ValueRules};

/// One secret that a token needs, as written in the policy: a reference, or a list in an overlap (new, old).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Input {
    /// Newest first; at least one.
    pub alternatives: Vec<SecretRef>,
    /// Which bytes it may hold.
    pub rules: ValueRules,
}

impl Input {
    /// A secret that is sent as it is: an id, a password.
    #[must_use]
    pub fn text(alternatives: Vec<SecretRef>) -> Self {
        Self { alternatives, rules: ValueRules::HeaderSafe }
    }

    /// A key in PEM or JSON.
    #[must_use]
    pub fn key(alternatives: Vec<SecretRef>) -> Self {
        Self { alternatives, rules: ValueRules::Any }
    }
}

/// The entries of one input.
pub(super) struct Bound {
    entries: Vec<Arc<SecretEntry>>,
}

impl Bound {
    pub(super) fn new(input: &Input, scope: &Scope<'_>) -> Result<Self, SecretError> {
        let entry = |reference| scope.entry(reference, input.rules);
        Ok(Self { entries: input.alternatives.iter().map(entry).collect::<Result<_, _>>()? })
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The secrets themselves.
    pub(super) fn entries(&self) -> &[Arc<SecretEntry>] {
        &self.entries
    }

    /// The reference of an alternative.
    pub(super) fn reference(&self, at: usize) -> Option<String> {
        self.entries.get(at).map(|entry| entry.reference().to_string())
    }

    /// The number of the version in use, after its first read; none where there is no value.
    pub(super) async fn used(&self, choice: usize) -> Option<u64> {
        self.entry(choice)?.tried_once().await;
        self.version(choice)
    }

    fn version(&self, choice: usize) -> Option<u64> {
        Some(self.entry(choice)?.current().ok()?.number)
    }

    /// Reads again what was refused; whether there is another value now than `used`. It may also have come by itself while the
    /// endpoint was asked, and then the read finds nothing new.
    pub(super) async fn heal(&self, choice: usize, used: Option<u64>) -> bool {
        let Some(entry) = self.entry(choice) else { return false };
        let changed = matches!(entry.heal_refresh().await, RefreshOutcome::Changed);
        changed || used.zip(self.version(choice)).is_some_and(|(used, now)| used != now)
    }

    fn entry(&self, choice: usize) -> Option<&Arc<SecretEntry>> {
        self.entries.get(choice.min(self.entries.len().saturating_sub(1)))
    }

    /// The value in use. A secret that was never read is read now: at the start tokens and secrets are wanted at once.
    async fn value(&self, choice: usize) -> Result<Arc<SecretVersion>, TokenFault> {
        let Some(entry) = self.entry(choice) else {
            return Err(TokenFault::Setup("it names no secret"));
        };
        entry.tried_once().await;
        entry.current().map_err(|error| TokenFault::Input(Box::new((*error).clone())))
    }
}

/// The inputs of one try: of a list, one alternative.
pub struct Inputs<'a> {
    pub(super) bound: &'a [Bound],
    pub(super) choice: usize,
    pub(super) stores: &'a LiveStores,
    pub(super) state: &'a GrantState,
}

impl Inputs<'_> {
    /// What this process remembers of the grant.
    #[must_use]
    pub fn state(&self) -> &GrantState {
        self.state
    }

    /// Which of a list of public values goes with the alternative of this try; the last where there are no more.
    #[must_use]
    pub fn beside<'v, T>(&self, values: &'v [T]) -> Option<&'v T> {
        values.get(self.choice).or(values.last())
    }

    /// The store of a reference, of the newest policy.
    #[must_use]
    pub fn store(&self, reference: &SecretRef) -> Option<Arc<dyn SecretStore>> {
        self.stores.load().find(reference).ok()
    }

    /// The value of the input at `at`, in the order of [`Grant::inputs`](super::Grant::inputs).
    ///
    /// # Errors
    /// [`TokenFault::Input`].
    pub async fn get(&self, at: usize) -> Result<Arc<SecretVersion>, TokenFault> {
        match self.bound.get(at) {
            Some(bound) => bound.value(self.choice).await,
            None => Err(TokenFault::Setup("it names no secret")),
        }
    }
}
