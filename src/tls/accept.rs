//! The TLS handshake of interception: outgate answers as the host that the tunnel was opened to, and as no
//! other.
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::{StartHandshake, TlsStream};

use super::client_hello::{alert_unrecognized_name, normalise_sni};
use super::error::TlsError;

/// Makes the handshake with a client whose tunnel goes to `expected_host` (a normalised name, or an IP
/// address as text).
///
/// A client that names another host gets the fatal alert `unrecognized_name`, before any certificate; a
/// client that names none is served, since the certificate names the tunnel's host. rustls reads at most 64
/// KiB of ClientHello.
///
/// # Errors
/// [`TlsError::SniMismatch`], [`TlsError::NotTls`], [`TlsError::Closed`], [`TlsError::Timeout`] at the
/// deadline (which holds for all of it), [`TlsError::Handshake`], [`TlsError::Io`]. The connection is closed
/// then.
pub async fn accept<IO>(
    io: IO,
    config: Arc<ServerConfig>,
    expected_host: &str,
    deadline: Instant,
) -> Result<TlsStream<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await.map_err(TlsError::handshake)?;
        if !names(&start.client_hello(), expected_host) {
            return refuse(start).await;
        }
        start.into_stream(config).await.map_err(TlsError::handshake)
    };
    timeout_at(deadline, handshake).await.map_err(|_| TlsError::Timeout)?
}

fn names(hello: &ClientHello<'_>, expected_host: &str) -> bool {
    hello.server_name().is_none_or(|name| normalise_sni(name) == normalise_sni(expected_host))
}

async fn refuse<IO, T>(start: StartHandshake<IO>) -> Result<T, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut io = start.io;
    // That the client may be gone changes nothing: it is refused.
    if io.write_all(alert_unrecognized_name()).await.is_ok() {
        let _ = io.shutdown().await;
    }
    Err(TlsError::SniMismatch)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt as _, duplex};
    use tokio_rustls::TlsConnector;

    use super::super::client_hello::tests::{fragmented, hello};
    use super::*;
    use crate::tls::{Authority, CaSource, LeafCache, crypto_provider};

    /// Is it the error that the case wants?
    type Right = fn(&TlsError) -> bool;

    fn cache() -> LeafCache {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(&CaSource::Directory(folder.path().join("ca"))).unwrap();
        LeafCache::new(Arc::new(authority), 16).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn connector(cache: &LeafCache) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(cache.authority().certificate_der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// A real client against `accept`: asks for `asked`, in a tunnel to `host`; gives the server's end of it.
    async fn attempt(cache: &LeafCache, host: &str, asked: &str) -> Result<(), TlsError> {
        let (near, far) = duplex(64 * 1024);
        let config = cache.server_config(host).await.unwrap();
        let name = ServerName::try_from(asked.to_owned()).unwrap();
        let connector = connector(cache);
        let client = async {
            let mut stream = connector.connect(name, near).await?;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            stream.write_all(b"ping").await?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).await?;
            assert_eq!(&answer, b"pong");
            Ok::<_, std::io::Error>(())
        };
        let server = async {
            let mut stream = accept(far, config, host, soon()).await?;
            let mut question = [0; 4];
            stream.read_exact(&mut question).await.unwrap();
            stream.write_all(b"pong").await.unwrap();
            stream.flush().await.unwrap();
            Ok(())
        };
        let (client, server) = tokio::join!(client, server);
        assert_eq!(client.is_ok(), server.is_ok(), "{client:?}");
        server
    }

    #[tokio::test]
    async fn a_client_that_trusts_the_ca_is_served() {
        let cache = cache();
        // The IP cases send no SNI (RFC 6066), which must not hinder.
        let hosts =
            ["api.example.test", "192.0.2.7", "2001:db8::7", "xn--bcher-kva.example", "under_score.example"];
        for host in hosts {
            attempt(&cache, host, host).await.unwrap_or_else(|e| panic!("{host}: {e}"));
        }
        attempt(&cache, "api.example.test", "API.example.TEST").await.unwrap();
    }

    #[tokio::test]
    async fn another_name_gets_the_alert_and_nothing_else() {
        let cache = cache();
        for (host, asked) in [
            ("open.example.test", "api.example.test"),
            ("192.0.2.7", "api.example.test"),
            ("a.test", "b.a.test"),
        ] {
            let (mut near, far) = duplex(64 * 1024);
            let config = cache.server_config(host).await.unwrap();
            near.write_all(&hello(asked, &["h2"])).await.unwrap();
            let error = accept(far, config, host, soon()).await.err().unwrap();
            assert!(matches!(error, TlsError::SniMismatch), "{error:?}");
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 112], "{host} {asked}");
        }
        assert_eq!(cache.stats().minted, 3, "nothing was minted for the names that were asked for");
    }

    #[tokio::test]
    async fn what_is_not_a_handshake_is_typed() {
        let cache = cache();
        let config = cache.server_config("a.test").await.unwrap();
        let cases: [(&[u8], Right); 3] = [
            (b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", |e| matches!(e, TlsError::NotTls)),
            (b"", |e| matches!(e, TlsError::Closed)),
            (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", |e| matches!(e, TlsError::Handshake(_))),
        ];
        for (bytes, right) in cases {
            let (mut near, far) = duplex(1024);
            near.write_all(bytes).await.unwrap();
            near.shutdown().await.unwrap();
            let error = accept(far, config.clone(), "a.test", soon()).await.err().unwrap();
            assert!(right(&error), "{bytes:?}: {error:?}");
        }
    }

    #[tokio::test]
    async fn a_client_hello_in_one_byte_records_is_answered() {
        let cache = cache();
        let config = cache.server_config("a.test").await.unwrap();
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(&fragmented(&hello("a.test", &["h2"]), 1)).await.unwrap();
        let server = accept(far, config, "a.test", soon());
        let client = async move { near.read_u8().await.unwrap() };
        let (first, server) = tokio::join!(client, server);
        assert_eq!(first, 0x16, "a ServerHello, and no alert");
        assert!(server.is_err(), "the client went away after it");
    }

    #[tokio::test(start_paused = true)]
    async fn one_deadline_for_both_halves() {
        let cache = cache();
        let config = cache.server_config("a.test").await.unwrap();
        // A silent client, and one that stops after its ClientHello.
        for first in [Vec::new(), hello("a.test", &[])] {
            let (mut near, far) = duplex(64 * 1024);
            near.write_all(&first).await.unwrap();
            let begin = Instant::now();
            let error =
                accept(far, config.clone(), "a.test", begin + Duration::from_secs(10)).await.err().unwrap();
            assert!(matches!(error, TlsError::Timeout), "{error:?}");
            assert_eq!(begin.elapsed().as_secs(), 10);
        }
    }
}
