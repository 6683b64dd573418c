//! Where refresh tokens that rotate are kept, over reloads.
//!
//! The newest refresh token stands in one place, and the one that the policy names is used up. So a reload that names
//! another place, or none, would begin the grant anew with a refresh token that is good no more; many providers end the
//! whole grant then. Such a reload is refused. To carry what is kept over would not do: the other processes that share the
//! old place go on there until they have the new policy too, and then there are two newest ones.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use crate::credential::kinds::{KeepSettings, MemberSettings, whole};
use crate::policy::compiled::CompiledPolicy;
use crate::secret::reference::SecretRef;

/// As many refresh tokens as are remembered; beyond any policy. The one that was named longest ago is forgotten first.
const MOST: usize = 1024;

/// The places of this process since its start. One that a policy does not name any more is remembered: it may come back.
#[derive(Debug, Default)]
pub(super) struct KeptPlaces {
    /// Where relative paths of the policy start.
    directory: PathBuf,
    known: VecDeque<(Seed, KeptAt)>,
}

/// Which secret a refresh token is, however it is written: a file by any of its paths, a store by any of its names.
type Seed = (String, Option<String>, Option<String>);

/// A place.
#[derive(Clone, Debug)]
struct KeptAt {
    place: KeepSettings,
    /// Of a store: which server it is, and where in it.
    server: Option<String>,
}

impl KeptAt {
    fn is(&self, other: &Self) -> bool {
        self.place.is_at(&other.place) && self.server == other.server
    }
}

/// The refresh tokens that a policy begins with, and where what follows from each is kept, if it rotates.
fn grants(policy: &CompiledPolicy) -> impl Iterator<Item = (&SecretRef, Option<KeptAt>)> {
    let routes = policy.providers.iter().flat_map(|provider| &provider.routes);
    let tokens = routes.flat_map(|route| &route.settings.credential).flat_map(MemberSettings::grants);
    tokens.flat_map(|(seeds, keep)| {
        let at = keep.map(|place| KeptAt { place: place.clone(), server: server(policy, place) });
        seeds.iter().map(move |seed| (seed, at.clone()))
    })
}

fn server(policy: &CompiledPolicy, place: &KeepSettings) -> Option<String> {
    let reference = place.written()?;
    let (_, store) = policy.stores.iter().find(|(name, _)| name == reference.store())?;
    store.written_at()
}

fn seed(policy: &CompiledPolicy, reference: &SecretRef, directory: &Path) -> Seed {
    let field = reference.field().map(str::to_owned);
    let place = match reference.store() {
        "file" => format!("file:{}", whole(&directory.join(reference.path())).display()),
        name => {
            let store = policy.stores.iter().find(|(store, _)| store == name);
            let server = store.and_then(|(_, store)| store.written_at());
            format!("{}:{}", server.as_deref().unwrap_or(name), reference.path())
        }
    };
    (place, field, reference.version().map(str::to_owned))
}

impl KeptPlaces {
    /// None so far; relative paths of the policy start in `directory`.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, known: VecDeque::new() }
    }

    /// What a policy would begin anew, in words; nothing where it may be taken.
    pub(super) fn lost_by(&self, policy: &CompiledPolicy) -> Vec<String> {
        let mut lost: Vec<String> = Vec::new();
        for (reference, now) in grants(policy) {
            let begins = seed(policy, reference, &self.directory);
            let Some((_, before)) = self.known.iter().find(|(known, _)| *known == begins) else { continue };
            let text = match &now {
                Some(now) if now.is(before) => continue,
                Some(now) if now.place.is_at(&before.place) => {
                    format!(
                        "`{reference}` at {} and the policy keeps it at another server of that name",
                        before.place
                    )
                }
                Some(now) => {
                    format!("`{reference}` at {} and the policy keeps it at {}", before.place, now.place)
                }
                None => format!("`{reference}` at {} and the policy does not let it rotate", before.place),
            };
            if !lost.contains(&text) {
                lost.push(text);
            }
        }
        lost
    }

    /// A policy runs.
    pub(super) fn remember(&mut self, policy: &CompiledPolicy) {
        for (reference, at) in grants(policy) {
            let Some(at) = at else { continue };
            let begins = seed(policy, reference, &self.directory);
            self.known.retain(|(known, _)| *known != begins);
            self.known.push_back((begins, at));
            if self.known.len() > MOST {
                self.known.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::reload::read;

    /// A policy whose one grant is written so, with the stores so.
    fn policy(directory: &std::path::Path, grant: &str, stores: &str) -> CompiledPolicy {
        let file = directory.join("proxy.yaml");
        let text = format!(
            "version: 1\nsecrets: {{ {stores} }}\nproviders:\n  api:\n    hosts: [api.example.com]\n    credential:\n      oauth2_refresh_token: {{ token_url: \"https://login.example.com/t\", client_id: \"plain:app\", {grant} }}\n"
        );
        std::fs::write(&file, text).unwrap();
        read(file).unwrap_or_else(|rejection| panic!("{}", rejection.render(false)))
    }

    #[test]
    fn a_place_that_changes_is_told_and_one_that_stays_or_is_new_is_not() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("a")).unwrap();
        let here = directory.path().to_string_lossy().into_owned();
        let at = |grant: &str, stores: &str| policy(directory.path(), &grant.replace("{dir}", &here), stores);
        let vault = |more: &str| {
            format!("v: {{ vault: {{ address: \"https://{more}\", auth: {{ token: env:T }} }} }}")
        };
        let (one, two) = (vault("one:8200"), vault("two:8200"));
        let renamed = one.replacen("v:", "w:", 1);
        let slow = one.replace("auth:", "timeouts: { total: 9s }, auth:");
        let grant = |seed: &str, store: &str| format!("refresh_token: {seed}, rotates: true, store: {store}");
        let (file, other) = ("{ file: a/kept }", "{ file: b/kept }");
        let in_vault = "{ vault: \"v:kv/x\" }";
        let redis = |key: &str| format!("{{ redis: {{ url: env:R, key: {key} }} }}");
        // before, its stores, after, its stores, a part of what is told (nothing: it is taken)
        for (before, of_before, after, of_after, told) in [
            (grant("env:S", file), "", grant("env:S", file), "", ""),
            (grant("env:S", file), "", grant("env:S", "{ file: ./a/../a/kept }"), "", ""),
            (grant("env:S", file), "", format!("{}, scopes: [a]", grant("env:S", file)), "", ""),
            (grant("env:S", file), "", grant("env:S", other), "", "b/kept"),
            (grant("env:S", file), "", grant("env:S2", other), "", ""),
            // The same file by another path, and the same secret by another name of its server.
            (grant("file:a/seed", file), "", grant("file:./a/../a/seed", other), "", "b/kept"),
            (grant("file:a/seed", file), "", grant("\"file:{dir}/a/seed\"", other), "", "b/kept"),
            (grant("file:a/seed", file), "", grant("file:a/seed2", other), "", ""),
            (grant("file:a/seed#one", file), "", grant("file:a/seed#two", other), "", ""),
            (grant("v:kv/seed", file), &*one, grant("w:kv/seed", other), &*renamed, "b/kept"),
            (grant("v:kv/seed", file), &*one, grant("v:kv/seed", other), &*two, ""),
            (grant("env:S", file), "", "refresh_token: env:S".to_owned(), "", "not let it rotate"),
            ("refresh_token: env:S".to_owned(), "", grant("env:S", file), "", ""),
            (grant("env:S", file), "", grant("env:S", in_vault), &*one, "v:kv/x"),
            (grant("env:S", in_vault), &one, grant("env:S", in_vault), &slow, ""),
            (grant("env:S", in_vault), &one, grant("env:S", in_vault), &two, "another server"),
            (grant("env:S", &redis("k")), "", grant("env:S", &redis("k")), "", ""),
            (grant("env:S", &redis("k")), "", grant("env:S", &redis("j")), "", "the key j"),
        ] {
            let mut places = KeptPlaces::new(directory.path().to_owned());
            let first = at(&before, of_before);
            assert!(places.lost_by(&first).is_empty());
            places.remember(&first);
            let lost = places.lost_by(&at(&after, of_after));
            assert_eq!(lost.len(), usize::from(!told.is_empty()), "{before} -> {after}: {lost:?}");
            assert!(lost.iter().all(|lost| lost.contains(told)), "{before} -> {after}: {lost:?}");
        }
    }

    #[test]
    fn a_place_is_remembered_when_a_policy_without_it_ran_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let of = |seed: &str, file: &str| {
            policy(
                directory.path(),
                &format!("refresh_token: env:{seed}, rotates: true, store: {{ file: {file} }}"),
                "",
            )
        };
        let mut places = KeptPlaces::new(directory.path().to_owned());
        places.remember(&of("S", "one"));
        places.remember(&of("OTHER", "two"));
        assert_eq!(places.lost_by(&of("S", "three")).len(), 1);
        assert!(places.lost_by(&of("S", "one")).is_empty());
    }
}
