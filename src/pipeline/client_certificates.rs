//! The client certificates of one provider, in their secrets: one, or in an overlap the new one and the old.
//!
//! A connection shows one of them, so which one is a matter of the pool and not of a request: the preferred one has a version, and
//! connections of another version are not used again. The new one is preferred. Where the provider refuses it, or it cannot be had,
//! the next takes its place, and the new one is tried again after [`PREFER`], doubling up to [`PREFER_MOST`] while it goes on being
//! refused: each try costs a handshake, and with TLS 1.3, where the refusal comes behind the request, an attempt
//! (docs/decisions/0015).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::credential::overlap::{self, News, Overlap};
use crate::resilience::retry::Heal;
use crate::secret::reference::SecretRef;
use crate::secret::{SecretCache, SecretEntry, ValueRules};
use crate::telemetry::{HealResult, OverlapEvent, ProviderMetrics};
use crate::upstream::Upstream;
use crate::upstream::identity::{ClientIdentity, IdentitySource, SecretMissing};

/// How long another than the new one is preferred at first.
const PREFER: Duration = Duration::from_secs(30);
/// The same at most.
const PREFER_MOST: Duration = Duration::from_secs(600);
/// Places of a list in a version: more than a list can have.
const SLOTS: u64 = 16;

/// One certificate with its key.
struct Pair {
    /// The certificate's reference, for the log.
    name: String,
    certificate: Arc<SecretEntry>,
    key: Arc<SecretEntry>,
}

impl Pair {
    /// Changes whenever one of the two does: both only grow. None while one is missing.
    fn number(&self) -> Option<u64> {
        Some(self.certificate.current().ok()?.number + self.key.current().ok()?.number)
    }
}

/// The certificates of a provider.
pub(super) struct ClientCertificates {
    pairs: Vec<Pair>,
    /// Locked for moments.
    state: Mutex<State>,
    overlap: Overlap,
    metrics: Arc<ProviderMetrics>,
}

#[derive(Default)]
struct State {
    /// Another than the first, and until when.
    preferred: Option<(usize, Instant)>,
    /// How often the first was refused since it was taken last.
    refusals: u32,
    /// The version that was taken last.
    proven: Option<u64>,
}

impl ClientCertificates {
    pub(super) fn new(
        references: &[(SecretRef, SecretRef)],
        secrets: &SecretCache,
        metrics: Arc<ProviderMetrics>,
    ) -> Self {
        let entry = |reference: &SecretRef| secrets.entry_under(reference, ValueRules::Any);
        let pair = |(certificate, key): &(SecretRef, SecretRef)| Pair {
            name: certificate.to_string(),
            certificate: entry(certificate),
            key: entry(key),
        };
        let pairs = references.iter().map(pair).collect();
        Self { pairs, state: Mutex::default(), overlap: Overlap::default(), metrics }
    }

    /// The one that is shown now: the preferred, or the next that can be had.
    fn shown(&self) -> usize {
        let preferred = self.state().preferred.filter(|(_, until)| Instant::now() < *until);
        self.first_from(preferred.map_or(0, |(at, _)| at)).unwrap_or(0)
    }

    /// The first that can be had, from `at` on.
    fn first_from(&self, at: usize) -> Option<usize> {
        let count = self.pairs.len();
        (0..count).map(|step| (at + step) % count).find(|at| self.pairs[*at].number().is_some())
    }

    fn version_of(&self, at: usize) -> u64 {
        let number = self.pairs.get(at).and_then(Pair::number);
        number.map_or(0, |number| number * SLOTS + at as u64 % SLOTS)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdentitySource for ClientCertificates {
    fn version(&self) -> u64 {
        self.version_of(if self.pairs.len() > 1 { self.shown() } else { 0 })
    }

    fn current(&self) -> Result<ClientIdentity, SecretMissing> {
        let at = self.shown();
        let pair = self.pairs.get(at).ok_or_else(|| SecretMissing("it names no certificate".to_owned()))?;
        let read = |entry: &SecretEntry| entry.current().map_err(|error| SecretMissing(error.to_string()));
        let (certificate, key) = (read(&pair.certificate)?, read(&pair.key)?);
        Ok(ClientIdentity {
            version: (certificate.number + key.number) * SLOTS + at as u64 % SLOTS,
            certificate_pem: certificate.value.expose().to_vec(),
            key_pem: Zeroizing::new(key.value.expose().to_vec()),
        })
    }

    fn overlaps(&self) -> bool {
        self.pairs.len() > 1
    }

    fn refused(&self, version: u64) -> bool {
        if version != self.version() {
            // Another request was faster, or it was replaced meanwhile.
            return self.version() != 0;
        }
        let at = self.shown();
        let Some(next) = self.first_from((at + 1) % self.pairs.len()).filter(|next| *next != at) else {
            return false;
        };
        let mut state = self.state();
        if at == 0 {
            state.refusals = state.refusals.saturating_add(1);
        }
        if state.proven == Some(version) {
            state.proven = None;
        }
        let wait = PREFER.saturating_mul(2_u32.saturating_pow(state.refusals.saturating_sub(1).min(16)));
        // Behind the last of the list the first is tried again at once.
        state.preferred = (next > 0).then(|| (next, Instant::now() + wait.min(PREFER_MOST)));
        true
    }

    fn accepted(&self, version: u64) {
        let at = (version % SLOTS) as usize;
        {
            let mut state = self.state();
            state.proven = Some(version);
            if at == 0 {
                state.refusals = 0;
            }
        }
        if at > 0 {
            self.metrics.overlap(OverlapEvent::OldNeeded);
        }
        let Some(news) = self.overlap.accepted(at, Instant::now()) else { return };
        if news == News::SafeToRemove {
            self.metrics.overlap(OverlapEvent::SafeToRemove);
        }
        let name = |at: usize| self.pairs.get(at).map_or("", |pair| &pair.name);
        overlap::tell(news, "provider", (name(0), name(at.max(1))), None);
    }

    fn is_proven(&self, version: u64) -> bool {
        self.state().proven == Some(version)
    }
}

/// What a route whose only credential are such certificates can do about an `unauthorized` answer.
pub(super) struct HealByCertificate {
    pub(super) upstream: Arc<Upstream>,
    pub(super) metrics: Arc<ProviderMetrics>,
}

impl Heal for HealByCertificate {
    fn preferred(&self, _: Option<&str>) -> usize {
        0
    }

    fn heal<'a>(&'a self, _: Option<&'a str>, tried: usize, stamp: u64) -> BoxFuture<'a, Option<usize>> {
        let next = self.upstream.certificate_refused(stamp).then_some(tried);
        if next.is_none() {
            self.metrics.healed(HealResult::Failed);
        }
        Box::pin(std::future::ready(next))
    }

    fn worked(&self, _: Option<&str>, _: usize) {
        self.metrics.healed(HealResult::Healed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Stores;
    use crate::telemetry::Metrics;

    #[tokio::test(start_paused = true)]
    async fn the_new_one_is_shown_until_it_is_refused_and_again_after_a_while() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["new", "new-key", "old", "old-key"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let secrets = SecretCache::new(Stores::built_in(directory.path()));
        let pair = |name: &str| {
            (format!("file:{name}").parse().unwrap(), format!("file:{name}-key").parse().unwrap())
        };
        let references = [pair("new"), pair("old")];
        let all = ClientCertificates::new(&references, &secrets, Metrics::new().provider("api"));
        assert_eq!((all.version(), all.current().is_err()), (0, true), "nothing was read yet");
        for (certificate, key) in &references {
            for reference in [certificate, key] {
                secrets.entry_under(reference, ValueRules::Any).refresh().await;
            }
        }
        let shown = || all.current().map(|one| String::from_utf8(one.certificate_pem).unwrap()).unwrap();
        let new = all.version();
        assert_eq!((shown(), all.is_proven(new)), ("new".to_owned(), false));
        // Refused by many at once: one step.
        assert!(all.refused(new) && all.refused(new) && all.refused(new));
        let old = all.version();
        assert!(old != new && shown() == "old");
        all.accepted(old);
        assert!(all.is_proven(old));
        // After a while the new one is tried again; and the longer, the longer it was refused.
        for seconds in [30, 60, 120, 240, 480, 600, 600] {
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert_eq!(shown(), "old", "{seconds}");
            tokio::time::advance(Duration::from_secs(2)).await;
            assert_eq!(all.version(), new, "{seconds}");
            assert!(all.refused(new));
        }
        // Both were refused: there is none left but the first.
        assert!(all.refused(all.version()) && shown() == "new");
        all.accepted(new);
        assert!(all.refused(new) && shown() == "old");
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(shown(), "new", "one that was taken begins anew");
        // A new one that cannot be had is passed over.
        let one = ClientCertificates::new(
            &[pair("missing"), pair("old")],
            &secrets,
            Metrics::new().provider("api"),
        );
        assert_eq!(one.current().map(|one| one.certificate_pem).unwrap(), b"old");
        assert!(!one.refused(one.version()), "there is no other");
        let alone = ClientCertificates::new(&[pair("old")], &secrets, Metrics::new().provider("api"));
        assert!(!alone.overlaps() && !alone.refused(alone.version()));
    }
}
