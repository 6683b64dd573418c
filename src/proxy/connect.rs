//! CONNECT: refused, tunnelled, or intercepted.
//!
//! The name is resolved and its addresses are judged before the 200, so a forbidden address is a 403 that the app sees; the
//! provider is dialled only when the first bytes inside have been read and judged too.

use std::sync::Arc;

use http::header::HeaderMap;
use http::request::Parts;
use http::{Response, Uri, Version};
use hyper::upgrade::{OnUpgrade, Parts as UpgradedParts, Upgraded};
use hyper_util::rt::TokioIo;

use super::context::{ConnectionContext, Proxy};
use super::dispatch::{Arrival, note_target, refuse_arrival};
use super::respond::stamp;
use super::rest::Awaited;
use super::socket::{ActivityGuard, Socket};
use super::{intercept, tunnel};
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::record::Record;
use crate::message::target::{Authority, Host, Scheme, TargetFault};
use crate::pipeline::error::EgressError;
use crate::pipeline::generation::ConnectAdmission;
use crate::telemetry::{Door, Flag};

/// Serves a CONNECT.
pub async fn connect(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    mut arrival: Arrival,
) -> Response<Body> {
    match judge(context, &mut arrival).await {
        Ok((admission, host, port)) => accept(proxy, context, arrival, admission, host, port),
        Err(error) => refuse_arrival(proxy, context, &error, arrival),
    }
}

async fn judge(
    context: &ConnectionContext,
    arrival: &mut Arrival,
) -> Result<(ConnectAdmission, Host, u16), EgressError> {
    if context.intercepted.is_some() || arrival.parts.version == Version::HTTP_2 {
        return Err(EgressError::BadRequest("CONNECT wants a plain HTTP/1 connection to outgate"));
    }
    if !context.listener.connect {
        return Err(EgressError::BadRequest("this listener takes no CONNECT"));
    }
    let authority = authority(&arrival.parts.uri)?;
    let port = authority.port.ok_or(EgressError::Target(TargetFault::Port))?;
    note_target(&mut arrival.record, Scheme::Https, &authority, port);
    arrival.record.event.scheme = None;
    if has_body(&arrival.parts.headers) {
        return Err(EgressError::BadRequest("CONNECT has no body"));
    }
    let admission = arrival.generation.admit_connect(&authority.host, port)?;
    match &admission {
        ConnectAdmission::Intercept(permit) => {
            arrival.record.event.provider = Some(permit.provider.clone());
            permit.check().await?;
        }
        ConnectAdmission::Tunnel(permit) => {
            arrival.record.event.provider = permit.provider.clone();
            permit.check().await?;
        }
    }
    Ok((admission, authority.host, port))
}

/// The target in authority form: nothing but `host:port`.
fn authority(uri: &Uri) -> Result<Authority, EgressError> {
    if uri.scheme().is_some()
        || uri.path_and_query().is_some_and(|path| !path.as_str().is_empty() && path != "/")
    {
        return Err(EgressError::BadRequest("the target of CONNECT is not `host:port`"));
    }
    let authority =
        uri.authority().ok_or(EgressError::BadRequest("the target of CONNECT is not `host:port`"))?;
    Ok(Authority::parse(authority.as_str())?)
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(http::header::TRANSFER_ENCODING)
        || headers.get(http::header::CONTENT_LENGTH).is_some_and(|length| length != "0")
}

/// A connection whose 200 is on its way.
pub struct Opening {
    /// CONNECT target.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// The tenant whose token came with the CONNECT.
    pub proven_tenant: Option<Arc<str>>,
    /// The record of the CONNECT.
    pub record: Record,
    /// Keeps the connection from being idle.
    pub active: ActivityGuard,
}

fn accept(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    arrival: Arrival,
    admission: ConnectAdmission,
    host: Host,
    port: u16,
) -> Response<Body> {
    let Arrival { mut parts, mut record, active, proven_tenant, .. } = arrival;
    let mut response = Response::new(Body::empty());
    stamp(response.headers_mut(), &record.event.request_id);
    record.answered(200);
    let Some(upgrade) = upgrade_of(&mut parts) else {
        return refuse_internal(proxy, context, &parts, record, active);
    };
    let opening = Opening { host, port, proven_tenant, record, active };
    let (proxy_of_task, context) = (proxy.clone(), context.clone());
    proxy.tasks.spawn(async move {
        // The tunnel goes on behind the HTTP connection, and so does its place.
        let context = context;
        let Some((socket, opening)) = take_over(upgrade, opening).await else { return };
        match admission {
            ConnectAdmission::Intercept(_) => {
                intercept::serve(proxy_of_task, context.clone(), socket, opening).await
            }
            ConnectAdmission::Tunnel(permit) => {
                let mut opening = opening;
                opening.record.event.door = Door::Tunnel;
                opening.record.counted(&permit.metrics);
                tunnel::serve(&proxy_of_task, socket, opening, &permit).await;
            }
        }
    });
    response
}

fn refuse_internal(
    proxy: &Arc<Proxy>,
    context: &Arc<ConnectionContext>,
    parts: &Parts,
    record: Record,
    active: ActivityGuard,
) -> Response<Body> {
    super::exchange::refuse(proxy, context, &EgressError::Internal, &parts.method, record, active)
}

fn upgrade_of(parts: &mut Parts) -> Option<OnUpgrade> {
    parts.extensions.remove::<OnUpgrade>()
}

/// Takes the raw connection over from hyper, with what was read too early.
async fn take_over(upgrade: OnUpgrade, mut opening: Opening) -> Option<(Socket, Opening)> {
    let upgraded: Upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            opening.record.flag(Flag::DownstreamGone);
            opening.record.event.error_detail = Some(error.to_string());
            opening.record.finish();
            return None;
        }
    };
    let UpgradedParts { io, read_buf, .. } = upgraded.downcast::<TokioIo<Awaited<Socket>>>().ok()?;
    let (mut socket, early) = io.into_inner().into_parts();
    socket.unread(early);
    socket.unread(read_buf);
    Some((socket, opening))
}

/// Notes in a record that a tunnel or an interception could not begin.
pub fn failed(record: &mut Record, failure: Failure) {
    let error = EgressError::Failure(failure);
    let answer = error.answer();
    record.flag(answer.flag);
    record.event.error = Some(answer.code);
    record.event.error_detail = error.detail();
    record.finish();
}
