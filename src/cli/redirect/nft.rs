//! The rules as one table of nftables, for IPv4 and IPv6 together. The text is written as `nft list` writes it, so that what is in
//! place can be compared line by line.

use ipnet::IpNet;

use super::rules::{Match, Rules, Step, Verdict};

/// Our table; nothing else is in it.
pub const TABLE: [&str; 2] = ["inet", "outgate"];

/// Makes an empty table where there is none, so that deleting it cannot fail.
const FRESH: &str = "table inet outgate {}\ndelete table inet outgate\n";

/// What `nft -f -` reads, as one transaction: our table is replaced whole.
pub fn setup(rules: &Rules) -> String {
    let mut text = format!("{FRESH}table inet outgate {{\n");
    for (name, hook, lines) in chains(rules) {
        text.push_str(&format!("\tchain {name} {{\n\t\t{hook} policy accept;\n"));
        lines.iter().for_each(|line| text.push_str(&format!("\t\t{line}\n")));
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

/// What `nft -f -` reads to take everything away; it may be gone already.
pub fn remove() -> String {
    FRESH.to_owned()
}

/// What is missing in a listing of our table, or stands in it and should not.
pub fn differences(rules: &Rules, listing: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (name, hook, lines) in chains(rules) {
        let Some(listed) = chain_of(listing, name) else {
            found.push(format!("the chain `{name}` is missing"));
            continue;
        };
        // The priority may stand there as a name.
        let (kind, _) = hook.split_once(" priority").unwrap_or((&hook, ""));
        if !listed.first().is_some_and(|line| line.starts_with(kind) && line.ends_with("policy accept;")) {
            found.push(format!("the chain `{name}` is not at `{kind}`"));
        }
        let rest = listed.get(1..).unwrap_or_default();
        found.extend(super::compared(&lines, rest));
    }
    found.extend(strange(rules, listing));
    found
}

/// What stands in the table beside our chains. `flags dormant` takes all of it out of work; a chain of others comes before ours, or
/// takes back what they did.
fn strange(rules: &Rules, listing: &str) -> Vec<String> {
    let head = format!("table {} {{", TABLE.join(" "));
    let chains: Vec<String> = chains(rules).iter().map(|(name, ..)| format!("chain {name} {{")).collect();
    let mut found = Vec::new();
    let mut lines = listing.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    while let Some(line) = lines.next() {
        if line == "}" || line == head {
            continue;
        }
        if !chains.iter().any(|chain| chain == line) {
            found.push(format!("not ours: {}", line.trim_end_matches(" {")));
        }
        if line.ends_with('{') {
            lines.by_ref().take_while(|line| *line != "}").for_each(drop);
        }
    }
    found
}

/// Chains in their order: name, hook, rules. NAT happens at -100, and filters come after it.
fn chains(rules: &Rules) -> Vec<(&'static str, String, Vec<String>)> {
    let write = |steps: Vec<Step>, protocol| -> Vec<String> {
        steps.iter().map(|step| line(step, protocol, rules.port)).collect()
    };
    let mut chains = vec![(
        "connections",
        "type nat hook output priority -100;".to_owned(),
        write(rules.connections(), "tcp"),
    )];
    let datagrams = rules.datagrams();
    if !datagrams.is_empty() {
        let hook = "type filter hook output priority 0;".to_owned();
        chains.push(("datagrams", hook, write(datagrams, "udp")));
    }
    chains
}

fn line(step: &Step, protocol: &str, port: u16) -> String {
    let Match { uid, loopback, to, ports } = step.on;
    let mut parts = Vec::new();
    parts.extend(uid.map(|uid| format!("meta skuid {uid}")));
    parts.extend(loopback.then(|| "oifname \"lo\"".to_owned()));
    parts.extend(to.map(|net| match net {
        IpNet::V4(net) if net.prefix_len() == 32 => format!("ip daddr {}", net.addr()),
        IpNet::V4(net) => format!("ip daddr {net}"),
        IpNet::V6(net) if net.prefix_len() == 128 => format!("ip6 daddr {}", net.addr()),
        IpNet::V6(net) => format!("ip6 daddr {net}"),
    }));
    parts.extend(ports.map(|ports| match (ports.first, ports.last) {
        (first, last) if first == last => format!("{protocol} dport {first}"),
        (first, last) => format!("{protocol} dport {first}-{last}"),
    }));
    parts.push(match step.verdict {
        Verdict::Pass => "return".to_owned(),
        Verdict::Redirect => format!("redirect to :{port}"),
        // With ICMP "port unreachable", which is what a client of QUIC takes for a no.
        Verdict::Refuse => "reject".to_owned(),
    });
    parts.join(" ")
}

/// The lines of a chain, trimmed.
fn chain_of<'a>(listing: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let head = format!("chain {name} {{");
    let mut lines = listing.lines().map(str::trim);
    lines.find(|line| *line == head)?;
    Some(lines.take_while(|line| *line != "}").collect())
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::rules::tests::{full, usual};
    use super::*;

    #[test]
    fn the_usual_table() {
        assert_snapshot!(setup(&usual()), @r#"
        table inet outgate {}
        delete table inet outgate
        table inet outgate {
        	chain connections {
        		type nat hook output priority -100; policy accept;
        		meta skuid 65532 return
        		oifname "lo" return
        		tcp dport 53 return
        		tcp dport 1-65535 redirect to :3129
        	}
        	chain datagrams {
        		type filter hook output priority 0; policy accept;
        		meta skuid 65532 return
        		oifname "lo" return
        		udp dport 443 reject
        	}
        }
        "#);
    }

    #[test]
    fn a_table_with_everything() {
        assert_snapshot!(setup(&full()), @r#"
        table inet outgate {}
        delete table inet outgate
        table inet outgate {
        	chain connections {
        		type nat hook output priority -100; policy accept;
        		meta skuid 65532 return
        		oifname "lo" return
        		tcp dport 53 return
        		ip6 daddr fd00:ec2::254 tcp dport 443 redirect to :3129
        		ip6 daddr fd00:ec2::254 tcp dport 8000-8999 redirect to :3129
        		ip6 daddr fd00:ec2::23 tcp dport 443 redirect to :3129
        		ip6 daddr fd00:ec2::23 tcp dport 8000-8999 redirect to :3129
        		ip6 daddr fd20:ce::254 tcp dport 443 redirect to :3129
        		ip6 daddr fd20:ce::254 tcp dport 8000-8999 redirect to :3129
        		ip daddr 10.0.0.0/8 return
        		ip daddr 192.0.2.7 return
        		ip6 daddr fd00::/8 return
        		ip6 daddr 2001:db8::1 return
        		tcp dport 443 redirect to :3129
        		tcp dport 8000-8999 redirect to :3129
        	}
        	chain datagrams {
        		type filter hook output priority 0; policy accept;
        		meta skuid 65532 return
        		oifname "lo" return
        		ip daddr 10.0.0.0/8 return
        		ip daddr 192.0.2.7 return
        		ip6 daddr fd00::/8 return
        		ip6 daddr 2001:db8::1 return
        		udp dport 443 reject
        	}
        }
        "#);
    }

    #[test]
    fn what_differs_is_named() {
        let rules = full();
        let listing = setup(&rules).replace(FRESH, "").replace("priority 0;", "priority filter;");
        assert_eq!(differences(&rules, &listing), Vec::<String>::new());
        assert_eq!(differences(&usual(), "").len(), 2);
        let opened = listing.replace("meta skuid 65532 return", "meta skuid 1000 return");
        assert_snapshot!(differences(&rules, &opened).join("\n"), @r#"
        missing: meta skuid 65532 return
        not ours: meta skuid 1000 return
        missing: meta skuid 65532 return
        not ours: meta skuid 1000 return
        "#);
        let cut = listing.replace("\t\ttcp dport 443 redirect to :3129\n", "");
        assert_snapshot!(differences(&rules, &cut).join("\n"), @r#"missing: tcp dport 443 redirect to :3129"#);
        let dropped = listing.replace("type filter hook output", "type filter hook input");
        assert_snapshot!(differences(&rules, &dropped).join("\n"), @r#"the chain `datagrams` is not at `type filter hook output`"#);
    }

    /// As `nft list` writes it.
    #[test]
    fn what_else_stands_in_the_table_is_named() {
        let listing = setup(&usual()).replace(FRESH, "");
        let head = "table inet outgate {\n";
        let with =
            |more: &str| differences(&usual(), &listing.replace(head, &format!("{head}{more}"))).join("\n");
        assert_eq!(with(""), "");
        assert_eq!(with("\tflags dormant\n\n"), "not ours: flags dormant");
        assert_eq!(
            with(
                "\tchain early {\n\t\ttype nat hook output priority -150; policy accept;\n\t\taccept\n\t}\n\n"
            ),
            "not ours: chain early"
        );
        assert_eq!(
            with("\tset hosts {\n\t\ttype ipv4_addr\n\t\telements = { 192.0.2.1 }\n\t}\n"),
            "not ours: set hosts"
        );
    }
}
