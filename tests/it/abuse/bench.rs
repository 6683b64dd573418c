//! The bench of the framing, target and CONNECT cases: five policies, origins that keep every byte, clients that keep every
//! byte, and the invariants that hold after each case.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::CANARY;
use crate::support::ca::{TestCa, trusting};
use crate::support::client::{Got, Raw};
use crate::support::origin::{HttpOrigin, Stream};
use crate::support::proxy::Proxy;

/// What may pass for a malformed request: the key's status and `Proxy-Status` error.
pub const MALFORMED: (u16, &str) = (400, "http_request_error");
/// What a refusal by policy looks like.
pub const REFUSED: (u16, &str) = (403, "http_request_denied");
/// A connection that is to be closed is closed well before any of its timeouts.
const CLOSES_WITHIN: Duration = Duration::from_secs(4);

/// A connection as an origin saw it.
#[derive(Clone, Default, Debug)]
pub struct Heard {
    /// Every byte, after TLS.
    pub bytes: Vec<u8>,
    /// The complete requests.
    pub requests: Vec<Taken>,
    /// The peer has closed.
    pub ended: bool,
    /// What the TLS client asked for.
    pub sni: Option<String>,
}

/// One complete request.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Request line and fields, without the empty line.
    pub head: String,
    /// The body as it was framed.
    pub body: Vec<u8>,
}

impl Taken {
    /// The request line.
    pub fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap()
    }

    /// All values of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }
}

type Reply = Arc<dyn Fn(&Taken) -> Vec<u8> + Send + Sync>;

/// An origin that keeps every byte it gets, takes HTTP/1.1 strictly, and answers what it is told.
#[derive(Clone)]
pub struct Capture {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Capture {
    /// Answers 200 with this body.
    async fn saying(tls: Option<Arc<rustls::ServerConfig>>, body: &'static str) -> Self {
        let answer = ok(body);
        Self::start(tls, Arc::new(move |_| answer.clone())).await
    }

    pub async fn start(tls: Option<Arc<rustls::ServerConfig>>, reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = Self { address: listener.local_addr().unwrap(), heard: Arc::default() };
        let heard = origin.heard.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut heard = heard.lock().unwrap();
                    heard.push(Heard::default());
                    heard.len() - 1
                };
                tokio::spawn(listen(stream, tls.clone(), reply.clone(), heard.clone(), number));
            }
        });
        origin
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// All complete requests of all connections.
    pub fn requests(&self) -> Vec<Taken> {
        self.heard().into_iter().flat_map(|heard| heard.requests).collect()
    }

    /// The one request there was.
    pub fn only(&self) -> Taken {
        let all = self.requests();
        assert_eq!(all.len(), 1, "{all:#?}");
        all[0].clone()
    }

    /// Waits until every connection was closed by outgate.
    pub async fn all_ended(&self) {
        poll_until("the connections to the origin end", || self.heard().iter().all(|heard| heard.ended))
            .await;
    }
}

/// A plain 200.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Polls with a deadline.
pub async fn poll_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(8);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn listen(
    stream: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
    reply: Reply,
    heard: Arc<Mutex<Vec<Heard>>>,
    number: usize,
) {
    let _ = stream.set_nodelay(true);
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(tls) => {
            let sni = Arc::<Mutex<Option<String>>>::default();
            let mut config = (*tls).clone();
            config.cert_resolver = Arc::new(Noting { inner: config.cert_resolver.clone(), sni: sni.clone() });
            let accepted = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
            heard.lock().unwrap()[number].sni = sni.lock().unwrap().clone();
            match accepted {
                Ok(stream) => Box::new(stream),
                Err(_) => {
                    heard.lock().unwrap()[number].ended = true;
                    return;
                }
            }
        }
    };
    let mut taken = 0;
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.unwrap_or(0);
        if read == 0 {
            heard.lock().unwrap()[number].ended = true;
            return;
        }
        heard.lock().unwrap()[number].bytes.extend_from_slice(&piece[..read]);
        loop {
            let answer = {
                let mut heard = heard.lock().unwrap();
                let one = &mut heard[number];
                let Some((request, length)) = complete(&one.bytes[taken..]) else { break };
                taken += length;
                let answer = reply(&request);
                one.requests.push(request);
                answer
            };
            if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
                break;
            }
        }
    }
}

#[derive(Debug)]
struct Noting {
    inner: Arc<dyn ResolvesServerCert>,
    sni: Arc<Mutex<Option<String>>>,
}

impl ResolvesServerCert for Noting {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        *self.sni.lock().unwrap() = hello.server_name().map(str::to_owned);
        self.inner.resolve(hello)
    }
}

/// A complete request at the begin of these bytes, and its length.
fn complete(bytes: &[u8]) -> Option<(Taken, usize)> {
    let end = find(bytes, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut request = Taken { head, body: Vec::new() };
    let rest = &bytes[end + 4..];
    let length = if request.all("transfer-encoding").is_empty() {
        let length = request.all("content-length").first().map_or(0, |length| length.parse().unwrap());
        (rest.len() >= length).then_some(length)?
    } else {
        chunks(rest)?
    };
    request.body = rest[..length].to_vec();
    Some((request, end + 4 + length))
}

/// Length of a complete chunked body, trailers included.
fn chunks(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).unwrap();
        let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
        at += line + 2;
        if size == 0 {
            break;
        }
        at += size + 2;
        if at > bytes.len() {
            return None;
        }
    }
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        at += line + 2;
        if line == 0 {
            return Some(at);
        }
    }
}

pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// A client's stream that keeps everything it receives.
pub struct Tap<S = TcpStream> {
    stream: S,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl<S> Tap<S> {
    /// How many answers came.
    pub fn answers(&self) -> usize {
        self.seen.lock().unwrap().windows(9).filter(|window| *window == b"HTTP/1.1 ").count()
    }

    /// Everything that came.
    pub fn seen(&self) -> Vec<u8> {
        self.seen.lock().unwrap().clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.seen.lock().unwrap().extend_from_slice(&buffer.filled()[before..]);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The policies of the bench.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// open.example.test on 80 and 443; `/`, `/second`, `/v1/`; four methods. CONNECT is a blind tunnel.
    One,
    /// The same with every path.
    Open,
    /// The same, and api.example.test under /v1/ with the credential; both are intercepted.
    Inj,
    /// All hosts of the bench on 80 and 443, without credential; CONNECT to any other on 443.
    Wide,
    /// The same without evil.example.test.
    Deny1,
}

/// What a case needs besides its policy.
#[derive(Default)]
pub struct Setup {
    /// What the plain open.example.test answers; else 200 `open`.
    pub reply: Option<Reply>,
    /// Lines at the top level of the policy.
    pub top: String,
    /// Further providers.
    pub providers: String,
    /// Further lines of the provider `api`.
    pub api: String,
    /// Names that may be resolved.
    pub may_ask: Vec<&'static str>,
}

/// outgate, the origins around it, and the clients.
pub struct World {
    pub proxy: Proxy,
    /// open.example.test:80.
    pub open: Capture,
    /// open.example.test:443.
    pub open_tls: Capture,
    /// api.example.test:443: the credential belongs here.
    pub api: Capture,
    /// evil.example.test: where a policy lets it be reached at all, this is what is reached.
    pub evil: Capture,
    /// PEM of the origins' CA.
    pub origin_ca: String,
    /// The whole policy, for a reload.
    pub policy: String,
    alive: Capture,
    clients: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    may_ask: Vec<&'static str>,
}

impl World {
    pub async fn start(policy: Policy) -> Self {
        Self::with(policy, Setup::default()).await
    }

    /// open.example.test answers these bytes to every request.
    pub async fn answering(answer: &'static [u8]) -> Self {
        let reply: Reply = Arc::new(move |_| answer.to_vec());
        Self::with(Policy::Open, Setup { reply: Some(reply), ..Setup::default() }).await
    }

    pub async fn with(policy: Policy, setup: Setup) -> Self {
        let ca = TestCa::new();
        let tls =
            Some(ca.server(&["api.example.test", "open.example.test", "evil.example.test"], &["http/1.1"]));
        let open = match setup.reply {
            Some(reply) => Capture::start(None, reply).await,
            None => Capture::saying(None, "open").await,
        };
        let open_tls = Capture::saying(tls.clone(), "open-tls").await;
        let api = Capture::saying(tls, "api").await;
        let evil = Capture::saying(None, "evil").await;
        let alive = Capture::saying(None, "alive").await;
        let dir = Arc::new(TempDir::new().unwrap());
        std::fs::write(dir.path().join("origin.pem"), &ca.pem).unwrap();
        std::fs::write(dir.path().join("secret"), CANARY).unwrap();
        let origins = Origins {
            open: open.address,
            open_tls: open_tls.address,
            api: api.address,
            evil: evil.address,
            alive: alive.address,
        };
        let text = text(policy, &origins, &setup.top, &setup.api, &setup.providers);
        let proxy = Proxy::start_in(dir, &text).await;
        for name in ["open.example.test", "api.example.test", "evil.example.test"] {
            proxy.names.set(name, &["127.0.0.1"]);
        }
        Self {
            proxy,
            open,
            open_tls,
            api,
            evil,
            origin_ca: ca.pem,
            policy: text,
            alive,
            clients: Mutex::default(),
            may_ask: setup.may_ask,
        }
    }

    fn tap<S>(&self, stream: S) -> Tap<S> {
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        self.clients.lock().unwrap().push(seen.clone());
        Tap { stream, seen }
    }

    /// A new connection to the first listener.
    pub async fn client(&self) -> Raw<Tap> {
        self.client_of(self.proxy.address()).await
    }

    /// A new connection to any address.
    pub async fn client_of(&self, address: SocketAddr) -> Raw<Tap> {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Raw::over(self.tap(stream))
    }

    /// A new connection with the answer to these bytes.
    pub async fn sent(&self, bytes: impl AsRef<[u8]>) -> (Raw<Tap>, Got) {
        let mut client = self.client().await;
        client.send(bytes).await;
        let got = client.answer().await;
        (client, got)
    }

    /// CONNECT, answered 200.
    pub async fn tunnel(&self, target: &str) -> Tap {
        let mut client = self.client().await;
        client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).await;
        assert_eq!(client.head().await.status, 200, "CONNECT {target}");
        client.stream
    }

    /// CONNECT to port 443 and TLS inside, trusting outgate's CA; asks for `sni` where it differs from the host.
    pub async fn intercepted(&self, host: &str) -> Raw<Tap<TlsStream<Tap>>> {
        let stream = self.tunnel(&format!("{host}:443")).await;
        let stream = handshake(stream, host, &self.proxy.ca(), true).await.unwrap();
        Raw::over(self.tap(stream))
    }

    /// The invariants, after everything the case did: alive, exactly the expected records (status, and error code or flag), no
    /// piece of a secret where it does not belong, nothing smuggled, nobody else reached or resolved.
    pub async fn after(&self, expected: &[(u16, &str)]) {
        self.after_with(expected, &[]).await;
    }

    /// The same with further secrets.
    pub async fn after_with(&self, expected: &[(u16, &str)], secrets: &[&str]) {
        self.is_alive().await;
        self.nobody_else_was_reached();
        self.recorded(expected).await;
        self.nothing_leaked(secrets);
    }

    async fn is_alive(&self) {
        let mut client = self.client().await;
        client.send(get("http://alive.example.test/alive", "alive.example.test")).await;
        let got = timeout(Duration::from_secs(5), client.answer()).await.expect("alive and answering");
        assert_eq!((got.status, got.text().as_str()), (200, "alive"));
    }

    fn nobody_else_was_reached(&self) {
        assert!(self.evil.heard().is_empty(), "evil was reached: {:?}", self.evil.heard());
        for origin in [&self.open, &self.open_tls, &self.api, &self.alive] {
            for request in origin.requests() {
                assert!(!request.line().contains("smuggled"), "smuggled: {request:?}");
            }
        }
        let asked = self.proxy.names.questions();
        assert!(
            asked.iter().all(|name| self.may_ask.contains(&name.as_str())),
            "DNS was asked for {asked:?}"
        );
    }

    async fn recorded(&self, expected: &[(u16, &str)]) {
        let total = expected.len() + self.alive.requests().len();
        let records = self.proxy.records(total).await;
        let own: Vec<(u16, &str)> = records
            .iter()
            .filter(|record| record["server.address"] != "alive.example.test")
            .map(|record| (status_of(record), reason_of(record)))
            .collect();
        assert_eq!(own, expected, "{:#?}", records);
        assert_eq!(records.len(), total, "{records:#?}");
    }

    fn nothing_leaked(&self, secrets: &[&str]) {
        let log = self.proxy.log.text(&self.proxy.app.telemetry);
        let mut places = vec![("log", log.into_bytes()), ("metrics", self.proxy.metrics().into_bytes())];
        for (name, origin) in [("open", &self.open), ("open-tls", &self.open_tls), ("alive", &self.alive)] {
            places.extend(origin.heard().into_iter().map(|heard| (name, heard.bytes)));
        }
        places
            .extend(self.clients.lock().unwrap().iter().map(|seen| ("client", seen.lock().unwrap().clone())));
        let canary = CANARY.strip_prefix("sk_live_").unwrap();
        for secret in secrets.iter().copied().chain([canary]) {
            for (name, bytes) in &places {
                for piece in secret.as_bytes().windows(8) {
                    let piece_text = String::from_utf8_lossy(piece);
                    assert!(find(bytes, piece).is_none(), "a piece of a secret ({piece_text}) in {name}");
                }
            }
        }
    }
}

fn status_of(record: &Value) -> u16 {
    record["http.response.status_code"].as_u64().map_or(0, |status| u16::try_from(status).unwrap())
}

/// The error code where outgate answered, else the flag, else nothing.
fn reason_of(record: &Value) -> &str {
    record["error.type"].as_str().or(record["outgate.flag"].as_str()).unwrap_or("")
}

/// TLS over any stream.
pub async fn handshake<S>(stream: S, host: &str, pem: &str, sni: bool) -> std::io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut config = (*trusting(pem, &["http/1.1"])).clone();
    config.enable_sni = sni;
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
    timeout(Duration::from_secs(10), TlsConnector::from(Arc::new(config)).connect(name, stream))
        .await
        .unwrap()
}

/// A GET with this Host.
pub fn get(target: &str, host: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// Whether outgate closes the connection, at once and not by a timeout.
pub async fn closes<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    let mut rest = [0; 4096];
    timeout(CLOSES_WITHIN, async { while matches!(stream.read(&mut rest).await, Ok(read) if read > 0) {} })
        .await
        .is_ok()
}

/// Whether the connection goes on: another request on it is served.
pub async fn serves<S>(client: &mut Raw<S>, target: &str, host: &str) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    client.send(get(target, host)).await;
    client.answer_or_end().await.is_some_and(|got| got.status == 200)
}

/// The answer is what the key says. outgate's own answers bear `Proxy-Status`; those of the HTTP library have no body and
/// may lack it.
pub fn assert_answer(got: &Got, (status, error): (u16, &str), what: &str) {
    assert_eq!(got.status, status, "{what}: {got:?}");
    if status != 400 || !got.body.is_empty() || got.header("proxy-status").is_some() {
        assert_eq!(got.proxy_error(), Some(error), "{what}: {got:?}");
        assert!(
            got.header("outgate-request-id").is_some() && got.header("outgate-error").is_some(),
            "{what}"
        );
    }
}

/// h2.example.test, which speaks HTTP/2 only.
pub async fn towards_http2() -> (World, HttpOrigin) {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&["h2.example.test"], &["h2"]))).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &ca.pem).unwrap();
    let providers = format!(
        "  h2:
    hosts: [h2.example.test]
    upstream: {{ connect_to: \"{}\", tls: {{ ca: \"{}\" }} }}
",
        origin.address,
        file.path().display()
    );
    (World::with(Policy::Open, Setup { providers, ..Setup::default() }).await, origin)
}

struct Origins {
    open: SocketAddr,
    open_tls: SocketAddr,
    api: SocketAddr,
    evil: SocketAddr,
    alive: SocketAddr,
}

const METHODS: &str = "methods: [GET, HEAD, POST, OPTIONS]";

fn text(policy: Policy, origins: &Origins, top: &str, api_more: &str, more: &str) -> String {
    let Origins { open, open_tls, api, evil, alive } = origins;
    let routes = match policy {
        Policy::One => format!(
            "    routes:
      - match: {{ {METHODS}, path: / }}
      - match: {{ {METHODS}, path: /second }}
      - match: {{ {METHODS}, path: \"/v1/**\" }}
      - match: {{}}
        deny: not on the list
"
        ),
        Policy::Open | Policy::Inj => format!(
            "    routes:
      - match: {{ {METHODS} }}
      - match: {{}}
        deny: not on the list
"
        ),
        Policy::Wide | Policy::Deny1 => String::new(),
    };
    let tls_routes = if policy == Policy::Inj { routes.as_str() } else { "" };
    let intercept = if policy == Policy::Inj { "always" } else { "never" };
    let unmatched = if matches!(policy, Policy::Wide | Policy::Deny1) { "tunnel" } else { "deny" };
    let mut text = format!(
        "{top}unmatched: {unmatched}
providers:
  alive:
    hosts: [alive.example.test]
    upstream: {{ scheme: http, connect_to: \"{alive}\" }}
  open:
    hosts: [open.example.test]
    upstream: {{ scheme: http, connect_to: \"{open}\" }}
{routes}  open-tls:
    hosts: [\"open.example.test:443\"]
    intercept: {intercept}
    upstream: {{ connect_to: \"{open_tls}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}
{tls_routes}"
    );
    match policy {
        Policy::One | Policy::Open => {}
        Policy::Inj => text.push_str(&format!(
            "  api:
    hosts: [api.example.test]
    intercept: always
    upstream: {{ connect_to: \"{api}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}
    credential: {{ bearer: \"file:{{dir}}/secret\" }}
{api_more}    routes:
      - match: {{ methods: [GET, POST], path: \"/v1/**\" }}
      - match: {{}}
        deny: not on the list
"
        )),
        Policy::Wide | Policy::Deny1 => {
            let denied =
                if policy == Policy::Deny1 { "    routes: [{ match: {}, deny: evil }]\n" } else { "" };
            text.push_str(&format!(
                "  api:
    hosts: [api.example.test]
    upstream: {{ connect_to: \"{api}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}
  evil:
    hosts: [evil.example.test]
    upstream: {{ scheme: http, connect_to: \"{evil}\" }}
{denied}"
            ));
        }
    }
    text + more
}
