//! outgate's own answers: an [`EgressError`] becomes `application/problem+json` (RFC 9457), here and nowhere else.

use std::time::Duration;

use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, PROXY_AUTHENTICATE, RETRY_AFTER,
};
use http::{HeaderMap, Response, StatusCode};

use crate::message::body::Body;
use crate::message::failure::{Failure, Fault, LimitState, Progress};
use crate::pipeline::error::EgressError;
use crate::telemetry::{RequestId, Sent};

/// `Outgate-Error`: the stable code; never on a provider's answer.
pub const OUTGATE_ERROR: HeaderName = HeaderName::from_static("outgate-error");
/// `Outgate-Sent`: `no`, or `maybe` where the provider may have acted.
pub const OUTGATE_SENT: HeaderName = HeaderName::from_static("outgate-sent");
/// `Outgate-Request-Id`: on every answer; the key to the log record.
pub const OUTGATE_REQUEST_ID: HeaderName = HeaderName::from_static("outgate-request-id");
/// RFC 9211: what the cache did.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `Proxy-Status` (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// What the log says of `Outgate-Sent`.
pub fn sent(error: &EgressError) -> Sent {
    match error.progress() {
        Progress::NotSent => Sent::No,
        Progress::Sent | Progress::HeadReceived => Sent::Maybe,
    }
}

/// The answer for an error. `close` says whether the app's connection ends with it.
pub fn respond(error: &EgressError, request_id: &RequestId, close: bool) -> Response<Body> {
    let answer = error.answer();
    let problem = serde_json::json!({
        "title": error.title(),
        "status": answer.status.as_u16(),
        "code": answer.code,
        "request_id": request_id.as_str(),
    });
    let mut response = Response::new(Body::full(format!("{problem}\n")));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(OUTGATE_ERROR, HeaderValue::from_static(answer.code));
    headers.insert(OUTGATE_SENT, HeaderValue::from_static(sent(error).as_str()));
    insert(
        headers,
        PROXY_STATUS,
        format!("outgate; error={}; details=\"{}\"", answer.proxy_status, answer.code),
    );
    stamp(headers, request_id);
    if let Some(after) = error.retry_after() {
        insert(headers, RETRY_AFTER, whole_seconds(after).to_string());
    }
    if let Some(limit) = error.limit() {
        rate_limit(headers, limit);
    }
    if let EgressError::Failure(failure) = error
        && let Some(hint) = &failure.hint
    {
        headers.insert(hint.0.clone(), hint.1.clone());
    }
    if let EgressError::Failure(Failure { fault: Fault::OnlyIfCached, .. }) = error {
        headers.insert(CACHE_STATUS, HeaderValue::from_static("outgate; detail=only-if-cached"));
    }
    if answer.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        headers.append(
            PROXY_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"outgate\", charset=\"UTF-8\""),
        );
        headers.append(PROXY_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The two fields of draft-ietf-httpapi-ratelimit-headers-10: what the limit is, and how it stands.
fn rate_limit(headers: &mut HeaderMap, limit: &LimitState) {
    let name: String =
        limit.name.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\')).collect();
    let window = whole_seconds(limit.window).max(1);
    let unit = limit.unit.map(|unit| format!(";qu=\"{unit}\"")).unwrap_or_default();
    insert(headers, RATELIMIT_POLICY, format!("\"{name}\";q={};w={window}{unit}", limit.quota));
    let reset = whole_seconds(limit.reset);
    insert(headers, RATELIMIT, format!("\"{name}\";r={};t={reset}", limit.remaining));
}

/// Rounded up: who comes back a moment too early is refused again.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Puts the request id on an answer.
pub fn stamp(headers: &mut HeaderMap, request_id: &RequestId) {
    if let Ok(id) = HeaderValue::from_str(request_id.as_str()) {
        headers.insert(OUTGATE_REQUEST_ID, id);
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: String) {
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::new_request_id;

    #[test]
    fn a_kept_answer_that_is_not_there_is_our_own_answer() {
        let failure = Failure::not_sent(Fault::OnlyIfCached);
        let answer = respond(&EgressError::from(failure), &new_request_id(), false);
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()[OUTGATE_ERROR]),
            (504, &"not_cached".parse().unwrap())
        );
        assert_eq!(answer.headers()[CACHE_STATUS], "outgate; detail=only-if-cached");
    }

    #[test]
    fn a_limit_says_what_it_counts_where_that_is_not_requests() {
        for (unit, policy) in
            [(None, r#""units";q=600;w=60"#), (Some("cost"), r#""units";q=600;w=60;qu="cost""#)]
        {
            let failure = Failure::not_sent(Fault::RateLimited).limit(LimitState {
                name: "units".into(),
                quota: 600,
                unit,
                window: Duration::from_secs(60),
                remaining: 3,
                reset: Duration::from_millis(1_500),
            });
            let answer = respond(&EgressError::from(failure), &new_request_id(), false);
            assert_eq!(answer.headers()[RATELIMIT_POLICY], policy);
            assert_eq!(answer.headers()[RATELIMIT], r#""units";r=3;t=2"#);
        }
    }

    #[test]
    fn the_providers_own_hint_stands_on_our_answer() {
        let mut failure = Failure::sent(Fault::Reset);
        let hint = (HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        failure.hint = Some(Box::new(hint));
        let answer = respond(&EgressError::from(failure), &new_request_id(), false);
        assert_eq!(answer.headers()["x-should-retry"], "false");
        assert_eq!(answer.headers()[OUTGATE_SENT], "maybe");
        let plain = respond(&EgressError::from(Failure::not_sent(Fault::Connect)), &new_request_id(), false);
        assert!(!plain.headers().contains_key("x-should-retry"));
        assert_eq!(plain.headers()[OUTGATE_SENT], "no");
    }
}
