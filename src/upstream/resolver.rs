//! Names to addresses, through the system's resolver.
//!
//! The system's resolver honours `nsswitch.conf`, search lists and `/etc/hosts`, and tells no time to live; so answers are
//! kept for 30 seconds, and failures for 2. When the resolver fails, an answer up to 5 minutes old is used: an outage of
//! DNS should not become an outage of the providers. Addresses are checked anew on every dial, so a stale answer cannot
//! go around the address rules.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache;
use tokio::sync::Semaphore;

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(30);
/// How long a failure is used.
const NEGATIVE: Duration = Duration::from_secs(2);
/// How long an answer may stand in for a resolver that fails.
const STALE: Duration = Duration::from_secs(300);
/// Names kept.
const NAMES: u64 = 1024;
/// Lookups at once; each occupies a thread of the blocking pool until the system gives up.
const LOOKUPS: usize = 32;

type Script = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;
type Lookup = dyn Fn(Arc<str>) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync;
type Answer = Result<Arc<[IpAddr]>, Arc<io::Error>>;

/// Turns names into addresses. Literals never come here.
pub struct Resolver {
    source: Source,
    questions: AtomicU64,
}

enum Source {
    Cached(Box<Cached>),
    Scripted(Arc<Script>),
}

struct Cached {
    answers: Cache<Arc<str>, Answer>,
    stale: Cache<Arc<str>, Arc<[IpAddr]>>,
    permits: Arc<Semaphore>,
    lookup: Box<Lookup>,
}

impl Resolver {
    /// The system's resolver.
    pub fn system() -> Self {
        Self::with_lookup(Box::new(|name| Box::pin(system_lookup(name))))
    }

    /// A resolver for tests: uncached, and it counts its questions.
    pub fn scripted(script: Arc<Script>) -> Self {
        Self { source: Source::Scripted(script), questions: AtomicU64::new(0) }
    }

    /// A cached resolver that asks `lookup`.
    pub(super) fn with_lookup(lookup: Box<Lookup>) -> Self {
        let answers = Cache::builder().max_capacity(NAMES).expire_after(Lifetime).build();
        let stale = Cache::builder().max_capacity(NAMES).time_to_live(STALE).build();
        let permits = Arc::new(Semaphore::new(LOOKUPS));
        Self {
            source: Source::Cached(Box::new(Cached { answers, stale, permits, lookup })),
            questions: AtomicU64::new(0),
        }
    }

    /// How many names were asked for, answers from the cache included.
    pub fn questions(&self) -> u64 {
        self.questions.load(Ordering::Relaxed)
    }

    /// The addresses of a name, in the resolver's order; never empty.
    ///
    /// # Errors
    ///
    /// The system's error, shared by all who asked at the same time.
    pub async fn resolve(&self, name: &Arc<str>) -> Result<Arc<[IpAddr]>, Arc<io::Error>> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        match &self.source {
            Source::Scripted(script) => script(name).and_then(not_empty).map_err(Arc::new),
            Source::Cached(cached) => cached.answers.get_with_by_ref(name, cached.ask(name.clone())).await,
        }
    }
}

impl Cached {
    /// Runs for one of all who ask at the same time.
    async fn ask(&self, name: Arc<str>) -> Answer {
        match self.look_up(name.clone()).await.and_then(not_empty) {
            Ok(addresses) => {
                self.stale.insert(name, addresses.clone()).await;
                Ok(addresses)
            }
            Err(error) => match self.stale.get(&name).await {
                Some(addresses) => {
                    tracing::warn!(%name, %error, "the name does not resolve; its last addresses are used");
                    Ok(addresses)
                }
                None => Err(Arc::new(error)),
            },
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a lookup that somebody asked for is finished for the next one; bounded by a semaphore"
    )]
    async fn look_up(&self, name: Arc<str>) -> io::Result<Vec<IpAddr>> {
        let permit = self.permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let lookup = (self.lookup)(name);
        // In a task of its own, so that the permit is held until the system has answered, also when the one who asked
        // has gone: its thread is still busy.
        tokio::spawn(async move {
            let _held = permit;
            lookup.await
        })
        .await
        .map_err(io::Error::other)?
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the place that asks for names")]
async fn system_lookup(name: Arc<str>) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((&*name, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

fn not_empty(addresses: Vec<IpAddr>) -> io::Result<Arc<[IpAddr]>> {
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses.into())
}

struct Lifetime;

impl Expiry<Arc<str>, Answer> for Lifetime {
    fn expire_after_create(&self, _: &Arc<str>, answer: &Answer, _: Instant) -> Option<Duration> {
        Some(if answer.is_ok() { FRESH } else { NEGATIVE })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use tokio::sync::Notify;

    use super::*;

    fn cached(resolver: &Resolver) -> &Cached {
        match &resolver.source {
            Source::Cached(cached) => cached,
            Source::Scripted(_) => unreachable!("built with a lookup"),
        }
    }

    #[tokio::test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a lookup that somebody asked for is finished for the next one; bounded by a semaphore"
    )]
    async fn many_askers_make_one_lookup() {
        let gate = Arc::new(Notify::new());
        let asked = Arc::new(Mutex::new(0));
        let (opened, count) = (gate.clone(), asked.clone());
        let resolver = Arc::new(Resolver::with_lookup(Box::new(move |_| {
            *count.lock().unwrap() += 1;
            let opened = opened.clone();
            Box::pin(async move {
                opened.notified().await;
                Ok(vec!["192.0.2.1".parse().unwrap()])
            })
        })));
        let name: Arc<str> = "api.example.com".into();
        let askers: Vec<_> = (0..20)
            .map(|_| {
                let (resolver, name) = (resolver.clone(), name.clone());
                tokio::spawn(async move { resolver.resolve(&name).await.unwrap().len() })
            })
            .collect();
        gate.notify_one();
        for asker in askers {
            assert_eq!(asker.await.unwrap(), 1);
        }
        assert_eq!(*asked.lock().unwrap(), 1);
        assert_eq!(resolver.questions(), 20);
    }

    #[tokio::test]
    async fn an_old_answer_stands_in_for_a_resolver_that_fails() {
        let broken = Arc::new(AtomicBool::new(false));
        let fails = broken.clone();
        let resolver = Resolver::with_lookup(Box::new(move |_| {
            let fails = fails.load(Ordering::Relaxed);
            Box::pin(async move {
                if fails { Err(io::Error::other("down")) } else { Ok(vec!["192.0.2.1".parse().unwrap()]) }
            })
        }));
        let (known, unknown): (Arc<str>, Arc<str>) = ("a.example".into(), "b.example".into());
        resolver.resolve(&known).await.unwrap();
        broken.store(true, Ordering::Relaxed);
        cached(&resolver).answers.invalidate(&known).await;
        assert_eq!(resolver.resolve(&known).await.unwrap().len(), 1);
        assert!(resolver.resolve(&unknown).await.is_err());
    }

    #[test]
    fn failures_are_kept_for_a_shorter_time() {
        let (name, now): (Arc<str>, _) = ("a".into(), Instant::now());
        let good: Answer = Ok(Arc::from(["192.0.2.1".parse::<IpAddr>().unwrap()]));
        let bad: Answer = Err(Arc::new(io::Error::other("x")));
        assert_eq!(Lifetime.expire_after_create(&name, &good, now), Some(FRESH));
        assert_eq!(Lifetime.expire_after_create(&name, &bad, now), Some(NEGATIVE));
    }

    #[tokio::test]
    async fn a_script_is_asked_each_time() {
        let resolver = Resolver::scripted(Arc::new(|_| Ok(vec![])));
        let name: Arc<str> = "a.example".into();
        assert!(resolver.resolve(&name).await.is_err());
        assert!(resolver.resolve(&name).await.is_err());
        assert_eq!(resolver.questions(), 2);
    }
}
