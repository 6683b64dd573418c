//! The table of answers: what the app is told of each error. No arm catches all.

use http::StatusCode;

use super::EgressError;
use crate::message::failure::{Failure, Fault, Progress};
use crate::message::headers::HeadFault;
use crate::message::target::TargetFault;
use crate::telemetry::Flag;

/// How titles end that say so.
const NOTHING_SENT: &str = "; nothing was sent";

/// The row of the answer table that belongs to an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status of the answer.
    pub status: StatusCode,
    /// Stable code: `Outgate-Error`, `code` of the body, `error.type` of the log.
    pub code: &'static str,
    /// Error token of RFC 9209 section 2.3.
    pub proxy_status: &'static str,
    /// Short code of the log.
    pub flag: Flag,
    /// One line for the app's developer.
    pub title: &'static str,
}

impl EgressError {
    /// What the app is told.
    pub fn answer(&self) -> Answer {
        match self {
            Self::Denied { .. } => {
                row(403, "denied", "http_request_denied", Flag::Denied, "denied by the policy")
            }
            Self::Head(fault) => head(*fault),
            Self::Target(fault) => bad_request(target_title(*fault)),
            Self::BadRequest(title) | Self::Path(title) => bad_request(title),
            Self::Misdirected(title) => {
                row(421, "bad_request", "http_request_denied", Flag::DownstreamProtocol, title)
            }
            Self::ProxyAuth => {
                let title = "this listener wants a token in Proxy-Authorization";
                row(407, "proxy_auth_required", "http_request_error", Flag::ProxyAuthRequired, title)
            }
            Self::Loop => row(
                502,
                "loop_detected",
                "proxy_loop_detected",
                Flag::Loop,
                "the request has already passed this outgate",
            ),
            Self::TooManyFields => {
                let title = "the request has more fields than `runtime.downstream.max_headers`";
                row(431, "bad_request", "http_request_error", Flag::DownstreamProtocol, title)
            }
            Self::PayloadTooLarge => too_large(),
            Self::Overloaded => {
                let title = "outgate is at its limit of connections, descriptors or memory";
                row(503, "overloaded", "proxy_internal_response", Flag::OutgateOverloaded, title)
            }
            Self::Failure(failure) => of_failure(failure),
            Self::Internal => internal(),
        }
    }
}

fn row(
    status: u16,
    code: &'static str,
    proxy_status: &'static str,
    flag: Flag,
    title: &'static str,
) -> Answer {
    // All numbers of this table are statuses; a test walks over every row.
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Answer { status, code, proxy_status, flag, title }
}

/// What refuses a further attempt knows nothing of those before: that nothing was sent is said only where it is true. And a
/// status that means "not done, come again" is not for what the provider may have done.
fn of_failure(failure: &Failure) -> Answer {
    let answer = fault(failure.fault);
    if failure.progress == Progress::NotSent {
        return answer;
    }
    let title = answer.title.strip_suffix(NOTHING_SENT).unwrap_or(answer.title);
    let status = if failure.fault.is_for_load() { StatusCode::BAD_GATEWAY } else { answer.status };
    Answer { title, status, ..answer }
}

fn bad_request(title: &'static str) -> Answer {
    row(400, "bad_request", "http_request_error", Flag::DownstreamProtocol, title)
}

fn too_large() -> Answer {
    let title = "the request body is larger than the policy allows (`max_body`)";
    row(413, "payload_too_large", "http_request_error", Flag::DownstreamProtocol, title)
}

fn internal() -> Answer {
    row(
        500,
        "internal",
        "proxy_internal_error",
        Flag::Internal,
        "a bug in outgate; the log has more under this request id",
    )
}

fn head(fault: HeadFault) -> Answer {
    let title = match fault {
        HeadFault::NoHost => "the request has no Host field",
        HeadFault::ManyHosts => "the request has more than one Host field",
        HeadFault::TransferEncoding => "Transfer-Encoding is not exactly `chunked`",
        HeadFault::ContentLength => "Content-Length is ambiguous",
        HeadFault::Http2Connection => "a field that HTTP/2 forbids",
        HeadFault::Control => "a field value holds a control character",
        HeadFault::Padded => "a field value begins or ends with white space",
        HeadFault::Expectation => {
            let title = "the only expectation that is met is 100-continue";
            return row(417, "expectation_failed", "http_request_error", Flag::DownstreamProtocol, title);
        }
    };
    bad_request(title)
}

fn target_title(fault: TargetFault) -> &'static str {
    match fault {
        TargetFault::Empty => "the host is empty",
        TargetFault::UserInfo => "user information in the target is refused",
        TargetFault::Character => "the host holds a character that no host name may hold",
        TargetFault::Label => "the host name has an empty or over-long label",
        TargetFault::NumberForm => "the host looks like a number but is not a plain IPv4 address",
        TargetFault::Ipv6 => "the bracketed host is not an IPv6 address",
        TargetFault::Port => "the port is not a number from 1 to 65535",
    }
}

fn fault(fault: Fault) -> Answer {
    match fault {
        Fault::AddressDenied => {
            let title = "the host's address is not public, and the policy does not allow it (`addresses.allow_private`; `allow_metadata` for a metadata service)";
            row(403, "address_denied", "destination_ip_prohibited", Flag::AddressDenied, title)
        }
        Fault::OwnListener => row(
            403,
            "address_denied",
            "destination_ip_prohibited",
            Flag::AddressDenied,
            "the address is outgate's own",
        ),
        Fault::Dns => row(
            502,
            "upstream_dns",
            "dns_error",
            Flag::DnsFailure,
            "the provider's name could not be resolved",
        ),
        Fault::DnsTimeout => {
            let title = "the provider's name was not resolved in time (`timeouts.connect`)";
            row(504, "upstream_dns_timeout", "dns_timeout", Flag::DnsFailure, title)
        }
        Fault::ConnectRefused => connect("connection_refused", "the provider refused the connection"),
        Fault::ConnectUnroutable => connect("destination_ip_unroutable", "there is no route to the provider"),
        Fault::Connect => {
            connect("destination_unavailable", "the connection to the provider could not be made")
        }
        Fault::UpstreamProxy => {
            connect("destination_unavailable", "the upstream proxy refused or broke the connection")
        }
        Fault::ConnectTimeout => {
            let title = "the connection to the provider was not made in time (`timeouts.connect`)";
            row(504, "upstream_connect_timeout", "connection_timeout", Flag::ConnectFailure, title)
        }
        Fault::TlsCertificate => {
            tls("tls_certificate_error", "the provider's certificate is not valid for its host")
        }
        Fault::TlsAlert => tls("tls_alert_received", "the provider refused the TLS handshake"),
        Fault::TlsProtocol => tls("tls_protocol_error", "the TLS handshake with the provider failed"),
        Fault::TlsTimeout => {
            let title = "the TLS handshake was not done in time (`timeouts.tls`)";
            row(504, "upstream_timeout", "connection_timeout", Flag::UpstreamTimeout, title)
        }
        Fault::RateLimited => {
            let title = "a rate limit of the policy is used up (`limits`); nothing was sent";
            row(429, "rate_limited", "http_request_denied", Flag::RateLimited, title)
        }
        Fault::QuotaHeld => {
            let title = "the provider's quota is used up (`quota`); nothing was sent";
            row(429, "rate_limited", "http_request_denied", Flag::RateLimited, title)
        }
        Fault::QueueFull => {
            let title = "too many requests wait for a limit of this provider already (`max_queue`)";
            row(503, "overloaded", "proxy_internal_response", Flag::Overloaded, title)
        }
        Fault::ConcurrencyLimit => {
            let title = "too many requests to this provider run already (`concurrency`)";
            row(503, "overloaded", "connection_limit_reached", Flag::Overloaded, title)
        }
        Fault::OnlyIfCached => {
            let title = "the request wants a kept answer only (`only-if-cached`), and none is kept";
            row(504, "not_cached", "proxy_internal_response", Flag::NotCached, title)
        }
        Fault::BreakerOpen => {
            let title = "the circuit breaker of this provider is open; nothing was sent";
            row(503, "breaker_open", "destination_unavailable", Flag::Overloaded, title)
        }
        Fault::ConnectionLimit => {
            let title = "all connections to the provider are in use (`upstream.pool.max_connections`)";
            row(503, "overloaded", "connection_limit_reached", Flag::Overloaded, title)
        }
        Fault::Reset => {
            let title = "the provider closed the connection before it answered";
            row(502, "upstream_reset", "connection_terminated", Flag::UpstreamReset, title)
        }
        Fault::Protocol => protocol("http_protocol_error", "the provider's answer is not valid HTTP"),
        Fault::HeadTooLarge => {
            protocol("http_response_header_section_size", "the head of the provider's answer is too large")
        }
        Fault::Upgrade => {
            protocol("http_upgrade_failed", "the provider switched protocols unasked, or not as asked")
        }
        Fault::Withheld => {
            let title = "the provider failed the request, and may have acted on it; it is not to be sent again under another key";
            row(502, "upstream_failed", "destination_unavailable", Flag::UpstreamFailed, title)
        }
        Fault::ResponseTimeout => timeout("the provider did not answer in time (`timeouts.response`)"),
        Fault::IdleTimeout => timeout("the provider took no byte of the request in time (`timeouts.idle`)"),
        Fault::Deadline => {
            timeout("no answer within the deadline (`timeouts.deadline`, or what the request asked for)")
        }
        Fault::Total => timeout("the exchange took longer than `timeouts.total`"),
        Fault::Credential => {
            let title = "the credential for this provider is not available; nothing was sent";
            row(503, "credential_unavailable", "proxy_internal_error", Flag::CredentialUnavailable, title)
        }
        Fault::TargetTooLong => {
            let title = "the target is too long with the credential in its query";
            row(414, "uri_too_long", "http_request_error", Flag::DownstreamProtocol, title)
        }
        Fault::Unfit(title) => bad_request(title),
        Fault::BodyTooLargeToRewrite => {
            let title = "the request body is larger than the credential allows: it is held whole while the credential is put into it (`max`)";
            row(413, "payload_too_large", "http_request_error", Flag::DownstreamProtocol, title)
        }
        Fault::Forbidden(title) => row(403, "denied", "http_request_denied", Flag::Denied, title),
        Fault::DownstreamGone => row(
            400,
            "bad_request",
            "http_request_error",
            Flag::DownstreamGone,
            "the request body ended before its end",
        ),
        Fault::DownstreamMalformed => bad_request("the request body is malformed"),
        Fault::DownstreamStalled => {
            let title = "the request body stalled (`runtime.downstream.body_timeout`)";
            row(408, "request_timeout", "http_request_error", Flag::DownstreamTimeout, title)
        }
        Fault::BodyTooLarge => too_large(),
        Fault::Internal => internal(),
    }
}

fn connect(token: &'static str, title: &'static str) -> Answer {
    row(502, "upstream_connect", token, Flag::ConnectFailure, title)
}

fn tls(token: &'static str, title: &'static str) -> Answer {
    row(502, "upstream_tls", token, Flag::TlsFailure, title)
}

fn protocol(token: &'static str, title: &'static str) -> Answer {
    row(502, "upstream_protocol", token, Flag::UpstreamProtocol, title)
}

fn timeout(title: &'static str) -> Answer {
    row(504, "upstream_timeout", "http_response_timeout", Flag::UpstreamTimeout, title)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_nothing_was_sent_is_said_only_where_it_is_true() {
        let title = |failure: Failure| EgressError::from(failure).title().into_owned();
        for fault in [Fault::RateLimited, Fault::QuotaHeld, Fault::BreakerOpen, Fault::Credential] {
            let (first, later) = (title(Failure::not_sent(fault)), title(Failure::sent(fault)));
            assert_eq!(first, format!("{later}{NOTHING_SENT}"), "{fault:?}");
        }
        assert_eq!(title(Failure::not_sent(Fault::Reset)), title(Failure::sent(Fault::Reset)));
    }

    #[test]
    fn come_again_is_said_only_where_nothing_was_done() {
        let told = |failure: Failure| {
            let error = EgressError::from(failure);
            (error.answer().status.as_u16(), error.retry_after().is_some())
        };
        assert_eq!(told(Failure::not_sent(Fault::RateLimited)), (429, false));
        assert_eq!(told(Failure::not_sent(Fault::ConnectionLimit)), (503, true));
        for fault in [Fault::RateLimited, Fault::QuotaHeld, Fault::BreakerOpen, Fault::ConnectionLimit] {
            assert_eq!(told(Failure::sent(fault)), (502, false), "{fault:?}");
        }
        assert_eq!(told(Failure::sent(Fault::Deadline)), (504, false));
    }
}
