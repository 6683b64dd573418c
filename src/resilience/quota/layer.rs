//! The layer: holds a request while its quota is used up, and learns from every answer.

mod ticket;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderName, Response};
use tokio::time::Instant;
use tower::Service;

use self::ticket::Ticket;
use super::buckets::Buckets;
use super::config::{Bucket, QuotaExcess, QuotaSettings};
use super::entry::{Entry, Names, Patience, Refusal};
use super::key_state::Pass;
use super::state::{Quota, count};
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::{EgressRequest, Exchange};
use crate::message::target::Host;
use crate::resilience::key::{Key, KeySource};
use crate::resilience::{Inner, Pending};

/// How often a request may be called back while it waits for a limit or a permit; after that it goes on, so that one without
/// a deadline does not go round for ever.
const MOST_RECALLS: u32 = 16;
/// How long all buckets pause where the answer does not say; then one request asks, and the rest follow when it is answered.
const UNTOLD: Duration = Duration::from_secs(10);

/// Keeps the learned quota around one route.
#[derive(Clone)]
pub struct QuotaLayer<S> {
    inner: S,
    route: Arc<Route>,
}

/// What the layer of one route knows.
struct Route {
    quota: Arc<Quota>,
    settings: QuotaSettings,
    source: KeySource,
    shadow: Option<Arc<str>>,
    /// [`Recheck`](super::Recheck) stands further in.
    rechecked: bool,
    /// Around all buckets of the host: holds them while an answer to one of them says so, and learns nothing else.
    wide: bool,
    /// The key of the last request: nearly always that of the next one too.
    recent: ArcSwapOption<Recent>,
}

/// What a key was made of, where no tenant is part of it.
struct Recent {
    choice: usize,
    host: Host,
    key: Key,
}

impl<S> QuotaLayer<S> {
    /// Keeps `quota` around `inner`. `shadow`: the label under which what would be held is counted and passes. `rechecked`:
    /// requests may wait further in, and [`Recheck`](super::Recheck) stands behind those waits.
    pub fn new(
        inner: S,
        quota: Arc<Quota>,
        settings: QuotaSettings,
        source: KeySource,
        shadow: Option<Arc<str>>,
        rechecked: bool,
    ) -> Self {
        let recent = ArcSwapOption::empty();
        let route = Route { quota, settings, source, shadow, rechecked, wide: false, recent };
        Self { inner, route: Arc::new(route) }
    }

    /// Holds all buckets of a host while an answer to one of them says so ([`WholeHost`](crate::resilience::verdict::WholeHost)). Stands around the layer that keeps the
    /// buckets, where there is more than one.
    pub fn wide(
        inner: S,
        quota: Arc<Quota>,
        settings: QuotaSettings,
        source: KeySource,
        shadow: Option<Arc<str>>,
        rechecked: bool,
    ) -> Self {
        let recent = ArcSwapOption::empty();
        let route = Route { quota, settings, source, shadow, rechecked, wide: true, recent };
        Self { inner, route: Arc::new(route) }
    }
}

impl<S: Inner> Service<EgressRequest> for QuotaLayer<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: EgressRequest) -> Pending {
        let route = self.route.clone();
        if !route.settings.learn {
            return Box::pin(self.inner.call(request));
        }
        let started = Instant::now();
        let (entry, named) = route.entry_of(&request, started);
        let exchange = request.exchange.clone();
        let outer = request.leave.take().map(Arc::new);
        let first_pass = outer.as_ref().and_then(|leave| entry.number_of(leave));
        let pass = route.pass_at_once(&entry, &exchange, started, first_pass);
        let mut ticket =
            Ticket { route, entry, named, pass, exchange, outer, recalls: 0, first_pass, further_in: None };
        if ticket.pass.is_none() {
            return Box::pin(run(self.inner.clone(), ticket, request));
        }
        if !ticket.route.rechecked {
            let call = self.inner.call(request);
            return Box::pin(async move { ticket.settle(call.await) });
        }
        request.leave = ticket.leave();
        let (call, inner) = (self.inner.call(request), self.inner.clone());
        // The future of the wait is large, and few need it.
        Box::pin(async move {
            let outcome = call.await;
            match ticket.settle_or_back(outcome) {
                Ok(outcome) => outcome,
                Err(request) => Box::pin(run(inner, ticket, request)).await,
            }
        })
    }
}

/// Waits for its turn, and once more whenever the request comes back unsent, because its leave was taken back.
async fn run(
    mut inner: impl Inner,
    mut ticket: Ticket,
    mut request: EgressRequest,
) -> Result<Response<Body>, Failure> {
    let mut patience = ticket.route.settings.max_wait;
    loop {
        if ticket.pass.is_none() {
            patience = ticket.wait(patience).await?;
        }
        request.leave = ticket.leave();
        let outcome = inner.call(request).await;
        match ticket.settle_or_back(outcome) {
            Ok(outcome) => return outcome,
            Err(unsent) => request = unsent,
        }
    }
}

/// The first three segments of the path: as deep as most APIs name what they count.
fn beginning(request: &EgressRequest) -> String {
    let segments = request.path_and_query.path().split('/').skip(1).take(3);
    segments.fold(String::new(), |text, segment| text + "/" + segment)
}

impl Route {
    /// The entry under which a request is counted, and where buckets are named by answers, what leads to the right one.
    fn entry_of(&self, request: &EgressRequest, now: Instant) -> (Arc<Entry>, Option<Named>) {
        let [credential, tenant] = self.source.credential_names(request);
        let host = request.target.host.as_str();
        if self.wide {
            return (self.entry_of_route(request, [credential, tenant, host, "all", "buckets"], now), None);
        }
        match &self.settings.bucket {
            Bucket::Host => (self.entry_of_route(request, [credential, tenant, host, "host", ""], now), None),
            Bucket::Route => {
                let names = [credential, tenant, host, "route", &self.source.route];
                (self.entry_of_route(request, names, now), None)
            }
            Bucket::Path => (self.entry_of_path(beginning(request), request, now), None),
            Bucket::Templates(templates) => {
                let path = request.path_and_query.path();
                let name = templates.iter().find_map(|template| template.name(path));
                (self.entry_of_path(name.unwrap_or_else(|| beginning(request)), request, now), None)
            }
            Bucket::Field(_) => {
                let part = request.exchange.bucket().map_or("", |name| name);
                let names = [credential, tenant, host, "field", part];
                (self.entry(Key::of(&names), names, now), None)
            }
            Bucket::Header(field) => {
                let place = Buckets::place(&self.source.route, request);
                let bucket = self.quota.buckets.get(place);
                let part = bucket.as_deref().unwrap_or_default();
                let names = [credential, tenant, host, "bucket", part];
                let entry = self.entry(Key::of(&names), names, now);
                let named = Named {
                    field: field.clone(),
                    place,
                    bucket,
                    tenant: request.tenant.clone(),
                    host: request.target.host.shared(),
                };
                (entry, Some(named))
            }
        }
    }

    /// The same where the part of the host is the route's, so that only credential, tenant and host can differ.
    fn entry_of_route(&self, request: &EgressRequest, names: [&str; 5], now: Instant) -> Arc<Entry> {
        let (choice, host) = (request.credential_choice, &request.target.host);
        if request.tenant.is_some() {
            return self.entry(Key::of(&names), names, now);
        }
        let recent = self.recent.load();
        if let Some(recent) = recent.as_ref().filter(|own| own.choice == choice && own.host == *host) {
            return self.entry(recent.key, names, now);
        }
        let key = Key::of(&names);
        self.recent.store(Some(Arc::new(Recent { choice, host: host.clone(), key })));
        self.entry(key, names, now)
    }

    /// The entry of a method and a name of paths. Hashed, because it is shown, and a path may hold a secret.
    fn entry_of_path(&self, name: String, request: &EgressRequest, now: Instant) -> Arc<Entry> {
        let [credential, tenant] = self.source.credential_names(request);
        let part = format!("{:016x}", stable_hash(&(name + request.method.as_str())));
        let names = [credential, tenant, request.target.host.as_str(), "path", &part];
        self.entry(Key::of(&names), names, now)
    }

    /// The entry of credential, tenant, host, and the part of the host that the quota covers.
    fn entry(&self, key: Key, names: [&str; 5], now: Instant) -> Arc<Entry> {
        let [credential, tenant, host, kind, part] = names;
        self.quota.entry(key, now, || Names {
            credential: credential.into(),
            tenant: stable_hash(tenant),
            bucket: if part.is_empty() { host.into() } else { format!("{host}/{kind}:{part}").into() },
        })
    }

    /// Lets a request through that need not wait; in shadow mode, every one.
    fn pass_at_once(
        &self,
        entry: &Entry,
        exchange: &Exchange,
        now: Instant,
        back: Option<u64>,
    ) -> Option<Pass> {
        if let Some(pass) = entry.try_pass(now, self.settings.reserve, back) {
            return Some(pass);
        }
        count(&self.quota.counters.held, 1);
        let label = self.shadow.as_ref()?;
        exchange.shadowed(label);
        count(&self.quota.counters.shadowed, 1);
        Some(entry.force(now))
    }

    /// Waits for its turn, at most for `patience`, or refuses.
    async fn wait(
        &self,
        entry: &Entry,
        exchange: &Exchange,
        now: Instant,
        patience: Duration,
        back: Option<u64>,
    ) -> Result<Pass, Failure> {
        let settings = &self.settings;
        let passed = match settings.on_excess {
            QuotaExcess::Reject => Err(entry.refusal(now, settings.reserve)),
            QuotaExcess::Wait => {
                let longest = now + patience;
                let until = exchange.deadline.map_or(longest, |deadline| deadline.min(longest));
                let (reserve, max_queue) = (settings.reserve, settings.max_queue);
                let patience = Patience { reserve, until, max_queue, back };
                entry.wait(patience).await
            }
        };
        passed.map_err(|refusal| {
            count(&self.quota.counters.refused, 1);
            failure(refusal)
        })
    }
}

fn failure(refusal: Refusal) -> Failure {
    let failure = Failure::not_sent(refusal.fault).retry_after(refusal.retry_after);
    match refusal.limit {
        Some(limit) => failure.limit(limit),
        None => failure,
    }
}

/// FNV-1a over a name: the same in every instance, unlike a [`Key`]. It keeps names out of logs and shared stores; it is
/// no protection against someone who guesses them. Zero for no name.
fn stable_hash(name: &str) -> u64 {
    if name.is_empty() {
        return 0;
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}

/// What leads from an answer that names its bucket to the entry of that bucket.
struct Named {
    field: HeaderName,
    place: Key,
    /// The bucket under which the request was let through.
    bucket: Option<Arc<str>>,
    tenant: Option<Arc<str>>,
    host: Arc<str>,
}

#[cfg(test)]
mod tests;
