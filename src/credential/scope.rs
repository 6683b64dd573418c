//! Whose secrets a credential is bound to: the provider's alone, or those of one tenant where `{tenant}` stands in a reference.

use std::sync::Arc;

use super::token::{Token, TokenEnv, TokenSource};
use crate::secret::cache::{SecretCache, SecretEntry};
use crate::secret::reference::SecretRef;
use crate::secret::{SecretError, ValueRules};

/// The secrets there are, for a tenant or for nobody in particular.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// All secrets.
    pub cache: &'a SecretCache,
    /// What tokens need.
    pub env: &'a TokenEnv,
    /// The tenant's name, where secrets are per tenant.
    pub tenant: Option<&'a str>,
}

impl Scope<'_> {
    /// The live secret of a reference.
    ///
    /// # Errors
    /// The tenant's name does not fit.
    pub fn entry(&self, reference: &SecretRef, rules: ValueRules) -> Result<Arc<SecretEntry>, SecretError> {
        match self.tenant {
            Some(tenant) if reference.is_per_tenant() => self.cache.tenant_entry(reference, rules, tenant),
            _ => Ok(self.cache.entry_under(reference, rules)),
        }
    }

    /// The live entry of a token; made where no token of these settings, and of this tenant, lives yet.
    ///
    /// # Errors
    /// The tenant's name does not fit.
    pub fn token(&self, token: &Token) -> Result<Arc<SecretEntry>, SecretError> {
        let Some(tenant) = self.tenant.filter(|_| token.is_per_tenant()) else {
            return Ok(self
                .cache
                .made(&token.reference, || Arc::new(TokenSource::new(token, self.cache, self.env))));
        };
        let source = TokenSource::of(token, self)?;
        Ok(self.cache.tenant_made(&token.reference, tenant, || Arc::new(source)))
    }
}
