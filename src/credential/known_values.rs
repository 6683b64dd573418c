//! The values of all secrets in use, to be masked in the access log: an app that was given a key may write it anywhere.
//!
//! Made anew when a secret has another value, by the first line that is written then; every other line only searches. The
//! values of tenants are not among them: there may be thousands, which come and go.

use std::sync::{Arc, Mutex};

use aho_corasick::{AhoCorasick, MatchKind};
use arc_swap::ArcSwap;

use super::scrub::{SHORTEST, forms_of};
use crate::secret::SecretCache;
use crate::telemetry::{KnownValues, MASK};

/// The values of a cache's secrets in the spellings in which an answer is searched for them, in either case.
pub struct SecretValues {
    secrets: Arc<SecretCache>,
    built: ArcSwap<Built>,
    building: Mutex<()>,
}

/// What was made when the cache had counted so many changes.
#[derive(Default)]
struct Built {
    changes: u64,
    automaton: Option<AhoCorasick>,
}

impl SecretValues {
    /// Those of `secrets`, as they are when a line is written.
    #[must_use]
    pub fn new(secrets: Arc<SecretCache>) -> Self {
        Self { secrets, built: ArcSwap::default(), building: Mutex::default() }
    }

    fn renew(&self) {
        // Who finds it being made waits: a line must not go out by the values of before.
        let _building = self.building.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let changes = self.secrets.changes();
        if self.built.load().changes == changes {
            return;
        }
        let versions = self.secrets.versions();
        let values = versions.iter().map(|version| version.value.expose());
        let forms: Vec<_> = values.filter(|value| value.len() >= SHORTEST).flat_map(forms_of).collect();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .ascii_case_insensitive(true)
            .build(forms.iter().map(|form| form.as_slice()))
            .ok()
            .filter(|_| !forms.is_empty());
        self.built.store(Arc::new(Built { changes, automaton }));
    }
}

impl KnownValues for SecretValues {
    fn masked(&self, text: &str) -> Option<String> {
        if self.built.load().changes != self.secrets.changes() {
            self.renew();
        }
        let built = self.built.load();
        let automaton = built.automaton.as_ref().filter(|automaton| automaton.is_match(text))?;
        let mut masked = String::with_capacity(text.len());
        automaton.replace_all_with(text, &mut masked, |_, _, shown| {
            shown.push_str(MASK);
            true
        });
        Some(masked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{SecretCache, Stores};

    #[tokio::test]
    async fn values_are_masked_in_every_spelling_and_a_new_one_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        std::fs::write(&file, "first+value/of-a^key").unwrap();
        let secrets = Arc::new(SecretCache::new(Stores::built_in(directory.path())));
        let values = SecretValues::new(secrets.clone());
        assert_eq!(values.masked("/first+value/of-a^key"), None, "it was not read yet");
        let entry = secrets.entry(&"file:key".parse().unwrap());
        entry.refresh().await;
        for (text, shown) in [
            ("/x/first+value/of-a^key/y", Some("/x/***/y")),
            ("/x/FIRST+VALUE/of-a^KEY", Some("/x/***")),
            ("a=first%2Bvalue%2Fof-a%5Ekey", Some("a=***")),
            ("a=first%2bvalue%2fof-a%5ekey&b=1", Some("a=***&b=1")),
            ("/x/Zmlyc3QrdmFsdWUvb2YtYV5rZXk=", Some("/x/***k=")),
            ("/v1/charges", None),
            ("/x/first+value", None),
        ] {
            assert_eq!(values.masked(text).as_deref(), shown, "{text}");
        }
        std::fs::write(&file, "second-value-of-the-key").unwrap();
        entry.refresh().await;
        assert_eq!(values.masked("/second-value-of-the-key").as_deref(), Some("/***"));
        std::fs::write(&file, "short").unwrap();
        entry.refresh().await;
        assert_eq!(values.masked("/short"), None, "it would hit by chance");
    }
}
