//! A client's connections, through each of the doors that are compared.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT, AUTHORIZATION, HOST, USER_AGENT};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::{self, BENCH_HOST, BLIND_HOST};
use crate::{Outcome, origin, outgate};

/// A way to the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// Without a proxy, over TLS.
    Direct,
    /// Plain HTTP to the floor, TLS from there.
    Floor,
    /// Plain HTTP to outgate's local endpoint, TLS from there, the credential injected.
    Local,
    /// The same with HTTP/2 to the origin.
    LocalHttp2,
    /// As `Local`, with every resilience layer off.
    LocalBare,
    /// As `LocalBare`, with the quota that outgate learns from answers.
    LocalQuota,
    /// As `Local`, with rate limits, quota, retry, breaker and concurrency.
    LocalLayers,
    /// As `Local`, with a token that outgate got itself.
    LocalToken,
    /// As `Local`, without a credential.
    LocalFree,
    /// As `Local`, signed for AWS.
    LocalSigned,
    /// CONNECT, and TLS with a certificate that outgate has minted; TLS from there, the credential injected.
    Intercepted,
    /// CONNECT, and TLS with the origin itself.
    Tunnel,
}

impl Door {
    fn is_local(self) -> bool {
        !matches!(self, Self::Direct | Self::Floor | Self::Intercepted | Self::Tunnel)
    }
}

/// Where the doors are.
#[derive(Clone)]
pub struct Doors {
    origin: SocketAddr,
    floor: SocketAddr,
    outgate: SocketAddr,
    trusts_origin: TlsConnector,
    trusts_outgate: TlsConnector,
}

impl Doors {
    /// `directory` holds the CAs of the origin and of outgate, which must have run once.
    pub fn new(directory: &Path, [origin, floor, outgate]: [SocketAddr; 3]) -> Outcome<Self> {
        let trusts_origin = certificates::trusting(&directory.join(certificates::ORIGIN_CA))?.into();
        let trusts_outgate = certificates::trusting(&outgate::ca(directory))?.into();
        Ok(Self { origin, floor, outgate, trusts_origin, trusts_outgate })
    }

    /// A new connection through a door.
    pub async fn open(&self, door: Door) -> Outcome<Exchange> {
        let sender = match door {
            Door::Direct => {
                let stream = dial(self.origin).await?;
                speak(secure(&self.trusts_origin, BENCH_HOST, stream).await?).await?
            }
            Door::Floor => speak(dial(self.floor).await?).await?,
            Door::Intercepted => speak(self.intercepted().await?).await?,
            Door::Tunnel => {
                let stream = tunnel(dial(self.outgate).await?, BLIND_HOST).await?;
                speak(secure(&self.trusts_origin, BLIND_HOST, stream).await?).await?
            }
            _ => speak(dial(self.outgate).await?).await?,
        };
        Ok(Exchange { sender, door })
    }

    /// An intercepted connection up to the end of the TLS handshake.
    pub async fn intercepted(&self) -> Outcome<TlsStream<TcpStream>> {
        let stream = tunnel(dial(self.outgate).await?, BENCH_HOST).await?;
        secure(&self.trusts_outgate, BENCH_HOST, stream).await
    }
}

/// One client connection that is kept alive.
pub struct Exchange {
    sender: SendRequest<Empty<Bytes>>,
    door: Door,
}

impl Exchange {
    /// One request, and its answer to the last byte.
    pub async fn once(&mut self) -> Outcome<()> {
        let path = match self.door {
            Door::Local => "/bench/",
            Door::LocalHttp2 => "/bench2/",
            Door::LocalBare => "/bare/",
            Door::LocalQuota => "/quota/",
            Door::LocalLayers => "/layers/",
            Door::LocalToken => "/token/",
            Door::LocalFree => "/free/",
            Door::LocalSigned => "/signed/",
            _ => "/",
        };
        self.fetch(path).await.map(drop)
    }

    /// Downloads `count` bytes.
    pub async fn download(&mut self, count: u64) -> Outcome<()> {
        let received = self.fetch(&format!("/bytes/{count}")).await?;
        if received == count { Ok(()) } else { Err(format!("{received} bytes instead of {count}").into()) }
    }

    async fn fetch(&mut self, path: &str) -> Outcome<u64> {
        self.sender.ready().await?;
        // What an app behind outgate sends is a placeholder; the others bring the real thing.
        let credential = match self.door {
            Door::Direct | Door::Floor => origin::CREDENTIAL,
            _ => "Bearer placeholder",
        };
        let host = if self.door == Door::Tunnel { BLIND_HOST } else { BENCH_HOST };
        let request = Request::get(path)
            .header(HOST, if self.door.is_local() { "localhost" } else { host })
            .header(USER_AGENT, "acme/1.0")
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, credential)
            .body(Empty::new())?;
        let response = self.sender.send_request(request).await?;
        let (head, mut body) = response.into_parts();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        if head.status.is_success() { Ok(length) } else { Err(format!("status {}", head.status).into()) }
    }
}

async fn dial(address: SocketAddr) -> Outcome<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn secure(tls: &TlsConnector, host: &'static str, stream: TcpStream) -> Outcome<TlsStream<TcpStream>> {
    Ok(tls.connect(ServerName::try_from(host)?, stream).await?)
}

async fn tunnel(mut stream: TcpStream, host: &str) -> Outcome<TcpStream> {
    let request = format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // Nobody speaks inside the tunnel before the client does, so nothing can follow the head.
    let (mut head, mut filled) = ([0; 4096], 0);
    while !head[..filled].ends_with(b"\r\n\r\n") {
        match stream.read(&mut head[filled..]).await? {
            0 => return Err("the answer to CONNECT is cut off or too long".into()),
            count => filled += count,
        }
    }
    if head.starts_with(b"HTTP/1.1 200") {
        return Ok(stream);
    }
    Err(format!("CONNECT: {}", String::from_utf8_lossy(&head[..filled])).into())
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Outcome<SendRequest<Empty<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its error comes to the request, too.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
