//! The only place of the program that dials.
//!
//! Resolve, check every address, dial the very addresses that were checked (there is no second lookup), go through the
//! corporate proxy where there is one, then TLS with the host as SNI. Environment variables have no say in any of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::message::failure::{Failure, Fault};
use crate::message::target::{Host, Scheme};
use crate::telemetry::Metrics;

use super::client_tls::{ClientConfigs, TlsSetupError};
use super::error::{dial_fault, handshake_fault, setup_fault};
use super::guard::{OriginalRefused, OwnListeners, Refusal, not_own};
use super::identity::{IdentitySource, ProxyAuthSource};
use super::proxy_tunnel;
use super::ranges::unmap;
use super::resolver::Resolver;
use super::settings::{Bypass, HttpVersion, ProxyResolve, UpstreamProxy, UpstreamSettings};
use super::socket::Stream;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 6;
/// How long a lookup may run before the name's last addresses are used, where there are any.
const DNS_PATIENCE: Duration = Duration::from_secs(1);
/// Head start of one address over the next (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// When an idle connection is first asked whether its peer still lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What all upstreams share.
pub struct UpstreamEnv {
    /// Names to addresses.
    pub resolver: Resolver,
    /// The system's certificate authorities, never outgate's own.
    pub roots: Arc<RootCertStore>,
    /// Where dials are counted.
    pub metrics: Arc<Metrics>,
    /// What outgate listens on; known only after binding.
    pub own_listeners: ArcSwap<OwnListeners>,
}

/// What a connection will carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Ordinary requests.
    Ordinary,
    /// A protocol upgrade, which only HTTP/1.1 knows.
    Upgrade,
}

/// A TCP connection, ready to be spoken on.
pub struct Dialled {
    /// The connection.
    pub stream: TcpStream,
    /// The address that was dialled: the provider's, or the corporate proxy's.
    pub peer: SocketAddr,
    /// Time the name took; none where nothing had to be resolved.
    pub dns: Option<Duration>,
    /// Time TCP took, the corporate proxy's answer included.
    pub connect: Duration,
}

/// A connection to a provider, secured where its scheme says so.
pub struct Connected {
    /// The stream.
    pub stream: Stream,
    /// Whether HTTP/2 is to be spoken.
    pub http2: bool,
    /// Version of the client certificate that was offered.
    pub version: u64,
    /// The address that was dialled.
    pub peer: SocketAddr,
    /// Time the name took.
    pub dns: Option<Duration>,
    /// Time TCP took.
    pub connect: Duration,
    /// Time the handshake took.
    pub tls: Option<Duration>,
}

/// Makes connections for one upstream.
pub struct Connector {
    settings: UpstreamSettings,
    env: Arc<UpstreamEnv>,
    configs: ClientConfigs,
    proxy_auth: Option<Arc<dyn ProxyAuthSource>>,
}

/// Addresses that passed the guard, and how long the name took.
struct Resolved {
    addresses: Vec<SocketAddr>,
    took: Option<Duration>,
}

impl Connector {
    /// Reads the certificate authorities of the settings.
    pub fn new(
        settings: UpstreamSettings,
        env: Arc<UpstreamEnv>,
        identity: Option<Arc<dyn IdentitySource>>,
        proxy_auth: Option<Arc<dyn ProxyAuthSource>>,
    ) -> Result<Self, TlsSetupError> {
        let configs = ClientConfigs::new(&env.roots, &settings.tls, settings.http, identity)?;
        Ok(Self { settings, env, configs, proxy_auth })
    }

    /// What it was built from.
    pub fn settings(&self) -> &UpstreamSettings {
        &self.settings
    }

    /// Version of the client certificate that a new connection would offer.
    pub fn version(&self) -> u64 {
        self.configs.version()
    }

    /// The client certificates, where there are several.
    pub fn overlap(&self) -> Option<&Arc<dyn IdentitySource>> {
        self.configs.overlap()
    }

    /// A connection to the host, secured as the scheme wants.
    pub async fn connect(&self, host: &Host, port: u16, purpose: Purpose) -> Result<Connected, Failure> {
        let dialled = self.dial_raw(host, port).await?;
        let Dialled { stream, peer, dns, connect } = dialled;
        match self.settings.scheme {
            Scheme::Http => {
                let http2 = self.settings.http == HttpVersion::Http2 && purpose == Purpose::Ordinary;
                let stream = Stream::Plain(stream);
                Ok(Connected { stream, http2, version: 0, peer, dns, connect, tls: None })
            }
            Scheme::Https => {
                let secured = self.secure(stream, host, purpose).await?;
                Ok(Connected { peer, dns, connect, ..secured_parts(secured, peer) })
            }
        }
    }

    /// A bare TCP connection to the host, for tunnels and as the ground of every other connection.
    pub async fn dial_raw(&self, host: &Host, port: u16) -> Result<Dialled, Failure> {
        let deadline = Instant::now() + self.settings.connect_timeout;
        if let Some(proxy) = self.proxy_for(host)
            && let Some(dialled) = self.dial_through(proxy, host, port, deadline).await?
        {
            return Ok(dialled);
        }
        let resolved = self.permitted(host, port, deadline).await?;
        dial(resolved, deadline).await
    }

    /// Resolves and checks without dialling, for an early answer to CONNECT.
    pub async fn check(&self, host: &Host, port: u16) -> Result<(), Failure> {
        let deadline = Instant::now() + self.settings.connect_timeout;
        match self.proxy_for(host) {
            Some(proxy) if proxy.resolve == ProxyResolve::Proxy && host.ip().is_none() => Ok(()),
            Some(_) | None => self.permitted(host, port, deadline).await.map(|_| ()),
        }
    }

    /// Judges the address that a redirected client had dialled, when its bytes say that it wants `host`: it must be one that
    /// outgate itself could have dialled for this upstream. A client that was on its way to the metadata service or into a
    /// private network means something else by the name than outgate does. Says whether the host resolves to it, where that
    /// can be told. Where the policy itself says where the host is (`connect_to`), only metadata services are refused.
    pub async fn judge_original(&self, host: &Host, original: SocketAddr) -> Result<Option<bool>, Failure> {
        let refused = |refusal| Failure::not_sent(Fault::AddressDenied).because(OriginalRefused(refusal));
        if self.settings.connect_to.is_some() {
            return self.settings.addresses.permit_unresolved(original).map(|()| None).map_err(refused);
        }
        let (ip, port) = (unmap(original.ip()), original.port());
        let own = self.env.own_listeners.load_full();
        self.settings.addresses.permit(ip, port, &own).map_err(refused)?;
        if self.proxy_for(host).is_some_and(|proxy| proxy.resolve == ProxyResolve::Proxy) {
            return Ok(None);
        }
        let deadline = Instant::now() + self.settings.connect_timeout;
        // A name that cannot be resolved fails where it is dialled, and is served where a connection is open still.
        Ok(self.addresses_of(host, deadline).await.ok().map(|(ips, _)| ips.contains(&ip)))
    }

    fn proxy_for(&self, host: &Host) -> Option<&UpstreamProxy> {
        let proxy = self.settings.upstream_proxy.as_deref()?;
        let direct = self.settings.connect_to.is_some()
            || proxy.no_proxy.iter().any(|bypass| bypass.covers_host(host));
        (!direct).then_some(proxy)
    }

    /// Through the corporate proxy; none when the resolved address turns out to be one that is dialled directly.
    async fn dial_through(
        &self,
        proxy: &UpstreamProxy,
        host: &Host,
        port: u16,
        deadline: Instant,
    ) -> Result<Option<Dialled>, Failure> {
        let mut dns = None;
        let authority = if proxy.resolve == ProxyResolve::Proxy && host.ip().is_none() {
            format!("{host}:{port}")
        } else {
            let resolved = self.permitted(host, port, deadline).await?;
            let Some(address) = resolved.addresses.first() else {
                return Err(Failure::not_sent(Fault::Dns));
            };
            if bypasses(proxy, address.ip()) {
                return Ok(None);
            }
            dns = resolved.took;
            address.to_string()
        };
        let auth = self.proxy_auth.as_ref().map(|source| source.user_password()).transpose();
        let auth = auth.map_err(|error| Failure::not_sent(Fault::UpstreamProxy).because(error))?;
        let hop = self.proxy_addresses(proxy, deadline).await?;
        let mut dialled = dial(hop, deadline)
            .await
            .map_err(|failure| Failure::not_sent(Fault::UpstreamProxy).because(failure))?;
        let began = Instant::now();
        let ask =
            proxy_tunnel::open(&mut dialled.stream, &authority, auth.as_ref().map(|text| text.as_str()));
        timeout_at(deadline, ask)
            .await
            .map_err(|_| {
                Failure::not_sent(Fault::ConnectTimeout).because("the corporate proxy did not answer")
            })?
            .map_err(|error| Failure::not_sent(Fault::UpstreamProxy).because(error))?;
        dialled.connect += began.elapsed();
        dialled.dns = dns.or(dialled.dns);
        Ok(Some(dialled))
    }

    /// The corporate proxy is named by the policy, so its address needs no exemption; but outgate is not its own proxy.
    async fn proxy_addresses(&self, proxy: &UpstreamProxy, deadline: Instant) -> Result<Resolved, Failure> {
        let (ips, took) = self.addresses_of(&proxy.host, deadline).await?;
        let own = self.env.own_listeners.load_full();
        let addresses = guarded(&ips, proxy.port, |ip| not_own(ip, proxy.port, &own))?;
        Ok(Resolved { addresses, took })
    }

    /// The addresses of a host that may be dialled; at least one.
    async fn permitted(&self, host: &Host, port: u16, deadline: Instant) -> Result<Resolved, Failure> {
        let own = self.env.own_listeners.load_full();
        if let Some(address) = self.settings.connect_to {
            not_own(address.ip(), address.port(), &own).map_err(refuse)?;
            return Ok(Resolved { addresses: vec![address], took: None });
        }
        let (ips, took) = self.addresses_of(host, deadline).await?;
        let rules = &self.settings.addresses;
        let addresses = guarded(&ips, port, |ip| rules.permit(ip, port, &own))?;
        Ok(Resolved { addresses, took })
    }

    async fn addresses_of(
        &self,
        host: &Host,
        deadline: Instant,
    ) -> Result<(Vec<IpAddr>, Option<Duration>), Failure> {
        if let Some(ip) = host.ip() {
            return Ok((vec![unmap(ip)], None));
        }
        let began = Instant::now();
        // An old answer leaves at least half of the time for the dial.
        let patience = (self.settings.connect_timeout / 2).min(DNS_PATIENCE);
        let ips = timeout_at(deadline, self.env.resolver.resolve(&host.shared(), patience))
            .await
            .map_err(|_| Failure::not_sent(Fault::DnsTimeout))?
            .map_err(|error| Failure::not_sent(Fault::Dns).because(error))?;
        let ips = ips.iter().map(|ip| unmap(*ip)).collect();
        Ok((ips, Some(began.elapsed())))
    }

    async fn secure(&self, tcp: TcpStream, host: &Host, purpose: Purpose) -> Result<Secured, Failure> {
        let configs = self.configs.current().map_err(setup_fault)?;
        let config = match purpose {
            Purpose::Ordinary => configs.ordinary.clone(),
            Purpose::Upgrade => configs.http1.clone(),
        };
        let name = server_name(host)?;
        let began = Instant::now();
        let handshake = TlsConnector::from(config).connect(name, tcp);
        let stream = timeout(self.settings.tls_timeout, handshake)
            .await
            .map_err(|_| Failure::not_sent(Fault::TlsTimeout))?
            .map_err(handshake_fault)?;
        let negotiated = stream.get_ref().1.alpn_protocol();
        let http2 = match self.settings.http {
            _ if purpose == Purpose::Upgrade => false,
            HttpVersion::Auto => negotiated == Some(b"h2"),
            HttpVersion::Http1 => false,
            HttpVersion::Http2 => true,
        };
        Ok(Secured { stream: Box::new(stream), http2, version: configs.version, took: began.elapsed() })
    }
}

struct Secured {
    stream: Box<tokio_rustls::client::TlsStream<TcpStream>>,
    http2: bool,
    version: u64,
    took: Duration,
}

fn secured_parts(secured: Secured, peer: SocketAddr) -> Connected {
    let Secured { stream, http2, version, took } = secured;
    let connect = Duration::ZERO;
    Connected { stream: Stream::Tls(stream), http2, version, peer, dns: None, connect, tls: Some(took) }
}

fn bypasses(proxy: &UpstreamProxy, ip: IpAddr) -> bool {
    proxy.no_proxy.iter().any(|bypass| matches!(bypass, Bypass::Net(net) if net.contains(&ip)))
}

fn server_name(host: &Host) -> Result<ServerName<'static>, Failure> {
    match host.ip() {
        Some(ip) => Ok(ServerName::IpAddress(ip.into())),
        None => ServerName::try_from(host.as_str().to_owned())
            .map_err(|error| Failure::not_sent(Fault::TlsProtocol).because(error)),
    }
}

fn refuse(refusal: Refusal) -> Failure {
    let fault = match refusal {
        Refusal::Class(..) => Fault::AddressDenied,
        Refusal::OwnListener(_) => Fault::OwnListener,
    };
    Failure::not_sent(fault).because(refusal)
}

/// Keeps the addresses that are permitted, IPv6 and IPv4 in turn, beginning with the resolver's first choice. All
/// refused is a refusal; a mixed answer is served by its permitted part alone.
fn guarded(
    ips: &[IpAddr],
    port: u16,
    permit: impl Fn(IpAddr) -> Result<(), Refusal>,
) -> Result<Vec<SocketAddr>, Failure> {
    let mut refused = None;
    let mut permitted = Vec::with_capacity(ips.len());
    for ip in ips {
        match permit(*ip) {
            Ok(()) => permitted.push(SocketAddr::new(*ip, port)),
            Err(refusal) => refused = Some(refusal),
        }
    }
    match refused {
        Some(refusal) if permitted.is_empty() => Err(refuse(refusal)),
        Some(_) | None => Ok(interleaved(permitted)),
    }
}

fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    let mut mixed = Vec::new();
    loop {
        let before = mixed.len();
        mixed.extend(preferred.next());
        mixed.extend(other.next());
        if mixed.len() == before || mixed.len() >= MAX_ADDRESSES {
            mixed.truncate(MAX_ADDRESSES);
            return mixed;
        }
    }
}

async fn dial(resolved: Resolved, deadline: Instant) -> Result<Dialled, Failure> {
    let began = Instant::now();
    match timeout_at(deadline, race(&resolved.addresses)).await {
        Ok(Ok((stream, peer))) => Ok(Dialled { stream, peer, dns: resolved.took, connect: began.elapsed() }),
        Ok(Err(error)) => Err(dial_fault(error)),
        Err(_) => Err(Failure::not_sent(Fault::ConnectTimeout)),
    }
}

/// Tries the addresses in turn, each a little after the one before or at once when that failed; the first that answers
/// wins, and the others are closed (RFC 8305).
async fn race(addresses: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut running = FuturesUnordered::new();
    let mut rest = addresses.iter().copied();
    let mut failed = None;
    loop {
        let started = rest.next().map(|address| running.push(connect_one(address))).is_some();
        if !started && running.is_empty() {
            return Err(failed.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable)));
        }
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(connected) => return Ok(connected),
                Err(error) => { failed.get_or_insert(error); }
            },
            () = tokio::time::sleep(STAGGER), if rest.len() > 0 => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the place that dials, and the address was checked")]
async fn connect_one(address: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Small writes go out at once: a request head must not wait for the acknowledgement of the one before.
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    let stream = socket.connect(address).await?;
    Ok((stream, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_families_take_turns() {
        let parse = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 1)).collect()
        };
        assert_eq!(
            interleaved(parse(&["::1", "::2", "::3", "1.1.1.1", "1.1.1.2"])),
            parse(&["::1", "1.1.1.1", "::2", "1.1.1.2", "::3"])
        );
        assert_eq!(interleaved(parse(&["1.1.1.1", "::1"])), parse(&["1.1.1.1", "::1"]));
        assert!(interleaved(vec![]).is_empty());
        let many: Vec<String> = (0..20).map(|n| format!("1.1.1.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(interleaved(parse(&many)).len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn dialled_sockets_send_at_once_and_are_kept_alive() {
        let origin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stream, _) = race(&[origin.local_addr().unwrap()]).await.unwrap();
        assert!(stream.nodelay().unwrap());
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
    }

    #[tokio::test]
    async fn a_refused_address_gives_way_to_the_next() {
        let origin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let open = origin.local_addr().unwrap();
        assert_eq!(race(&[closed, open]).await.unwrap().1, open);
        assert_eq!(race(&[closed]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
