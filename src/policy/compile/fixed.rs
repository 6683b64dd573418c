//! The sections that need a restart: listeners, admin, interception, runtime, telemetry.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Compiler;
use crate::message::quantity::TimeSpan;
use crate::message::target::Host;
use crate::policy::compiled::{
    Admin, Ca, Doors, Downstream, Fixed, Interception, ListenAddress, Listener, Provider, Runtime, Telemetry,
};
use crate::policy::schema::{
    AdminConfig, DoorConfig, DownstreamConfig, InterceptionConfig, ListenerAuth, ListenerConfig, LogOutput,
    PolicyConfig, RuntimeConfig, TelemetryConfig,
};
use crate::policy::tree::PolicyPath;

/// 127.0.0.1:3128, Squid's port, which proxy users know.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
const ALL_DOORS: Doors = Doors { forward: true, connect: true, local: true };
const NO_DOOR: Doors = Doors { forward: false, connect: false, local: false };

impl Compiler<'_> {
    pub(super) fn fixed(&mut self, config: &PolicyConfig, providers: &[Arc<Provider>]) -> Option<Fixed> {
        let root = PolicyPath::root();
        let mut listeners = self.listeners(config, &root.key("listeners"));
        listeners.extend(self.provider_listeners(config, providers));
        let admin = self.admin(config.admin.as_ref(), &root.key("admin"))?;
        self.unique_addresses(&listeners, &admin);
        Some(Fixed {
            listeners,
            admin,
            interception: self.interception(config.interception.as_ref(), &root.key("interception"))?,
            runtime: self.runtime(config.runtime.as_ref(), &root.key("runtime")),
            telemetry: self.telemetry(config.telemetry.as_ref()),
        })
    }

    fn listeners(&mut self, config: &PolicyConfig, path: &PolicyPath) -> Vec<Listener> {
        let Some(list) = &config.listeners else {
            let address = ListenAddress::Tcp(LISTEN);
            return vec![Listener {
                address,
                doors: ALL_DOORS,
                transparent: false,
                token: None,
                hosts: Vec::new(),
                provider: None,
            }];
        };
        if list.is_empty() {
            self.mistake(path, "at least one listener is needed");
        }
        list.iter().enumerate().filter_map(|(index, one)| self.listener(one, &path.index(index))).collect()
    }

    fn listener(&mut self, config: &ListenerConfig, path: &PolicyPath) -> Option<Listener> {
        let Some(text) = &config.address else {
            self.mistake_with(
                path,
                "missing key `address`",
                "such as `127.0.0.1:3128` or `unix:/run/outgate/proxy.sock`",
            );
            return None;
        };
        let address = self.address(text, &path.key("address"))?;
        let token = match &config.auth {
            Some(ListenerAuth::Token(reference)) => {
                self.uses_secret(&path.key("auth").key("token"), reference, true);
                Some(reference.clone())
            }
            Some(ListenerAuth::None) | None => None,
        };
        self.check_exposure(&address, token.is_some(), config.expose.unwrap_or(false), path);
        let transparent =
            config.accept.as_ref().is_some_and(|doors| doors.contains(&DoorConfig::Transparent));
        if transparent {
            self.check_transparent(config, &address, path);
            let hosts = Vec::new();
            return Some(Listener {
                address,
                doors: NO_DOOR,
                transparent,
                token: None,
                hosts,
                provider: None,
            });
        }
        let doors = self.doors(config.accept.as_deref(), &path.key("accept"));
        let hosts = self.host_names(config.hosts.as_deref().unwrap_or_default(), &path.key("hosts"));
        Some(Listener { address, doors, transparent, token, hosts, provider: None })
    }

    /// Who is redirected does not know it: it can be asked for nothing, and who comes by itself is refused.
    fn check_transparent(&mut self, config: &ListenerConfig, address: &ListenAddress, path: &PolicyPath) {
        if config.accept.as_ref().is_some_and(|doors| doors.len() > 1) {
            self.mistake_with(
                &path.key("accept"),
                "`transparent` wants a listener of its own",
                "a second entry of `listeners`, such as `{ address: 127.0.0.1:3129, accept: [transparent] }`",
            );
        }
        if matches!(address, ListenAddress::Unix(_)) {
            self.mistake(&path.key("address"), "nothing can be redirected to a unix socket");
        }
        if matches!(config.auth, Some(ListenerAuth::Token(_))) {
            self.mistake(
                &path.key("auth"),
                "an app that is redirected does not know of it, and sends no token",
            );
        }
        if config.hosts.as_ref().is_some_and(|hosts| !hosts.is_empty()) {
            self.mistake(
                &path.key("hosts"),
                "names of the local endpoint, which is not at a `transparent` listener",
            );
        }
    }

    /// A listener that everyone on the network can use with the keys of others is never made by accident.
    fn check_exposure(&mut self, address: &ListenAddress, token: bool, expose: bool, path: &PolicyPath) {
        let ListenAddress::Tcp(tcp) = address else { return };
        if tcp.ip().is_loopback() || token {
            return;
        }
        if expose {
            self.warnings.push(format!(
                "{path}: {tcp} is open to the network without a token (`expose: true`); who can reach it can use every credential"
            ));
            return;
        }
        self.mistake_with(
            &path.key("address"),
            "this address is not loopback, and the listener has no `auth`",
            "add `auth: { token: env:OUTGATE_TOKEN }`, or `expose: true` if the network around it is trusted",
        );
    }

    /// Ports of their own for SDKs that take neither a path prefix nor a host name.
    fn provider_listeners(&mut self, config: &PolicyConfig, providers: &[Arc<Provider>]) -> Vec<Listener> {
        let mut listeners = Vec::new();
        for provider in providers {
            let own = config.providers.as_ref().and_then(|all| all.get(&*provider.name));
            let Some(text) = own.and_then(|own| own.local.as_ref()).and_then(|local| local.address.as_ref())
            else {
                continue;
            };
            let path = provider.path.key("local").key("address");
            let Some(address) = self.address(text, &path) else { continue };
            if !provider.doors.local {
                self.mistake(&path, "a port at the local endpoint, and `doors` does not open `local`");
            }
            if config.listeners.iter().flatten().any(|one| matches!(one.auth, Some(ListenerAuth::Token(_)))) {
                self.warnings.push(format!("{path}: SDKs cannot send a token here, so this port wants none: every process on this machine can use it"));
            }
            if let ListenAddress::Tcp(tcp) = &address
                && !tcp.ip().is_loopback()
            {
                self.mistake(&path, "a provider's own port must be on loopback");
                continue;
            }
            let doors = Doors { local: true, ..NO_DOOR };
            listeners.push(Listener {
                address,
                doors,
                transparent: false,
                token: None,
                hosts: Vec::new(),
                provider: Some(provider.name.clone()),
            });
        }
        listeners
    }

    fn unique_addresses(&mut self, listeners: &[Listener], admin: &Admin) {
        let mut seen = vec![&admin.address];
        let health = admin.health_address.map(ListenAddress::Tcp);
        let root = PolicyPath::root();
        let at_health = health.iter().map(|address| (address, root.key("admin").key("health_address")));
        let at_listeners = listeners.iter().map(|listener| (&listener.address, root.key("listeners")));
        for (address, path) in at_health.chain(at_listeners) {
            if let Some(other) = seen.iter().find(|other| collide(other, address)) {
                let message = if *other == address {
                    format!("{address} is used twice")
                } else {
                    format!("{address} and {other} cannot both be listened on")
                };
                self.mistake(&path, message);
            }
            seen.push(address);
        }
    }

    pub(super) fn doors(&mut self, doors: Option<&[DoorConfig]>, path: &PolicyPath) -> Doors {
        let Some(doors) = doors else { return ALL_DOORS };
        if doors.is_empty() {
            self.mistake(path, "no door is open: name at least one of forward, connect, local");
        }
        if doors.contains(&DoorConfig::Transparent) {
            self.mistake_with(
                path,
                "`transparent` is a door of listeners, not of providers",
                "redirected TLS comes in where `connect` does, and redirected plain http where `forward` does",
            );
        }
        Doors {
            forward: doors.contains(&DoorConfig::Forward),
            connect: doors.contains(&DoorConfig::Connect),
            local: doors.contains(&DoorConfig::Local),
        }
    }

    pub(super) fn address(&mut self, text: &str, path: &PolicyPath) -> Option<ListenAddress> {
        if let Some(socket) = text.strip_prefix("unix:") {
            let file = self.file(socket);
            if socket.is_empty() || file.as_os_str().len() > 100 {
                self.mistake(path, "a unix socket needs a path of 1 to 100 bytes");
                return None;
            }
            return Some(ListenAddress::Unix(file));
        }
        if let Ok(address) = text.parse() {
            return Some(ListenAddress::Tcp(address));
        }
        self.mistake_with(
            path,
            "not an address",
            "such as `127.0.0.1:3128`, `[::1]:3128` or `unix:/run/outgate/proxy.sock`",
        );
        None
    }

    fn host_names(&mut self, names: &[String], path: &PolicyPath) -> Vec<Host> {
        let mut hosts = Vec::new();
        for (index, name) in names.iter().enumerate() {
            match Host::parse(name) {
                Ok(host) => hosts.push(host),
                Err(fault) => self.mistake(&path.index(index), fault.to_string()),
            }
        }
        hosts
    }

    fn admin(&mut self, config: Option<&AdminConfig>, path: &PolicyPath) -> Option<Admin> {
        let config = config.cloned().unwrap_or_default();
        let address = match &config.address {
            None => ListenAddress::Tcp(ADMIN),
            Some(text) => self.address(text, &path.key("address"))?,
        };
        if let Some(reference) = &config.token {
            self.uses_secret(&path.key("token"), reference, true);
        }
        if let ListenAddress::Tcp(tcp) = &address
            && !tcp.ip().is_loopback()
            && config.token.is_none()
        {
            self.warnings.push(format!(
                "{path}: {tcp} is not loopback and there is no token: it serves /healthz, /readyz and /metrics only"
            ));
        }
        let health_address = match &config.health_address {
            None => None,
            Some(text) => match text.parse() {
                Ok(address) => Some(address),
                Err(_) => {
                    self.mistake_with(
                        &path.key("health_address"),
                        "not an address",
                        "such as `0.0.0.0:9902`",
                    );
                    None
                }
            },
        };
        Some(Admin { address, token: config.token, health_address, quit: config.quit.unwrap_or(false) })
    }

    fn interception(
        &mut self,
        config: Option<&InterceptionConfig>,
        path: &PolicyPath,
    ) -> Option<Interception> {
        let config = config.cloned().unwrap_or_default();
        let ca = config.ca.unwrap_or_default();
        let ca = match (&ca.directory, &ca.certificate, &ca.key) {
            (None, None, None) => Ca::Directory(self.file(".outgate/ca")),
            (Some(directory), None, None) => Ca::Directory(self.file(directory)),
            (None, Some(certificate), Some(key)) => {
                Ca::Files { certificate: self.file(certificate), key: self.file(key) }
            }
            _ => {
                let hint = "`{ directory: .outgate/ca }`, or `{ certificate: ca.pem, key: ca.key }`";
                self.mistake_with(
                    &path.key("ca"),
                    "a CA is a directory, or a certificate with its key",
                    hint,
                );
                return None;
            }
        };
        let bundle: PathBuf = self.file(config.bundle.as_deref().unwrap_or(".outgate/ca-bundle.pem"));
        let truststore = config.truststore.as_deref().map(|path| self.file(path));
        if truststore.as_ref() == Some(&bundle) {
            self.mistake(&path.key("truststore"), "the bundle has this path too");
        }
        Some(Interception { ca, bundle, truststore })
    }

    fn runtime(&mut self, config: Option<&RuntimeConfig>, path: &PolicyPath) -> Runtime {
        let config = config.cloned().unwrap_or_default();
        let max_connections = config.max_connections.unwrap_or(10_000);
        if !(1..=1_000_000).contains(&max_connections) {
            self.mistake(&path.key("max_connections"), "expected a number from 1 to 1000000");
        }
        let downstream = self.downstream(&config.downstream.unwrap_or_default(), &path.key("downstream"));
        let drain = self.span(config.drain, Duration::from_secs(20), &path.key("drain"));
        let seconds = Duration::from_secs;
        // Zero is the one that is not written: it means none.
        let linger = match config.linger {
            Some(span) if !span.duration().is_zero() => {
                self.span(Some(span), seconds(0), &path.key("linger"))
            }
            Some(_) | None => Duration::ZERO,
        };
        let linger_idle = self.span(config.linger_idle, seconds(5), &path.key("linger_idle"));
        Runtime {
            workers: config.workers.unwrap_or_default(),
            max_connections: max_connections as usize,
            drain,
            linger,
            linger_idle,
            downstream,
        }
    }

    fn downstream(&mut self, config: &DownstreamConfig, path: &PolicyPath) -> Downstream {
        let max_headers = config.max_headers.unwrap_or(256);
        if !(16..=4096).contains(&max_headers) {
            self.mistake(&path.key("max_headers"), "expected a number from 16 to 4096");
        }
        let max_header_bytes = config.max_header_bytes.map_or(64 * 1024, |size| size.bytes());
        if !(8 * 1024..=1024 * 1024).contains(&max_header_bytes) {
            self.mistake(&path.key("max_header_bytes"), "expected a size from 8KiB to 1MiB");
        }
        let seconds = Duration::from_secs;
        Downstream {
            header_timeout: self.span(config.header_timeout, seconds(10), &path.key("header_timeout")),
            tls_handshake_timeout: self.span(
                config.tls_handshake_timeout,
                seconds(10),
                &path.key("tls_handshake_timeout"),
            ),
            idle_timeout: self.span(config.idle_timeout, seconds(300), &path.key("idle_timeout")),
            body_timeout: self.span(config.body_timeout, seconds(30), &path.key("body_timeout")),
            write_timeout: self.span(config.write_timeout, seconds(30), &path.key("write_timeout")),
            max_headers: max_headers as usize,
            max_header_bytes: usize::try_from(max_header_bytes).unwrap_or(64 * 1024),
        }
    }

    fn telemetry(&self, config: Option<&TelemetryConfig>) -> Telemetry {
        let config = config.cloned().unwrap_or_default();
        let log = config.access_log.unwrap_or_default();
        let output = match log.output.unwrap_or_default() {
            LogOutput::Stdout => LogOutput::Stdout,
            LogOutput::File(path) => LogOutput::File(self.file(&path).to_string_lossy().into_owned()),
        };
        Telemetry { format: log.format.unwrap_or_default(), output, query: config.query.unwrap_or_default() }
    }

    /// A duration that must be above zero and below a month.
    pub(super) fn span(&mut self, span: Option<TimeSpan>, default: Duration, path: &PolicyPath) -> Duration {
        let Some(span) = span else { return default };
        let duration = span.duration();
        if duration.is_zero() || duration > Duration::from_secs(31 * 24 * 3600) {
            self.mistake(path, "expected a duration above zero and of at most 31d");
            return default;
        }
        duration
    }
}

/// Whether the system would refuse the second of two addresses: the same, or one of them stands for every address of its
/// port. Port 0 asks for a free one.
fn collide(one: &ListenAddress, other: &ListenAddress) -> bool {
    match (one, other) {
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => {
            // `[::]` stands for IPv4 as well, as Linux has it by default.
            let covers = |one: &SocketAddr, other: &SocketAddr| {
                one.ip().is_unspecified() && (one.is_ipv6() || other.is_ipv4())
            };
            one.port() != 0
                && one.port() == other.port()
                && (one.ip() == other.ip() || covers(one, other) || covers(other, one))
        }
        (one, other) => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_the_system_would_refuse_together() {
        let tcp = |text: &str| ListenAddress::Tcp(text.parse().unwrap());
        let unix = |text: &str| ListenAddress::Unix(text.into());
        for (one, other, wanted) in [
            (tcp("127.0.0.1:1"), tcp("127.0.0.1:1"), true),
            (tcp("127.0.0.1:1"), tcp("127.0.0.1:2"), false),
            (tcp("127.0.0.1:1"), tcp("127.0.0.2:1"), false),
            (tcp("127.0.0.1:1"), tcp("0.0.0.0:1"), true),
            (tcp("127.0.0.1:1"), tcp("[::]:1"), true),
            (tcp("[::1]:1"), tcp("0.0.0.0:1"), false),
            (tcp("[::1]:1"), tcp("[::]:1"), true),
            (tcp("127.0.0.1:0"), tcp("127.0.0.1:0"), false),
            (unix("/a"), unix("/a"), true),
            (unix("/a"), unix("/b"), false),
            (unix("/a"), tcp("127.0.0.1:1"), false),
        ] {
            assert_eq!(collide(&one, &other), wanted, "{one} {other}");
            assert_eq!(collide(&other, &one), wanted, "{other} {one}");
        }
    }
}
