//! Names to addresses, through the system's resolver.
//!
//! The system's resolver honours `nsswitch.conf`, search lists and `/etc/hosts`, and tells no time to live; so answers are
//! kept for 30 seconds, and failures for 2. When the resolver fails, or does not answer while the app waits, an answer up
//! to 5 minutes old is used: an outage of DNS should not become an outage of the providers. Addresses are checked anew on
//! every dial, so a stale answer cannot go around the address rules.
//!
//! A name is looked up once for all who ask meanwhile, and to its end also when they have all gone: the system's resolver
//! cannot be stopped, so what it says late is kept for the next.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::Expiry;
use moka::future::Cache;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(30);
/// How long a failure is used.
const NEGATIVE: Duration = Duration::from_secs(2);
/// How long an answer may stand in for a resolver that fails.
const STALE: Duration = Duration::from_secs(300);
/// Names kept.
const NAMES: u64 = 1024;
/// Names that are being looked up, or wait for it.
const RUNNING: usize = 1024;
/// Lookups at once; each occupies a thread of the blocking pool until the system gives up.
const LOOKUPS: usize = 32;

type Script = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;
/// Looks a name up.
pub type Lookup =
    dyn Fn(Arc<str>) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync;
type Answer = Result<Arc<[IpAddr]>, Arc<io::Error>>;

/// Turns names into addresses. Literals never come here.
pub struct Resolver {
    source: Source,
    questions: AtomicU64,
}

enum Source {
    Cached(Arc<Cached>),
    Scripted(Arc<Script>),
}

struct Cached {
    answers: Cache<Arc<str>, Answer>,
    stale: Cache<Arc<str>, Arc<[IpAddr]>>,
    running: Mutex<HashMap<Arc<str>, Running>>,
    permits: Semaphore,
    lookup: Box<Lookup>,
}

/// A lookup that runs.
#[derive(Clone)]
struct Running {
    since: Instant,
    answer: watch::Receiver<Option<Answer>>,
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

    /// A cached resolver that asks `lookup`; for tests too, whose resolver hangs.
    pub fn with_lookup(lookup: Box<Lookup>) -> Self {
        let answers = Cache::builder().max_capacity(NAMES).expire_after(Lifetime).build();
        let stale = Cache::builder().max_capacity(NAMES).time_to_live(STALE).build();
        let (running, permits) = (Mutex::default(), Semaphore::new(LOOKUPS));
        let cached = Cached { answers, stale, running, permits, lookup };
        Self { source: Source::Cached(Arc::new(cached)), questions: AtomicU64::new(0) }
    }

    /// How many names were asked for, answers from the cache included.
    pub fn questions(&self) -> u64 {
        self.questions.load(Ordering::Relaxed)
    }

    /// The addresses of a name, in the resolver's order; never empty. Where there is an older answer, it is taken when the
    /// lookup has run for longer than `patience`.
    ///
    /// # Errors
    ///
    /// The system's error, shared by all who asked at the same time.
    pub async fn resolve(
        &self,
        name: &Arc<str>,
        patience: Duration,
    ) -> Result<Arc<[IpAddr]>, Arc<io::Error>> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        match &self.source {
            Source::Scripted(script) => script(name).and_then(not_empty).map_err(Arc::new),
            Source::Cached(cached) => cached.resolve(name, patience).await,
        }
    }
}

impl Cached {
    async fn resolve(self: &Arc<Self>, name: &Arc<str>, patience: Duration) -> Answer {
        if let Some(answer) = self.answers.get(name).await {
            return answer;
        }
        let Running { since, answer } = self.join(name).map_err(Arc::new)?;
        let Some(last) = self.stale.get(name).await else {
            return answered(answer).await;
        };
        match timeout_at(since + patience, answered(answer)).await {
            Ok(answer) => answer,
            Err(_) => {
                tracing::warn!(%name, "the name is still being looked up; its last addresses are used");
                Ok(last)
            }
        }
    }

    /// The lookup of a name that runs, or a new one.
    #[expect(
        clippy::disallowed_methods,
        reason = "a lookup that somebody asked for is finished for the next one; bounded by RUNNING"
    )]
    fn join(self: &Arc<Self>, name: &Arc<str>) -> io::Result<Running> {
        let mut running = self.running();
        if let Some(running) = running.get(name) {
            return Ok(running.clone());
        }
        if running.len() >= RUNNING {
            return Err(io::Error::other("too many names are being looked up"));
        }
        let (sender, answer) = watch::channel(None);
        let begun = Running { since: Instant::now(), answer };
        running.insert(name.clone(), begun.clone());
        let entry = Entry { cached: self.clone(), name: name.clone() };
        tokio::spawn(async move {
            let answer = entry.cached.ask(&entry.name).await;
            drop(entry);
            sender.send_replace(Some(answer));
        });
        Ok(begun)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Arc<str>, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the system, and keeps what it says.
    async fn ask(&self, name: &Arc<str>) -> Answer {
        let answer = match self.look_up(name.clone()).await.and_then(not_empty) {
            Ok(addresses) => {
                self.stale.insert(name.clone(), addresses.clone()).await;
                Ok(addresses)
            }
            Err(error) => match self.stale.get(name).await {
                Some(addresses) => {
                    tracing::warn!(%name, %error, "the name does not resolve; its last addresses are used");
                    Ok(addresses)
                }
                None => Err(Arc::new(error)),
            },
        };
        self.answers.insert(name.clone(), answer.clone()).await;
        answer
    }

    async fn look_up(&self, name: Arc<str>) -> io::Result<Vec<IpAddr>> {
        let _permit = self.permits.acquire().await.map_err(io::Error::other)?;
        (self.lookup)(name).await
    }
}

/// The place of a lookup among those that run; given back when it ends, however it does.
struct Entry {
    cached: Arc<Cached>,
    name: Arc<str>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.cached.running().remove(&self.name);
    }
}

async fn answered(mut answer: watch::Receiver<Option<Answer>>) -> Answer {
    let broken = || Arc::new(io::Error::other("the lookup ended without an answer"));
    let seen = answer.wait_for(Option::is_some).await.map_err(|_| broken())?;
    seen.clone().ok_or_else(broken)?
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
    fn expire_after_create(&self, _: &Arc<str>, answer: &Answer, _: std::time::Instant) -> Option<Duration> {
        Some(if answer.is_ok() { FRESH } else { NEGATIVE })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use tokio::sync::Notify;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    fn cached(resolver: &Resolver) -> &Arc<Cached> {
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
                tokio::spawn(async move { resolver.resolve(&name, PATIENCE).await.unwrap().len() })
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
        resolver.resolve(&known, PATIENCE).await.unwrap();
        broken.store(true, Ordering::Relaxed);
        cached(&resolver).answers.invalidate(&known).await;
        assert_eq!(resolver.resolve(&known, PATIENCE).await.unwrap().len(), 1);
        assert!(resolver.resolve(&unknown, PATIENCE).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_answer_stands_in_for_a_resolver_that_hangs_and_a_late_one_is_kept() {
        let hangs = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicU64::new(0));
        let (slow, count) = (hangs.clone(), asked.clone());
        let resolver = Resolver::with_lookup(Box::new(move |_| {
            let slow = slow.load(Ordering::Relaxed);
            count.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                if slow {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                }
                Ok(vec![if slow { "192.0.2.2" } else { "192.0.2.1" }.parse().unwrap()])
            })
        }));
        let name: Arc<str> = "a.example".into();
        let (old, new): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert_eq!(resolver.resolve(&name, PATIENCE).await.unwrap()[..], [old]);
        cached(&resolver).answers.invalidate(&name).await;
        hangs.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        assert_eq!(resolver.resolve(&name, PATIENCE).await.unwrap()[..], [old]);
        assert_eq!(begun.elapsed(), PATIENCE);
        // The next one joins the lookup that is late already: no second thread, no second wait.
        assert_eq!(resolver.resolve(&name, PATIENCE).await.unwrap()[..], [old]);
        assert_eq!((begun.elapsed(), asked.load(Ordering::Relaxed)), (PATIENCE, 2));
        // A name that was never resolved has nothing to fall back to, and its asker may go: the answer is kept.
        let unknown: Arc<str> = "b.example".into();
        let gone = tokio::time::timeout(PATIENCE, resolver.resolve(&unknown, PATIENCE)).await;
        assert!(gone.is_err());
        tokio::time::sleep(Duration::from_secs(20)).await;
        let begun = Instant::now();
        for name in [&name, &unknown] {
            assert_eq!(resolver.resolve(name, PATIENCE).await.unwrap()[..], [new]);
        }
        assert_eq!((begun.elapsed(), asked.load(Ordering::Relaxed)), (Duration::ZERO, 3));
        assert!(cached(&resolver).running().is_empty());
    }

    #[tokio::test]
    async fn names_that_are_being_looked_up_are_bounded_and_a_broken_lookup_leaves_no_trace() {
        let resolver = Resolver::with_lookup(Box::new(|name| {
            assert_ne!(&*name, "broken.example");
            Box::pin(std::future::pending())
        }));
        assert!(resolver.resolve(&"broken.example".into(), PATIENCE).await.is_err());
        let cached = cached(&resolver);
        assert!(cached.running().is_empty());
        for number in 0..RUNNING {
            cached.join(&format!("{number}.example").into()).unwrap();
        }
        assert!(resolver.resolve(&"one-more.example".into(), PATIENCE).await.is_err());
    }

    #[test]
    fn failures_are_kept_for_a_shorter_time() {
        let (name, now): (Arc<str>, _) = ("a".into(), std::time::Instant::now());
        let good: Answer = Ok(Arc::from(["192.0.2.1".parse::<IpAddr>().unwrap()]));
        let bad: Answer = Err(Arc::new(io::Error::other("x")));
        assert_eq!(Lifetime.expire_after_create(&name, &good, now), Some(FRESH));
        assert_eq!(Lifetime.expire_after_create(&name, &bad, now), Some(NEGATIVE));
    }

    #[tokio::test]
    async fn a_script_is_asked_each_time() {
        let resolver = Resolver::scripted(Arc::new(|_| Ok(vec![])));
        let name: Arc<str> = "a.example".into();
        assert!(resolver.resolve(&name, PATIENCE).await.is_err());
        assert!(resolver.resolve(&name, PATIENCE).await.is_err());
        assert_eq!(resolver.questions(), 2);
    }
}
