//! `outgate schema`: the JSON Schema of the policy, from the very types that read it; or the reference as Markdown.

use std::process::ExitCode;

use super::print;

/// Arguments of `schema`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print docs/configuration.md instead.
    #[arg(long)]
    markdown: bool,
}

/// Prints it.
pub fn run(arguments: &Arguments) -> ExitCode {
    if arguments.markdown {
        return print(&crate::policy::reference::markdown());
    }
    print(&format!("{:#}\n", crate::policy::reference::schema()))
}
