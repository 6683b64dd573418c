//! Where a redirected connection was meant to go: the kernel remembers it (`SO_ORIGINAL_DST`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::telemetry::Original;

/// Tells where a connection was meant to go; tests have one that needs no firewall.
pub type OriginalDestination = Arc<dyn Fn(&TcpStream) -> io::Result<SocketAddr> + Send + Sync>;

/// The kernel's answer.
pub fn from_kernel() -> OriginalDestination {
    Arc::new(asked)
}

/// A connection that was redirected, as its requests see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// The address and port that the client dialled.
    pub original: SocketAddr,
    /// Whether the host that the TLS connection names resolves to it, where that was compared.
    pub resolved: Option<bool>,
}

impl Redirected {
    /// As the record has it.
    pub fn noted(self) -> Original {
        Original { address: self.original, resolved: self.resolved }
    }
}

/// Why a connection to a transparent listener is not served.
#[derive(Debug, thiserror::Error)]
pub enum NotRedirected {
    /// It came to the listener by itself: whoever dials it has no other destination in mind.
    #[error("the client dialled this listener itself, and it takes redirected connections only")]
    Direct,
    /// The kernel does not know: it does not track this connection, so nothing has redirected it.
    #[error("the system knows no original destination of the connection, so it was not redirected: {0}")]
    Unknown(#[source] io::Error),
}

/// Where the connection was meant to go, if that was elsewhere.
pub fn original_of(stream: &TcpStream, ask: &OriginalDestination) -> Result<Redirected, NotRedirected> {
    let original = unmapped(ask(stream).map_err(NotRedirected::Unknown)?);
    let own = unmapped(stream.local_addr().map_err(NotRedirected::Unknown)?);
    if original == own { Err(NotRedirected::Direct) } else { Ok(Redirected { original, resolved: None }) }
}

/// The option is of the address's family: a socket for both families that carries IPv4 has the one of IPv4.
fn asked(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = socket2::SockRef::from(stream);
    let address = match stream.local_addr()?.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4()?,
        IpAddr::V6(_) => socket.original_dst_v6()?,
    };
    address.as_socket().ok_or_else(|| io::Error::other("not an address of the internet"))
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn accepted(address: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).await.unwrap();
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), listener.local_addr().unwrap().port());
        #[expect(clippy::disallowed_methods, reason = "the client of a test")]
        let client = TcpStream::connect(to).await.unwrap();
        (listener.accept().await.unwrap().0, client)
    }

    /// With a firewall that tracks connections the kernel says where the client is; without, that it does not know.
    #[tokio::test]
    async fn a_direct_connection_is_not_redirected() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let (stream, _client) = accepted(address).await;
            assert!(original_of(&stream, &from_kernel()).is_err(), "{address}");
        }
    }

    #[tokio::test]
    async fn the_listener_itself_is_no_destination_in_any_form() {
        let (stream, _client) = accepted("127.0.0.1:0").await;
        let own = stream.local_addr().unwrap();
        let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), own.port());
        for address in [own, mapped] {
            let ask: OriginalDestination = Arc::new(move |_| Ok(address));
            assert!(matches!(original_of(&stream, &ask), Err(NotRedirected::Direct)), "{address}");
        }
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:443".parse().unwrap();
        let ask: OriginalDestination = Arc::new(move |_| Ok(mapped));
        let found = original_of(&stream, &ask).unwrap();
        assert_eq!(found.original.to_string(), "192.0.2.1:443");
    }
}
