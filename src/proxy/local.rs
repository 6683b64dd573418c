//! The local endpoint: `/<provider>/...`, `/<provider>@<host>/...`, `<provider>.localhost`, a provider's own host name in
//! `Host`, or a port of its own.
//!
//! It adds credentials to plain HTTP, so it is a target for every web page that is open on the same machine: it answers to
//! names from a fixed list only, and never to a request that a browser sends across sites.

use http::HeaderMap;
use http::header::{HeaderName, ORIGIN};
use http::uri::PathAndQuery;

use super::context::ConnectionContext;
use super::dispatch::{Arrival, named_hosts, note_target};
use super::exchange::Judged;
use super::links::LocalForm;
use crate::message::target::{Authority, TargetFault};
use crate::pipeline::error::EgressError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Judges a request at the local endpoint.
pub fn judge(context: &ConnectionContext, arrival: &mut Arrival) -> Result<Judged, EgressError> {
    if !context.listener.local {
        return Err(EgressError::BadRequest(
            "this listener has no local endpoint: send an absolute target, or CONNECT",
        ));
    }
    let authority = authority_of(arrival)?;
    refuse_other_sites(context, &arrival.parts.headers, &authority)?;
    let generation = arrival.generation.clone();
    let path = arrival.parts.uri.path().to_owned();
    let decision = match &context.listener.provider {
        Some(provider) => generation.local_of_provider(provider, &path),
        None if context.listener.is_own_name(&authority.host) => generation.local_by_path(&path),
        None => generation.local_by_host(&authority.host, authority.port, &path),
    };
    let is_own = context.listener.is_own_name(&authority.host);
    let Some(decision) = decision else {
        return Err(if is_own {
            EgressError::denied("no provider has this path prefix at the local endpoint")
        } else {
            EgressError::Misdirected("the local endpoint does not answer to this name")
        });
    };
    if context.listener.provider.is_some()
        && !is_own
        && generation.local_by_host(&authority.host, authority.port, &path).is_none()
    {
        return Err(EgressError::Misdirected("the local endpoint does not answer to this name"));
    }
    let target = generation.local_target(&decision)?;
    note_target(
        &mut arrival.record,
        target.scheme,
        &Authority { host: target.host.clone(), port: None },
        target.port,
    );
    let rest = if decision.path.is_empty() { "/" } else { decision.path };
    let path_and_query = with_query(rest, arrival.parts.uri.query())?;
    let prefix = (!decision.prefix.is_empty()).then(|| decision.prefix.to_string());
    let local = LocalForm { generation: generation.clone(), provider: decision.provider, prefix };
    let admission = generation.admit_local(&decision, &arrival.parts.method, rest)?;
    Ok(Judged { admission, path_and_query, local: Some(local) })
}

/// What the app called outgate by. Absolute target or `:authority`, and `Host`, must agree.
fn authority_of(arrival: &Arrival) -> Result<Authority, EgressError> {
    let mut named = named_hosts(&arrival.parts)?.into_iter();
    match (named.next(), named.next()) {
        (Some(first), Some(second)) if first != second => {
            Err(EgressError::Misdirected("the target and the Host field name different hosts"))
        }
        (Some(first), _) => Ok(first),
        (None, _) => Err(EgressError::Target(TargetFault::Empty)),
    }
}

/// Browsers say where a request comes from; SDKs do not. What comes from another site is refused (Fetch standard,
/// `Sec-Fetch-Site`, and `Origin` for browsers without it).
fn refuse_other_sites(
    context: &ConnectionContext,
    headers: &HeaderMap,
    own: &Authority,
) -> Result<(), EgressError> {
    let refused =
        || Err(EgressError::denied("the local endpoint takes no requests from web pages of other sites"));
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return if site == "same-origin" || site == "none" { Ok(()) } else { refused() };
    }
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let host = origin
        .to_str()
        .ok()
        .and_then(|text| text.split_once("://"))
        .and_then(|(_, authority)| Authority::parse(authority).ok());
    match host {
        Some(origin) if context.listener.is_own_name(&origin.host) || origin.host == own.host => Ok(()),
        Some(_) | None => refused(),
    }
}

fn with_query(path: &str, query: Option<&str>) -> Result<PathAndQuery, EgressError> {
    let text = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    PathAndQuery::try_from(text).map_err(|_| EgressError::BadRequest("the target is not a path"))
}
