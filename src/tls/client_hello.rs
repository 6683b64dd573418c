//! Looks at a TLS ClientHello without answering it: for tunnels that are passed through, and for transparent
//! listeners.
//!
//! All bytes that were read are handed back, to be replayed to whoever speaks TLS next. Not seen from here:
//! the name inside an Encrypted ClientHello (only the outer one is), and an IP address given as server name,
//! which counts as none (RFC 6066 forbids it).
use bytes::{Bytes, BytesMut};
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, timeout_at};

use super::error::TlsError;

/// The longest first flight that is read, bytes. A ClientHello with post-quantum key shares is about 2 KiB;
/// one that is padded to the full 16 KiB fits, cut into records or not.
pub const MAX_CLIENT_HELLO: usize = 32 * 1024;

/// Bytes asked for in one read.
const CHUNK: usize = 4096;

/// The record type of handshake messages, and the major version that all records bear (RFC 8446, section
/// 5.1).
const RECORD_START: [u8; 2] = [0x16, 0x03];

/// A fatal alert record, unrecognized_name(112): RFC 6066, section 3.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 112];

/// A fatal alert record, access_denied(49): RFC 8446, section 6.2.
const ACCESS_DENIED: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 49];

/// What a ClientHello says, and the bytes it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHelloPeek {
    /// The server name: lower case, without a final dot; nothing when the client sent none.
    pub sni: Option<String>,
    /// The protocols that the client offers, in its order (RFC 7301).
    pub alpn: Vec<Vec<u8>>,
    /// Everything that was read, what had been read before included.
    pub bytes: Bytes,
}

/// The alert that tells a client it asked for a name this tunnel is not for; to be written before closing.
pub fn alert_unrecognized_name() -> &'static [u8] {
    &UNRECOGNIZED_NAME
}

/// The alert that tells a client that the host it asks for is not let through; to be written before closing.
pub fn alert_access_denied() -> &'static [u8] {
    &ACCESS_DENIED
}

/// Reads until the ClientHello is whole, at most [`MAX_CLIENT_HELLO`] bytes; it may come in any number of
/// records and segments.
///
/// # Errors
/// [`TlsError::NotTls`] at the first byte that tells, [`TlsError::ClientHello`] when it cannot be parsed,
/// [`TlsError::ClientHelloTooLong`], [`TlsError::Closed`] at an early end, [`TlsError::Timeout`] at the
/// deadline, [`TlsError::Io`]. What was read is lost then.
pub async fn read_client_hello<IO: AsyncRead + Unpin>(
    io: &mut IO,
    already_read: &[u8],
    deadline: Instant,
) -> Result<ClientHelloPeek, TlsError> {
    let mut parser = Parser::default();
    let mut bytes = BytesMut::from(already_read);
    let mut accepted = parser.push(already_read, 0)?;
    while accepted.is_none() {
        let before = bytes.len();
        let room = MAX_CLIENT_HELLO.saturating_sub(before).min(CHUNK);
        if room == 0 {
            return Err(TlsError::ClientHelloTooLong { limit: MAX_CLIENT_HELLO });
        }
        bytes.resize(before + room, 0);
        let read = timeout_at(deadline, io.read(&mut bytes[before..])).await;
        let read = read.map_err(|_| TlsError::Timeout)?.map_err(TlsError::Io)?;
        bytes.truncate(before + read);
        if read == 0 {
            return Err(TlsError::Closed);
        }
        accepted = parser.push(&bytes[before..], before)?;
    }
    let (sni, alpn) = accepted.as_ref().map(look).unwrap_or_default();
    Ok(ClientHelloPeek { sni, alpn, bytes: bytes.freeze() })
}

fn look(accepted: &Accepted) -> (Option<String>, Vec<Vec<u8>>) {
    let hello = accepted.client_hello();
    let alpn = hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default();
    (hello.server_name().map(normalise_sni), alpn)
}

/// A server name as the rest of the program writes hosts.
pub(super) fn normalise_sni(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[derive(Default)]
struct Parser {
    acceptor: Acceptor,
}

impl Parser {
    /// Takes the next bytes; `offset` is how many came before.
    fn push(&mut self, mut rest: &[u8], offset: usize) -> Result<Option<Accepted>, TlsError> {
        let expected = RECORD_START.iter().skip(offset);
        if rest.iter().zip(expected).any(|(byte, wanted)| byte != wanted) {
            return Err(TlsError::NotTls);
        }
        while !rest.is_empty() {
            // Reading from memory fails only where rustls has no room left for the message.
            let taken = self.acceptor.read_tls(&mut rest);
            let taken = taken.map_err(|_| TlsError::ClientHelloTooLong { limit: MAX_CLIENT_HELLO })?;
            // The alert is not sent: nobody has answered this client yet, and its TLS peer may be another.
            match self.acceptor.accept() {
                Ok(Some(accepted)) => return Ok(Some(accepted)),
                Ok(None) if taken == 0 => break,
                Ok(None) => {}
                Err((error, _alert)) => return Err(TlsError::ClientHello(error)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::tls::provider::crypto_provider;

    /// Is it the error that the case wants?
    type Right = fn(&TlsError) -> bool;

    /// The first flight of a rustls client.
    pub(in crate::tls) fn hello(name: &str, alpn: &[&str]) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut flight = Vec::new();
        client.write_tls(&mut flight).unwrap();
        flight
    }

    /// The same handshake message in records of `size` bytes.
    pub(in crate::tls) fn fragmented(flight: &[u8], size: usize) -> Vec<u8> {
        let message = &flight[5..];
        let record = |piece: &[u8]| {
            [&[0x16, 0x03, 0x01][..], &u16::try_from(piece.len()).unwrap().to_be_bytes(), piece].concat()
        };
        message.chunks(size).flat_map(record).collect()
    }

    /// The message padded to `size` bytes in all, by a padding extension (RFC 7685).
    fn padded(flight: &[u8], size: usize) -> Vec<u8> {
        let mut message = flight[5..].to_vec();
        let padding = size - message.len() - 4;
        let at = extensions_at(&message);
        let old = usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
        // In front of the others, because pre_shared_key must be the last.
        let mut extension = vec![0x00, 0x15];
        extension.extend(u16::try_from(padding).unwrap().to_be_bytes());
        extension.extend(vec![0; padding]);
        message[at..at + 2].copy_from_slice(&u16::try_from(old + padding + 4).unwrap().to_be_bytes());
        message.splice(at + 2..at + 2, extension);
        let length = u32::try_from(message.len() - 4).unwrap().to_be_bytes();
        message[1..4].copy_from_slice(&length[1..]);
        [&[0; 5][..], &message].concat()
    }

    fn extensions_at(message: &[u8]) -> usize {
        let session = 4 + 2 + 32;
        let suites = session + 1 + usize::from(message[session]);
        let compression =
            suites + 2 + usize::from(u16::from_be_bytes([message[suites], message[suites + 1]]));
        compression + 1 + usize::from(message[compression])
    }

    async fn peek(bytes: &[u8], already: usize) -> Result<ClientHelloPeek, TlsError> {
        let (before, mut after) = bytes.split_at(already);
        read_client_hello(&mut after, before, Instant::now() + Duration::from_secs(5)).await
    }

    #[tokio::test]
    async fn names_and_protocols_are_seen_and_every_byte_comes_back() {
        let cases = [
            ("API.Example.test", Some("api.example.test"), &["h2", "http/1.1"][..]),
            ("api.example.test", Some("api.example.test"), &[]),
            ("192.0.2.1", None, &["http/1.1"]),
        ];
        for (name, sni, alpn) in cases {
            let flight = hello(name, alpn);
            for already in [0, 1, 2, 5, 100, flight.len()] {
                let seen = peek(&flight, already).await.unwrap();
                assert_eq!(seen.sni.as_deref(), sni);
                assert_eq!(seen.alpn, alpn.iter().map(|p| p.as_bytes().to_vec()).collect::<Vec<_>>());
                assert_eq!(seen.bytes, flight);
            }
        }
        assert_eq!(normalise_sni("Api.Example.test."), "api.example.test");
    }

    #[tokio::test]
    async fn fragments_are_joined() {
        let flight = hello("api.example.test", &["h2"]);
        let big = padded(&flight, 16 * 1024);
        let cases = [
            ("one-byte records", fragmented(&flight, 1)),
            ("odd records", fragmented(&flight, 7)),
            ("16 KiB over three records", fragmented(&big, 6000)),
        ];
        for (case, bytes) in cases {
            let seen = peek(&bytes, 0).await.unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(seen.sni.as_deref(), Some("api.example.test"), "{case}");
            assert_eq!(seen.bytes, bytes, "{case}");
        }
    }

    #[tokio::test]
    async fn one_byte_segments_are_joined_and_the_rest_stays_unread() {
        let flight = hello("api.example.test", &[]);
        let (mut near, mut far) = tokio::io::duplex(1);
        let sent = flight.clone();
        let writer = tokio::spawn(async move {
            near.write_all(&sent).await.unwrap();
            near.write_all(b"X").await.unwrap();
        });
        let deadline = Instant::now() + Duration::from_secs(5);
        let seen = read_client_hello(&mut far, &[], deadline).await.unwrap();
        assert_eq!(seen.bytes, flight);
        assert_eq!(far.read_u8().await.unwrap(), b'X');
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_client_hello_is_told_apart() {
        let flight = hello("api.example.test", &[]);
        let endless = {
            // Records that promise a 60 KiB message.
            let message = [&[1, 0, 0xf0, 0][..], &vec![0; 40 * 1024]].concat();
            fragmented(&[&[0; 5][..], &message].concat(), 1000)
        };
        let mut broken = flight.clone();
        broken[5] = 2; // a ServerHello
        let cases: [(&str, &[u8], Right); 7] = [
            ("http", b"GET / HTTP/1.1\r\n\r\n", |e| matches!(e, TlsError::NotTls)),
            ("one byte", b"S", |e| matches!(e, TlsError::NotTls)),
            ("second byte", b"\x16\x00", |e| matches!(e, TlsError::NotTls)),
            ("nothing", b"", |e| matches!(e, TlsError::Closed)),
            ("cut", &flight[..100], |e| matches!(e, TlsError::Closed)),
            ("too long", &endless, |e| matches!(e, TlsError::ClientHelloTooLong { .. })),
            ("malformed", &broken, |e| matches!(e, TlsError::ClientHello(_))),
        ];
        for (case, bytes, right) in cases {
            let error = peek(bytes, 0).await.unwrap_err();
            assert!(right(&error), "{case}: {error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_holds_for_a_client_that_drips() {
        let (mut near, mut far) = tokio::io::duplex(64);
        near.write_all(&hello("api.example.test", &[])[..50]).await.unwrap();
        let begin = Instant::now();
        let error = read_client_hello(&mut far, &[], begin + Duration::from_secs(10)).await.unwrap_err();
        assert!(matches!(error, TlsError::Timeout), "{error:?}");
        assert_eq!(begin.elapsed().as_secs(), 10);
    }
}
