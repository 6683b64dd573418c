//! The state alone, and the two layers around a scripted provider.

mod hosts;
mod layers;
mod queue;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::{Response, StatusCode};
use tower::{Service, service_fn};

use super::*;
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::quantity::Ratio;
use crate::message::request::EgressRequest;
use crate::message::target::Host;
use crate::resilience::timeout::tests::request_with;
use crate::resilience::verdict::{Class, Verdict};
use crate::resilience::{Inner, RouteService};

const SECOND: Duration = Duration::from_secs(1);

/// The documented defaults.
fn rules() -> Rules {
    let rate = ErrorRate { threshold: Ratio::from_percent(50), window: 30 * SECOND, min_requests: 20 };
    Rules {
        failures: 5,
        error_rate: Some(rate),
        open_for: 30 * SECOND,
        max_open_for: 300 * SECOND,
        probes: 1,
        successes: 2,
    }
}

fn settings(rules: Rules) -> BreakerSettings {
    BreakerSettings { rules, fallback: Fallback::None, shadow: false }
}

fn breakers(rules: Rules) -> Arc<Breakers> {
    Arc::new(Breakers::new("geo".into(), settings(rules)))
}

/// A provider that answers with the status it is set to, or resets the connection at 0, and counts what reaches it.
#[derive(Default)]
struct Provider {
    status: AtomicU32,
    reached: AtomicU32,
    running: AtomicU32,
    most: AtomicU32,
    takes: Duration,
}

impl Provider {
    fn new(status: u32) -> Arc<Self> {
        Self::slow(status, Duration::ZERO)
    }

    fn slow(status: u32, takes: Duration) -> Arc<Self> {
        Arc::new(Self { status: status.into(), takes, ..Self::default() })
    }

    fn is(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn reached(&self) -> u32 {
        self.reached.load(Ordering::SeqCst)
    }

    fn service(self: &Arc<Self>) -> impl Inner + use<> {
        let provider = self.clone();
        service_fn(move |request: EgressRequest| {
            let provider = provider.clone();
            async move { provider.serve(request).await }
        })
    }

    async fn serve(&self, request: EgressRequest) -> Result<Response<Body>, Failure> {
        request.exchange.handed_over();
        self.reached.fetch_add(1, Ordering::SeqCst);
        let here = Here::enter(self);
        if !self.takes.is_zero() {
            tokio::time::sleep(self.takes).await;
        }
        drop(here);
        match u16::try_from(self.status.load(Ordering::SeqCst)).unwrap() {
            0 => Err(Failure::sent(Fault::Reset)),
            status => Ok(judged(status, None)),
        }
    }
}

struct Here<'a>(&'a Provider);

impl<'a> Here<'a> {
    fn enter(provider: &'a Provider) -> Self {
        let running = provider.running.fetch_add(1, Ordering::SeqCst) + 1;
        provider.most.fetch_max(running, Ordering::SeqCst);
        Self(provider)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An answer with the verdict of the built-in rows.
fn judged(status: u16, wait: Option<Duration>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let class = match status {
        429 => Class::Throttle,
        401 => Class::Unauthorized,
        502..=504 => Class::Unavailable,
        400..=499 => Class::Final,
        _ => Class::Success,
    };
    Verdict { class, acted: class.acted(), wait }.note(&mut response);
    response
}

fn to(host: &str, port: u16) -> EgressRequest {
    let mut request = request_with(Body::empty(), None);
    request.target.host = Host::parse(host).unwrap();
    request.target.port = port;
    request
}

/// Both layers, with nothing between.
fn both(inner: impl Inner, breakers: &Arc<Breakers>) -> impl Inner {
    Look::new(RouteService::boxing(Take::new(inner, breakers.clone(), None)), breakers.clone(), None)
}

async fn send(stack: &impl Inner) -> Result<u16, Option<Duration>> {
    let answer = stack.clone().call(request_with(Body::empty(), None)).await;
    answer.map(|response| response.status().as_u16()).map_err(|failure| {
        assert!(matches!(failure.fault, Fault::BreakerOpen | Fault::Reset), "{failure:?}");
        failure.retry_after
    })
}

async fn send_times(stack: &impl Inner, times: u32) {
    for _ in 0..times {
        let _ = send(stack).await;
    }
}
