//! `outgate check`: all mistakes of a policy at once; with `--against`, what it allows that another one did not.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{PolicyArgument, Style, load, print};
use crate::policy::widening::widenings;

/// Arguments of `check`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    policy: PolicyArgument,
    /// An older policy: lists every change that widens access.
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
}

/// Checks, and says what a careful reader should know.
pub fn run(arguments: &Arguments) -> ExitCode {
    let style = Style::of_stdout();
    let policy = match load(&arguments.policy) {
        Ok(policy) => policy,
        Err(code) => return code,
    };
    let mut text = String::new();
    for warning in &policy.warnings {
        text.push_str(&format!("{} {warning}\n", style.paint("33", "warning:")));
    }
    if let Some(older) = &arguments.against {
        let older = match load(&PolicyArgument { config: older.clone(), ..arguments.policy.clone() }) {
            Ok(policy) => policy,
            Err(code) => return code,
        };
        let wider = widenings(&older, &policy);
        for change in &wider {
            text.push_str(&format!("{} {change}\n", style.paint("33", "wider:")));
        }
        if wider.is_empty() {
            text.push_str("no change widens access\n");
        }
    }
    let secrets = policy.secrets.iter().filter(|used| !used.reference.is_made()).count();
    text.push_str(&format!(
        "{} {}: {} providers, {secrets} secret references\n",
        style.good("ok"),
        arguments.policy.config.display(),
        policy.providers.len(),
    ));
    for provider in &policy.providers {
        let how = if provider.intercept.intercept { "intercepted" } else { "blind tunnel" };
        text.push_str(&format!(
            "   {}  {}  {}\n",
            style.bold(&format!("{:<20}", provider.name)),
            provider.host_names.join(" "),
            style.faint(&format!("CONNECT: {how}; local: {}", provider.local_path)),
        ));
    }
    print(&text)
}
