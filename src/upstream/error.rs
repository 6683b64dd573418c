//! What went wrong on the way, sorted by fault and by how far the request had got.
//!
//! Faults are read from types along the chain of causes, never from texts.

use std::error::Error;
use std::io;

use crate::message::body::BodyError;
use crate::message::failure::{Failure, Fault, Progress};

use crate::tls::client_config::{TlsFault, classify, refuses_certificate};

use super::client_tls::TlsSetupError;

/// A TCP connection that could not be made.
pub fn dial_fault(error: io::Error) -> Failure {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let fault = match error.kind() {
        ConnectionRefused => Fault::ConnectRefused,
        NetworkUnreachable | HostUnreachable | AddrNotAvailable => Fault::ConnectUnroutable,
        _ => Fault::Connect,
    };
    Failure::not_sent(fault).because(error)
}

/// A TLS handshake that failed.
pub fn handshake_fault(error: io::Error) -> Failure {
    let fault = match classify(&error) {
        TlsFault::Certificate => Fault::TlsCertificate,
        TlsFault::Alert => Fault::TlsAlert,
        TlsFault::Io if is_cut(error.kind()) => Fault::Reset,
        TlsFault::Protocol | TlsFault::Io => Fault::TlsProtocol,
    };
    Failure::not_sent(fault).because(error)
}

/// Whether a handshake failed because the provider refused the client certificate.
pub fn is_refusal(failure: &Failure) -> bool {
    let io = failure.cause().and_then(|cause| cause.downcast_ref::<io::Error>());
    failure.fault == Fault::TlsAlert && io.is_some_and(refuses_certificate)
}

/// The same of a request on a connection on which nothing was answered yet: with TLS 1.3 the refusal comes behind the handshake.
pub fn is_late_refusal(error: &hyper::Error) -> bool {
    cause::<io::Error>(error).is_some_and(refuses_certificate)
}

/// TLS that could not be set up: a client certificate that is not there is a missing credential.
pub fn setup_fault(error: TlsSetupError) -> Failure {
    let fault = match error {
        TlsSetupError::Missing(_) | TlsSetupError::Identity(_) => Fault::Credential,
        TlsSetupError::Config(_) => Fault::Internal,
    };
    Failure::not_sent(fault).because(error)
}

fn is_cut(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut, UnexpectedEof,
    };
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | TimedOut | UnexpectedEof)
}

/// A body of a request that broke: whose fault it is.
pub fn body_fault(error: &BodyError) -> Fault {
    match error {
        BodyError::DownstreamGone(_) => Fault::DownstreamGone,
        BodyError::DownstreamMalformed(_) | BodyError::DownstreamFraming(_) | BodyError::TrailersTooLarge => {
            Fault::DownstreamMalformed
        }
        BodyError::Forbidden(what) => Fault::Forbidden(what),
        BodyError::DownstreamStalled => Fault::DownstreamStalled,
        BodyError::TooLarge => Fault::BodyTooLarge,
        BodyError::Total => Fault::Total,
        // Nobody waits any more for an attempt whose body the next one has taken over.
        BodyError::Superseded => Fault::Reset,
        // These are errors of answers; a request body that is one is a bug.
        BodyError::UpstreamCut(_) | BodyError::UpstreamIdle => Fault::Internal,
    }
}

/// What an error of hyper means for a request that was handed to a connection and did not come back. `sent` is how far
/// the socket says that it got.
pub fn exchange_fault(error: hyper::Error, sent: Progress) -> Failure {
    let (fault, not_processed) = sort(&error);
    let progress = if not_processed { Progress::NotSent } else { sent };
    let failure = match progress {
        Progress::NotSent => Failure::not_sent(fault),
        Progress::Sent | Progress::HeadReceived => Failure::sent(fault),
    };
    failure.because(error)
}

/// The fault, and whether the provider said that it did not process the request.
fn sort(error: &hyper::Error) -> (Fault, bool) {
    if let Some(body) = cause::<BodyError>(error) {
        return (body_fault(body), false);
    }
    if error.is_parse_too_large() {
        return (Fault::HeadTooLarge, false);
    }
    if error.is_parse() {
        return (Fault::Protocol, false);
    }
    if let Some(h2) = cause::<h2::Error>(error) {
        return sort_h2(h2);
    }
    if let Some(io) = cause::<io::Error>(error) {
        return (sort_io(io), false);
    }
    if error.is_user() {
        return (Fault::Internal, false);
    }
    // What is left: an incomplete message, a closed channel, a canceled request, a keep-alive ping without answer. Each
    // is a connection that ended.
    (Fault::Reset, false)
}

fn sort_io(error: &io::Error) -> Fault {
    // A TLS record that does not decrypt, or an alert in the middle.
    match classify(error) {
        TlsFault::Certificate | TlsFault::Alert | TlsFault::Protocol => Fault::Protocol,
        TlsFault::Io => Fault::Reset,
    }
}

fn sort_h2(error: &h2::Error) -> (Fault, bool) {
    use h2::Reason;
    let reason = error.reason();
    if error.is_remote() {
        // A GOAWAY is only ever reported to streams above its last stream id, which RFC 9113 section 6.8 says were not
        // processed; the others go on.
        let not_processed = error.is_go_away() || reason == Some(Reason::REFUSED_STREAM);
        let fault = match reason {
            Some(Reason::PROTOCOL_ERROR | Reason::HTTP_1_1_REQUIRED) if !not_processed => Fault::Protocol,
            _ => Fault::Reset,
        };
        return (fault, not_processed);
    }
    match reason {
        // How h2 as a client gives up on a head above SETTINGS_MAX_HEADER_LIST_SIZE.
        Some(Reason::REFUSED_STREAM | Reason::ENHANCE_YOUR_CALM) => (Fault::HeadTooLarge, false),
        Some(Reason::CANCEL) => (Fault::Reset, false),
        _ if error.is_io() => (Fault::Reset, false),
        _ => (Fault::Protocol, false),
    }
}

fn cause<E: Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(found) = source.downcast_ref() {
            return Some(found);
        }
        next = source.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dial_errors_are_sorted_by_kind() {
        for (kind, fault) in [
            (io::ErrorKind::ConnectionRefused, Fault::ConnectRefused),
            (io::ErrorKind::NetworkUnreachable, Fault::ConnectUnroutable),
            (io::ErrorKind::HostUnreachable, Fault::ConnectUnroutable),
            (io::ErrorKind::PermissionDenied, Fault::Connect),
        ] {
            let failure = dial_fault(kind.into());
            assert_eq!((failure.fault, failure.progress), (fault, Progress::NotSent));
        }
    }

    #[test]
    fn handshake_errors_are_sorted_by_cause() {
        let tls = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        for (error, fault) in [
            (
                tls(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired)),
                Fault::TlsCertificate,
            ),
            (tls(rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure)), Fault::TlsAlert),
            (tls(rustls::Error::DecryptError), Fault::TlsProtocol),
            (io::ErrorKind::UnexpectedEof.into(), Fault::Reset),
            (io::ErrorKind::InvalidData.into(), Fault::TlsProtocol),
        ] {
            assert_eq!(handshake_fault(error).fault, fault);
        }
    }
}
