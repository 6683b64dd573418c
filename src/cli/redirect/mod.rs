//! `outgate redirect setup | check | remove`: rules of the kernel that bring the connections of every other user to a transparent
//! listener. For a network namespace of its own: a pod's, or a machine's.
//!
//! Exit codes: 0 done, or all in place; 1 it could not be done or looked at; 2 the arguments are wrong; 5 `check` found that rules are
//! missing or differ.

mod iptables;
mod nft;
mod program;
mod rules;

use std::path::Path;
use std::process::ExitCode;

use ipnet::IpNet;

use self::iptables::{CHAINS, Family, Found};
use self::program::ProgramError;
use self::rules::{Ports, Rules};
use super::{NOT_IN_PLACE, fail, print};
use crate::upstream::guard::{AddressRange, RangeFault};

/// Arguments of `redirect`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Put the rules in place; what an earlier call put there is replaced, with whichever backend that was. Wants CAP_NET_ADMIN.
    Setup {
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        backend: BackendArgument,
        /// Print what would be loaded, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Say whether the rules are in place, and no others of ours beside them; what is missing or too much (exit code 5).
    Check {
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        backend: BackendArgument,
    },
    /// Take the rules away, of every backend that is there. That there are none is no mistake.
    Remove {
        #[command(flatten)]
        backend: BackendArgument,
        /// Print what would be loaded, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which rules.
#[derive(clap::Args)]
struct Wanted {
    /// User that outgate runs as: its connections go out. No app may have it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    uid: u32,
    /// Port of the transparent listener, on 127.0.0.1 and ::1.
    #[arg(long, default_value_t = 3129, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Destination ports that are redirected, such as `80,443,8000-8999`. Default: every TCP port but 53.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    ports: Vec<Ports>,
    /// Destinations that apps reach directly, such as the cluster's own networks. Metadata services in such a range are redirected all
    /// the same, unless their very address is named.
    #[arg(long = "exclude-cidr", value_delimiter = ',', value_name = "CIDR", value_parser = range)]
    exclude: Vec<IpNet>,
}

#[derive(clap::Args)]
struct BackendArgument {
    /// What the rules are written with.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Choice,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Choice {
    /// nftables where it works, else iptables.
    Auto,
    /// nftables: one table for both families.
    Nft,
    /// iptables and ip6tables, of either kind.
    Iptables,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Backend {
    Nft,
    Iptables,
}

impl Backend {
    const fn other(self) -> Self {
        match self {
            Self::Nft => Self::Iptables,
            Self::Iptables => Self::Nft,
        }
    }
}

impl From<Wanted> for Rules {
    fn from(wanted: Wanted) -> Self {
        let ports = if wanted.ports.is_empty() { vec![Ports::ALL] } else { wanted.ports };
        Self { uid: wanted.uid, port: wanted.port, ports, exclude: wanted.exclude }
    }
}

/// A range as `addresses` of the policy has it, without a port.
fn range(text: &str) -> Result<IpNet, String> {
    let range: AddressRange = text.parse().map_err(|fault: RangeFault| fault.to_string())?;
    if range.port.is_some() {
        return Err("a range is excluded with all of its ports".to_owned());
    }
    if range.net.prefix_len() == 0 {
        return Err("with every address excluded nothing would be redirected".to_owned());
    }
    Ok(range.net)
}

/// Runs the action.
pub fn run(arguments: Arguments) -> ExitCode {
    let done = match arguments.action {
        Action::Setup { wanted, backend, dry_run } => setup(&wanted.into(), backend.backend, dry_run),
        Action::Check { wanted, backend } => check(&wanted.into(), backend.backend),
        Action::Remove { backend, dry_run } => remove(backend.backend, dry_run),
    };
    done.unwrap_or_else(fail)
}

fn setup(rules: &Rules, choice: Choice, dry_run: bool) -> Result<ExitCode, String> {
    if dry_run {
        return Ok(print(&planned(rules, choice)));
    }
    let backend = backend(choice)?;
    match backend {
        Backend::Nft => {
            program::run("nft", &["-f", "-"], &nft::setup(rules)).map_err(text)?;
        }
        Backend::Iptables => {
            for family in families() {
                load(family, &iptables::setup(rules, family, &found(family)?))?;
            }
        }
    }
    // Last, so that at no time there are none.
    if works(backend.other()).is_ok() {
        unload(backend.other(), false)?;
    }
    // What was loaded without a complaint may still not be what is in place.
    match judged(rules, backend)? {
        differing if differing.is_empty() => Ok(ExitCode::SUCCESS),
        differing => Err(format!("the rules were loaded, and are not in place: {}", differing.join("; "))),
    }
}

/// Without a look at what is there.
fn planned(rules: &Rules, choice: Choice) -> String {
    if choice == Choice::Nft || (choice == Choice::Auto && backend(choice) != Ok(Backend::Iptables)) {
        return nft::setup(rules);
    }
    let nothing = || [Found::default(), Found::default()];
    let text =
        |family: Family| format!("# {}\n{}", family.restore(), iptables::setup(rules, family, &nothing()));
    [Family::V4, Family::V6].map(text).concat()
}

fn check(rules: &Rules, choice: Choice) -> Result<ExitCode, String> {
    let backend = backend(choice)?;
    let differing = judged(rules, backend)?;
    if differing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let _ = fail(format!("not in place:\n  {}", differing.join("\n  ")));
    Ok(ExitCode::from(NOT_IN_PLACE))
}

fn remove(choice: Choice, dry_run: bool) -> Result<ExitCode, String> {
    let works = |backend| works(backend).is_ok();
    let backends: Vec<Backend> = match choice {
        Choice::Auto => [Backend::Nft, Backend::Iptables].into_iter().filter(|one| works(*one)).collect(),
        Choice::Nft => vec![Backend::Nft],
        Choice::Iptables => vec![Backend::Iptables],
    };
    if backends.is_empty() {
        return Err(nothing_works());
    }
    for one in backends {
        unload(one, dry_run)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes away what is there of one backend; or prints what that would take.
fn unload(backend: Backend, dry_run: bool) -> Result<(), String> {
    match backend {
        Backend::Nft if dry_run => {
            print(&nft::remove());
        }
        Backend::Nft => {
            program::run("nft", &["-f", "-"], &nft::remove()).map_err(text)?;
        }
        Backend::Iptables => {
            for family in families() {
                let input = iptables::remove(&found(family)?);
                if dry_run {
                    print(&input);
                } else {
                    load(family, &input)?;
                }
            }
        }
    }
    Ok(())
}

/// What differs from the rules, and what the other backend still holds: its redirection would be in force as well, and with another
/// user it would catch outgate's own connections.
fn judged(rules: &Rules, backend: Backend) -> Result<Vec<String>, String> {
    let mut all = differences(rules, backend)?;
    let other = backend.other();
    if works(other).is_ok() {
        all.extend(leftovers(other)?);
    }
    Ok(all)
}

/// Whatever is ours in a backend that should hold nothing.
fn leftovers(backend: Backend) -> Result<Vec<String>, String> {
    if backend == Backend::Nft {
        let said = || format!("nft: the table `{}` is there as well", nft::TABLE.join(" "));
        return Ok(table()?.map(|_| said()).into_iter().collect());
    }
    let mut all = Vec::new();
    for family in families() {
        for (chain, found) in CHAINS.into_iter().zip(found(family)?) {
            if found.chain.is_some() {
                all.push(format!("{}: the chain `{}` is there as well", family.program(), chain.name));
            }
        }
    }
    Ok(all)
}

/// Our table of nftables, where there is one, with users and ports as numbers.
fn table() -> Result<Option<String>, String> {
    let [family, table] = nft::TABLE;
    match program::run("nft", &["-nnn", "list", "table", family, table], "") {
        Ok(listing) => Ok(Some(listing)),
        // A table that is not there is listed with a complaint.
        Err(ProgramError::Failed { said, .. }) if said.contains("No such file") => Ok(None),
        Err(error) => Err(text(error)),
    }
}

fn differences(rules: &Rules, backend: Backend) -> Result<Vec<String>, String> {
    match backend {
        Backend::Nft => Ok(nft::differences(rules, &table()?.unwrap_or_default())),
        Backend::Iptables => {
            let mut all = Vec::new();
            for family in families() {
                all.extend(iptables::differences(rules, family, &found(family)?));
            }
            Ok(all)
        }
    }
}

/// What should be there against what is there.
fn compared(wanted: &[String], found: &[&str]) -> Vec<String> {
    if wanted.iter().map(String::as_str).eq(found.iter().copied()) {
        return Vec::new();
    }
    let missing = wanted.iter().filter(|line| !found.contains(&line.as_str()));
    let strange = found.iter().filter(|line| !wanted.iter().any(|one| one == *line));
    let mut all: Vec<String> = missing.map(|line| format!("missing: {line}")).collect();
    all.extend(strange.map(|line| format!("not ours: {line}")));
    if all.is_empty() {
        all.push("the rules stand in another order, or twice".to_owned());
    }
    all
}

/// The chains of a family as they are.
fn found(family: Family) -> Result<[Found; 2], String> {
    let mut all = [Found::default(), Found::default()];
    for (found, chain) in all.iter_mut().zip(CHAINS) {
        let list = |name| program::run(family.program(), &["-w", "5", "-t", chain.table, "-S", name], "");
        found.output = list("OUTPUT").map_err(text)?;
        found.chain = match list(chain.name) {
            Ok(listing) => Some(listing),
            Err(ProgramError::Failed { .. }) => None,
            Err(error) => return Err(text(error)),
        };
    }
    Ok(all)
}

fn load(family: Family, input: &str) -> Result<(), String> {
    if input.is_empty() {
        return Ok(());
    }
    program::run(family.restore(), &["--noflush", "-w", "5"], input).map(drop).map_err(text)
}

/// A kernel without IPv6 has nothing that could go out by it.
fn families() -> impl Iterator<Item = Family> {
    let v6 = Path::new("/proc/net/if_inet6").exists().then_some(Family::V6);
    [Family::V4].into_iter().chain(v6)
}

fn backend(choice: Choice) -> Result<Backend, String> {
    match choice {
        Choice::Nft => Ok(Backend::Nft),
        Choice::Iptables => Ok(Backend::Iptables),
        Choice::Auto => [Backend::Nft, Backend::Iptables]
            .into_iter()
            .find(|backend| works(*backend).is_ok())
            .ok_or_else(nothing_works),
    }
}

/// Whether the program is there, and the kernel and our rights let it look.
fn works(backend: Backend) -> Result<(), ProgramError> {
    match backend {
        Backend::Nft => program::run("nft", &["list", "tables"], "").map(drop),
        Backend::Iptables => {
            program::find(Family::V4.restore())?;
            program::run(Family::V4.program(), &["-w", "5", "-t", "nat", "-S", "OUTPUT"], "").map(drop)
        }
    }
}

fn nothing_works() -> String {
    let why = |backend| works(backend).err().map_or_else(|| "works now".to_owned(), text);
    format!("neither nftables nor iptables can be used: {}; {}", why(Backend::Nft), why(Backend::Iptables))
}

fn text(error: ProgramError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_mean_something_else_than_they_look_are_refused() {
        for (text, wanted) in
            [("10.0.0.0/8", "10.0.0.0/8"), ("192.0.2.1", "192.0.2.1/32"), ("fd00::/8", "fd00::/8")]
        {
            assert_eq!(range(text).unwrap().to_string(), wanted);
        }
        for text in
            ["10.0.0.5/8", "10.0.0.0/8:443", "::ffff:10.0.0.0/104", "0.0.0.0/0", "::/0", "example.com", ""]
        {
            assert!(range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_differs_is_missing_or_not_ours_or_in_another_order() {
        let wanted = ["a".to_owned(), "b".to_owned()];
        assert_eq!(compared(&wanted, &["a", "b"]), Vec::<String>::new());
        assert_eq!(compared(&wanted, &["a", "c"]), ["missing: b", "not ours: c"]);
        assert_eq!(compared(&wanted, &["b", "a"]).len(), 1);
        assert_eq!(compared(&wanted, &["a", "a", "b"]).len(), 1);
    }
}
