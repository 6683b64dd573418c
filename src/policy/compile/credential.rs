//! Credentials: what they are made of, and what the policy around them must say for them.

use std::sync::Arc;

use super::Compiler;
use crate::credential::kinds::placeholder::known::Known;
use crate::credential::kinds::{KeepSettings, MemberSettings};
use crate::policy::compiled::Provider;
use crate::policy::schema::{ProviderConfig, Unmatched};
use crate::policy::tenant_pattern::TenantPattern;
use crate::policy::tree::PolicyPath;
use crate::secret::reference::SecretRef;

impl Compiler<'_> {
    /// What is injected, in order of preference; nothing where it has a mistake.
    pub(super) fn credential(
        &mut self,
        provider: &ProviderConfig,
        path: &PolicyPath,
    ) -> Option<Vec<MemberSettings>> {
        let Some(config) = &provider.credential else { return Some(Vec::new()) };
        match config.members(&self.directory) {
            Ok(members) => {
                if members.iter().any(MemberSettings::is_per_tenant) {
                    self.check_tenants(provider, config.required, path);
                    if members.iter().any(|member| member.kept().next().is_some()) {
                        // One place for all: a tenant would get another's token.
                        self.mistake(path, "a refresh token that rotates cannot be a tenant's: its `store` is one place for all tenants");
                    }
                }
                for used in members.iter().flat_map(MemberSettings::uses) {
                    // What a token is got with is wanted with the token.
                    self.uses_secret_of(path, &used.reference, config.required, used.rules);
                }
                for (token, keep) in members.iter().flat_map(MemberSettings::kept) {
                    self.check_kept(keep, path);
                    self.check_kept_alone(keep, token, path);
                }
                for (seed, token, rotates) in members.iter().flat_map(MemberSettings::seeds) {
                    self.check_seed_alone(seed, token, rotates, path);
                }
                Some(members)
            }
            Err(message) => {
                self.mistake(path, message);
                None
            }
        }
    }

    /// Whether every request says whose secret it wants, by a name that may stand in a reference.
    fn check_tenants(&mut self, provider: &ProviderConfig, required: bool, path: &PolicyPath) {
        let tenant = provider.tenant.as_ref();
        if tenant.and_then(|tenant| tenant.required) != Some(true) {
            self.mistake_with(
                path,
                "`{tenant}` stands in a secret reference, and not every request names its tenant",
                "`tenant: { header: X-Tenant, required: true }` at the provider",
            );
        }
        let pattern = tenant.and_then(|tenant| tenant.pattern.as_deref()?.parse::<TenantPattern>().ok());
        if pattern.is_some_and(|pattern| !pattern.is_plain()) {
            self.mistake_with(
                path,
                "`{tenant}` stands in a secret reference, and `tenant.pattern` lets characters pass that may not stand there",
                "only letters, digits, `.`, `_` and `-` in the pattern",
            );
        }
        if required {
            self.mistake(
                &path.key("required"),
                "secrets of tenants are read when a tenant is named: readiness cannot wait for them",
            );
        }
    }

    /// Through a blind tunnel a placeholder goes to whoever is at its end, and outgate does not see it.
    pub(super) fn warn_of_unseen_placeholders(&mut self, providers: &[Arc<Provider>], unmatched: Unmatched) {
        let routes = providers.iter().flat_map(|provider| &provider.routes);
        if Known::new(routes.flat_map(|route| &route.settings.credential)).is_none() {
            return;
        }
        for provider in providers.iter().filter(|one| one.doors.connect && !one.intercept.intercept) {
            self.warnings.push(format!(
                "{}: CONNECT is a blind tunnel here, in which a placeholder of the policy is not seen; `intercept: always` looks into it",
                provider.path
            ));
        }
        if unmatched == Unmatched::Tunnel {
            self.warnings.push(
                "unmatched: `tunnel` lets CONNECT to any other host through blindly, and a placeholder of the policy with it".to_owned(),
            );
        }
    }

    /// Two grants in one place would write over each other, and lose what they wrote.
    fn check_kept_alone(&mut self, keep: &KeepSettings, token: &SecretRef, path: &PolicyPath) {
        let other = self.kept.iter().find(|(place, other, _)| place.is_at(keep) && other != token);
        if let Some((_, _, other)) = other {
            let message = format!(
                "its refresh token would be kept where that of `{other}` is ({keep}): each would write over the other's"
            );
            self.mistake_with(
                path,
                message,
                "a `store` of its own; or the very same settings, which are one token",
            );
        } else {
            self.kept.push((keep.clone(), token.clone(), path.clone()));
        }
    }

    /// A refresh token that rotates is used up by who uses it first: another that begins with the same one ends the grant.
    fn check_seed_alone(&mut self, seed: &SecretRef, token: &SecretRef, rotates: bool, path: &PolicyPath) {
        let other = self
            .seeds
            .iter()
            .find(|(at, other, rotated, _)| at == seed && other != token && (rotates || *rotated));
        // Not in the list of places: it has been refused for its place.
        let told = rotates && !self.kept.iter().any(|(_, kept, _)| kept == token);
        if let Some((_, _, _, other)) = other.filter(|_| !told) {
            let message = format!(
                "its refresh token `{seed}` is that of `{other}` too, and rotates: whoever used it second would end the grant"
            );
            self.mistake_with(
                path,
                message,
                "a refresh token of its own; or the very same settings, which are one token",
            );
        }
        self.seeds.push((seed.clone(), token.clone(), rotates, path.clone()));
    }

    /// A place where a rotating refresh token is kept: all pods that share the grant must reach it, and it must be writable.
    fn check_kept(&mut self, keep: &KeepSettings, path: &PolicyPath) {
        if self.fleet && !keep.is_shared() {
            self.mistake_with(
                path,
                "the policy has a `fleet`, and this refresh token rotates in a file: each pod would end the tokens of the others",
                "`store: { vault: \"<store>:<path>\" }` or `store: { redis: { url: \"env:REDIS_URL\" } }`",
            );
        }
        let Some(reference) = keep.written() else { return };
        let store = self.stores.iter().find(|(name, _)| name == reference.store());
        let tells_writers = store.and_then(|(_, config)| config.tells_writers());
        if tells_writers.is_none() {
            self.mistake_with(
                path,
                format!(
                    "`store.vault` needs a store of the kind `vault`, and `{}` is none",
                    reference.store()
                ),
                "a store under `secrets` such as `payments: { vault: { address: ... } }`",
            );
        }
        if tells_writers == Some(false) {
            self.mistake(
                path,
                format!(
                    "`store.vault` needs a KV of version 2, which tells who wrote last, and `{}` says `kv: 1`",
                    reference.store()
                ),
            );
        }
    }
}
