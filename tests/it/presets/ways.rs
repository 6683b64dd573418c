//! The ways of the presets' credentials as a policy writes them, and whether a request bears what each brings.

use std::collections::HashMap;
use std::sync::OnceLock;

use outgate::policy::preset::Preset;
use serde_json::Value;

use super::{at_place, facts, kept, list, members_of, provider, worded};
use crate::support::CANARY;
use crate::support::origin::Seen;

/// The id of the key that signatures name.
pub(super) const KEY_ID: &str = "AKIDEXAMPLE";

/// One way to give a credential.
#[derive(Clone)]
pub(super) struct Way {
    /// What stands under `credential`.
    pub text: String,
    /// Where it stands in a request; one of these, as the facts name places.
    places: Vec<String>,
    /// Fields that are posted, and go with nothing else.
    posted: bool,
}

impl Way {
    /// Whether a request bears what this way brings.
    pub(super) fn is_borne_by(&self, seen: &Seen) -> bool {
        self.posted && seen.method != "POST" || self.places.iter().any(|place| stands_in(place, seen))
    }

    /// Whether it brings something to requests of this method.
    pub(super) fn brings(&self, method: &str) -> bool {
        !self.posted || method == "POST"
    }

    /// The same with the keys of an overlap in place of the secret, the new one first; nothing where the kind has no overlap.
    pub(super) fn in_overlap(&self) -> Option<String> {
        let (secret, both) = ("\"file:{dir}/secret\"", "[\"file:{dir}/stale\", \"file:{dir}/secret\"]");
        let signs = self.places.iter().any(|place| place == "aws_sigv4");
        (!signs && self.text.contains(secret)).then(|| self.text.replace(secret, both))
    }
}

/// Every way of a preset but those that get a token first: for them, where there is no other, a bearer token.
pub(super) fn ways(preset: &str) -> &'static [Way] {
    static WAYS: OnceLock<HashMap<String, Vec<Way>>> = OnceLock::new();
    let all = WAYS.get_or_init(|| {
        facts().into_iter().map(|(preset, fact)| (preset.clone(), read(&preset, &fact))).collect()
    });
    &all[preset]
}

/// One of the ways of a preset, another one for each number in turn.
pub(super) fn turn(preset: &str, number: usize) -> &'static Way {
    let ways = ways(preset);
    &ways[number % ways.len()]
}

fn read(preset: &str, fact: &Value) -> Vec<Way> {
    let kinds = ["bearer", "basic", "aws_sigv4", "header ", "query ", "body "];
    let places: Vec<String> = kept(fact, "auth").into_iter().map(str::to_owned).collect();
    let posted = list(fact, "posted");
    let forms = Preset::named(preset).unwrap().credential_forms(false).into_iter();
    let texts = forms.map(|(form, _)| {
        let form = form
            .replace("key_id: env:NAME", "key_id: \"file:{dir}/id\"")
            .replace("access_id: env:NAME", "access_id: \"file:{dir}/id\"")
            .replace("env:NAME", "\"file:{dir}/secret\"");
        worded(&form).strip_prefix("credential: ").unwrap().to_owned()
    });
    let gets_no_token = |text: &String| {
        !text.contains("{ file: PATH }") && !members_of(&provider("p", preset, fact, text, "")).0
    };
    let places: Vec<String> =
        places.into_iter().filter(|place| kinds.iter().any(|kind| place.starts_with(kind))).collect();
    let is_posted = |text: &str| {
        !posted.is_empty() && (text.contains("sms") || places.iter().all(|place| place.starts_with("body ")))
    };
    let mut ways: Vec<Way> = texts
        .filter(gets_no_token)
        .map(|text| Way { posted: is_posted(&text), places: places.clone(), text })
        .collect();
    if ways.is_empty() {
        let text = "{ bearer: \"file:{dir}/secret\" }".to_owned();
        ways.push(Way { text, places: vec!["bearer".to_owned()], posted: false });
    }
    ways
}

/// Whether the credential stands at a place of a request.
fn stands_in(place: &str, seen: &Seen) -> bool {
    let is_signed = || {
        let began = format!("AWS4-HMAC-SHA256 Credential={KEY_ID}/");
        seen.header("authorization").is_some_and(|value| value.starts_with(&began))
    };
    match place.strip_prefix("body ") {
        _ if place == "aws_sigv4" => is_signed(),
        None => at_place(place, seen).is_some_and(|value| value.contains(CANARY)),
        Some(field) => {
            let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
            field.split('.').fold(&body, |node, key| &node[key]) == CANARY
        }
    }
}
