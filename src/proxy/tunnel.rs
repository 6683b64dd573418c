//! A blind tunnel: the ClientHello is read and its SNI judged, then the provider is dialled and bytes are copied.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::connect::{Opening, failed};
use super::context::Proxy;
use super::exchange::{handshake_deadline, unless_drained};
use super::relay::{Moved, relay};
use super::socket::Socket;
use super::transparent::OwnTunnel;
use super::upgrade::finish;
use crate::message::failure::{Failure, Fault};
use crate::message::request::Exchange;
use crate::pipeline::tunnel::TunnelPermit;
use crate::telemetry::Flag;
use crate::tls::client_hello::{alert_unrecognized_name, read_client_hello};
use crate::tls::error::TlsError;

/// Serves a tunnel until it ends.
pub async fn serve(proxy: &Proxy, mut socket: Socket, opening: Opening, permit: &TunnelPermit) {
    let Opening { mut record, active, host, .. } = opening;
    let first = if permit.opaque {
        bytes::Bytes::new()
    } else {
        let hello = judged_hello(proxy, &mut socket, host.as_str(), host.ip().is_some());
        match unless_drained(proxy, hello).await {
            Some(Ok(first)) => first,
            None => {
                record.flag(Flag::Drained);
                record.finish();
                return;
            }
            Some(Err(error)) => {
                record.flag(flag_of(&error));
                record.event.error_detail = Some(error.to_string());
                record.finish();
                return;
            }
        }
    };
    let exchange = Arc::new(Exchange::new(None));
    record.follow(exchange.clone());
    let (mut upstream, _own) = match dial(proxy, permit, &exchange, &first).await {
        Ok(dialled) => dialled,
        Err(failure) => {
            failed(&mut record, failure);
            return;
        }
    };
    let moved = Arc::new(Moved::default());
    moved.up.fetch_add(first.len() as u64, std::sync::atomic::Ordering::Relaxed);
    active.relay();
    let end = relay(&mut socket, &mut upstream, permit.upgrade_idle, &moved, &proxy.abort).await;
    exchange
        .uploaded
        .store(moved.up.load(std::sync::atomic::Ordering::Relaxed), std::sync::atomic::Ordering::Relaxed);
    finish(&mut record, &moved, end);
    // Before the socket lingers: that is no part of the tunnel's time, and an end of the process does not wait for it.
    drop(record);
    drop(active);
    close_now(&mut socket).await;
}

/// The connection is known as outgate's own before its first byte goes out: it may come back to a transparent listener.
async fn dial(
    proxy: &Proxy,
    permit: &TunnelPermit,
    exchange: &Exchange,
    first: &[u8],
) -> Result<(TcpStream, Option<OwnTunnel>), Failure> {
    let mut upstream = permit.dial(exchange).await?;
    let own = upstream.local_addr().ok().map(|address| proxy.own_tunnels.dialled(address));
    exchange.facts().attempts = 1;
    if !first.is_empty() {
        upstream.write_all(first).await.map_err(|error| Failure::sent(Fault::Reset).because(error))?;
    }
    Ok((upstream, own))
}

/// Reads the ClientHello; its SNI, where it has one, must be the CONNECT host: two hosts on one front end must not be
/// confused.
async fn judged_hello(
    proxy: &Proxy,
    socket: &mut Socket,
    host: &str,
    is_address: bool,
) -> Result<bytes::Bytes, TlsError> {
    let hello = read_client_hello(socket, &[], handshake_deadline(proxy)).await?;
    match &hello.sni {
        Some(sni) if is_address || sni != host => {
            // The app learns at once that the name is wrong, instead of waiting for a silent close.
            let _ = tokio::time::timeout(Duration::from_secs(1), socket.write_all(alert_unrecognized_name()))
                .await;
            close_now(socket).await;
            Err(TlsError::SniMismatch)
        }
        Some(_) | None => Ok(hello.bytes),
    }
}

/// The flag of a tunnel or interception that ended before it began.
pub fn flag_of(error: &TlsError) -> Flag {
    match error {
        TlsError::Timeout => Flag::DownstreamTimeout,
        TlsError::Closed | TlsError::Io(_) => Flag::DownstreamGone,
        TlsError::SniMismatch => Flag::Denied,
        TlsError::NotTls
        | TlsError::ClientHello(_)
        | TlsError::ClientHelloTooLong { .. }
        | TlsError::Handshake(_) => Flag::DownstreamProtocol,
        TlsError::File { .. }
        | TlsError::Pem { .. }
        | TlsError::KeyMode { .. }
        | TlsError::KeyOwner { .. }
        | TlsError::UnusableAuthority { .. }
        | TlsError::AuthorityExpired
        | TlsError::Mint(_)
        | TlsError::InvalidHost
        | TlsError::Config(_)
        | TlsError::Random
        | TlsError::Shared(_) => Flag::Internal,
    }
}

async fn close_now(socket: &mut Socket) {
    let _ = tokio::time::timeout(Duration::from_secs(3), socket.shutdown()).await;
}
