//! What a successful unsafe request makes invalid (RFC 9111 section 4.4): the answers of its own URL, and of those that its
//! answer names in `Location` and `Content-Location`, for every credential and tenant; of the same origin only.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{CONTENT_LOCATION, HeaderMap, LOCATION};
use http::{Method, Response, StatusCode};
use tower::Service;

use super::place::url;
use super::state::ResponseCache;
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::message::target::{Authority, Target};
use crate::resilience::{Inner, Pending};

/// Only makes answers invalid: for a route without a cache whose provider has one on another route.
#[derive(Clone)]
pub struct Invalidate<S> {
    inner: S,
    state: Arc<ResponseCache>,
}

impl<S> Invalidate<S> {
    /// Puts the layer around `inner`.
    pub fn new(inner: S, state: Arc<ResponseCache>) -> Self {
        Self { inner, state }
    }
}

impl<S: Inner> Service<EgressRequest> for Invalidate<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: EgressRequest) -> Pending {
        if is_safe(&request.method) {
            return Box::pin(self.inner.call(request));
        }
        let mut inner = self.inner.clone();
        let state = self.state.clone();
        Box::pin(async move { unsafe_call(&mut inner, &state, request).await })
    }
}

/// Whether a method is known to change nothing (RFC 9110 section 9.2.1).
pub(super) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Sends an unsafe request, and makes invalid what it changed.
pub(super) async fn unsafe_call<S: Inner>(
    inner: &mut S,
    state: &ResponseCache,
    request: EgressRequest,
) -> Result<Response<Body>, Failure> {
    let target = request.target.clone();
    let path_and_query = request.path_and_query.clone();
    let response = inner.call(request).await?;
    if changed(response.status()) {
        state.invalidate(url(&target, path_and_query.as_str()));
        for path in named(response.headers(), &target, path_and_query.path()) {
            state.invalidate(url(&target, &path));
        }
    }
    Ok(response)
}

fn changed(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// Path and query of each URL of this origin that an answer names.
fn named(headers: &HeaderMap, target: &Target, base: &str) -> Vec<String> {
    [LOCATION, CONTENT_LOCATION]
        .iter()
        .filter_map(|name| headers.get(name)?.to_str().ok())
        .filter_map(|reference| resolved(reference, target, base))
        .collect()
}

/// Resolves a reference against the request's URL (RFC 3986 section 5.2); nothing where it leads to another origin. Dot
/// segments are not resolved: no URL that holds one is asked for in that spelling.
fn resolved(reference: &str, target: &Target, base: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default();
    let scheme = format!("{}:", target.scheme.as_str());
    let reference = match reference.get(..scheme.len()) {
        Some(begin) if begin.eq_ignore_ascii_case(&scheme) => &reference[scheme.len()..],
        Some(_) | None => reference,
    };
    if let Some(rest) = reference.strip_prefix("//") {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let authority = Authority::parse(&rest[..end]).ok()?;
        let port = authority.port.unwrap_or(target.scheme.default_port());
        if authority.host != target.host || port != target.port {
            return None;
        }
        let path = &rest[end..];
        return Some(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") });
    }
    let first = reference.split(['/', '?']).next().unwrap_or_default();
    match reference.bytes().next()? {
        b'/' => Some(reference.to_owned()),
        b'?' => Some(format!("{base}{reference}")),
        // Another scheme.
        _ if first.contains(':') => None,
        _ => Some(format!("{}{reference}", &base[..=base.rfind('/')?])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::target::{Host, Scheme};

    #[test]
    fn references_are_resolved_within_the_origin() {
        let target = Target { scheme: Scheme::Https, host: Host::parse("api.example").unwrap(), port: 443 };
        for (reference, expected) in [
            ("/v1/items/7", Some("/v1/items/7")),
            ("https://api.example/v1/items/7", Some("/v1/items/7")),
            ("HTTPS://API.example:443/a?b=c#d", Some("/a?b=c")),
            ("//api.example/a", Some("/a")),
            ("https://api.example", Some("/")),
            ("https://api.example?x=1", Some("/?x=1")),
            ("7", Some("/v1/7")),
            ("?page=2", Some("/v1/items?page=2")),
            ("https://api.example:8443/a", None),
            ("http://api.example/a", None),
            ("https://evil.example/a", None),
            ("https://user@api.example/a", None),
            ("mailto:a@b", None),
            ("", None),
            ("é", Some("/v1/é")),
        ] {
            assert_eq!(resolved(reference, &target, "/v1/items").as_deref(), expected, "{reference}");
        }
    }
}
