//! Tells the doors apart, by the request itself: CONNECT, absolute form, origin form, and what comes out of an intercepted
//! connection. Each door judges, and hands over to `exchange`.

use std::sync::Arc;

use http::header::{HOST, MAX_FORWARDS};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::connect;
use super::context::{ConnectionContext, Owner, Proxy, TokenOwner, owner_of_token};
use super::exchange::{Judged, exchange, refuse};
use super::local;
use super::original::Redirected;
use super::socket::ActivityGuard;
use super::transparent::plain_target;
use crate::message::body::Body;
use crate::message::headers::{check_request, has_looped};
use crate::message::record::{self, Record};
use crate::message::target::{Authority, Scheme, TargetFault};
use crate::pipeline::error::EgressError;
use crate::pipeline::generation::Generation;
use crate::telemetry::{Door, Original, new_request_id};

/// A request at its door, before it was judged.
pub struct Arrival {
    /// Its head.
    pub parts: Parts,
    /// Its body; taken when it is sent.
    pub incoming: Option<Incoming>,
    /// Its record.
    pub record: Record,
    /// Keeps its connection from being idle.
    pub active: ActivityGuard,
    /// The generation that judges it.
    pub generation: Arc<Generation>,
    /// The tenant whose token the client sent to the listener.
    pub proven_tenant: Option<Arc<str>>,
    door: Door,
}

impl Arrival {
    /// Opens the record of a request, and takes the generation that judges it.
    pub fn open(proxy: &Arc<Proxy>, context: &ConnectionContext, request: Request<Incoming>) -> Self {
        let active = context.activity.begin_work(&proxy.work);
        let generation = proxy.generation.load_full();
        let (parts, incoming) = request.into_parts();
        context.activity.set_unread(!http_body::Body::is_end_stream(&incoming));
        let door = door_of(context, &generation, &parts);
        let record = open(proxy, context, &parts, door, &generation);
        let proven_tenant = context.proven_tenant.clone();
        Self { parts, incoming: Some(incoming), record, active, generation, proven_tenant, door }
    }
}

/// Serves one request.
pub async fn dispatch(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    mut arrival: Box<Arrival>,
) -> Response<Body> {
    match admit_at_all(proxy, context, &arrival.parts).await {
        Ok(Some(Owner::Tenant(name))) => arrival.proven_tenant = Some(name),
        Ok(Some(Owner::Anyone) | None) => {}
        Err(error) => return refuse_arrival(proxy, context, &error, *arrival),
    }
    if arrival.parts.method == Method::CONNECT {
        return Box::pin(connect::connect(proxy, context, *arrival)).await;
    }
    if arrival.parts.uri.path() == "*" || ends_here(&mut arrival.parts) {
        return asterisk(proxy, context, *arrival);
    }
    match judge(context, &mut arrival).await {
        Ok(judged) => exchange(proxy, context, arrival, judged).await,
        Err(error) => refuse_arrival(proxy, context, &error, *arrival),
    }
}

fn door_of(context: &ConnectionContext, generation: &Generation, parts: &Parts) -> Door {
    if context.redirected.is_some() {
        return Door::Transparent;
    }
    if context.intercepted.is_some() {
        return Door::Intercept;
    }
    if parts.method == Method::CONNECT {
        return Door::Connect;
    }
    // Over HTTP/2 every request has an authority; on a plain listener that is the local endpoint (gRPC without TLS).
    let absolute = parts.uri.scheme().is_some() && parts.version != Version::HTTP_2;
    if absolute && !names_own_listener(context, generation, parts) { Door::Forward } else { Door::Local }
}

/// A client with proxy variables set that calls `http://127.0.0.1:3128/stripe/...` or `http://stripe.localhost:3128/...` sends it
/// as an absolute request to outgate itself.
fn names_own_listener(context: &ConnectionContext, generation: &Generation, parts: &Parts) -> bool {
    let Some(authority) =
        parts.uri.authority().and_then(|authority| Authority::parse(authority.as_str()).ok())
    else {
        return false;
    };
    let port = authority.port.or(Some(80));
    (context.listener.is_own_name(&authority.host) || generation.policy().is_local_host(&authority.host))
        && (port == context.listener.port || context.listener.port.is_none())
}

fn open(
    proxy: &Arc<Proxy>,
    context: &ConnectionContext,
    parts: &Parts,
    door: Door,
    generation: &Generation,
) -> Record {
    let mut record =
        Record::open(&proxy.telemetry, &proxy.abort, new_request_id(), door, context.listener.name.clone());
    let event = &mut record.event;
    event.client = Some(context.client);
    event.original = context.redirected.map(Redirected::noted);
    event.method = Some(generation.redaction().method(&parts.method));
    event.downstream_version = Some(record::version(parts.version));
    event.generation = generation.number;
    note_connection(&mut record, context);
    record
}

/// Where a request inside an intercepted connection goes whatever it says: for those that are refused before they are judged.
pub fn note_connection(record: &mut Record, context: &ConnectionContext) {
    if let Some((host, port)) = &context.intercepted {
        record.event.scheme = Some(Scheme::Https.as_str());
        record.event.host = Some(host.shared());
        record.event.port = Some(*port);
    }
}

/// What is asked of every request before its target is looked at. Gives the owner of the token that it carries, where the
/// listener asks for one.
async fn admit_at_all(
    proxy: &Proxy,
    context: &ConnectionContext,
    parts: &Parts,
) -> Result<Option<Owner>, EgressError> {
    // hyper bounds the bytes of a head in HTTP/2, and not the fields: small ones are cheap to send and dear to keep.
    if parts.headers.len() > proxy.bounds.max_headers {
        return Err(EgressError::TooManyFields);
    }
    check_request(parts.version, &parts.headers)?;
    // RFC 9112 section 3.2.3. Taken for an origin form, it would be judged by a name that no other server sees.
    let authority_form = parts.uri.scheme().is_none() && parts.uri.authority().is_some();
    if authority_form && parts.version != Version::HTTP_2 && parts.method != Method::CONNECT {
        return Err(EgressError::BadRequest("only CONNECT has a target in authority form"));
    }
    let owner = match (&context.listener.tokens, &context.intercepted) {
        (Some(tokens), None) => Some(authenticate(proxy, context, parts, tokens).await?),
        (Some(_), Some(_)) | (None, _) => None,
    };
    if has_looped(&parts.headers, &proxy.pseudonym.name) {
        return Err(EgressError::Loop);
    }
    if context.late && proxy.overload.is_full() {
        return Err(EgressError::Overloaded);
    }
    Ok(owner)
}

async fn authenticate(
    proxy: &Proxy,
    context: &ConnectionContext,
    parts: &Parts,
    tokens: &TokenOwner,
) -> Result<Owner, EgressError> {
    if let Some(owner) = owner_of_token(&parts.headers, tokens) {
        return Ok(owner);
    }
    if parts.headers.contains_key(http::header::PROXY_AUTHORIZATION) {
        proxy.guesses.wrong(context.client).await;
    }
    Err(EgressError::ProxyAuth)
}

/// Whether an OPTIONS asks for this very hop (`Max-Forwards: 0`); on its way to a further one it has one forward less (RFC 9110
/// section 7.6.2). A value that is no number is left to the provider.
fn ends_here(parts: &mut Parts) -> bool {
    if parts.method != Method::OPTIONS {
        return false;
    }
    let left = parts.headers.get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match left {
        None => false,
        Some(0) => true,
        Some(left) => {
            parts.headers.insert(MAX_FORWARDS, (left - 1).into());
            false
        }
    }
}

/// `OPTIONS *` is about outgate itself (RFC 9110 section 9.3.7); any other method has no asterisk form.
fn asterisk(proxy: &Arc<Proxy>, context: &Arc<ConnectionContext>, mut arrival: Arrival) -> Response<Body> {
    if arrival.parts.method != Method::OPTIONS {
        let error = EgressError::BadRequest("only OPTIONS has an asterisk form");
        return refuse_arrival(proxy, context, &error, arrival);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    super::respond::stamp(response.headers_mut(), &arrival.record.event.request_id);
    arrival.record.answered(204);
    arrival.record.finish();
    response
}

async fn judge(context: &ConnectionContext, arrival: &mut Arrival) -> Result<Judged, EgressError> {
    match arrival.door {
        Door::Intercept => intercepted(context, arrival),
        Door::Transparent if context.intercepted.is_some() => intercepted(context, arrival),
        Door::Transparent => redirected(context, arrival).await,
        Door::Forward => forward(context, arrival),
        Door::Local => local::judge(context, arrival),
        Door::Connect | Door::Tunnel | Door::Renewal => Err(EgressError::Internal),
    }
}

fn forward(context: &ConnectionContext, arrival: &mut Arrival) -> Result<Judged, EgressError> {
    if !context.listener.forward {
        return Err(EgressError::BadRequest("this listener takes no requests in absolute form"));
    }
    let uri = &arrival.parts.uri;
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        Some(_) | None => {
            return Err(EgressError::BadRequest("the scheme of the target is neither http nor https"));
        }
    };
    let authority = uri.authority().ok_or(EgressError::Target(TargetFault::Empty))?;
    let authority = Authority::parse(authority.as_str())?;
    // The target decides, and a Host that says something else is ignored (RFC 9112 section 3.2.2); but one that is no host
    // at all is not let through.
    check_host_field(arrival)?;
    let port = authority.port.unwrap_or(scheme.default_port());
    note_target(&mut arrival.record, scheme, &authority, port);
    let path = arrival.parts.uri.path();
    let admission = arrival.generation.admit_forward(
        &arrival.parts.method,
        scheme,
        &authority.host,
        authority.port,
        path,
    )?;
    Ok(Judged { admission, path_and_query: target_of(&arrival.parts)?, local: None })
}

fn check_host_field(arrival: &Arrival) -> Result<(), EgressError> {
    match arrival.parts.headers.get(HOST) {
        None => Ok(()),
        Some(value) => {
            let text = value.to_str().map_err(|_| EgressError::Target(TargetFault::Character))?;
            Authority::parse(text)?;
            Ok(())
        }
    }
}

/// On a redirected connection without TLS: as in absolute form, with the host that the head names and the port that was
/// dialled.
async fn redirected(context: &ConnectionContext, arrival: &mut Arrival) -> Result<Judged, EgressError> {
    let Some(redirected) = context.redirected else { return Err(EgressError::Internal) };
    let (parts, original) = (&arrival.parts, redirected.original);
    let authority = plain_target(named_hosts(parts)?, redirected, parts.uri.scheme_str())?;
    note_target(&mut arrival.record, Scheme::Http, &authority, original.port());
    let Parts { method, uri, .. } = &arrival.parts;
    let admission = arrival.generation.admit_forward(
        method,
        Scheme::Http,
        &authority.host,
        authority.port,
        uri.path(),
    )?;
    let resolved = admission.judge_original(original).await?;
    arrival.record.event.original = Some(Original { address: original, resolved });
    Ok(Judged { admission, path_and_query: target_of(&arrival.parts)?, local: None })
}

/// Inside an intercepted connection the CONNECT target is the only host there is.
fn intercepted(context: &ConnectionContext, arrival: &mut Arrival) -> Result<Judged, EgressError> {
    let Some((host, port)) = &context.intercepted else { return Err(EgressError::Internal) };
    let (host, port) = (host.clone(), *port);
    note_target(
        &mut arrival.record,
        Scheme::Https,
        &Authority { host: host.clone(), port: Some(port) },
        port,
    );
    if arrival.parts.uri.scheme_str().is_some_and(|scheme| scheme != "https") {
        return Err(EgressError::Misdirected("the scheme inside the connection is not https"));
    }
    for named in named_hosts(&arrival.parts)? {
        if named.host != host || named.port.unwrap_or(443) != port {
            return Err(EgressError::Misdirected(
                "the request's host is not the one the tunnel was opened for",
            ));
        }
    }
    let path = arrival.parts.uri.path();
    let admission = arrival.generation.admit_intercepted(&arrival.parts.method, &host, port, path)?;
    Ok(Judged { admission, path_and_query: target_of(&arrival.parts)?, local: None })
}

/// Every host that the head names: `:authority` or the absolute target, and `Host`.
pub fn named_hosts(parts: &Parts) -> Result<Vec<Authority>, EgressError> {
    let mut named = Vec::with_capacity(2);
    if let Some(authority) = parts.uri.authority() {
        named.push(Authority::parse(authority.as_str())?);
    }
    if let Some(value) = parts.headers.get(HOST) {
        let text = value.to_str().map_err(|_| EgressError::Target(TargetFault::Character))?;
        named.push(Authority::parse(text)?);
    }
    Ok(named)
}

/// Writes the target into the record.
pub fn note_target(record: &mut Record, scheme: Scheme, authority: &Authority, port: u16) {
    record.event.scheme = Some(scheme.as_str());
    record.event.host = Some(authority.host.shared());
    record.event.port = Some(port);
}

/// Path and query as they were received; `/` where there is no path (RFC 9110 section 4.2.3). `http` keeps the query of
/// `http://host?x` as it stands, and as a `:path` that would be malformed (RFC 9113 section 8.3.1).
pub fn target_of(parts: &Parts) -> Result<PathAndQuery, EgressError> {
    match parts.uri.path_and_query() {
        None => Ok(PathAndQuery::from_static("/")),
        Some(target) if target.as_str().starts_with('/') => Ok(target.clone()),
        // Its text in full has the slash.
        Some(target) => PathAndQuery::try_from(target.to_string())
            .map_err(|_| EgressError::BadRequest("the target is not a path")),
    }
}

/// Refuses a request at its door.
pub fn refuse_arrival(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    error: &EgressError,
    mut arrival: Arrival,
) -> Response<Body> {
    if arrival.parts.method != Method::CONNECT {
        let redaction = arrival.generation.redaction();
        arrival.record.event.path = Some(redaction.path(arrival.parts.uri.path()).into_owned());
        arrival.record.event.query = arrival.parts.uri.query().and_then(|query| redaction.query(query));
    }
    if let EgressError::Denied { by: Some(by), .. } = error {
        arrival.record.routed(&by.provider, &by.route, &by.metrics);
    }
    refuse(proxy, context, error, &arrival.parts.method, arrival.record, arrival.active)
}
