//! The sockets of a running outgate: bound or taken over before anything is served.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::handed::{Handed, Socket};
use super::{StartError, spawn, token_owner};
use crate::admin::{self, Admin};
use crate::policy::compiled::{Fixed, ListenAddress, Listener as ListenerSettings};
use crate::proxy::context::{ListenerContext, Proxy};
use crate::proxy::listener::{self, Listener};
use crate::secret::SecretCache;

/// All sockets, bound before anything is served.
pub(super) struct Bound {
    /// With the place of their settings in the policy.
    listeners: Vec<(usize, Listener)>,
    admin: Listener,
    health: Option<Listener>,
}

/// Where they are.
pub(super) struct Addresses {
    pub listeners: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub health: Option<SocketAddr>,
}

impl Bound {
    pub fn bind(fixed: &Fixed, mut handed: Handed) -> Result<Self, StartError> {
        let mut listeners = Vec::with_capacity(fixed.listeners.len());
        for (index, settings) in fixed.listeners.iter().enumerate() {
            if let ListenAddress::Systemd(name) = &settings.address {
                let taken = take_over(name, settings, &mut handed)?;
                listeners.extend(taken.into_iter().map(|listener| (index, listener)));
                continue;
            }
            match bind(&settings.address) {
                Ok(listener) => listeners.push((index, listener)),
                Err(StartError::Bind { source, .. }) if has_no_such_loopback(settings, &source) => {
                    let address = &settings.address;
                    tracing::warn!(%address, "this system has no IPv6, so nothing can be redirected to it");
                }
                Err(error) => return Err(error),
            }
        }
        for name in handed.names() {
            tracing::warn!(name, "systemd has handed over a socket that no listener of the policy is for");
        }
        let admin = bind(&fixed.admin.address)?;
        let health =
            fixed.admin.health_address.map(|address| bind(&ListenAddress::Tcp(address))).transpose()?;
        Ok(Self { listeners, admin, health })
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter().map(|(_, listener)| listener);
        listeners.chain([&self.admin]).chain(&self.health).filter_map(Listener::local_addr).collect()
    }

    pub fn serve(
        self,
        fixed: &Fixed,
        proxy: &Arc<Proxy>,
        admin: &Arc<Admin>,
        secrets: &Arc<SecretCache>,
        background: &CancellationToken,
    ) -> Addresses {
        let addresses = Addresses {
            listeners: self.listeners.iter().filter_map(|(_, listener)| listener.local_addr()).collect(),
            admin: self.admin.local_addr(),
            health: self.health.as_ref().and_then(Listener::local_addr),
        };
        let permits = Arc::new(Semaphore::new(proxy.overload.max_connections()));
        for (index, listener) in self.listeners {
            let context = Arc::new(listener_context(&listener, &fixed.listeners[index], proxy, secrets));
            spawn(listener::run(listener, context, proxy.clone(), permits.clone()));
        }
        spawn(admin::run(self.admin, admin.clone(), false, background.clone()));
        if let Some(health) = self.health {
            spawn(admin::run(health, admin.clone(), true, background.clone()));
        }
        addresses
    }
}

/// A transparent listener on `::1` where there is no IPv6: one policy does for machines with it and without.
fn has_no_such_loopback(settings: &ListenerSettings, error: &io::Error) -> bool {
    let no_family = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    let absent = error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(no_family);
    let loopback =
        matches!(&settings.address, ListenAddress::Tcp(address) if address.ip() == Ipv6Addr::LOCALHOST);
    settings.transparent && loopback && absent
}

fn bind(address: &ListenAddress) -> Result<Listener, StartError> {
    let bound = match address {
        ListenAddress::Tcp(address) => listener::bind_tcp(*address),
        ListenAddress::Unix(path) => listener::bind_unix(path),
        ListenAddress::Systemd(_) => Err(io::Error::other("only listeners take sockets of systemd")),
    };
    bound.map_err(|source| StartError::Bind { address: address.to_string(), source })
}

/// All sockets of this name: systemd gives those of one unit the same. What they are open to is not known before.
fn take_over(
    name: &str,
    settings: &ListenerSettings,
    handed: &mut Handed,
) -> Result<Vec<Listener>, StartError> {
    let failed = |source| StartError::Bind { address: settings.address.to_string(), source };
    let sockets = handed.take(name);
    if sockets.is_empty() {
        let text = "systemd has handed over no listening socket of this name (`FileDescriptorName`)";
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, text)));
    }
    let mut listeners = Vec::with_capacity(sockets.len());
    for socket in sockets {
        let listener = match socket {
            Socket::Tcp(socket) => listener::adopt_tcp(socket),
            Socket::Unix(socket) => listener::adopt_unix(socket),
        };
        let listener = listener.map_err(failed)?;
        match listener.local_addr() {
            Some(address)
                if !address.ip().to_canonical().is_loopback()
                    && settings.tokens.is_none()
                    && !settings.expose =>
            {
                return Err(StartError::Exposed { address, name: name.to_owned() });
            }
            Some(_) | None => listeners.push(listener),
        }
    }
    Ok(listeners)
}

fn listener_context(
    listener: &Listener,
    settings: &ListenerSettings,
    proxy: &Proxy,
    secrets: &Arc<SecretCache>,
) -> ListenerContext {
    let address = listener.local_addr();
    let name: Arc<str> =
        address.map_or_else(|| settings.address.to_string(), |address| address.to_string()).into();
    ListenerContext {
        metrics: proxy.telemetry.metrics.listener(&name),
        name,
        port: address.map(|address| address.port()),
        forward: settings.doors.forward,
        connect: settings.doors.connect,
        local: settings.doors.local,
        transparent: settings.transparent,
        hosts: settings.hosts.clone(),
        provider: settings.provider.clone(),
        tokens: settings.tokens.as_ref().map(|tokens| token_owner(secrets, tokens)),
    }
}
