//! A token as the cache of secrets sees it: something that is read, and ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::endpoint::{TOTAL, TOTAL_KEPT, TokenClient};
use super::inputs::{Bound, Inputs};
use super::rotation::GrantState;
use super::{Grant, Issued, Token, TokenEnv, TokenSettings, Unbroken};
use crate::credential::overlap::{self, Overlap};
use crate::credential::scope::Scope;
use crate::secret::cache::{SecretCache, SecretEntry};
use crate::secret::reference::SecretRef;
use crate::secret::{LiveStores, ReadFuture, Reading, SecretError, SecretStore, Source, TokenFault};

/// Where in its life a token is replaced: from here to [`LATEST`], by chance, so that a fleet does not come in step.
const EARLIEST: f64 = 0.75;
const LATEST: f64 = 0.85;
/// A token that lives for moments is not replaced before this: its endpoint would be asked without a pause.
const SOONEST: Duration = Duration::from_secs(6);
/// How long before its end a token is not sent any more, because it may end on its way; a tenth of a short life.
const MARGIN: Duration = Duration::from_secs(5);
/// What a token may take beyond the time of its client: secrets that are read first, a refresh token that is stored.
const BESIDE: Duration = Duration::from_secs(20);

/// Gets one token, again and again.
pub struct TokenSource(Arc<Maker>);

/// What a try holds on to.
struct Maker {
    settings: TokenSettings,
    inputs: Vec<Bound>,
    stores: LiveStores,
    state: GrantState,
    client: Result<TokenClient, TokenFault>,
    overlap: Overlap,
    tenant: Option<String>,
    unbroken: Unbroken,
}

impl TokenSource {
    /// Binds a token to the secrets it is got with.
    #[must_use]
    pub fn new(token: &Token, cache: &SecretCache, env: &TokenEnv) -> Self {
        let scope = Scope { cache, env, tenant: None };
        // Without a tenant no name can fail to fit.
        Self::of(token, &scope).unwrap_or_else(|error| {
            Self(Arc::new(Maker::new(token, &scope, Vec::new(), Err(TokenFault::Input(Box::new(error))))))
        })
    }

    /// The same in a scope: for a tenant, or for nobody in particular.
    ///
    /// # Errors
    /// The tenant's name does not fit.
    pub fn of(token: &Token, scope: &Scope<'_>) -> Result<Self, SecretError> {
        let grant = token.settings.grant();
        let inputs = grant.inputs();
        let inputs = inputs.iter().map(|input| Bound::new(input, scope)).collect::<Result<_, _>>()?;
        let whose = (&token.reference, scope.tenant);
        let client = TokenClient::new(grant.endpoint(), whose, total(grant), scope.env);
        Ok(Self(Arc::new(Maker::new(token, scope, inputs, client))))
    }
}

impl Maker {
    fn new(
        token: &Token,
        scope: &Scope<'_>,
        inputs: Vec<Bound>,
        client: Result<TokenClient, TokenFault>,
    ) -> Self {
        Self {
            settings: token.settings.clone(),
            inputs,
            stores: scope.cache.live_stores(),
            state: GrantState::until(scope.env.unbroken.ending()),
            client,
            overlap: Overlap::default(),
            tenant: scope.tenant.map(str::to_owned),
            unbroken: scope.env.unbroken.clone(),
        }
    }

    async fn issue(&self) -> Result<Reading, TokenFault> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let most = self.inputs.iter().map(Bound::len).max().unwrap_or(1).max(1);
        let mut refused = TokenFault::Setup("it names no secret");
        for choice in 0..most {
            refused = match self.attempt(client, choice).await {
                Ok(reading) => {
                    self.accepted(choice, most);
                    return Ok(reading);
                }
                // In an overlap one of the list may be refused, or not be there yet, or not any more.
                Err(
                    fault @ (TokenFault::Refused { .. }
                    | TokenFault::Dead
                    | TokenFault::Input(_)
                    | TokenFault::Key(_)),
                ) => fault,
                Err(fault) => return Err(fault),
            };
        }
        Err(refused)
    }

    /// A token was issued for the secret at `choice` of a list.
    fn accepted(&self, choice: usize, most: usize) {
        if most < 2 {
            return;
        }
        let Some(news) = self.overlap.accepted(choice, Instant::now()) else { return };
        let list = self.inputs.iter().find(|input| input.len() > 1);
        let reference = |at| list.and_then(|list| list.reference(at)).unwrap_or_default();
        overlap::tell(news, "token", (&reference(0), &reference(choice.max(1))), self.tenant.as_deref());
    }

    /// One alternative: again with a new value, if what was refused was replaced meanwhile.
    async fn attempt(&self, client: &TokenClient, choice: usize) -> Result<Reading, TokenFault> {
        let inputs = Inputs { bound: &self.inputs, choice, stores: &self.stores, state: &self.state };
        let grant = self.settings.grant();
        let used = join_all(self.inputs.iter().map(|input| input.used(choice))).await;
        let asked = Instant::now();
        let fault = match grant.issue(&inputs, client).await {
            Ok(issued) => return Ok(reading(issued, asked, fastrand::f64())),
            Err(fault) => fault,
        };
        if !matches!(fault, TokenFault::Refused { .. } | TokenFault::Dead) {
            return Err(fault);
        }
        let mut changed = false;
        for (input, used) in self.inputs.iter().zip(used) {
            changed |= input.heal(choice, used).await;
        }
        if !changed {
            return Err(fault);
        }
        let asked = Instant::now();
        let issued = grant.issue(&inputs, client).await?;
        Ok(reading(issued, asked, fastrand::f64()))
    }
}

/// Not broken off with who waits: its outcome is of use to the next. It is bounded by its client's own times.
#[expect(clippy::disallowed_methods, reason = "bounded, and single by the cache; see above")]
fn begin<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(work)
}

/// When it ends and when the next one is got. `random` is in 0..1.
fn reading(issued: Issued, asked: Instant, random: f64) -> Reading {
    let Some(life) = issued.life else { return issued.token.into() };
    let usable = life.saturating_sub(MARGIN.min(life / 10));
    let next = life.mul_f64(EARLIEST + random * (LATEST - EARLIEST)).max(SOONEST);
    Reading { bytes: issued.token, expires: Some(asked + usable), again: Some(asked + next) }
}

impl SecretStore for TokenSource {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        let maker = Arc::clone(&self.0);
        Box::pin(async move {
            let fault = |fault| SecretError::Token { reference: reference.clone(), fault: Box::new(fault) };
            let (unbroken, keeps) = (maker.unbroken.clone(), self.uses_up());
            let work = async move { maker.issue().await };
            // Nothing is used up by the others: the end of the process need not wait for them.
            let issuing = if keeps { unbroken.begin(work) } else { begin(work) };
            issuing.await.unwrap_or(Err(TokenFault::Setup("it ended by a mistake of ours"))).map_err(fault)
        })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Made
    }

    fn uses_up(&self) -> bool {
        self.0.settings.grant().keep().is_some()
    }

    fn made_from(&self) -> Vec<Arc<SecretEntry>> {
        self.0.inputs.iter().flat_map(Bound::entries).map(Arc::clone).collect()
    }

    fn makes_alone(&self) -> bool {
        // Who has no secrets of the policy gets its keys from AWS.
        self.0.settings.grant().endpoint().is_none() && !self.0.inputs.is_empty()
    }

    fn patience(&self) -> Duration {
        total(self.0.settings.grant()) * 2 + BESIDE
    }
}

/// Bound of one exchange.
fn total(grant: &dyn Grant) -> Duration {
    if grant.keep().is_some() { TOTAL_KEPT } else { TOTAL }
}

/// The token's entry among the secrets; made where no token of these settings lives yet.
#[cfg(test)]
pub fn entry(
    token: &Token,
    cache: &SecretCache,
    env: &TokenEnv,
) -> std::sync::Arc<crate::secret::SecretEntry> {
    cache.made(&token.reference, || std::sync::Arc::new(TokenSource::new(token, cache, env)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_at_four_fifths_of_its_life_and_ends_a_little_early() {
        // life, chance, replaced after, ends after (seconds)
        for (life, random, again, ends) in [
            (3600.0, 0.0, 2700.0, 3595.0),
            (3600.0, 1.0, 3060.0, 3595.0),
            (10.0, 0.5, 8.0, 9.0),
            (2.0, 0.5, 6.0, 1.8),
        ] {
            let asked = Instant::now();
            let issued =
                Issued { token: b"token".to_vec().into(), life: Some(Duration::from_secs_f64(life)) };
            let read = reading(issued, asked, random);
            let after = |at: Option<Instant>| (at.unwrap() - asked).as_secs_f64();
            assert_eq!((after(read.again), after(read.expires)), (again, ends), "{life}");
        }
        let read = reading(Issued { token: b"token".to_vec().into(), life: None }, Instant::now(), 0.5);
        assert!(read.again.is_none() && read.expires.is_none());
    }
}
