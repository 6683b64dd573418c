//! Listeners: bound once, accepting until outgate drains, never more connections than the bound.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixSocket};
use tokio::sync::Semaphore;

use super::connection::serve;
use super::context::{ConnectionContext, ListenerContext, Proxy};
use super::original::{NotRedirected, Redirected, original_of};
use super::overload::Overload;
use super::resets::Resets;
use super::socket::{Socket, SocketTimeouts};
use super::transparent;
use crate::telemetry::Client;

/// A bound listener.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket; a file that was made here goes when the listener does.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a unix socket, removed on drop.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How many connections the kernel may hold for us until they are accepted.
const BACKLOG: u32 = 4096;

/// Binds a TCP listener.
pub fn bind_tcp(address: std::net::SocketAddr) -> io::Result<Listener> {
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Listener::Tcp(socket.listen(BACKLOG)?))
}

/// Binds a unix socket with mode 0600. A file that nobody listens on any more is replaced.
pub fn bind_unix(path: &std::path::Path) -> io::Result<Listener> {
    if path.exists() && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = private_socket(path)?.listen(BACKLOG)?;
    let file = SocketFile(path.to_path_buf());
    // Where the system does not take the mode from the socket.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Listener::Unix(listener, Some(file)))
}

/// Takes over a socket that listens already.
pub fn adopt_tcp(socket: std::net::TcpListener) -> io::Result<Listener> {
    socket.set_nonblocking(true)?;
    Ok(Listener::Tcp(TcpListener::from_std(socket)?))
}

/// Takes over a unix socket that listens already, and leaves its file alone.
pub fn adopt_unix(socket: std::os::unix::net::UnixListener) -> io::Result<Listener> {
    socket.set_nonblocking(true)?;
    Ok(Listener::Unix(UnixListener::from_std(socket)?, None))
}

/// A bound socket whose file has mode 0600 from its first moment: Linux gives the file the mode of the socket, less the
/// umask. A `chmod` alone would leave it open to others for a while, and the umask belongs to every thread.
fn private_socket(path: &std::path::Path) -> io::Result<UnixSocket> {
    let socket = UnixSocket::new_stream()?;
    if let Err(error) = rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR) {
        tracing::debug!(%error, "the mode of a socket cannot be set before it is bound");
    }
    socket.bind(path)?;
    Ok(socket)
}

impl Listener {
    /// The TCP address it is bound to.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// Accepts one connection as it is, with the address it came to; for the admin listener.
    pub async fn accept_raw(
        &self,
        timeouts: SocketTimeouts,
    ) -> io::Result<(Socket, Option<std::net::SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let own = stream.local_addr()?;
                Ok((Socket::tcp(stream, timeouts), Some(own)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::unix(stream, timeouts), None))
            }
        }
    }

    async fn accept(&self, proxy: &Proxy, transparent: bool) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let redirected = transparent.then(|| original_of(&stream, &proxy.original));
                let socket = Socket::tcp(stream, proxy.bounds.socket);
                Ok(Accepted { socket, client: Client::Address(peer), redirected })
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let socket = Socket::unix(stream, proxy.bounds.socket);
                Ok(Accepted { socket, client: Client::Unix, redirected: None })
            }
        }
    }
}

/// A connection as it was accepted.
struct Accepted {
    socket: Socket,
    client: Client,
    /// At a transparent listener: where it was meant to go.
    redirected: Option<Result<Redirected, NotRedirected>>,
}

/// Accepts until outgate drains. Above `permits` connections wait in the kernel's backlog.
pub async fn run(
    listener: Listener,
    context: Arc<ListenerContext>,
    proxy: Arc<Proxy>,
    permits: Arc<Semaphore>,
) {
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit,
            () = proxy.drain.cancelled() => return,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            accepted = listener.accept(&proxy, context.transparent) => accepted,
            () = proxy.drain.cancelled() => return,
        };
        match accepted {
            Ok(Accepted { socket, client, redirected }) => {
                let place = Place::new(&proxy, permit, context.metrics.accept());
                let connection = ConnectionContext {
                    listener: context.clone(),
                    client,
                    activity: socket.activity(),
                    redirected: None,
                    intercepted: None,
                    proven_tenant: None,
                    late: proxy.overload.is_full(),
                    stalls: None,
                    place: Arc::new(place),
                    resets: Resets::default(),
                };
                match redirected {
                    None => proxy.tasks.spawn(serve(proxy.clone(), connection, socket)),
                    Some(redirected) => {
                        proxy.tasks.spawn(transparent::serve(proxy.clone(), connection, socket, redirected))
                    }
                };
            }
            // A client that is gone already, or no descriptor left: wait a moment instead of spinning.
            Err(error) => {
                tracing::warn!(listener = %context.name, %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A connection's place among those that may be open. Given back when the last task of the connection has ended.
pub struct Place {
    overload: Arc<Overload>,
    _permit: tokio::sync::OwnedSemaphorePermit,
    _counted: crate::telemetry::DownstreamConnection,
}

impl Place {
    fn new(
        proxy: &Proxy,
        permit: tokio::sync::OwnedSemaphorePermit,
        counted: crate::telemetry::DownstreamConnection,
    ) -> Self {
        proxy.overload.opened();
        Self { overload: proxy.overload.clone(), _permit: permit, _counted: counted }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.overload.closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_unix_socket_is_never_open_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.sock");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let socket = private_socket(&path).unwrap();
        assert_eq!(mode(), 0o600, "before anything else is done to the file");
        drop(socket);
        // What nobody listens on is replaced, and what is served is taken away at the end.
        let listener = bind_unix(&path).unwrap();
        assert_eq!(mode(), 0o600);
        assert!(bind_unix(&path).is_err(), "somebody listens");
        drop(listener);
        assert!(!path.exists());
    }
}
