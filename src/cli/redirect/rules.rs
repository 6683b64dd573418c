//! What is redirected, as a list of steps; each backend writes them in its own words. Pure.
//!
//! ```text
//! connections (TCP):  outgate's own user    pass
//!                     over loopback         pass
//!                     port 53 (DNS)         pass
//!                     metadata services     redirect   where an excluded range would let them pass
//!                     excluded ranges       pass
//!                     the ports             redirect
//! datagrams (UDP):    the same that pass    pass
//!                     port 443 (QUIC)       refuse, so that clients fall back to TCP
//! ```
//!
//! So it is by exclusion of one user, as service meshes do it: whoever else the app runs as, and every port that nobody thought of,
//! goes to outgate. Other datagrams, DNS among them, are left alone.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::upstream::ranges::{METADATA_V4, METADATA_V6};

/// DNS over TCP: long answers. Datagrams to it are not touched at all.
pub const DNS: u16 = 53;
/// HTTPS over QUIC.
pub const QUIC: u16 = 443;

/// What is to be in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// User of outgate, whose connections pass.
    pub uid: u32,
    /// Port of the transparent listener, on loopback.
    pub port: u16,
    /// Ports that are redirected.
    pub ports: Vec<Ports>,
    /// Ranges that pass.
    pub exclude: Vec<IpNet>,
}

/// A port, or a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last; the same for one port.
    pub last: u16,
}

impl Ports {
    /// Every port.
    pub const ALL: Self = Self { first: 1, last: u16::MAX };

    fn holds(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "expected a port from 1 to 65535, or a range such as `8000-8999`";
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or(WRONG);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ports = Self { first: port(first)?, last: port(last)? };
        if ports.first > ports.last {
            return Err(WRONG);
        }
        if ports == (Self { first: DNS, last: DNS }) {
            return Err("port 53 (DNS) is always left alone");
        }
        Ok(ports)
    }
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes where it was meant to.
    Pass,
    /// To outgate.
    Redirect,
    /// Refused at once.
    Refuse,
}

/// What a step looks at. All of it has to be so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The user of the process.
    pub uid: Option<u32>,
    /// It stays on this machine.
    pub loopback: bool,
    /// Where it goes.
    pub to: Option<IpNet>,
    /// The port it goes to.
    pub ports: Option<Ports>,
}

/// One step: the first that matches decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it looks at.
    pub on: Match,
    /// What becomes of it.
    pub verdict: Verdict,
}

impl Step {
    fn pass(on: Match) -> Self {
        Self { on, verdict: Verdict::Pass }
    }
}

impl Rules {
    /// The steps for new TCP connections.
    pub fn connections(&self) -> Vec<Step> {
        let mut steps = self.own();
        steps.push(Step::pass(Match { ports: Some(Ports { first: DNS, last: DNS }), ..Match::default() }));
        for address in self.metadata() {
            steps.extend(self.redirected(Some(address.into())));
        }
        steps.extend(self.excluded());
        steps.extend(self.redirected(None));
        steps
    }

    /// The steps for UDP.
    pub fn datagrams(&self) -> Vec<Step> {
        if !self.ports.iter().any(|ports| ports.holds(QUIC)) {
            return Vec::new();
        }
        let mut steps = self.own();
        steps.extend(self.excluded());
        let quic = Match { ports: Some(Ports { first: QUIC, last: QUIC }), ..Match::default() };
        steps.push(Step { on: quic, verdict: Verdict::Refuse });
        steps
    }

    fn own(&self) -> Vec<Step> {
        vec![
            Step::pass(Match { uid: Some(self.uid), ..Match::default() }),
            Step::pass(Match { loopback: true, ..Match::default() }),
        ]
    }

    fn excluded(&self) -> impl Iterator<Item = Step> {
        self.exclude.iter().map(|net| Step::pass(Match { to: Some(*net), ..Match::default() }))
    }

    fn redirected(&self, to: Option<IpNet>) -> impl Iterator<Item = Step> {
        self.ports.iter().map(move |ports| {
            let on = Match { to, ports: Some(*ports), ..Match::default() };
            Step { on, verdict: Verdict::Redirect }
        })
    }

    /// Metadata services hand out the machine's credentials to whoever asks. A range that is excluded for the databases in it does
    /// not let them pass; only their very address does.
    fn metadata(&self) -> Vec<IpAddr> {
        let v4 = METADATA_V4.into_iter().map(IpAddr::V4);
        let all = v4.chain(METADATA_V6.into_iter().map(IpAddr::V6));
        all.filter(|address| {
            let inside = self.exclude.iter().any(|net| net.contains(address));
            inside && !self.exclude.contains(&IpNet::from(*address))
        })
        .collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every kind of step.
    pub(in crate::cli::redirect) fn full() -> Rules {
        Rules {
            uid: 65532,
            port: 3129,
            ports: vec!["443".parse().unwrap(), "8000-8999".parse().unwrap()],
            exclude: ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8", "2001:db8::1/128"]
                .map(|net| net.parse().unwrap())
                .into(),
        }
    }

    /// What is usual.
    pub(in crate::cli::redirect) fn usual() -> Rules {
        Rules { uid: 65532, port: 3129, ports: vec![Ports::ALL], exclude: Vec::new() }
    }

    #[test]
    fn ports_are_read() {
        assert_eq!("443".parse(), Ok(Ports { first: 443, last: 443 }));
        assert_eq!("1-65535".parse(), Ok(Ports::ALL));
        for wrong in ["", "0", "65536", "9-8", "80,443", "a", "-1", "1-", "53", "53-53"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
        }
    }

    /// The first step that matches decides, so what passes must not stand behind what redirects, but for metadata services.
    #[test]
    fn an_excluded_range_lets_no_metadata_service_pass() {
        let redirected = |exclude: &[&str], to: &str| {
            let exclude = exclude.iter().map(|net| net.parse().unwrap()).collect();
            let rules = Rules { exclude, ..usual() };
            let to: IpAddr = to.parse().unwrap();
            let step = rules
                .connections()
                .into_iter()
                .filter(|step| step.on.uid.is_none() && !step.on.loopback)
                .filter(|step| step.on.ports != Some(Ports { first: DNS, last: DNS }))
                .find(|step| step.on.to.is_none_or(|net| net.contains(&to)));
            step.unwrap().verdict == Verdict::Redirect
        };
        let private = ["10.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10", "fc00::/7"];
        for (exclude, to, wanted) in [
            (&[][..], "93.184.215.14", true),
            (&private, "93.184.215.14", true),
            (&private, "10.1.2.3", false),
            (&private, "169.254.169.254", true),
            (&private, "169.254.20.10", false),
            (&private, "100.100.100.200", true),
            (&private, "fd00:ec2::254", true),
            (&private, "fd12::1", false),
            (&["169.254.169.254/32"], "169.254.169.254", false),
            (&["10.0.0.0/8", "10.0.0.0/8", "169.254.0.0/16", "169.254.169.254/32"], "169.254.169.254", false),
        ] {
            assert_eq!(redirected(exclude, to), wanted, "{exclude:?} {to}");
        }
    }

    #[test]
    fn without_port_443_quic_is_left_alone() {
        assert!(Rules { ports: vec!["80".parse().unwrap()], ..usual() }.datagrams().is_empty());
        assert!(usual().datagrams().iter().any(|step| step.verdict == Verdict::Refuse));
    }
}
