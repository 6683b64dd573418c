//! The fleet that this pod is part of: made, changed and left as the policy says.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::policy::compiled::Fleet as FleetPolicy;
use crate::resilience::cache::Spawn;
use crate::resilience::fleet::{Fleet, FleetStatus, PauseHeard, UrlSource, random_pod_id, run};
use crate::secret::SecretCache;

/// The fleet that lives, if the policy has one.
pub struct LiveFleet {
    spawn: Spawn,
    live: Mutex<Option<Live>>,
}

struct Live {
    policy: FleetPolicy,
    fleet: Arc<Fleet>,
    cancel: CancellationToken,
    /// The task has ended.
    ended: CancellationToken,
}

impl LiveFleet {
    /// No fleet yet. `spawn` starts the task that keeps in touch.
    pub fn new(spawn: Spawn) -> Self {
        Self { spawn, live: Mutex::new(None) }
    }

    /// The fleet of a policy: the one that lives where URL and prefix are the same, else another one.
    pub(super) fn adopt(
        &self,
        policy: Option<&FleetPolicy>,
        secrets: &SecretCache,
        heard: impl FnOnce() -> PauseHeard,
    ) -> Option<Arc<Fleet>> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(policy) = policy else {
            if let Some(left) = live.take() {
                left.cancel.cancel();
            }
            return None;
        };
        if let Some(known) = live.as_mut() {
            let same =
                known.policy.url == policy.url && known.policy.settings.prefix == policy.settings.prefix;
            if same {
                known.fleet.adjust(policy.settings.on_outage, policy.settings.assume_pods);
                known.policy = policy.clone();
                return Some(known.fleet.clone());
            }
            known.cancel.cancel();
        }
        let fleet = Fleet::new(&policy.settings, url(policy, secrets), &random_pod_id());
        fleet.on_pause(heard());
        let cancel = CancellationToken::new();
        let ended = CancellationToken::new();
        let (task, guard) = (run(fleet.clone(), cancel.clone()), ended.clone().drop_guard());
        (self.spawn)(Box::pin(async move {
            task.await;
            drop(guard);
        }));
        *live = Some(Live { policy: policy.clone(), fleet: fleet.clone(), cancel, ended });
        Some(fleet)
    }

    /// Hands back what is leased, within about a second. Nothing of a shared limit may be spent after it.
    pub async fn leave(&self) {
        let left = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.as_ref().map(|left| (left.cancel.clone(), left.ended.clone()))
        };
        if let Some((cancel, ended)) = left {
            cancel.cancel();
            ended.cancelled().await;
        }
    }

    /// How it stands.
    pub fn status(&self) -> Option<FleetStatus> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().map(|live| live.fleet.status())
    }
}

/// The URL as it is now, each time a connection is made: a rotated password is used at the next one.
fn url(policy: &FleetPolicy, secrets: &SecretCache) -> UrlSource {
    let entry = secrets.entry_under(&policy.url, crate::secret::ValueRules::Any);
    Arc::new(move || {
        let version = entry.current().ok()?;
        let text = std::str::from_utf8(version.value.expose()).ok()?;
        Some(Zeroizing::new(text.trim().to_owned()))
    })
}
