//! A route, live: its settings prepared for the exchange, and its stack of layers.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Response};

use super::client_certificates::HealByCertificate;
use super::error::EgressError;
use super::generation::Around;
use super::renewals::{Origin, renewals};
use crate::credential::kinds::placeholder::known::Guard;
use crate::credential::layer::Inject;
use crate::credential::{Location, Locations};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;
use crate::policy::compiled::{HeaderEdits, Provider, Route, Tenant, TenantFrom};
use crate::policy::tenant_pattern::TenantPattern;
use crate::resilience::circuit_breaker::FallbackAnswer;
use crate::resilience::retry::Heal;
use crate::resilience::timeout::AttemptTimeouts;
use crate::resilience::{Layers, RouteService, wrap};
use crate::telemetry::{Redaction, RouteMetrics};
use crate::upstream::Upstream;

/// A route with its stack. The exchange asks it; it never hands out what is inside the stack.
pub struct RouteStack {
    /// Provider, for record and metrics.
    pub provider: Arc<str>,
    /// Route, for record and metrics.
    pub name: Arc<str>,
    /// What of URLs is logged.
    pub redaction: Arc<Redaction>,
    /// Counters, resolved.
    pub metrics: Arc<RouteMetrics>,
    /// Until a head is there.
    pub deadline: Duration,
    /// Silence in upgraded connections.
    pub upgrade_idle: Duration,
    /// Largest request body in bytes.
    pub max_body: Option<u64>,
    tenant: Option<Tenant>,
    locations: Locations,
    edits: HeaderEdits,
    query: Locations,
    placeholders: Option<Guard>,
    service: RouteService,
}

impl RouteStack {
    /// Builds the stack of a route around its provider's upstream.
    pub(super) fn build(
        provider: &Provider,
        route: &Route,
        upstream: &Arc<Upstream>,
        redaction: &Arc<Redaction>,
        around: &Around<'_>,
    ) -> Self {
        let Around { generation, shared, fleet, placeholders } = *around;
        let settings = &route.settings;
        let timeouts = settings.timeouts;
        let attempt =
            AttemptTimeouts { response: timeouts.response, idle: timeouts.idle, total: timeouts.total };
        let credential = (!settings.credential.is_empty())
            .then(|| shared.credential(&provider.name, &settings.credential));
        let metrics = shared.telemetry.metrics.route(&provider.name, &route.name);
        let mut layers = shared.layers.of(provider, route, attempt, fleet, credential.as_ref());
        if let Some((_, cache)) = &mut layers.cache {
            let origin = Origin {
                generation,
                provider: provider.name.clone(),
                route: route.name.clone(),
                redaction: redaction.clone(),
                metrics: metrics.clone(),
            };
            cache.renewals = Some(renewals(shared.telemetry.clone(), origin));
        }
        let (service, locations) = match credential {
            None if upstream.overlaps() => {
                let metrics = shared.telemetry.metrics.provider(&provider.name);
                let heal = HealByCertificate { upstream: upstream.clone(), metrics };
                let layers = Layers { heal: Some(Arc::new(heal)), ..layers };
                (wrap(layers, upstream.service()), Locations::default())
            }
            None => (wrap(layers, upstream.service()), Locations::default()),
            Some(credential) => {
                let locations = credential.locations();
                let inject = Inject::new(upstream.service(), credential.clone(), settings.scrub);
                // A single value from the environment can neither change nor be replaced.
                let heal = credential.can_heal().then_some(credential as Arc<dyn Heal>);
                (wrap(Layers { heal, ..layers }, inject), locations)
            }
        };
        Self {
            provider: provider.name.clone(),
            name: route.name.clone(),
            redaction: redaction.clone(),
            metrics,
            deadline: timeouts.deadline,
            upgrade_idle: timeouts.upgrade_idle,
            max_body: settings.max_body,
            tenant: provider.tenant.clone(),
            locations: with_tenant(locations, provider.tenant.as_ref()),
            edits: settings.headers.clone(),
            query: Locations::new(settings.query_remove.iter().cloned().map(Location::Query)),
            placeholders: placeholders.map(|known| known.guard(&settings.credential)),
            service,
        }
    }

    /// Whose request it is, and takes the tenant's name out of it. `proven`: the tenant whose token the client sent to the
    /// listener. `Err` where a tenant must be named and is not, or the name is not one plain value.
    pub fn tenant(
        &self,
        headers: &mut HeaderMap,
        proven: Option<&Arc<str>>,
    ) -> Result<Option<Arc<str>>, EgressError> {
        let Some(Tenant { from, required }) = &self.tenant else { return Ok(None) };
        let (found, missing) = match from {
            TenantFrom::Header(header, pattern) => (named_tenant(headers, header, pattern)?, NO_TENANT),
            TenantFrom::Token => (proven.cloned(), EgressError::denied(NO_TENANT_TOKEN)),
        };
        if found.is_none() && *required { Err(missing) } else { Ok(found) }
    }

    /// Refuses a request that holds a placeholder of the policy where it would not be replaced.
    pub fn check_placeholders(&self, headers: &HeaderMap, target: &PathAndQuery) -> Result<(), EgressError> {
        let Some(guard) = &self.placeholders else { return Ok(()) };
        guard.check(headers, target).map_err(|_| EgressError::denied(MISPLACED))
    }

    /// The same for a trailer section, in which none is replaced; `Err` tells the app what is wrong.
    pub fn check_trailers(&self, trailers: &HeaderMap) -> Result<(), &'static str> {
        let Some(guard) = &self.placeholders else { return Ok(()) };
        guard.check_trailers(trailers).map_err(|_| MISPLACED)
    }

    /// The same for the next piece of a body, which passes with the placeholders of this route; `before` is the end of what came
    /// before it.
    pub fn check_body(&self, before: &mut Vec<u8>, piece: &[u8]) -> Result<(), &'static str> {
        let Some(guard) = &self.placeholders else { return Ok(()) };
        guard.check_body(before, piece).map_err(|_| MISPLACED)
    }

    /// Takes out what the client sent at the credential's places, then applies the policy's changes of headers and query.
    pub fn prepare(&self, headers: &mut HeaderMap, target: PathAndQuery) -> PathAndQuery {
        self.locations.strip_headers(headers);
        self.edits.apply(headers);
        self.query.strip_query(self.locations.strip_query(target))
    }

    /// Whether a field of this name in a trailer section belongs to outgate.
    pub fn owns_header(&self, name: &HeaderName) -> bool {
        self.locations.owns_header(name)
    }

    /// Sends a request through the stack.
    pub async fn send(&self, request: EgressRequest) -> Result<Response<Body>, Failure> {
        let exchange = request.exchange.clone();
        let response = self.service.send(request).await?;
        if response.extensions().get::<FallbackAnswer>().is_some() {
            let answer = EgressError::from(Failure::not_sent(Fault::BreakerOpen)).answer();
            exchange.facts().instead = Some((answer.flag, answer.code));
        }
        Ok(response)
    }
}

/// The tenant's name goes no further, in no spelling of its field and in no trailer.
fn with_tenant(locations: Locations, tenant: Option<&Tenant>) -> Locations {
    let Some(Tenant { from: TenantFrom::Header(header, _), .. }) = tenant else { return locations };
    Locations::new(locations.iter().cloned().chain([Location::Header(header.clone())]))
}

const MISPLACED: &str = "the request holds a placeholder where it is not replaced: that of another provider, or at another place (`placeholder.in`)";

const NO_TENANT: EgressError = EgressError::BadRequest("the header that names the tenant is missing");
const NO_TENANT_TOKEN: &str =
    "the policy wants to know the tenant, and the client sent no tenant's token to the listener";

fn named_tenant(
    headers: &mut HeaderMap,
    header: &HeaderName,
    pattern: &TenantPattern,
) -> Result<Option<Arc<str>>, EgressError> {
    let mut values = headers.get_all(header).iter();
    let found = match (values.next(), values.next()) {
        (Some(value), None) => Some(tenant_name(value, pattern)?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(BAD_TENANT),
    };
    headers.remove(header);
    Ok(found)
}

/// A tenant's name, if it looks as the policy says.
fn tenant_name(value: &http::HeaderValue, pattern: &TenantPattern) -> Result<Arc<str>, EgressError> {
    let text = value.to_str().map_err(|_| BAD_TENANT)?.trim();
    if pattern.admits(text) { Ok(text.into()) } else { Err(BAD_TENANT) }
}

const BAD_TENANT: EgressError = EgressError::BadRequest(
    "the header that names the tenant does not hold one name as the policy wants it (`tenant.pattern`), once",
);
