//! The layer under paused time, around a provider that records when it was called.

mod changes;
mod given_back;
mod leases;
mod memory;
mod queue;
mod several;

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use http::Response;
use tokio::time::{Instant, advance, sleep};
use tower::{Service, service_fn};

use super::layer::RateLimit;
use super::lease::{Leases, RateLease};
use super::limiter::{Limiter, Tokens};
use super::settings::{LimitSettings, OnExcess, Scope, Unit};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::{EgressParts, EgressRequest};
use crate::resilience::Inner;
use crate::resilience::key::{KeySource, Per};
use crate::resilience::mode::Mode;
use crate::resilience::timeout::tests::request_with;

type Calls = Arc<Mutex<Vec<(Duration, String)>>>;

/// A provider that answers at once, and records when which tenant called.
fn provider() -> (impl Inner, Calls) {
    let (calls, started) = (Calls::default(), Instant::now());
    let log = calls.clone();
    let service = service_fn(move |request: EgressRequest| {
        let tenant = request.tenant.as_deref().unwrap_or_default().to_owned();
        log.lock().unwrap().push((started.elapsed(), tenant));
        async { Ok::<_, Failure>(Response::new(Body::empty())) }
    });
    (service, calls)
}

fn settings(rate: &str, burst: u32) -> LimitSettings {
    LimitSettings {
        name: "account".into(),
        rate: rate.parse().unwrap(),
        burst,
        unit: Unit::Requests,
        per: Per::Provider,
        scope: Scope::Pod,
        on_excess: OnExcess::Wait,
        max_wait: Duration::from_secs(5),
        max_queue: 1000,
        mode: Mode::Enforce,
    }
}

fn limiter(settings: LimitSettings) -> Arc<Limiter> {
    Arc::new(Limiter::new(settings, Tokens::Own))
}

fn layer<S>(inner: S, limits: &[&Arc<Limiter>]) -> RateLimit<S> {
    let source = KeySource { route: "r".into(), ..KeySource::default() };
    RateLimit::new(inner, limits.iter().map(|limit| (*limit).clone()).collect(), source, false)
}

fn request() -> EgressRequest {
    request_with(Body::empty(), None)
}

fn of(tenant: impl std::fmt::Display) -> EgressRequest {
    EgressRequest::from(EgressParts { tenant: Some(tenant.to_string().into()), ..request().into_parts() })
}

/// The times are those of timers, which are late by a millisecond.
fn near(found: Duration, expected: Duration) -> bool {
    found.abs_diff(expected) <= Duration::from_millis(5)
}

fn millis(calls: &Calls) -> Vec<u128> {
    calls.lock().unwrap().iter().map(|(at, _)| at.as_millis()).collect()
}

fn tenants(calls: &Calls) -> Vec<String> {
    calls.lock().unwrap().iter().map(|(_, tenant)| tenant.clone()).collect()
}

/// Lets spawned requests run until they wait.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
