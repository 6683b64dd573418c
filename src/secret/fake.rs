//! For tests: a scripted HTTP server on loopback, and what stores need of the process.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::config::StoreEnv;
use crate::upstream::UpstreamEnv;
use crate::upstream::guard::OwnListeners;
use crate::upstream::resolver::Resolver;

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// `GET /path?query`.
    pub line: String,
    /// The head.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Asked {
    /// A field's value; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .next()
            .unwrap_or_default()
    }
}

/// What the server does.
pub enum Reply {
    /// An answer: status and body.
    Answer(u16, String),
    /// The same with one more field.
    With(u16, String, String),
    /// An answer, status and body, once there is a permit.
    Later(Arc<Semaphore>, u16, String),
    /// Reads, and never answers.
    Hang,
    /// Closes the connection.
    Close,
}

/// 200 with a JSON body.
pub fn ok(body: impl ToString) -> Reply {
    Reply::Answer(200, body.to_string())
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

/// The server. Dropping it closes its listener.
pub struct FakeServer {
    /// Its origin, `http://127.0.0.1:port`.
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _stop: tokio_util::sync::DropGuard,
}

impl FakeServer {
    pub async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, script): (Arc<Mutex<Vec<Asked>>>, Arc<Script>) = (Arc::default(), Arc::new(script));
        let (log, stop) = (asked.clone(), tokio_util::sync::CancellationToken::new());
        let guard = stop.clone().drop_guard();
        #[expect(clippy::disallowed_methods, reason = "a test")]
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, log.clone(), script.clone()));
            }
        }));
        Self { url, asked, _stop: guard }
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Their first lines since the last call.
    pub fn lines(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap()).into_iter().map(|asked| asked.line).collect()
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Vec<Asked>>>, script: Arc<Script>) {
    let mut bytes = Vec::new();
    loop {
        let Some(asked) = receive(&mut stream, &mut bytes).await else { return };
        log.lock().unwrap().push(asked.clone());
        let (status, field, body) = match script(&asked) {
            Reply::Answer(status, body) => (status, String::new(), body),
            Reply::With(status, field, body) => (status, format!("{field}\r\n"), body),
            Reply::Later(gate, status, body) => {
                gate.acquire().await.unwrap().forget();
                (status, String::new(), body)
            }
            Reply::Hang => std::future::pending().await,
            Reply::Close => return,
        };
        let answer = format!("HTTP/1.1 {status} X\r\n{field}content-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn receive(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Asked> {
    loop {
        let text = String::from_utf8_lossy(bytes).into_owned();
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let line = head.lines().next()?.trim_end_matches(" HTTP/1.1").to_owned();
            let mut asked = Asked { line, head: head.to_owned(), body: String::new() };
            let length: usize = asked.header("content-length").parse().unwrap_or(0);
            if rest.len() >= length {
                asked.body = rest[..length].to_owned();
                bytes.drain(..head.len() + 4 + length);
                return Some(asked);
            }
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// A way out that knows no names.
pub fn upstream_env() -> Arc<UpstreamEnv> {
    Arc::new(UpstreamEnv {
        metrics: Arc::new(crate::telemetry::Metrics::new()),
        resolver: Resolver::scripted(Arc::new(|_| Err(std::io::ErrorKind::NotFound.into()))),
        roots: Arc::new(rustls::RootCertStore::empty()),
        own_listeners: ArcSwap::from_pointee(OwnListeners::default()),
    })
}

/// What stores need, with relative paths below `directory`.
pub fn store_env(directory: &Path) -> StoreEnv {
    StoreEnv { directory: directory.to_owned(), upstream: upstream_env() }
}

/// Lets time pass at once. Not `start_paused`: with real sockets a paused clock runs ahead of them.
pub async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
