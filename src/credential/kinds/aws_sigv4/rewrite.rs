//! One request, signed.

use std::borrow::Cow;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};

use super::chunked::Resigned;
use super::{Half, Keys, Presigned, Settings, payload, presigned, scope};
use crate::credential::kinds::Used;
use crate::credential::location::Location;
use crate::credential::rewrite::{Rewrite, Secrets};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;
use crate::secret::aws::sign::{ChunkKey, Rules, Scope, ToSign, sign};
use crate::secret::aws::{NO_KEYS, keys, parse};
use crate::secret::reference::SecretRef;
use crate::secret::{SecretBytes, ValueRules};

/// What a client's signature brings in the head, `Authorization` aside.
const OWNED: [&str; 4] = ["x-amz-date", "x-amz-security-token", "x-amz-region-set", "x-amz-s3session-token"];

impl Rewrite for Settings {
    fn secrets(&self) -> Vec<Used> {
        let used = |reference: &SecretRef, rules: ValueRules| Used { reference: reference.clone(), rules };
        match &self.keys {
            Keys::Parts { id, secret, session } => {
                let id = match id {
                    Half::Secret(reference) => Some(reference),
                    Half::Plain(_) => None,
                };
                let all = std::iter::once(secret).chain(session).chain(id);
                all.map(|reference| used(reference, ValueRules::HeaderSafe)).collect()
            }
            // What outgate gets itself is written by it.
            Keys::Whole(reference) if reference.is_made() => vec![used(reference, ValueRules::HeaderSafe)],
            Keys::Whole(reference) => vec![used(reference, ValueRules::AwsKeys)],
        }
    }

    fn locations(&self) -> Vec<Location> {
        let owned = OWNED.iter().map(|name| HeaderName::from_static(name));
        std::iter::once(AUTHORIZATION).chain(owned).map(Location::Header).collect()
    }

    fn places(&self) -> Vec<String> {
        let text = match self.presigned {
            Presigned::Refuse => "a signature in the query is refused",
            Presigned::Resign => "a signature in the query is taken out",
            Presigned::Pass => "a signature in the query passes as it is",
        };
        vec![text.to_owned()]
    }

    fn needles(&self, secrets: &Secrets) -> Vec<SecretBytes> {
        // The id is no secret, and stands in many answers.
        let Keys::Whole(_) = &self.keys else { return Vec::new() };
        let Some(keys) = parse(secrets.get(0)) else { return Vec::new() };
        let parts = std::iter::once(keys.secret_access_key()).chain(keys.session_token());
        parts.map(|part| SecretBytes::new(part.as_bytes().to_vec())).collect()
    }

    fn holds(&self, request: &EgressRequest) -> Option<u64> {
        let scope = self.scope(request.target.host.as_str()).ok()?;
        let passes =
            self.presigned != Presigned::Resign && presigned::without(&request.path_and_query).is_some();
        (!passes && payload::is_held(request, rules_of(&scope))).then_some(self.max_buffer)
    }

    fn rewrite<'a>(
        &'a self,
        mut request: EgressRequest,
        secrets: &'a Secrets,
    ) -> BoxFuture<'a, Result<EgressRequest, Failure>> {
        Box::pin(async move {
            if let Some(stripped) = presigned::without(&request.path_and_query) {
                match self.presigned {
                    Presigned::Pass => return Ok(request),
                    Presigned::Resign => request.path_and_query = stripped,
                    Presigned::Refuse => {
                        return Err(Failure::not_sent(Fault::Forbidden(
                            "a presigned URL is not allowed here (`presigned` of aws_sigv4)",
                        )));
                    }
                }
            }
            self.signed(request, secrets).await
        })
    }
}

impl Settings {
    async fn signed(&self, mut request: EgressRequest, secrets: &Secrets) -> Result<EgressRequest, Failure> {
        let keys = self.keys(secrets)?;
        let host = request.target.host.shared();
        let scope = self.scope(&host)?;
        let rules = rules_of(&scope);
        // The signer encodes the query anew: a byte may become three (one that is no UTF-8: nine), and what is then longer
        // than a URI may be would be a panic in it.
        let target = &request.path_and_query;
        if target.path().len() * 3 + target.query().map_or(0, encoded_at_most) > MAX_TARGET {
            return Err(Failure::not_sent(Fault::TargetTooLong));
        }

        let payload = payload::settle(self, &mut request, rules).await?;
        let to_sign = ToSign {
            method: request.method.as_str(),
            host: &request.target.host_header(),
            path_and_query: request.path_and_query.as_str(),
            headers: signed_fields(&request.headers)?,
            payload: &payload.text,
            rules,
        };
        let signed = sign(&to_sign, &keys, &scope, SystemTime::now()).map_err(|_| unfit())?;
        if let Some(chunks) = payload.chunks {
            let date = signed.headers.iter().find(|(name, _)| name == "x-amz-date");
            let date = date.and_then(|(_, value)| value.to_str().ok()).unwrap_or_default();
            let key = ChunkKey::new(&keys, &scope, date);
            let body = std::mem::replace(&mut request.body, Body::empty());
            request.body = Body::boxed(Resigned::new(body, key, signed.signature, chunks, self.max_buffer));
        }
        for (name, value) in signed.headers {
            request.headers.insert(name, value);
        }
        Ok(request)
    }

    fn keys(&self, secrets: &Secrets) -> Result<Credentials, Failure> {
        let missing = || Failure::not_sent(Fault::Credential).because(NO_KEYS);
        let Keys::Parts { id, session, .. } = &self.keys else {
            return parse(secrets.get(0)).ok_or_else(missing);
        };
        let text = |at| std::str::from_utf8(secrets.get(at)).map_err(|_| missing());
        let token = session.as_ref().map(|_| text(1)).transpose()?;
        let id = match id {
            Half::Plain(id) => id,
            Half::Secret(_) => text(1 + usize::from(session.is_some()))?,
        };
        Ok(keys(id, text(0)?, token))
    }

    /// What to sign for: what the policy says, else what the host's name says.
    fn scope<'a>(&'a self, host: &'a str) -> Result<Scope<'a>, Failure> {
        let found = scope::of(host);
        let region = self.region.as_deref().or(found.region);
        let service = self.service.as_deref().or(found.service);
        if service.is_some_and(|service| service.starts_with("s3express")) {
            return Err(Failure::not_sent(Fault::Unfit("directory buckets (S3 Express) are not supported")));
        }
        match (region, service) {
            (Some(region), Some(service)) => {
                Ok(Scope { region: Cow::Borrowed(region), service: Cow::Borrowed(service) })
            }
            _ => Err(Failure::not_sent(Fault::Credential)
                .because("the host's name does not tell region and service: `aws_sigv4` has to say `region` and `service`")),
        }
    }
}

fn rules_of(scope: &Scope<'_>) -> Rules {
    let s3 = matches!(&*scope.service, "s3" | "s3-outposts" | "s3-object-lambda");
    if s3 { Rules::S3 } else { Rules::Hashed }
}

/// The longest path with its query that can be signed; a URI holds 65,534 bytes.
const MAX_TARGET: usize = 65_000;

/// How long a query is at most once it was decoded and encoded anew.
fn encoded_at_most(query: &str) -> usize {
    let of = |byte: u8| match byte {
        b'%' => 9,
        byte if byte.is_ascii_alphanumeric() || b"-._~=&".contains(&byte) => 1,
        _ => 3,
    };
    query.bytes().map(of).sum()
}

fn unfit() -> Failure {
    Failure::not_sent(Fault::Unfit("a field that has to be signed holds something other than ASCII"))
}

/// What has to be signed where it is there, and no more: other fields may change on the way.
fn signed_fields(headers: &HeaderMap) -> Result<Vec<(&str, &str)>, Failure> {
    let mut fields = Vec::with_capacity(8);
    for (name, value) in headers {
        let text = name.as_str();
        if name == CONTENT_TYPE
            || text == "content-md5"
            || text.starts_with("x-amz-")
            || text.starts_with("x-goog-")
        {
            fields.push((text, value.to_str().map_err(|_| unfit())?));
        }
    }
    Ok(fields)
}
