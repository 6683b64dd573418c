//! One member of a credential, prepared: header values and parameters are written once per version of its secrets, so a
//! request that is injected pays for a pointer and a few reference counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::error::CredentialError;
use super::kinds::{Form, Half, MemberSettings, Part, PerRequest, can_change};
use super::location::Location;
use super::rewrite::Secrets;
use super::scope::Scope;
use super::scrub::Scrubber;
use crate::message::end::End;
use crate::secret::ValueRules;
use crate::secret::cache::{SecretEntry, SecretVersion};
use crate::secret::reference::SecretRef;

/// One alternative of a credential, with the live secrets it is made of.
pub struct Member {
    parts: Vec<Part>,
    secrets: Vec<(SecretRef, Arc<SecretEntry>)>,
    per_request: Option<PerRequestBound>,
    prepared: ArcSwapOption<Prepared>,
    /// One at a time prepares: one version has one stamp, by which a refused credential is told from the next.
    preparing: Mutex<()>,
    reference: Arc<str>,
}

/// Work for each request, and where among the member's secrets those that it needs are.
struct PerRequestBound {
    work: Arc<PerRequest>,
    secrets: Vec<usize>,
}

/// What a member puts into a request, for one version of its secrets.
pub struct Prepared {
    versions: Vec<u64>,
    /// Tells this preparation from every other of the process.
    pub stamp: u64,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Percent-encoded `name=value` pairs.
    parameters: Vec<Zeroizing<String>>,
    /// What is still to be done for each request, and with what.
    pub per_request: Option<(Arc<PerRequest>, Secrets)>,
    /// Finds the secrets in answers; absent where all of them are too short to be searched for.
    pub scrubber: Option<Arc<Scrubber>>,
}

static STAMPS: AtomicU64 = AtomicU64::new(1);

/// What RFC 3986 calls unreserved stays as it is.
pub(super) const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Member {
    /// Binds a member to the live secrets.
    ///
    /// # Errors
    /// The tenant's name does not fit.
    pub fn bind(settings: &MemberSettings, scope: &Scope<'_>) -> Result<Self, CredentialError> {
        let parts = settings.parts.clone();
        let mut secrets: Vec<(SecretRef, Arc<SecretEntry>)> = Vec::new();
        let mut bound = |reference: &SecretRef, rules: ValueRules| {
            let token = settings.tokens.iter().find(|token| token.reference == *reference);
            let entry = match token {
                Some(token) => scope.token(token),
                None => scope.entry(reference, rules),
            };
            let entry = entry.map_err(|cause| CredentialError::Secret {
                reference: reference.to_string(),
                cause: Arc::new(cause),
            })?;
            let known = secrets.iter().position(|(_, known)| Arc::ptr_eq(known, &entry));
            Ok::<_, CredentialError>(known.unwrap_or_else(|| {
                secrets.push((reference.clone(), entry));
                secrets.len() - 1
            }))
        };
        for reference in parts.iter().flat_map(Part::secrets) {
            bound(reference, ValueRules::HeaderSafe)?;
        }
        let per_request = match &settings.per_request {
            None => None,
            Some(work) => {
                let used = work.rewriter().secrets();
                let secrets =
                    used.iter().map(|used| bound(&used.reference, used.rules)).collect::<Result<_, _>>()?;
                Some(PerRequestBound { work: Arc::new(work.clone()), secrets })
            }
        };
        let reference = settings.reference();
        Ok(Self {
            parts,
            secrets,
            per_request,
            prepared: ArcSwapOption::empty(),
            preparing: Mutex::default(),
            reference,
        })
    }

    /// Whether there are values for all of its secrets.
    pub fn has_values(&self) -> bool {
        self.secrets().all(|entry| entry.current().is_ok())
    }

    /// The last preparation, whether or not its secrets can still be had.
    pub fn last_stamp(&self) -> Option<u64> {
        self.prepared.load().as_ref().map(|prepared| prepared.stamp)
    }

    /// The references of its secrets, for the record.
    pub fn reference(&self) -> &Arc<str> {
        &self.reference
    }

    /// Whether reading its secrets again could give another value; the environment cannot change.
    pub fn can_change(&self) -> bool {
        self.secrets.iter().any(|(reference, _)| can_change(reference))
    }

    /// Waits for the tokens that are missing, and for a tenant's secrets that were never read. The future may be dropped.
    pub async fn obtain(&self) {
        for entry in self.secrets().filter(|entry| entry.is_waited_for()) {
            // What went wrong stands in the entry.
            let _ = entry.obtain().await;
        }
    }

    /// Whether some of its secrets are waited for where they are missing. Not whether they are missing now: who asks has just
    /// found that, and what came in that moment would be taken for never to come.
    pub fn waits(&self) -> bool {
        self.secrets().any(|entry| entry.is_waited_for())
    }

    /// The live secrets, for healing.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<SecretEntry>> {
        self.secrets.iter().map(|(_, entry)| entry)
    }

    /// When the first of the secrets of a preparation ends by itself, or was replaced. Asked anew for each request: a value may
    /// get another end.
    pub fn ends(&self, prepared: &Prepared) -> Option<End> {
        let all = self.secrets().zip(&prepared.versions);
        all.filter_map(|(entry, version)| entry.end_of(*version)).min_by_key(|end| end.left())
    }

    /// When the stores of what is missing have all been asked again; none where nothing is missing, or never will be there.
    pub fn asked_again_at(&self) -> Option<Instant> {
        let missing = self.secrets().filter(|entry| entry.current().is_err());
        let times: Option<Vec<Instant>> = missing.map(|entry| entry.retry_at()).collect();
        times?.into_iter().max()
    }

    /// What to inject now. Made anew only when a secret has a new version.
    pub fn prepared(&self) -> Result<Arc<Prepared>, CredentialError> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let _one = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have been faster.
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let fresh = Arc::new(self.prepare()?);
        self.prepared.store(Some(fresh.clone()));
        Ok(fresh)
    }

    fn known(&self) -> Option<Arc<Prepared>> {
        let known = self.prepared.load_full()?;
        self.is_current(&known.versions).then_some(known)
    }

    fn is_current(&self, versions: &[u64]) -> bool {
        self.secrets
            .iter()
            .zip(versions)
            .all(|((_, entry), version)| entry.current().is_ok_and(|current| current.number == *version))
    }

    fn prepare(&self) -> Result<Prepared, CredentialError> {
        let mut values: Vec<(&SecretRef, Arc<SecretVersion>)> = Vec::with_capacity(self.secrets.len());
        for (reference, entry) in &self.secrets {
            let current = entry
                .current()
                .map_err(|cause| CredentialError::Secret { reference: reference.to_string(), cause })?;
            values.push((reference, current));
        }
        let mut prepared = Prepared {
            versions: values.iter().map(|(_, version)| version.number).collect(),
            stamp: STAMPS.fetch_add(1, Ordering::Relaxed),
            headers: Vec::new(),
            parameters: Vec::new(),
            per_request: self.per_request.as_ref().map(|bound| {
                let own = bound.secrets.iter().filter_map(|at| values.get(*at));
                (bound.work.clone(), Secrets::new(own.map(|(_, version)| version.clone()).collect()))
            }),
            scrubber: None,
        };
        for part in &self.parts {
            let text = write(&part.form, &values);
            match &part.location {
                Location::Header(name) => prepared.headers.push((name.clone(), self.header_value(text)?)),
                Location::Query(name) => prepared.parameters.push(self.parameter(name, &text)?),
            }
        }
        let own = prepared.per_request.as_ref().map(|(work, secrets)| work.rewriter().needles(secrets));
        let own = own.unwrap_or_default();
        let secrets = values.iter().map(|(_, version)| version.value.expose());
        let secrets: Vec<&[u8]> = secrets.chain(own.iter().map(|needle| needle.as_slice())).collect();
        prepared.scrubber = Scrubber::new(&secrets).map(Arc::new);
        Ok(prepared)
    }

    /// A header value that hides itself in `Debug`, is never indexed by HPACK, and is wiped when its last copy goes.
    fn header_value(&self, text: Zeroizing<Vec<u8>>) -> Result<HeaderValue, CredentialError> {
        let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text))
            .map_err(|_| self.unusable("a header field"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn parameter(&self, name: &str, text: &[u8]) -> Result<Zeroizing<String>, CredentialError> {
        let text = std::str::from_utf8(text).map_err(|_| self.unusable("a URL"))?;
        let name = utf8_percent_encode(name, QUERY);
        Ok(Zeroizing::new(format!("{name}={}", utf8_percent_encode(text, QUERY))))
    }

    fn unusable(&self, place: &'static str) -> CredentialError {
        CredentialError::NotUsable { reference: self.reference.to_string(), place }
    }
}

fn write(form: &Form, values: &[(&SecretRef, Arc<SecretVersion>)]) -> Zeroizing<Vec<u8>> {
    let value = |wanted: &SecretRef| {
        values
            .iter()
            .find(|(reference, _)| *reference == wanted)
            .map_or(&[][..], |(_, version)| version.value.expose())
    };
    match form {
        Form::Text { before, secret, after } => {
            Zeroizing::new([before.as_bytes(), value(secret), after.as_bytes()].concat())
        }
        Form::Basic { username, password } => {
            let half = |half: &Half| match half {
                Half::Plain(text) => Zeroizing::new(text.as_bytes().to_vec()),
                Half::Secret(reference) => Zeroizing::new(value(reference).to_vec()),
            };
            let pair = Zeroizing::new([half(username).as_slice(), b":", half(password).as_slice()].concat());
            let encoded = Zeroizing::new(STANDARD.encode(pair.as_slice()));
            Zeroizing::new([b"Basic ", encoded.as_bytes()].concat())
        }
    }
}

impl Prepared {
    /// Writes the credential into a request. What the client sent at these places is gone already.
    pub fn inject(&self, headers: &mut HeaderMap, target: &mut PathAndQuery) {
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        if self.parameters.is_empty() {
            return;
        }
        let mut text = Zeroizing::new(target.as_str().to_owned());
        for pair in &self.parameters {
            let joint = match text.find('?') {
                None => "?",
                Some(at) if at + 1 == text.len() || text.ends_with('&') => "",
                Some(_) => "&",
            };
            text.push_str(joint);
            text.push_str(pair);
        }
        // Pairs are percent-encoded, so the longer target is valid; if it is too long the request goes without it, and
        // `over_long` has refused it before.
        if let Ok(longer) = PathAndQuery::try_from(text.as_str()) {
            *target = longer;
        }
    }

    /// Whether the target would be longer with the parameters than a URI may be.
    pub fn over_long(&self, target: &PathAndQuery) -> bool {
        let added: usize = self.parameters.iter().map(|pair| pair.len() + 1).sum();
        added > 0 && target.as_str().len() + added >= usize::from(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;

    use super::*;
    use crate::credential::kinds::bearer;
    use crate::credential::token::TokenEnv;
    use crate::secret::fake::upstream_env;
    use crate::secret::{SecretCache, Stores};

    /// Two stamps for one version would make a refused credential look like another one: it would be healed twice.
    #[tokio::test]
    async fn one_version_has_one_stamp_however_many_prepare_it_at_once() {
        const THREADS: usize = 4;
        let directory = tempfile::tempdir().unwrap();
        let cache = SecretCache::new(Stores::built_in(directory.path()));
        let env = TokenEnv::new(upstream_env());
        let settings = MemberSettings::of(bearer::parts("file:key".parse().unwrap()));
        let member = Member::bind(&settings, &Scope { cache: &cache, env: &env, tenant: None })
            .unwrap_or_else(|error| panic!("{error}"));
        let mut before = None;
        for round in 0..200 {
            std::fs::write(directory.path().join("key"), format!("the-key-of-round-{round}")).unwrap();
            for secret in member.secrets() {
                secret.refresh().await;
            }
            let start = Barrier::new(THREADS);
            let stamps: HashSet<u64> = std::thread::scope(|scope| {
                let prepare = || {
                    start.wait();
                    member.prepared().unwrap_or_else(|error| panic!("{error}")).stamp
                };
                let all: Vec<_> = (0..THREADS).map(|_| scope.spawn(prepare)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(stamps.len(), 1, "round {round}: {stamps:?}");
            let stamp = stamps.into_iter().next();
            assert!(stamp > before && member.last_stamp() == stamp, "another version, another stamp");
            before = stamp;
        }
    }
}
