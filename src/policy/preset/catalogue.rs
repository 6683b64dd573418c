//! What the presets say, for people: the list of the command line, and the table of `docs/providers.md`.

use std::fmt::Write as _;

use super::header::{MEASURED, Meaning};
use super::{Preset, names};
use crate::policy::tree::Node;

impl Preset {
    /// Its hosts as written, with the names of parameters.
    pub fn hosts(&self) -> Vec<String> {
        let hosts = self.base.get("hosts").map(Node::items).unwrap_or_default();
        let texts = hosts.iter().filter_map(Node::as_str);
        texts.flat_map(|text| self.hosts_of(text)).collect()
    }

    /// A parameter that stands for a list of hosts is written out: for its usual value, or for none and for any.
    fn hosts_of(&self, text: &str) -> Vec<String> {
        let Some(parameter) = super::fill::whole(text).and_then(|name| self.header.parameters.get(name))
        else {
            return vec![text.to_owned()];
        };
        let usual = parameter.default.as_ref().and_then(|word| parameter.values.get(word));
        let hosts: Vec<String> = match usual {
            Some(usual) => texts(usual),
            None => [&parameter.absent, &parameter.is].into_iter().flatten().flat_map(texts).collect(),
        };
        if hosts.is_empty() { vec![text.to_owned()] } else { hosts }
    }

    /// How its parameters are written, each with what it is.
    pub fn parameter_forms(&self) -> Vec<(String, String)> {
        let parameters = self.header.parameters.iter();
        parameters
            .map(|(name, parameter)| {
                let words: Vec<&str> = parameter.values.keys().map(String::as_str).collect();
                let sample = parameter.sample.clone().filter(|_| words.is_empty());
                let value = sample.unwrap_or_else(|| words.join(" | "));
                let note = match (&parameter.default, parameter.required) {
                    (Some(default), _) => format!(" (default {default})"),
                    (None, true) => " (required)".to_owned(),
                    (None, false) => String::new(),
                };
                (format!("{name}: {value}{note}"), parameter.description.clone())
            })
            .collect()
    }
}

fn texts(meaning: &Meaning) -> Vec<String> {
    match meaning {
        Meaning::One(text) => vec![text.clone()],
        Meaning::Many(texts) => texts.clone(),
    }
}

/// The page `docs/providers.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Providers\n\nWhat outgate knows without being told. This page is made from the presets (`outgate presets markdown`), and a test keeps it\ncurrent. How to use, override and write one stands in [presets.md](presets.md); `outgate presets show <name>` prints one with\nthe sources of its facts and what is unsure.\n\n",
    );
    text.push_str("| preset | provider | hosts | credential | parameters | confidence |\n| --- | --- | --- | --- | --- | --- |\n");
    let presets: Vec<(&str, Preset)> =
        names().filter_map(|name| Some((name, Preset::named(name)?))).collect();
    for (name, preset) in &presets {
        let codes =
            |all: Vec<String>| all.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join("<br>");
        let forms = |all: Vec<(String, String)>| codes(all.into_iter().map(|(form, _)| form).collect());
        let cells = [
            format!("`{name}`"),
            preset.header.title.clone(),
            codes(preset.hosts()),
            forms(preset.credential_forms(false)),
            forms(preset.parameter_forms()),
            preset.header.confidence.as_str().to_owned(),
        ];
        let _ = writeln!(text, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    clients(&mut text, &presets);
    text
}

/// How the other clients are brought to outgate: those that the tests run are told of by what they need there.
fn clients(text: &mut String, presets: &[(&str, Preset)]) {
    text.push_str(
        "\n## Clients by their documents\n\nHow a client comes to outgate: by `HTTPS_PROXY` with the CA bundle where it honours that, or by the local endpoint where its\naddress can be set. `outgate env` prints the variables. These are not run here, and go by what their documents and sources say;\nthose that are run stand below, and only there.\n\n| preset | client | how |\n| --- | --- | --- |\n",
    );
    for (name, preset) in presets {
        for (language, how) in preset.header.clients.iter().filter(|(_, how)| *how != MEASURED) {
            let _ = writeln!(text, "| `{name}` | {language} | {} |", how.replace('|', "\\|"));
        }
    }
}
