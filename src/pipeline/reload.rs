//! Reload: a policy is taken whole or not at all. A bad file never takes effect and never takes traffic down.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use super::generation::Generation;
use super::kept::KeptPlaces;
use super::shared::Shared;
use crate::policy::compile::compile;
use crate::policy::compiled::CompiledPolicy;
use crate::policy::diagnostic::Rejection;
use crate::policy::load::{PolicyOrigin, load};
use crate::policy::restart;
use crate::policy::widening::widenings;
use crate::secret::reference::SecretRef;
use crate::secret::{SecretError, StoreEnv, Stores};
use crate::telemetry::ReloadResult;
use crate::upstream::UpstreamError;

/// How long the first reads of new secrets may hold a reload.
pub const FIRST_READ: Duration = Duration::from_secs(5);

/// Why a policy was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It has mistakes.
    #[error("{}", .0.render(false))]
    Rejected(Rejection),
    /// It changes what needs a restart.
    #[error("{} cannot be changed by a reload; restart outgate for that", .0.join(", "))]
    NeedsRestart(Vec<String>),
    /// It would begin grants anew whose newest refresh token is kept elsewhere.
    #[error(
        "a refresh token that rotates is kept in one place as long as outgate runs: {}. A reload would begin there with the first one, which is \
         used up. Put `store` back; or end outgate, move what is kept, and start it again",
        .0.join("; ")
    )]
    KeptElsewhere(Vec<String>),
    /// Its stacks could not be built, such as for a CA file that holds no certificate.
    #[error("{0}")]
    Build(#[from] UpstreamError),
    /// A store of secrets could not be set up.
    #[error("secrets: {0}")]
    Stores(#[from] SecretError),
}

/// What a reload did.
#[derive(Debug)]
pub enum ReloadOutcome {
    /// A new generation runs.
    Applied(u64),
    /// The text is the same.
    Unchanged,
    /// The old generation goes on.
    Refused(ReloadError),
}

/// Reads and compiles a policy.
pub fn read(origin: impl Into<PolicyOrigin>) -> Result<CompiledPolicy, Rejection> {
    let origin = origin.into();
    let directory = directory(&origin.path);
    compile(load(origin)?, &directory)
}

/// Where relative paths of the policy at `path` start.
fn directory(path: &std::path::Path) -> PathBuf {
    match path.parent() {
        _ if path.is_dir() => path.to_path_buf(),
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        Some(_) | None => PathBuf::from("."),
    }
}

/// Makes new generations of the policy of one origin.
pub struct Reloader {
    origin: PolicyOrigin,
    shared: Arc<Shared>,
    current: Arc<ArcSwap<Generation>>,
    next: AtomicU64,
    /// One reload at a time; holds the text that was last refused, so that it is logged once.
    last_refused: Mutex<Option<String>>,
    /// There is such a text; for those who cannot wait.
    refuses: AtomicBool,
    /// Where refresh tokens that rotate are kept. Used by the one reload that runs.
    kept: Mutex<KeptPlaces>,
}

impl Reloader {
    /// Builds the first generation.
    pub async fn start(
        origin: PolicyOrigin,
        policy: CompiledPolicy,
        shared: Arc<Shared>,
    ) -> Result<Self, UpstreamError> {
        let generation = Generation::build(1, policy, &shared)?;
        prepare(&generation, &shared);
        shared.telemetry.metrics.policy_applied(1, SystemTime::now());
        let current = Arc::new(ArcSwap::from_pointee(generation));
        let mut kept = KeptPlaces::new(directory(&origin.path));
        kept.remember(current.load().policy());
        let (next, last_refused) = (AtomicU64::new(2), Mutex::new(None));
        Ok(Self {
            origin,
            shared,
            current,
            next,
            last_refused,
            refuses: AtomicBool::new(false),
            kept: Mutex::new(kept),
        })
    }

    /// Where the newest generation stands.
    pub fn current(&self) -> Arc<ArcSwap<Generation>> {
        self.current.clone()
    }

    /// What all generations share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The policy's path.
    pub fn path(&self) -> &std::path::Path {
        &self.origin.path
    }

    /// Whether the policy that stands there now was refused.
    pub fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Acquire)
    }

    /// Reads the policy again, and runs it if it is good and new.
    pub async fn reload(&self) -> ReloadOutcome {
        self.run(true).await
    }

    /// The same where nobody asked: a policy that stays bad is looked at again and again, and was refused once.
    pub async fn look(&self) -> ReloadOutcome {
        self.run(false).await
    }

    async fn run(&self, asked: bool) -> ReloadOutcome {
        let mut last_refused = self.last_refused.lock().await;
        let outcome = self.try_reload().await;
        let metrics = &self.shared.telemetry.metrics;
        match &outcome {
            Ok(ReloadOutcome::Applied(_) | ReloadOutcome::Refused(_)) => *last_refused = None,
            Ok(ReloadOutcome::Unchanged) => {
                if asked || last_refused.is_some() {
                    metrics.policy_not_applied(ReloadResult::Unchanged);
                }
                // The good text is back; the same mistake made once more is news.
                *last_refused = None;
            }
            Err(error) => {
                let text = error.to_string();
                let news = last_refused.as_ref() != Some(&text);
                if asked || news {
                    metrics.policy_not_applied(ReloadResult::Refused);
                }
                if news {
                    let generation = self.current.load().number;
                    tracing::error!(generation, "the policy was not reloaded, the old one goes on:\n{text}");
                }
                *last_refused = Some(text);
            }
        }
        self.refuses.store(last_refused.is_some(), Ordering::Release);
        outcome.unwrap_or_else(ReloadOutcome::Refused)
    }

    /// The stores of a new policy; what did not change stays as it is.
    fn stores(&self, policy: &CompiledPolicy) -> Result<Stores, SecretError> {
        let directory = directory(&self.origin.path);
        let env = StoreEnv { directory, upstream: self.shared.upstream_env.clone() };
        let configs = policy.stores.iter().cloned().collect();
        Stores::build(&configs, &env, Some(&self.shared.secrets.stores()))
    }

    async fn try_reload(&self) -> Result<ReloadOutcome, ReloadError> {
        let origin = self.origin.clone();
        let policy = tokio::task::spawn_blocking(move || read(origin)).await;
        // The only way to lose the task is the end of the process.
        let Ok(policy) = policy else { return Ok(ReloadOutcome::Unchanged) };
        let policy = policy.map_err(ReloadError::Rejected)?;
        let old = self.current.load_full();
        if policy.hash == old.policy().hash {
            return Ok(ReloadOutcome::Unchanged);
        }
        let differences = restart::differences(&policy, old.policy());
        if !differences.is_empty() {
            return Err(ReloadError::NeedsRestart(differences));
        }
        let mut kept = self.kept.lock().await;
        let lost = kept.lost_by(&policy);
        if !lost.is_empty() {
            return Err(ReloadError::KeptElsewhere(lost));
        }
        let wider = widenings(old.policy(), &policy);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let stores = self.stores(&policy)?;
        let generation = Generation::build(number, policy, &self.shared)?;
        self.shared.secrets.adopt(stores);
        prepare_secrets(&generation, &self.shared);
        // New secrets are read before the first request can want them.
        self.shared.secrets.read_new(FIRST_READ).await;
        let generation = Arc::new(generation);
        self.current.store(generation.clone());
        kept.remember(generation.policy());
        prepare(&generation, &self.shared);
        self.shared.telemetry.metrics.policy_applied(number, SystemTime::now());
        tracing::info!(generation = number, hash = %generation.policy().hash, "the policy was reloaded");
        for warning in &generation.policy().warnings {
            tracing::warn!("{warning}");
        }
        for change in wider {
            tracing::warn!(generation = number, "this reload widens access: {change}");
        }
        Ok(ReloadOutcome::Applied(number))
    }
}

/// Makes the shared state hold what the generation needs, and drop what it does not.
fn prepare(generation: &Generation, shared: &Shared) {
    prepare_secrets(generation, shared);
    let policy = generation.policy();
    let known: HashSet<SecretRef> = policy.secrets.iter().map(|used| used.reference.clone()).collect();
    shared.secrets.retain(&known);
    generation.retain(shared);
    shared.telemetry.metrics.retain(|provider, route| {
        provider == "unmatched"
            || policy.stores.iter().any(|(name, _)| provider.strip_prefix("secrets.") == Some(name))
            || policy.providers.iter().any(|known| {
                &*known.name == provider
                    && route.is_none_or(|route| {
                        route == "tunnel" || known.routes.iter().any(|r| &*r.name == route)
                    })
            })
    });
    shared
        .telemetry
        .metrics
        .retain_secrets(|reference| known.iter().any(|known| known.to_string() == reference));
}

fn prepare_secrets(generation: &Generation, shared: &Shared) {
    let secrets = &generation.policy().secrets;
    // Tokens were bound with their credentials, and tenants are when they are named.
    for used in secrets.iter().filter(|used| !used.reference.is_made() && !used.reference.is_per_tenant()) {
        shared.secrets.entry_under(&used.reference, used.rules);
    }
    let required = secrets.iter().filter(|used| used.required);
    let required = required.map(|used| used.reference.clone()).collect();
    shared.secrets.require(&required);
}
