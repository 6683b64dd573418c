//! Where apps connect to: the policy's listeners, and the ports of single providers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::Compiler;
use crate::message::target::Host;
use crate::policy::compiled::{Admin, Doors, ListenAddress, Listener, ListenerTokens, Provider, TenantFrom};
use crate::policy::schema::{
    DoorConfig, ListenerAuth, ListenerConfig, ListenerTokens as ListenerTokensConfig, PolicyConfig,
};
use crate::policy::tenant_pattern::TenantPattern;
use crate::policy::tree::PolicyPath;
use crate::secret::reference::SecretRef;

/// 127.0.0.1:3128, Squid's port, which proxy users know.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);
const ALL_DOORS: Doors = Doors { forward: true, connect: true, local: true };
/// Tenants that may prove who they are at one listener.
const MOST_TENANTS: usize = 1000;
const NO_DOOR: Doors = Doors { forward: false, connect: false, local: false };

impl Compiler<'_> {
    pub(super) fn listeners(&mut self, config: &PolicyConfig, path: &PolicyPath) -> Vec<Listener> {
        let Some(list) = &config.listeners else {
            let address = ListenAddress::Tcp(LISTEN);
            return vec![Listener {
                address,
                doors: ALL_DOORS,
                expose: false,
                transparent: false,
                tokens: None,
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
        let tokens = match &config.auth {
            Some(ListenerAuth::Tokens(tokens)) => Some(self.tokens(tokens, &path.key("auth"))),
            Some(ListenerAuth::None) | None => None,
        };
        let expose = config.expose.unwrap_or(false);
        self.check_exposure(&address, tokens.is_some(), expose, path);
        let transparent =
            config.accept.as_ref().is_some_and(|doors| doors.contains(&DoorConfig::Transparent));
        if transparent {
            self.check_transparent(config, &address, path);
            let hosts = Vec::new();
            return Some(Listener {
                address,
                doors: NO_DOOR,
                expose,
                transparent,
                tokens: None,
                hosts,
                provider: None,
            });
        }
        let doors = self.doors(config.accept.as_deref(), &path.key("accept"));
        let hosts = self.host_names(config.hosts.as_deref().unwrap_or_default(), &path.key("hosts"));
        Some(Listener { address, doors, expose, transparent, tokens, hosts, provider: None })
    }

    fn tokens(&mut self, config: &ListenerTokensConfig, path: &PolicyPath) -> ListenerTokens {
        if let Some(plain) = &config.token {
            self.uses_secret(&path.key("token"), plain, true);
        }
        let of_tenants = config.tenants.iter().flatten();
        if config.token.is_none() && of_tenants.clone().next().is_none() {
            self.mistake_with(
                path,
                "no token",
                "`{ token: env:OUTGATE_TOKEN }`, or `{ tenants: { acme: env:ACME_TOKEN } }`",
            );
        }
        let path = path.key("tenants");
        if of_tenants.clone().count() > MOST_TENANTS {
            self.mistake(&path, format!("more than {MOST_TENANTS} tenants"));
        }
        let mut tenants = Vec::new();
        for (name, reference) in of_tenants {
            let path = path.key(name);
            if !TenantPattern::default().admits(name) {
                self.mistake(
                    &path,
                    "not a tenant's name: letters, digits, `.`, `_` and `-`, at most 128, and no `..`",
                );
            }
            self.uses_secret(&path, reference, true);
            let same = |other: &SecretRef| other == reference;
            if config.token.as_ref().is_some_and(same) || tenants.iter().any(|(_, other)| same(other)) {
                self.mistake(
                    &path,
                    "the same secret as another token of this listener: whose it is could not be told",
                );
            }
            tenants.push((Arc::from(name.as_str()), reference.clone()));
        }
        ListenerTokens { plain: config.token.clone(), tenants }
    }

    /// Providers that want tenants to prove who they are need clients that can.
    pub(super) fn check_tenant_tokens(&mut self, listeners: &[Listener], providers: &[Arc<Provider>]) {
        let known = |one: &Listener| one.tokens.as_ref().is_some_and(|tokens| !tokens.tenants.is_empty());
        for provider in providers {
            let from_token = provider.tenant.as_ref().is_some_and(|tenant| tenant.from == TenantFrom::Token);
            if !from_token {
                continue;
            }
            let path = provider.path.key("tenant").key("from");
            if !listeners.iter().any(known) {
                self.mistake_with(
                    &path,
                    "no listener knows a tenant's token",
                    "`auth: { tenants: { acme: env:ACME_TOKEN } }` at a listener",
                );
            }
            if listeners.iter().any(|one| one.provider.as_ref() == Some(&provider.name)) {
                self.mistake(&path, "SDKs cannot send a token to the provider's own port (`local.address`)");
            }
        }
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
        if matches!(config.auth, Some(ListenerAuth::Tokens(_))) {
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
    pub(super) fn provider_listeners(
        &mut self,
        config: &PolicyConfig,
        providers: &[Arc<Provider>],
    ) -> Vec<Listener> {
        let mut listeners = Vec::new();
        for provider in providers {
            let own = config.providers.as_ref().and_then(|all| all.get(&*provider.name));
            let Some(text) = own.and_then(|own| own.local.as_ref()).and_then(|local| local.address.as_ref())
            else {
                continue;
            };
            let path = provider.path.key("local").key("address");
            let Some(address) = self.own_address(text, &path) else { continue };
            if !provider.doors.local {
                self.mistake(&path, "a port at the local endpoint, and `doors` does not open `local`");
            }
            if config.listeners.iter().flatten().any(|one| matches!(one.auth, Some(ListenerAuth::Tokens(_))))
            {
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
                expose: false,
                transparent: false,
                tokens: None,
                hosts: Vec::new(),
                provider: Some(provider.name.clone()),
            });
        }
        listeners
    }

    pub(super) fn unique_addresses(&mut self, listeners: &[Listener], admin: &Admin) {
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
        if doors.is_empty() && self.is_written_empty(path) {
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

    /// An address that is bound here, and not handed over: of the admin listener, and of single providers.
    pub(super) fn own_address(&mut self, text: &str, path: &PolicyPath) -> Option<ListenAddress> {
        let address = self.address(text, path)?;
        if matches!(address, ListenAddress::Systemd(_)) {
            self.mistake(path, "only `listeners` take sockets of systemd");
            return None;
        }
        Some(address)
    }

    fn address(&mut self, text: &str, path: &PolicyPath) -> Option<ListenAddress> {
        if let Some(socket) = text.strip_prefix("unix:") {
            let file = self.file(socket);
            if socket.is_empty() || file.as_os_str().len() > 100 {
                self.mistake(path, "a unix socket needs a path of 1 to 100 bytes");
                return None;
            }
            return Some(ListenAddress::Unix(file));
        }
        if let Some(name) = text.strip_prefix("systemd:") {
            if !is_descriptor_name(name) {
                self.mistake(
                    path,
                    "the name of a socket of systemd (FileDescriptorName) has 1 to 255 bytes, and no `:`",
                );
                return None;
            }
            return Some(ListenAddress::Systemd(name.to_owned()));
        }
        if let Ok(address) = text.parse() {
            return Some(ListenAddress::Tcp(address));
        }
        self.mistake_with(
            path,
            "not an address",
            "such as `127.0.0.1:3128`, `[::1]:3128`, `unix:/run/outgate/proxy.sock` or `systemd:proxy`",
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
}

/// What systemd allows as a name of a descriptor (systemd.socket(5), FileDescriptorName).
fn is_descriptor_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
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
