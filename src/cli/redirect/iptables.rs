//! The rules as chains of iptables, one set for each family. The lines are written as `iptables -S` writes them, so that what is in
//! place can be compared line by line.

use ipnet::IpNet;

use super::rules::{Match, Ports, Rules, Step, Verdict};

/// A family of addresses, with its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Lists and changes single rules.
    pub const fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// Takes a whole text, table by table.
    pub const fn restore(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }

    fn holds(self, net: IpNet) -> bool {
        match self {
            Self::V4 => matches!(net, IpNet::V4(_)),
            Self::V6 => matches!(net, IpNet::V6(_)),
        }
    }
}

/// One of our chains, and where it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The table.
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
}

/// New TCP connections.
const CONNECTIONS: Chain = Chain { table: "nat", name: "OUTGATE_CONNECTIONS" };
/// UDP.
const DATAGRAMS: Chain = Chain { table: "filter", name: "OUTGATE_DATAGRAMS" };

/// All that can be ours.
pub const CHAINS: [Chain; 2] = [CONNECTIONS, DATAGRAMS];

impl Chain {
    fn jump(self) -> String {
        format!("-A OUTPUT -j {}", self.name)
    }

    fn rules(self, rules: &Rules, family: Family) -> Vec<String> {
        let (steps, protocol) =
            if self == CONNECTIONS { (rules.connections(), "tcp") } else { (rules.datagrams(), "udp") };
        let ours = steps.iter().filter(|step| step.on.to.is_none_or(|net| family.holds(net)));
        ours.map(|step| format!("-A {} {}", self.name, line(step, protocol, rules.port, family))).collect()
    }
}

/// What is there now, of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `-S OUTPUT` of its table.
    pub output: String,
    /// `-S` of the chain; none where it does not exist.
    pub chain: Option<String>,
}

impl Found {
    fn jumps(&self, chain: Chain) -> usize {
        let jump = chain.jump();
        self.output.lines().filter(|line| line.trim() == jump).count()
    }
}

/// What `iptables-restore --noflush` reads: each table is one transaction, in which our chain is emptied and written anew. The jump to it
/// is the first rule of OUTPUT, once.
pub fn setup(rules: &Rules, family: Family, found: &[Found; 2]) -> String {
    let mut text = String::new();
    for (chain, found) in CHAINS.into_iter().zip(found) {
        let lines = chain.rules(rules, family);
        if lines.is_empty() {
            text.push_str(&removed(chain, found));
            continue;
        }
        text.push_str(&format!("*{}\n:{} - [0:0]\n", chain.table, chain.name));
        lines.iter().for_each(|line| text.push_str(&format!("{line}\n")));
        text.push_str(&format!("-D OUTPUT -j {}\n", chain.name).repeat(found.jumps(chain)));
        text.push_str(&format!("-I OUTPUT 1 -j {}\nCOMMIT\n", chain.name));
    }
    text
}

/// What `iptables-restore --noflush` reads to take everything away; empty where nothing is there.
pub fn remove(found: &[Found; 2]) -> String {
    CHAINS.into_iter().zip(found).map(|(chain, found)| removed(chain, found)).collect()
}

fn removed(chain: Chain, found: &Found) -> String {
    let jumps = format!("-D OUTPUT -j {}\n", chain.name).repeat(found.jumps(chain));
    if found.chain.is_none() {
        return String::new();
    }
    // That the chain is declared makes `--noflush` empty it, and an empty one may go.
    format!("*{}\n:{} - [0:0]\n{jumps}-X {}\nCOMMIT\n", chain.table, chain.name, chain.name)
}

/// What is missing, or stands there and should not.
pub fn differences(rules: &Rules, family: Family, found: &[Found; 2]) -> Vec<String> {
    let mut all = Vec::new();
    for (chain, found) in CHAINS.into_iter().zip(found) {
        let lines = chain.rules(rules, family);
        let listed = found.chain.as_deref().unwrap_or_default();
        let listed: Vec<&str> =
            listed.lines().map(str::trim).filter(|line| line.starts_with("-A ")).collect();
        let program = family.program();
        if lines.is_empty() {
            if !listed.is_empty() {
                all.push(format!("{program}: the chain `{}` is of other rules", chain.name));
            }
            continue;
        }
        match (&found.chain, found.output.lines().find(|line| line.starts_with("-A "))) {
            (None, _) => {
                all.push(format!("{program}: the chain `{}` is missing", chain.name));
                continue;
            }
            (Some(_), Some(first)) if first.trim() == chain.jump() => {}
            (Some(_), _) => all.push(format!(
                "{program}: `{}` is not the first rule of OUTPUT in the table `{}`",
                chain.jump(),
                chain.table
            )),
        }
        let differing = super::compared(&lines, &listed);
        all.extend(differing.into_iter().map(|line| format!("{program}: {line}")));
    }
    all
}

fn line(step: &Step, protocol: &str, port: u16, family: Family) -> String {
    let Match { uid, loopback, to, ports } = step.on;
    let mut parts = Vec::new();
    parts.extend(to.map(|net| format!("-d {net}")));
    parts.extend(loopback.then(|| "-o lo".to_owned()));
    parts.extend(ports.map(|ports| match ports {
        Ports::ALL => format!("-p {protocol}"),
        Ports { first, last } if first == last => format!("-p {protocol} -m {protocol} --dport {first}"),
        Ports { first, last } => format!("-p {protocol} -m {protocol} --dport {first}:{last}"),
    }));
    parts.extend(uid.map(|uid| format!("-m owner --uid-owner {uid}")));
    parts.push(match (step.verdict, family) {
        (Verdict::Pass, _) => "-j RETURN".to_owned(),
        (Verdict::Redirect, _) => format!("-j REDIRECT --to-ports {port}"),
        (Verdict::Refuse, Family::V4) => "-j REJECT --reject-with icmp-port-unreachable".to_owned(),
        (Verdict::Refuse, Family::V6) => "-j REJECT --reject-with icmp6-port-unreachable".to_owned(),
    });
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::rules::tests::{full, usual};
    use super::*;

    fn nothing() -> [Found; 2] {
        let output = "-P OUTPUT ACCEPT\n".to_owned();
        [Found { output, chain: None }, Found::default()]
    }

    /// As the program would list what was set up.
    fn in_place(rules: &Rules, family: Family) -> [Found; 2] {
        CHAINS.map(|chain| {
            let lines = chain.rules(rules, family);
            Found {
                output: format!("-P OUTPUT ACCEPT\n{}\n-A OUTPUT -j OTHERS\n", chain.jump()),
                chain: Some(format!("-N {}\n{}\n", chain.name, lines.join("\n"))),
            }
        })
    }

    #[test]
    fn the_usual_rules() {
        assert_snapshot!(setup(&usual(), Family::V4, &nothing()), @r#"
        *nat
        :OUTGATE_CONNECTIONS - [0:0]
        -A OUTGATE_CONNECTIONS -m owner --uid-owner 65532 -j RETURN
        -A OUTGATE_CONNECTIONS -o lo -j RETURN
        -A OUTGATE_CONNECTIONS -p tcp -m tcp --dport 53 -j RETURN
        -A OUTGATE_CONNECTIONS -p tcp -j REDIRECT --to-ports 3129
        -I OUTPUT 1 -j OUTGATE_CONNECTIONS
        COMMIT
        *filter
        :OUTGATE_DATAGRAMS - [0:0]
        -A OUTGATE_DATAGRAMS -m owner --uid-owner 65532 -j RETURN
        -A OUTGATE_DATAGRAMS -o lo -j RETURN
        -A OUTGATE_DATAGRAMS -p udp -m udp --dport 443 -j REJECT --reject-with icmp-port-unreachable
        -I OUTPUT 1 -j OUTGATE_DATAGRAMS
        COMMIT
        "#);
    }

    #[test]
    fn rules_with_everything_in_each_family() {
        assert_snapshot!(setup(&full(), Family::V4, &nothing()), @r#"
        *nat
        :OUTGATE_CONNECTIONS - [0:0]
        -A OUTGATE_CONNECTIONS -m owner --uid-owner 65532 -j RETURN
        -A OUTGATE_CONNECTIONS -o lo -j RETURN
        -A OUTGATE_CONNECTIONS -p tcp -m tcp --dport 53 -j RETURN
        -A OUTGATE_CONNECTIONS -d 10.0.0.0/8 -j RETURN
        -A OUTGATE_CONNECTIONS -d 192.0.2.7/32 -j RETURN
        -A OUTGATE_CONNECTIONS -p tcp -m tcp --dport 443 -j REDIRECT --to-ports 3129
        -A OUTGATE_CONNECTIONS -p tcp -m tcp --dport 8000:8999 -j REDIRECT --to-ports 3129
        -I OUTPUT 1 -j OUTGATE_CONNECTIONS
        COMMIT
        *filter
        :OUTGATE_DATAGRAMS - [0:0]
        -A OUTGATE_DATAGRAMS -m owner --uid-owner 65532 -j RETURN
        -A OUTGATE_DATAGRAMS -o lo -j RETURN
        -A OUTGATE_DATAGRAMS -d 10.0.0.0/8 -j RETURN
        -A OUTGATE_DATAGRAMS -d 192.0.2.7/32 -j RETURN
        -A OUTGATE_DATAGRAMS -p udp -m udp --dport 443 -j REJECT --reject-with icmp-port-unreachable
        -I OUTPUT 1 -j OUTGATE_DATAGRAMS
        COMMIT
        "#);
        assert_snapshot!(setup(&full(), Family::V6, &nothing()), @r#"
        *nat
        :OUTGATE_CONNECTIONS - [0:0]
        -A OUTGATE_CONNECTIONS -m owner --uid-owner 65532 -j RETURN
        -A OUTGATE_CONNECTIONS -o lo -j RETURN
        -A OUTGATE_CONNECTIONS -p tcp -m tcp --dport 53 -j RETURN
        -A OUTGATE_CONNECTIONS -d fd00:ec2::254/128 -p tcp -m tcp --dport 443 -j REDIRECT --to-ports 3129
        -A OUTGATE_CONNECTIONS -d fd00:ec2::254/128 -p tcp -m tcp --dport 8000:8999 -j REDIRECT --to-ports 3129
        -A OUTGATE_CONNECTIONS -d fd00:ec2::23/128 -p tcp -m tcp --dport 443 -j REDIRECT --to-ports 3129
        -A OUTGATE_CONNECTIONS -d fd00:ec2::23/128 -p tcp -m tcp --dport 8000:8999 -j REDIRECT --to-ports 3129
        -A OUTGATE_CONNECTIONS -d fd20:ce::254/128 -p tcp -m tcp --dport 443 -j REDIRECT --to-ports 3129
        -A OUTGATE_CONNECTIONS -d fd20:ce::254/128 -p tcp -m tcp --dport 8000:8999 -j REDIRECT --to-ports 3129
        -A OUTGATE_CONNECTIONS -d fd00::/8 -j RETURN
        -A OUTGATE_CONNECTIONS -d 2001:db8::1/128 -j RETURN
        -A OUTGATE_CONNECTIONS -p tcp -m tcp --dport 443 -j REDIRECT --to-ports 3129
        -A OUTGATE_CONNECTIONS -p tcp -m tcp --dport 8000:8999 -j REDIRECT --to-ports 3129
        -I OUTPUT 1 -j OUTGATE_CONNECTIONS
        COMMIT
        *filter
        :OUTGATE_DATAGRAMS - [0:0]
        -A OUTGATE_DATAGRAMS -m owner --uid-owner 65532 -j RETURN
        -A OUTGATE_DATAGRAMS -o lo -j RETURN
        -A OUTGATE_DATAGRAMS -d fd00::/8 -j RETURN
        -A OUTGATE_DATAGRAMS -d 2001:db8::1/128 -j RETURN
        -A OUTGATE_DATAGRAMS -p udp -m udp --dport 443 -j REJECT --reject-with icmp6-port-unreachable
        -I OUTPUT 1 -j OUTGATE_DATAGRAMS
        COMMIT
        "#);
    }

    #[test]
    fn the_jump_is_there_once_and_first() {
        let rules = usual();
        let mut found = in_place(&rules, Family::V4);
        assert_eq!(differences(&rules, Family::V4, &found), Vec::<String>::new());
        let text = setup(&rules, Family::V4, &found);
        assert_eq!(text.matches("-D OUTPUT -j OUTGATE_CONNECTIONS\n").count(), 1);
        assert_eq!(text.matches("-I OUTPUT 1 -j OUTGATE_CONNECTIONS\n").count(), 1);
        found[0].output = "-P OUTPUT ACCEPT\n-A OUTPUT -j OTHERS\n-A OUTPUT -j OUTGATE_CONNECTIONS\n".into();
        assert_snapshot!(differences(&rules, Family::V4, &found).join("\n"), @r#"iptables: `-A OUTPUT -j OUTGATE_CONNECTIONS` is not the first rule of OUTPUT in the table `nat`"#);
    }

    #[test]
    fn what_is_there_is_taken_away_and_nothing_else() {
        assert_eq!(remove(&nothing()), "");
        assert_snapshot!(remove(&in_place(&full(), Family::V4)), @r#"
        *nat
        :OUTGATE_CONNECTIONS - [0:0]
        -D OUTPUT -j OUTGATE_CONNECTIONS
        -X OUTGATE_CONNECTIONS
        COMMIT
        *filter
        :OUTGATE_DATAGRAMS - [0:0]
        -D OUTPUT -j OUTGATE_DATAGRAMS
        -X OUTGATE_DATAGRAMS
        COMMIT
        "#);
    }

    #[test]
    fn what_differs_is_named() {
        let rules = full();
        for family in [Family::V4, Family::V6] {
            assert_eq!(differences(&rules, family, &in_place(&rules, family)), Vec::<String>::new());
        }
        assert_snapshot!(differences(&rules, Family::V6, &nothing()).join("\n"), @r#"
        ip6tables: the chain `OUTGATE_CONNECTIONS` is missing
        ip6tables: the chain `OUTGATE_DATAGRAMS` is missing
        "#);
        let mut found = in_place(&rules, Family::V4);
        let chain = found[0].chain.take().unwrap();
        found[0].chain = Some(chain.replace("--uid-owner 65532", "--uid-owner 1000"));
        assert_snapshot!(differences(&rules, Family::V4, &found).join("\n"), @r#"
        iptables: missing: -A OUTGATE_CONNECTIONS -m owner --uid-owner 65532 -j RETURN
        iptables: not ours: -A OUTGATE_CONNECTIONS -m owner --uid-owner 1000 -j RETURN
        "#);
    }
}
