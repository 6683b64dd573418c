//! Redirected connections: the app dialled a provider, and the kernel brought it here instead (`outgate redirect`).
//!
//! The first bytes say what is spoken, and for whom. TLS is judged as a CONNECT to its server name and the port that was
//! dialled: intercepted or tunnelled by the same decision; without a name it is refused. Anything else is served as HTTP,
//! where each request is judged by its `Host` as one in absolute form would be. The address that was dialled is never dialled
//! from here: outgate resolves the name by itself. It is a check: an address that the policy would not let outgate dial is
//! refused, and one that the name does not resolve to is noted in the record.
//!
//! ```text
//! accept -> original destination -> first bytes -+- TLS  -> ClientHello -> admit -+- intercept -> connection
//!                                                |                                +- tunnel
//!                                                +- HTTP -> connection
//! ```

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::connect::Opening;
use super::context::{ConnectionContext, Proxy};
use super::exchange::{handshake_deadline, unless_drained};
use super::original::{NotRedirected, Redirected};
use super::respond::sent;
use super::socket::{ActivityGuard, Socket};
use super::tunnel::flag_of;
use super::{connection, intercept, tunnel};
use crate::message::record::Record;
use crate::message::target::{Authority, Host, Scheme};
use crate::pipeline::error::EgressError;
use crate::pipeline::generation::ConnectAdmission;
use crate::telemetry::{Client, Door, Flag, new_request_id};
use crate::tls::client_hello::{alert_access_denied, read_client_hello};
use crate::tls::error::TlsError;

/// The record type of TLS handshakes (RFC 8446 section 5.1). No method of HTTP begins with it.
const HANDSHAKE: u8 = 0x16;

/// How long a client that is refused may take to read its alert.
const REFUSING: Duration = Duration::from_secs(1);

/// Serves a connection of a transparent listener.
pub async fn serve(
    proxy: Arc<Proxy>,
    mut context: ConnectionContext,
    mut socket: Socket,
    redirected: Result<Redirected, NotRedirected>,
) {
    let redirected = match redirected {
        Ok(redirected) => redirected,
        Err(error) => {
            note(open(&proxy, &context, None), &EgressError::denied(error.to_string()));
            return close(socket).await;
        }
    };
    context.redirected = Some(redirected);
    let deadline = handshake_deadline(&proxy);
    let first = tokio::select! {
        first = timeout_at(deadline, first_byte(&mut socket)) => first,
        // A connection on which nothing was asked holds nothing up.
        () = proxy.drain.cancelled() => return,
    };
    match first {
        Ok(Some(HANDSHAKE)) => serve_tls(proxy, context, socket, redirected, deadline).await,
        Ok(Some(_)) => Box::pin(connection::serve(proxy, context, socket)).await,
        // It was closed before a byte came: nothing was asked.
        Ok(None) => {}
        Err(_) => {
            let mut record = open(&proxy, &context, Some(redirected));
            record.flag(Flag::DownstreamTimeout);
            record.event.error_detail = Some(SILENT.to_owned());
            record.finish();
        }
    }
}

const SILENT: &str =
    "the client sent nothing: only protocols in which the client speaks first (TLS, HTTP) can be redirected";

/// The first byte, to be read again by whoever serves; none at the end of the stream, or where it broke.
async fn first_byte(socket: &mut Socket) -> Option<u8> {
    let mut buffer = Vec::with_capacity(2048);
    let read = socket.read_buf(&mut buffer).await.ok()?;
    let first = *buffer.get(..read)?.first()?;
    socket.unread(Bytes::from(buffer));
    Some(first)
}

async fn serve_tls(
    proxy: Arc<Proxy>,
    mut context: ConnectionContext,
    mut socket: Socket,
    mut redirected: Redirected,
    deadline: Instant,
) {
    let active = context.activity.begin_work(&proxy.work);
    let mut record = open(&proxy, &context, Some(redirected));
    let hello = read_client_hello(&mut socket, &[], deadline);
    let hello = match unless_drained(&proxy, hello).await {
        Some(Ok(hello)) => hello,
        Some(Err(error)) => return note_tls(&mut record, &error),
        None => {
            record.flag(Flag::Drained);
            return record.finish();
        }
    };
    // Whoever goes on reads it again.
    socket.unread(hello.bytes);
    let judged = judge(&proxy, &context, &mut record, hello.sni.as_deref(), redirected.original).await;
    let (admission, host, resolved) = match judged {
        Ok(judged) => judged,
        Err(error) => return refuse(record, active, socket, &error).await,
    };
    redirected.resolved = resolved;
    record.event.original = Some(redirected.noted());
    context.redirected = Some(redirected);
    let port = redirected.original.port();
    let opening = Opening { host, port, proven_tenant: None, record, active };
    match admission {
        ConnectAdmission::Intercept(_) => {
            Box::pin(intercept::serve(proxy, Arc::new(context), socket, opening)).await;
        }
        ConnectAdmission::Tunnel(permit) => {
            let mut opening = opening;
            opening.record.counted(&permit.metrics);
            // The context keeps the connection's place.
            Box::pin(tunnel::serve(&proxy, socket, opening, &permit)).await;
            drop(context);
        }
    }
}

/// As a CONNECT to the server name and the port that was dialled. Gives the host, and whether it resolves to what was dialled.
async fn judge(
    proxy: &Proxy,
    context: &ConnectionContext,
    record: &mut Record,
    sni: Option<&str>,
    original: SocketAddr,
) -> Result<(ConnectAdmission, Host, Option<bool>), EgressError> {
    if let Client::Address(client) = context.client
        && proxy.own_tunnels.holds(client)
    {
        return Err(EgressError::Loop);
    }
    if context.late && proxy.overload.is_full() {
        return Err(EgressError::Overloaded);
    }
    let sni = sni.ok_or(EgressError::denied(
        "the TLS connection names no host (SNI), and a redirected connection has no other name",
    ))?;
    let host = Host::parse(sni)?;
    if host.ip().is_some() {
        return Err(EgressError::denied("the TLS connection names an address instead of a host (SNI)"));
    }
    let port = original.port();
    record.event.host = Some(host.shared());
    record.event.port = Some(port);
    let generation = proxy.generation.load_full();
    record.event.generation = generation.number;
    let admission = generation.admit_connect(&host, port)?;
    let resolved = match &admission {
        ConnectAdmission::Intercept(permit) => {
            record.event.provider = Some(permit.provider.clone());
            permit.check().await?;
            permit.judge_original(original).await?
        }
        ConnectAdmission::Tunnel(permit) => {
            record.event.provider = permit.provider.clone();
            permit.check().await?;
            permit.judge_original(original).await?
        }
    };
    Ok((admission, host, resolved))
}

/// Opens the record of a connection as a whole.
fn open(proxy: &Proxy, context: &ConnectionContext, redirected: Option<Redirected>) -> Record {
    let listener = context.listener.name.clone();
    let mut record =
        Record::open(&proxy.telemetry, &proxy.abort, new_request_id(), Door::Transparent, listener);
    record.event.client = Some(context.client);
    record.event.original = redirected.map(Redirected::noted);
    record.event.generation = proxy.generation.load().number;
    record
}

/// Ends the record of a connection that is refused.
fn note(mut record: Record, error: &EgressError) {
    let answer = error.answer();
    record.flag(answer.flag);
    record.event.error = Some(answer.code);
    record.event.error_detail = error.detail();
    record.event.sent = Some(sent(error));
    record.finish();
}

fn note_tls(record: &mut Record, error: &TlsError) {
    record.flag(flag_of(error));
    record.event.error_detail = Some(error.to_string());
    record.finish();
}

/// There is no HTTP to answer in, and no certificate is made for a host that is not the policy's: the app gets an alert.
async fn refuse(record: Record, active: ActivityGuard, mut socket: Socket, error: &EgressError) {
    note(record, error);
    let _ = timeout(REFUSING, socket.write_all(alert_access_denied())).await;
    close(socket).await;
    drop(active);
}

async fn close(mut socket: Socket) {
    let _ = timeout(Duration::from_secs(3), socket.shutdown()).await;
}

/// Notes the target of a request on a redirected connection without TLS, and gives its authority: the host that the head
/// names, once or several times alike, and the port that was dialled.
pub fn plain_target(
    named: Vec<Authority>,
    redirected: Redirected,
    scheme: Option<&str>,
) -> Result<Authority, EgressError> {
    if scheme.is_some_and(|scheme| scheme != Scheme::Http.as_str()) {
        return Err(EgressError::Misdirected("the request's scheme is not the connection's"));
    }
    let port = redirected.original.port();
    let mut hosts = named.into_iter();
    let first = hosts.next().ok_or(EgressError::Target(crate::message::target::TargetFault::Empty))?;
    let agrees = |one: &Authority| one.host == first.host && one.port.unwrap_or(port) == port;
    if !agrees(&first) || !hosts.all(|one| agrees(&one)) {
        return Err(EgressError::Misdirected("the request's host is not the one that was dialled"));
    }
    Ok(Authority { host: first.host, port: Some(port) })
}

/// The near ends of the tunnels that outgate has dialled. Where the rules of the firewall forget to leave outgate alone, its
/// own connection comes back to it; a blind tunnel would dial again and again. Its bound is that of connections.
#[derive(Default)]
pub struct OwnTunnels(Mutex<HashSet<SocketAddr>>);

impl OwnTunnels {
    fn holds(&self, address: SocketAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
    }

    /// The tunnel from this address lives as long as the guard.
    pub fn dialled(self: &Arc<Self>, address: SocketAddr) -> OwnTunnel {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(address);
        OwnTunnel(self.clone(), address)
    }
}

/// One of [`OwnTunnels`].
pub struct OwnTunnel(Arc<OwnTunnels>, SocketAddr);

impl Drop for OwnTunnel {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_names_one_host_and_the_port_is_the_one_that_was_dialled() {
        let redirected = |port| Redirected {
            original: SocketAddr::new("192.0.2.1".parse().unwrap(), port),
            resolved: None,
        };
        let named = |hosts: &[&str]| hosts.iter().map(|host| Authority::parse(host).unwrap()).collect();
        for (hosts, port, scheme, wanted) in [
            (&["api.example.test"][..], 80, None, Some("api.example.test:80")),
            (&["api.example.test"], 8080, None, Some("api.example.test:8080")),
            (&["api.example.test:8080"], 8080, None, Some("api.example.test:8080")),
            (&["api.example.test:80"], 8080, None, None),
            (&["api.example.test", "API.example.test:80"], 80, Some("http"), Some("api.example.test:80")),
            (&["api.example.test", "evil.example.test"], 80, Some("http"), None),
            (&["api.example.test"], 80, Some("https"), None),
            (&[], 80, None, None),
        ] {
            let found = plain_target(named(hosts), redirected(port), scheme).ok();
            let found = found.map(|found| format!("{}:{}", found.host, found.port.unwrap()));
            assert_eq!(found.as_deref(), wanted, "{hosts:?} at {port}");
        }
    }

    #[test]
    fn a_tunnel_is_known_as_long_as_it_lives() {
        let (own, address) = (Arc::new(OwnTunnels::default()), "192.0.2.1:5".parse().unwrap());
        let guard = own.dialled(address);
        assert!(own.holds(address) && !own.holds("192.0.2.1:6".parse().unwrap()));
        drop(guard);
        assert!(!own.holds(address));
    }
}
