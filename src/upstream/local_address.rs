//! Whether an address belongs to this very host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::ranges::unmap;

/// Whether packets for this address end at this host.
///
/// Asked of the routing table and not of a list of interfaces, which would need unsafe code or a netlink client and would
/// be stale when an address is added: a UDP socket is connected to the address, which sends nothing, and the kernel picks
/// the source address. It picks the address itself only where that address is its own. An address that cannot be routed
/// is not ours.
pub fn is_own(ip: IpAddr) -> bool {
    let ip = unmap(ip);
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    source_towards(ip).is_some_and(|source| source == ip)
}

fn source_towards(ip: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    // Port 9 is `discard`; any port would do, since nothing is sent.
    socket.connect(SocketAddr::new(ip, 9)).ok()?;
    socket.local_addr().ok().map(|address| unmap(address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_own_and_documentation_is_not() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(is_own("127.8.8.8".parse().unwrap()));
        assert!(is_own("::ffff:127.0.0.1".parse().unwrap()));
        assert!(is_own("0.0.0.0".parse().unwrap()));
        assert!(!is_own("192.0.2.1".parse().unwrap()));
        assert!(!is_own("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn the_address_towards_the_world_is_own() {
        // Where the machine has no route at all there is nothing to ask about.
        if let Some(source) = source_towards("192.0.2.1".parse().unwrap()) {
            assert!(is_own(source), "{source}");
        }
    }
}
