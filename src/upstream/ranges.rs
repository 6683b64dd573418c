//! What kind of address an IP address is: the IANA special-purpose registries and the providers' metadata addresses.
//!
//! Pure, and written as a table so that it can be compared with the registries
//! (<https://www.iana.org/assignments/iana-ipv4-special-registry> and `iana-ipv6-special-registry`) line by line. Every
//! entry is refused by default, the globally reachable infrastructure ranges too: no provider of an API lives there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kind of an address. Everything but [`IpClass::Global`] needs an exemption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpClass {
    /// An ordinary public address.
    Global,
    /// `0.0.0.0` and `::`: on Linux a connection to them reaches a listener on loopback.
    Unspecified,
    /// The rest of `0.0.0.0/8`.
    ThisNetwork,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// RFC 1918.
    Private,
    /// `100.64.0.0/10` (RFC 6598), behind carrier-grade NAT and inside many clusters.
    SharedNat,
    /// `169.254.0.0/16`, `fe80::/10`.
    LinkLocal,
    /// `fec0::/10`, deprecated and still routed in places.
    SiteLocal,
    /// `fc00::/7` (RFC 4193).
    UniqueLocal,
    /// `192.0.0.0/24`, `2001::/23`: protocol assignments.
    ProtocolAssignment,
    /// AS112, AMT and the deprecated 6to4 relay: infrastructure, never an API.
    Infrastructure,
    /// `198.18.0.0/15`, `2001:2::/48`.
    Benchmarking,
    /// Ranges for documents and examples.
    Documentation,
    /// `100::/64`, `100:0:0:1::/64`.
    Discard,
    /// `5f00::/16`: segment routing inside one network.
    SegmentRouting,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// `240.0.0.0/4`, and IPv6 outside of `2000::/3`, which is all that was ever assigned.
    Reserved,
    /// IPv6 that carries an IPv4 address: NAT64, 6to4, Teredo, IPv4-compatible, IPv4-translated.
    EmbeddedV4,
    /// A metadata service of a cloud provider, which hands out credentials to whoever asks.
    Metadata,
    /// An address of this very host. Never returned by [`classify`], which does not look at the host.
    OwnHost,
}

impl fmt::Display for IpClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Unspecified => "unspecified",
            Self::ThisNetwork => "this network",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::SharedNat => "shared NAT",
            Self::LinkLocal => "link-local",
            Self::SiteLocal => "site-local",
            Self::UniqueLocal => "unique local",
            Self::ProtocolAssignment => "protocol assignment",
            Self::Infrastructure => "infrastructure",
            Self::Benchmarking => "benchmarking",
            Self::Documentation => "documentation",
            Self::Discard => "discard",
            Self::SegmentRouting => "segment routing",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Reserved => "reserved",
            Self::EmbeddedV4 => "embedded IPv4",
            Self::Metadata => "metadata service",
            Self::OwnHost => "own host",
        })
    }
}

/// Metadata services: AWS (instances, containers, EKS pods), Azure's wire server, Oracle, Alibaba.
pub const METADATA_V4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(100, 100, 100, 200),
];

/// Metadata services over IPv6: AWS (instances, EKS pods), Google.
pub const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254),
];

/// The more specific range stands before the one that holds it.
const V4: [(Ipv4Addr, u32, IpClass); 20] = [
    (Ipv4Addr::new(0, 0, 0, 0), 32, IpClass::Unspecified),
    (Ipv4Addr::new(0, 0, 0, 0), 8, IpClass::ThisNetwork),
    (Ipv4Addr::new(10, 0, 0, 0), 8, IpClass::Private),
    (Ipv4Addr::new(100, 64, 0, 0), 10, IpClass::SharedNat),
    (Ipv4Addr::new(127, 0, 0, 0), 8, IpClass::Loopback),
    (Ipv4Addr::new(169, 254, 0, 0), 16, IpClass::LinkLocal),
    (Ipv4Addr::new(172, 16, 0, 0), 12, IpClass::Private),
    (Ipv4Addr::new(192, 0, 0, 0), 24, IpClass::ProtocolAssignment),
    (Ipv4Addr::new(192, 0, 2, 0), 24, IpClass::Documentation),
    (Ipv4Addr::new(192, 31, 196, 0), 24, IpClass::Infrastructure),
    (Ipv4Addr::new(192, 52, 193, 0), 24, IpClass::Infrastructure),
    (Ipv4Addr::new(192, 88, 99, 0), 24, IpClass::Infrastructure),
    (Ipv4Addr::new(192, 168, 0, 0), 16, IpClass::Private),
    (Ipv4Addr::new(192, 175, 48, 0), 24, IpClass::Infrastructure),
    (Ipv4Addr::new(198, 18, 0, 0), 15, IpClass::Benchmarking),
    (Ipv4Addr::new(198, 51, 100, 0), 24, IpClass::Documentation),
    (Ipv4Addr::new(203, 0, 113, 0), 24, IpClass::Documentation),
    (Ipv4Addr::new(224, 0, 0, 0), 4, IpClass::Multicast),
    (Ipv4Addr::new(255, 255, 255, 255), 32, IpClass::Broadcast),
    (Ipv4Addr::new(240, 0, 0, 0), 4, IpClass::Reserved),
];

const fn v6(a: u16, b: u16, c: u16, d: u16, e: u16, f: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, e, f, 0, 0)
}

const V6: [(Ipv6Addr, u32, IpClass); 22] = [
    (Ipv6Addr::UNSPECIFIED, 128, IpClass::Unspecified),
    (Ipv6Addr::LOCALHOST, 128, IpClass::Loopback),
    // IPv4-compatible (RFC 4291) and IPv4-translated (RFC 2765); IPv4-mapped is unmapped before this table is read.
    (Ipv6Addr::UNSPECIFIED, 96, IpClass::EmbeddedV4),
    (v6(0, 0, 0, 0, 0xffff, 0), 96, IpClass::EmbeddedV4),
    // NAT64 (RFC 6052, RFC 8215).
    (v6(0x64, 0xff9b, 0, 0, 0, 0), 96, IpClass::EmbeddedV4),
    (v6(0x64, 0xff9b, 1, 0, 0, 0), 48, IpClass::EmbeddedV4),
    (v6(0x100, 0, 0, 0, 0, 0), 64, IpClass::Discard),
    (v6(0x100, 0, 0, 1, 0, 0), 64, IpClass::Discard),
    // Teredo (RFC 4380).
    (v6(0x2001, 0, 0, 0, 0, 0), 32, IpClass::EmbeddedV4),
    (v6(0x2001, 2, 0, 0, 0, 0), 48, IpClass::Benchmarking),
    (v6(0x2001, 3, 0, 0, 0, 0), 32, IpClass::Infrastructure),
    (v6(0x2001, 4, 0x112, 0, 0, 0), 48, IpClass::Infrastructure),
    (v6(0x2001, 0, 0, 0, 0, 0), 23, IpClass::ProtocolAssignment),
    (v6(0x2001, 0xdb8, 0, 0, 0, 0), 32, IpClass::Documentation),
    // 6to4 (RFC 3056).
    (v6(0x2002, 0, 0, 0, 0, 0), 16, IpClass::EmbeddedV4),
    (v6(0x2620, 0x4f, 0x8000, 0, 0, 0), 48, IpClass::Infrastructure),
    (v6(0x3fff, 0, 0, 0, 0, 0), 20, IpClass::Documentation),
    (v6(0x5f00, 0, 0, 0, 0, 0), 16, IpClass::SegmentRouting),
    (v6(0xfc00, 0, 0, 0, 0, 0), 7, IpClass::UniqueLocal),
    (v6(0xfe80, 0, 0, 0, 0, 0), 10, IpClass::LinkLocal),
    (v6(0xfec0, 0, 0, 0, 0, 0), 10, IpClass::SiteLocal),
    (v6(0xff00, 0, 0, 0, 0, 0), 8, IpClass::Multicast),
];

/// The kind of an address. IPv4-mapped IPv6 is judged as the IPv4 address that it reaches; an embedded metadata address
/// is a metadata address in every form.
pub fn classify(ip: IpAddr) -> IpClass {
    match unmap(ip) {
        IpAddr::V4(ip) => classify_v4(ip),
        IpAddr::V6(ip) => classify_v6(ip),
    }
}

/// The IPv4 address that an IPv4-mapped IPv6 address stands for; every other address as it is.
pub fn unmap(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn classify_v4(ip: Ipv4Addr) -> IpClass {
    if METADATA_V4.contains(&ip) {
        return IpClass::Metadata;
    }
    V4.iter()
        .find(|(net, length, _)| shares_prefix_v4(*net, ip, *length))
        .map_or(IpClass::Global, |(_, _, class)| *class)
}

fn classify_v6(ip: Ipv6Addr) -> IpClass {
    let embeds_metadata = embedded_v4(ip).iter().flatten().any(|v4| METADATA_V4.contains(v4));
    if METADATA_V6.contains(&ip) || embeds_metadata {
        return IpClass::Metadata;
    }
    let unassigned = !shares_prefix_v6(v6(0x2000, 0, 0, 0, 0, 0), ip, 3);
    let otherwise = if unassigned { IpClass::Reserved } else { IpClass::Global };
    V6.iter()
        .find(|(net, length, _)| shares_prefix_v6(*net, ip, *length))
        .map_or(otherwise, |(_, _, class)| *class)
}

fn shares_prefix_v4(a: Ipv4Addr, b: Ipv4Addr, length: u32) -> bool {
    (a.to_bits() ^ b.to_bits()).leading_zeros() >= length
}

fn shares_prefix_v6(a: Ipv6Addr, b: Ipv6Addr, length: u32) -> bool {
    (a.to_bits() ^ b.to_bits()).leading_zeros() >= length
}

/// The IPv4 addresses that an IPv6 address carries, where its prefix says that it does. Teredo carries two: the server,
/// and the client with all bits inverted.
pub fn embedded_v4(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let bits = ip.to_bits();
    let at = |shift: u32| Ipv4Addr::from_bits(u32::try_from((bits >> shift) & 0xffff_ffff).unwrap_or(0));
    let segments = ip.segments();
    match segments {
        [0x2002, ..] => [Some(at(80)), None],
        [0x2001, 0, ..] => [Some(at(64)), Some(Ipv4Addr::from_bits(!at(0).to_bits()))],
        // A /48 NAT64 prefix carries the address in bits 48 to 87, around an octet of zeros (RFC 6052 section 2.2), but
        // operators also use the plain last 32 bits of a /96 inside it.
        [0x64, 0xff9b, 1, ..] => {
            let high = u32::from(segments[3]) << 16;
            let low = (u32::from(segments[4] & 0x00ff) << 8) | u32::from(segments[5] >> 8);
            [Some(Ipv4Addr::from_bits(high | low)), Some(at(0))]
        }
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => [Some(at(0)), None],
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => [Some(at(0)), None],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_the_class_of_its_registry_entry() {
        use IpClass::*;
        let table: &[(&str, IpClass)] = &[
            // SS-01, SS-03, SS-04
            ("127.0.0.1", Loopback),
            ("127.255.255.254", Loopback),
            ("::1", Loopback),
            ("0.0.0.0", Unspecified),
            ("::", Unspecified),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:10.0.0.5", Private),
            ("::ffff:93.184.215.14", Global),
            // SS-05
            ("64:ff9b::7f00:1", EmbeddedV4),
            ("64:ff9b::a9fe:a9fe", Metadata),
            ("64:ff9b:1::7f00:1", EmbeddedV4),
            ("64:ff9b:1:a9fe:a9:fe00::", Metadata),
            ("2002:7f00:1::", EmbeddedV4),
            ("2002:a9fe:a9fe::1", Metadata),
            ("::127.0.0.1", EmbeddedV4),
            ("::169.254.169.254", Metadata),
            ("::ffff:0:127.0.0.1", EmbeddedV4),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", EmbeddedV4),
            ("2001:0:a9fe:a9fe::1", Metadata),
            ("2001:0:4136:e378:8000:63bf:5601:5601", Metadata),
            // SS-06, SS-08, SS-09
            ("169.254.169.254", Metadata),
            ("::ffff:a9fe:a9fe", Metadata),
            ("169.254.170.2", Metadata),
            ("169.254.170.23", Metadata),
            ("fd00:ec2::254", Metadata),
            ("fd00:ec2::23", Metadata),
            ("fd20:ce::254", Metadata),
            ("168.63.129.16", Metadata),
            ("192.0.0.192", Metadata),
            ("100.100.100.200", Metadata),
            ("168.63.129.15", Global),
            ("168.63.129.17", Global),
            // SS-10, with the edges just outside
            ("10.0.0.5", Private),
            ("9.255.255.255", Global),
            ("11.0.0.0", Global),
            ("172.16.0.5", Private),
            ("172.31.255.254", Private),
            ("172.15.255.255", Global),
            ("172.32.0.1", Global),
            ("192.168.0.5", Private),
            ("192.167.255.255", Global),
            ("192.169.0.0", Global),
            ("100.64.0.5", SharedNat),
            ("100.127.255.254", SharedNat),
            ("100.63.255.254", Global),
            ("100.128.0.1", Global),
            ("fc00::5", UniqueLocal),
            ("fd12:3456::5", UniqueLocal),
            ("fe00::1", Reserved),
            ("fe80::5", LinkLocal),
            ("febf::1", LinkLocal),
            ("169.254.1.1", LinkLocal),
            ("169.253.255.255", Global),
            ("169.255.0.0", Global),
            ("fec0::1", SiteLocal),
            // SS-11
            ("0.1.2.3", ThisNetwork),
            ("1.0.0.0", Global),
            ("192.0.0.1", ProtocolAssignment),
            ("192.0.1.0", Global),
            ("192.0.2.1", Documentation),
            ("192.0.3.0", Global),
            ("198.51.100.1", Documentation),
            ("203.0.113.1", Documentation),
            ("198.18.0.5", Benchmarking),
            ("198.19.255.255", Benchmarking),
            ("198.17.255.255", Global),
            ("198.20.0.0", Global),
            ("192.88.99.1", Infrastructure),
            ("192.31.196.1", Infrastructure),
            ("192.52.193.1", Infrastructure),
            ("192.175.48.1", Infrastructure),
            ("240.0.0.1", Reserved),
            ("255.255.255.255", Broadcast),
            ("224.0.0.1", Multicast),
            ("239.1.1.1", Multicast),
            ("223.255.255.255", Global),
            ("ff02::1", Multicast),
            ("2001:db8::1", Documentation),
            ("2001:db9::1", Global),
            ("100::1", Discard),
            ("100:0:0:1::1", Discard),
            ("100:0:0:2::1", Reserved),
            ("3fff::1", Documentation),
            ("3fff:fff::1", Documentation),
            ("3fff:1000::1", Global),
            ("5f00::1", SegmentRouting),
            ("2001:2::1", Benchmarking),
            ("2001:20::1", ProtocolAssignment),
            ("2001:1ff:ffff::1", ProtocolAssignment),
            ("2001:200::1", Global),
            ("2620:4f:8000::1", Infrastructure),
            ("2606:4700::1111", Global),
            ("4000::1", Reserved),
            ("1fff::1", Reserved),
        ];
        for (text, class) in table {
            assert_eq!(classify(text.parse().unwrap()), *class, "{text}");
        }
    }

    #[test]
    fn the_addresses_inside_of_addresses_are_found() {
        let inside = |text: &str| embedded_v4(text.parse().unwrap());
        let v4 = |text: &str| Some(text.parse::<Ipv4Addr>().unwrap());
        assert_eq!(inside("64:ff9b::7f00:1"), [v4("127.0.0.1"), None]);
        assert_eq!(inside("2002:a00:5::"), [v4("10.0.0.5"), None]);
        assert_eq!(inside("2001:0:4136:e378:8000:63bf:3fff:fdd2"), [v4("65.54.227.120"), v4("192.0.2.45")]);
        assert_eq!(inside("::1"), [None, None]);
        assert_eq!(inside("2606:4700::1111"), [None, None]);
    }
}
