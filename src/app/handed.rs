//! Sockets that systemd hands over (socket activation): they exist before outgate does, and while it starts anew.
//!
//! The descriptors begin at 3, `LISTEN_FDS` is their number, and `LISTEN_FDNAMES` their names (sd_listen_fds(3)).

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_setfd};
use socket2::SockRef;

/// A listening socket.
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket; its file is systemd's.
    Unix(UnixListener),
}

/// What was handed over, by name.
#[derive(Default)]
pub struct Handed(Vec<(String, Socket)>);

impl Handed {
    /// Takes over what the environment speaks of; `names` is its `LISTEN_FDNAMES`. To be called once, before there are threads: the
    /// environment is changed, so that programs that outgate starts do not take the sockets for theirs. Of stream
    /// sockets, one that does not listen (a connection, or one that is only bound) is closed; what is no stream socket is left where
    /// it is. Neither has a name afterwards.
    pub fn from_environment(names: Option<&str>) -> Self {
        let mut descriptors = ListenFd::from_env();
        let mut names = names.unwrap_or_default().split(':');
        let mut handed = Vec::new();
        for index in 0..descriptors.len() {
            // What systemd itself calls a socket without a name.
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
            if let Some(socket) = taken(&mut descriptors, index) {
                handed.push((name.to_owned(), socket));
            }
        }
        Self(handed)
    }

    /// Takes all of this name out.
    pub fn take(&mut self, name: &str) -> Vec<Socket> {
        let (taken, rest) = std::mem::take(&mut self.0).into_iter().partition(|(own, _)| own == name);
        self.0 = rest;
        let taken: Vec<(String, Socket)> = taken;
        taken.into_iter().map(|(_, socket)| socket).collect()
    }

    /// The names of what is left.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

fn taken(descriptors: &mut ListenFd, index: usize) -> Option<Socket> {
    let socket = match descriptors.take_tcp_listener(index) {
        Ok(Some(socket)) => Socket::Tcp(socket),
        Ok(None) | Err(_) => Socket::Unix(descriptors.take_unix_listener(index).ok().flatten()?),
    };
    // Nothing could ever be accepted on one that does not.
    let listens = match &socket {
        Socket::Tcp(socket) => SockRef::from(socket).is_listener(),
        Socket::Unix(socket) => SockRef::from(socket).is_listener(),
    };
    if !listens.is_ok_and(|listens| listens) {
        return None;
    }
    // systemd leaves them open for programs that are started from here.
    let marked = match &socket {
        Socket::Tcp(socket) => fcntl_setfd(socket.as_fd(), FdFlags::CLOEXEC),
        Socket::Unix(socket) => fcntl_setfd(socket.as_fd(), FdFlags::CLOEXEC),
    };
    marked.ok().map(|()| socket)
}
