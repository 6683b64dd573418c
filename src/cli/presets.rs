//! `outgate presets`: what is built in about providers: a list, or one preset as it is written, with its sources.

use std::process::ExitCode;

use super::{Style, fail, print};
use crate::policy::diagnostic::suggest;
use crate::policy::preset::{Preset, names, text};

/// Arguments of `presets`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List them: name, title, how sure the facts are, hosts and the ways of the credential.
    List,
    /// Print one as it is written, with the sources of its facts and what is unsure.
    Show {
        /// Its name.
        name: String,
    },
    /// Print docs/providers.md.
    Markdown,
}

/// Lists or shows.
pub fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.command {
        None | Some(Command::List) => print(&list()),
        Some(Command::Show { name }) => match text(name) {
            Some(text) => print(text),
            None => fail(match suggest(name, names()) {
                Some(near) => format!("there is no such preset; did you mean `{near}`?"),
                None => "there is no such preset; `outgate presets` lists them".to_owned(),
            }),
        },
        Some(Command::Markdown) => print(&crate::policy::preset::catalogue::markdown()),
    }
}

fn list() -> String {
    let style = Style::of_stdout();
    let mut out = String::new();
    for name in names() {
        let Some(preset) = Preset::named(name) else { continue };
        let head = format!("{}, confidence {}", preset.header.title, preset.header.confidence.as_str());
        out.push_str(&format!("{} {head}\n", style.bold(&format!("{name:<28}"))));
        let mut line = |what: &str, text: &str| {
            out.push_str(&format!("  {} {text}\n", style.faint(&format!("{what:<10}"))))
        };
        line("hosts", &preset.hosts().join(" "));
        for (form, about) in preset.credential_forms(false) {
            let form = form.trim_start_matches("credential: ");
            line("credential", &format!("{form}  {}", style.faint(&about)));
        }
        for (parameter, about) in preset.parameter_forms() {
            line("with", &format!("{parameter}  {}", style.faint(&about)));
        }
    }
    out
}
