//! Links of answers at the local endpoint: `Location`, `Content-Location` and `Link` that point at the provider's own hosts
//! are written in the local form, so that a client that follows them stays inside outgate.

use std::sync::Arc;

use http::header::{CONTENT_LOCATION, HeaderMap, HeaderName, HeaderValue, LINK, LOCATION};

use crate::message::target::{Authority, Scheme};
use crate::pipeline::generation::Generation;

/// How a provider is written at the local endpoint.
pub struct LocalForm {
    /// The generation that admitted the request.
    pub generation: Arc<Generation>,
    /// Index of the provider.
    pub provider: usize,
    /// Its prefix, such as `/stripe`; absent where the request was found by its host, which takes no other host.
    pub prefix: Option<String>,
}

impl LocalForm {
    /// Rewrites the links of an answer. `host` is what the app called outgate by.
    pub fn rewrite(&self, headers: &mut HeaderMap, host: Option<&HeaderValue>) {
        let Some(own) = host.and_then(|host| host.to_str().ok()) else { return };
        for name in [LOCATION, CONTENT_LOCATION] {
            self.rewrite_field(headers, &name, |value| self.local(value, own));
        }
        if headers.contains_key(LINK) {
            let links: Vec<HeaderValue> =
                headers.get_all(LINK).iter().map(|value| self.links(value, own)).collect();
            headers.remove(LINK);
            for link in links {
                headers.append(LINK, link);
            }
        }
    }

    fn rewrite_field(
        &self,
        headers: &mut HeaderMap,
        name: &HeaderName,
        local: impl Fn(&str) -> Option<String>,
    ) {
        let rewritten = headers.get(name).and_then(|value| value.to_str().ok()).and_then(local);
        if let Some(value) = rewritten.and_then(|text| HeaderValue::from_str(&text).ok()) {
            headers.insert(name, value);
        }
    }

    /// `<https://api.github.com/x?page=2>; rel="next", ...` (RFC 8288): each target in angle brackets.
    fn links(&self, value: &HeaderValue, own: &str) -> HeaderValue {
        let Ok(text) = value.to_str() else { return value.clone() };
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find('<') {
            let Some(length) = rest[start..].find('>') else { break };
            let target = &rest[start + 1..start + length];
            out.push_str(&rest[..=start]);
            out.push_str(self.local(target, own).as_deref().unwrap_or(target));
            rest = &rest[start + length..];
        }
        out.push_str(rest);
        HeaderValue::from_str(&out).unwrap_or_else(|_| value.clone())
    }

    /// The local form of an absolute URL at one of the provider's hosts; of an absolute path where a prefix is needed.
    fn local(&self, url: &str, own: &str) -> Option<String> {
        if url.starts_with('/') && !url.starts_with("//") {
            return self.prefix.as_ref().map(|prefix| format!("{prefix}{url}"));
        }
        let (scheme, rest) = match url.split_once("://")? {
            ("https", rest) => (Scheme::Https, rest),
            ("http", rest) => (Scheme::Http, rest),
            _ => return None,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = Authority::parse(authority).ok()?;
        let target =
            self.generation.is_same_provider(self.provider, scheme, &authority.host, authority.port)?;
        let first = self.generation.is_first_host(self.provider, &target);
        match &self.prefix {
            Some(prefix) if first => Some(format!("http://{own}{}{path}", base(prefix))),
            Some(prefix) => {
                let at = target.host_header();
                Some(format!("http://{own}{}@{at}{path}", base(prefix)))
            }
            None if first => Some(format!("http://{own}{path}")),
            None => None,
        }
    }
}

/// The prefix without an `@host` of its own.
fn base(prefix: &str) -> &str {
    prefix.split('@').next().unwrap_or(prefix)
}
