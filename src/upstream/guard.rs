//! Which addresses may be dialled: the last check before a connection, on the very address that is dialled.
//!
//! That a host is named by a provider never lifts this check. An exemption is a range, with or without a port; metadata
//! services need an exemption of their own kind, and outgate's own listeners can never be exempted.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use super::local_address;
use super::ranges::{IpClass, classify, embedded_v4, unmap};

/// A range of addresses, with or without a port: `10.0.0.0/8`, `10.0.0.0/8:443`, `fd00::/8`, `[fd00::/8]:443`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressRange {
    /// The range. Its host bits are zero.
    pub net: IpNet,
    /// The one port it is about; none = every port.
    pub port: Option<u16>,
}

/// Why a range could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeFault {
    /// Not an address range.
    #[error("not an address range: expected the like of `10.0.0.0/8`, `10.0.0.0/8:443` or `[fd00::/8]:443`")]
    Form,
    /// Bits after the prefix length are set.
    #[error("the range has bits set after its prefix length: did you mean `{0}`?")]
    HostBits(IpNet),
    /// IPv4 written as IPv6: addresses are compared in their own form, so the range would never match.
    #[error("a range of IPv4-mapped addresses: write it as `{0}`")]
    Mapped(IpNet),
    /// Not a port.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

impl AddressRange {
    /// Whether an address (unmapped) and port lie in the range.
    pub fn covers(&self, ip: IpAddr, port: u16) -> bool {
        self.net.contains(&ip) && self.port.is_none_or(|own| own == port)
    }
}

impl FromStr for AddressRange {
    type Err = RangeFault;

    fn from_str(text: &str) -> Result<Self, RangeFault> {
        let (net, port) = split_port(text)?;
        let net = match net.parse::<IpNet>() {
            Ok(net) => net,
            Err(_) => net.parse::<IpAddr>().map(IpNet::from).map_err(|_| RangeFault::Form)?,
        };
        if net.trunc() != net {
            return Err(RangeFault::HostBits(net.trunc()));
        }
        if let Some(own) = as_ipv4(&net) {
            return Err(RangeFault::Mapped(own));
        }
        Ok(Self { net, port: port.map(parse_port).transpose()? })
    }
}

/// The IPv4 range that a range of IPv4-mapped addresses (RFC 4291 section 2.5.5.2) stands for.
fn as_ipv4(net: &IpNet) -> Option<IpNet> {
    let IpNet::V6(net) = net else { return None };
    let inner = net.addr().to_ipv4_mapped()?;
    let length = net.prefix_len().checked_sub(96)?;
    IpNet::new(inner.into(), length).ok()
}

fn split_port(text: &str) -> Result<(&str, Option<&str>), RangeFault> {
    if let Some(rest) = text.strip_prefix('[') {
        let (net, rest) = rest.split_once(']').ok_or(RangeFault::Form)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((net, Some(port))),
            None if rest.is_empty() => Ok((net, None)),
            None => Err(RangeFault::Form),
        };
    }
    match text.split_once(':') {
        Some((net, port)) if net.contains('.') => Ok((net, Some(port))),
        Some(_) | None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, RangeFault> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RangeFault::Port);
    }
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(RangeFault::Port),
        Ok(port) => Ok(port),
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.net, self.port) {
            (net, None) => write!(f, "{net}"),
            (IpNet::V4(net), Some(port)) => write!(f, "{net}:{port}"),
            (IpNet::V6(net), Some(port)) => write!(f, "[{net}]:{port}"),
        }
    }
}

/// The addresses that outgate itself listens on, the admin listener included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnListeners {
    addresses: Vec<SocketAddr>,
}

impl OwnListeners {
    /// The addresses as they were bound.
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses }
    }

    /// Whether a connection to this address would end at one of the listeners.
    fn holds(&self, ip: IpAddr, port: u16) -> bool {
        self.addresses.iter().filter(|own| own.port() == port).any(|own| {
            let own = unmap(own.ip());
            // A listener on every address is reached by each of them; and a connection to the unspecified address
            // reaches whatever listens on this host.
            own == ip
                || (own.is_unspecified() && local_address::is_own(ip))
                || (ip.is_unspecified() && local_address::is_own(own))
        })
    }
}

/// Why an address is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address is of a kind that needs an exemption.
    #[error("{0} is not a public address ({1})")]
    Class(IpAddr, IpClass),
    /// The connection would end at outgate itself.
    #[error("{0} is one of outgate's own listeners")]
    OwnListener(SocketAddr),
}

/// Why a redirected connection is refused for where it was meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the app had dialled another kind of address than the policy allows: {0}")]
pub struct OriginalRefused(pub Refusal);

/// The exemptions of the policy (`addresses:`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressRules {
    /// Reachable though not public. Does not exempt metadata services.
    pub allow_private: Vec<AddressRange>,
    /// Metadata services that may be reached.
    pub allow_metadata: Vec<AddressRange>,
}

impl AddressRules {
    /// Whether this very address may be dialled.
    pub fn permit(&self, ip: IpAddr, port: u16, own: &OwnListeners) -> Result<(), Refusal> {
        let ip = unmap(ip);
        not_own(ip, port, own)?;
        self.permit_class(ip, port)
    }

    /// Whether the address is a metadata service that no line of `allow_metadata` names.
    pub fn reaches_metadata(&self, address: SocketAddr) -> bool {
        let ip = unmap(address.ip());
        classify(ip) == IpClass::Metadata
            && !self.allow_metadata.iter().any(|range| range.covers(ip, address.port()))
    }

    /// Whether a client that was redirected may have been on its way there though the policy itself says where the host is: only
    /// metadata services are refused, since no name that a provider has is meant by their addresses.
    pub fn permit_unresolved(&self, address: SocketAddr) -> Result<(), Refusal> {
        if self.reaches_metadata(address) {
            return Err(Refusal::Class(unmap(address.ip()), IpClass::Metadata));
        }
        Ok(())
    }

    fn permit_class(&self, ip: IpAddr, port: u16) -> Result<(), Refusal> {
        let covered = |ranges: &[AddressRange]| ranges.iter().any(|range| range.covers(ip, port));
        let class = match classify(ip) {
            IpClass::Metadata if covered(&self.allow_metadata) => return Ok(()),
            IpClass::Metadata => IpClass::Metadata,
            IpClass::Global if !local_address::is_own(ip) => return Ok(()),
            IpClass::Global => IpClass::OwnHost,
            other => other,
        };
        if class == IpClass::Metadata || !covered(&self.allow_private) {
            return Err(Refusal::Class(ip, class));
        }
        self.permit_embedded(ip, port)
    }

    /// A NAT64 prefix that was exempted must not become a way around the rules for the addresses behind it.
    fn permit_embedded(&self, ip: IpAddr, port: u16) -> Result<(), Refusal> {
        let IpAddr::V6(ip) = ip else { return Ok(()) };
        embedded_v4(ip).into_iter().flatten().try_for_each(|inner| self.permit_class(inner.into(), port))
    }
}

/// Refuses outgate's own listeners, which nothing exempts: not a range, and not `connect_to`.
pub fn not_own(ip: IpAddr, port: u16, own: &OwnListeners) -> Result<(), Refusal> {
    let ip = unmap(ip);
    if own.holds(ip, port) { Err(Refusal::OwnListener(SocketAddr::new(ip, port))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(private: &[&str], metadata: &[&str]) -> AddressRules {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        AddressRules { allow_private: parse(private), allow_metadata: parse(metadata) }
    }

    fn permits(rules: &AddressRules, ip: &str, port: u16) -> bool {
        rules.permit(ip.parse().unwrap(), port, &OwnListeners::default()).is_ok()
    }

    #[test]
    fn ranges_are_read_and_written() {
        for text in ["10.0.0.0/8", "10.0.0.0/8:443", "fd00::/8", "[fd00::/8]:443", "10.0.0.5/32"] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), text);
        }
        assert_eq!("10.0.0.5".parse::<AddressRange>().unwrap().to_string(), "10.0.0.5/32");
        assert_eq!("10.0.0.5:80".parse::<AddressRange>().unwrap().port, Some(80));
        assert_eq!("[fd00::1]:443".parse::<AddressRange>().unwrap().to_string(), "[fd00::1/128]:443");
    }

    #[test]
    fn ranges_that_mean_something_else_than_they_look_are_errors() {
        for text in ["10.0.0.5/8", "fd00::1/8", "10.0.0.5/8:443"] {
            assert!(matches!(text.parse::<AddressRange>(), Err(RangeFault::HostBits(_))), "{text}");
        }
        for (text, meant) in [("::ffff:10.0.0.0/104", "10.0.0.0/8"), ("::ffff:10.0.0.5", "10.0.0.5/32")] {
            let fault = text.parse::<AddressRange>().unwrap_err();
            assert_eq!(fault, RangeFault::Mapped(meant.parse().unwrap()), "{text}");
        }
        for text in ["10.0.0.0/33", "fd00::/129", "10.0.0/8", "x", "", "[fd00::/8", "[fd00::/8]443", "10/8"] {
            assert_eq!(text.parse::<AddressRange>(), Err(RangeFault::Form), "{text}");
        }
        for text in ["10.0.0.0/8:0", "10.0.0.0/8:65536", "10.0.0.0/8:", "10.0.0.0/8:+80"] {
            assert_eq!(text.parse::<AddressRange>(), Err(RangeFault::Port), "{text}");
        }
    }

    #[test]
    fn exemptions_are_ranges_with_ports() {
        let rules = rules(&["10.0.0.0/8:443", "127.0.0.0/8"], &[]);
        assert!(permits(&rules, "10.1.2.3", 443));
        assert!(permits(&rules, "::ffff:10.1.2.3", 443));
        assert!(!permits(&rules, "10.1.2.3", 80));
        assert!(!permits(&rules, "192.168.0.1", 443));
        assert!(permits(&rules, "127.0.0.1", 1));
        assert!(permits(&rules, "93.184.215.14", 80));
    }

    #[test]
    fn metadata_needs_an_exemption_of_its_own() {
        let wide = rules(&["0.0.0.0/0", "::/0"], &[]);
        for ip in ["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254"] {
            assert!(!permits(&wide, ip, 80), "{ip}");
        }
        assert!(permits(&wide, "169.254.1.1", 80));
        let metadata = rules(&[], &["169.254.169.254/32:80"]);
        assert!(permits(&metadata, "169.254.169.254", 80));
        assert!(!permits(&metadata, "169.254.169.254", 443));
        assert!(!permits(&metadata, "169.254.170.2", 80));
    }

    #[test]
    fn an_exempted_nat64_prefix_opens_no_private_address() {
        let nat64 = rules(&["64:ff9b::/96"], &[]);
        assert!(permits(&nat64, "64:ff9b::5db8:d70e", 443));
        assert!(!permits(&nat64, "64:ff9b::7f00:1", 443));
        assert!(!permits(&nat64, "64:ff9b::a00:5", 443));
    }

    #[test]
    fn own_listeners_are_never_exempt() {
        let own = OwnListeners::new(vec!["127.0.0.1:3128".parse().unwrap(), "0.0.0.0:9901".parse().unwrap()]);
        let wide = rules(&["0.0.0.0/0", "::/0"], &[]);
        let refused = |ip: &str, port| {
            matches!(wide.permit(ip.parse().unwrap(), port, &own), Err(Refusal::OwnListener(_)))
        };
        assert!(refused("127.0.0.1", 3128));
        assert!(refused("::ffff:127.0.0.1", 3128));
        assert!(refused("0.0.0.0", 3128));
        assert!(refused("127.9.9.9", 9901));
        assert!(refused("::1", 9901));
        assert!(!refused("127.0.0.1", 3129));
        assert!(!refused("10.0.0.5", 9901));
    }
}
