//! The origin: performs an effect for each request, and breaks as the dice say.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::goaway;
use crate::support::ca::TestCa;
use crate::support::origin::read_request;

/// Where an exchange breaks, or how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Answered,
    /// HTTP/1.1: the connection is closed. HTTP/2: RST_STREAM with REFUSED_STREAM.
    CutBeforeReading,
    /// HTTP/2: RST_STREAM with INTERNAL_ERROR.
    CutAfterHead,
    CutAfterEffect,
    CutInTheAnswersHead,
    CutInTheAnswersBody,
    ResetAfterEffect,
    Silent,
    Refused(u16),
    FailedAfterEffect(u16),
    /// The effect follows from the request's head, and so does the answer; then the exchange is cut.
    EarlyCut(u16),
    /// The same, and the answer is whole; the body is never read.
    EarlyAnswer(u16),
    /// Refused for what stands in the head, without an effect; the body is never read.
    EarlyRefusal,
    /// HTTP/2 alone, after the effect and before its answer: GOAWAY with ENHANCE_YOUR_CALM, and the connection ends.
    Calm,
    /// HTTP/2 alone, after the effect: GOAWAY with NO_ERROR, and what was begun is answered.
    LastCall,
    /// HTTP/2 alone, without an effect: GOAWAY for a last stream before this one; those before go on.
    Below,
    /// The same, with ENHANCE_YOUR_CALM.
    BelowAndCalm,
}

/// Of each kind how often, in thousandths; the rest is answered.
const FATES: [(Fate, u32); 17] = [
    (Fate::CutBeforeReading, 80),
    (Fate::CutAfterHead, 70),
    (Fate::CutAfterEffect, 80),
    (Fate::CutInTheAnswersHead, 40),
    (Fate::CutInTheAnswersBody, 50),
    (Fate::ResetAfterEffect, 50),
    (Fate::Silent, 10),
    (Fate::Refused(429), 80),
    (Fate::FailedAfterEffect(503), 40),
    (Fate::FailedAfterEffect(500), 35),
    (Fate::FailedAfterEffect(502), 35),
    (Fate::EarlyCut(200), 15),
    (Fate::EarlyCut(503), 15),
    (Fate::EarlyAnswer(503), 15),
    (Fate::EarlyRefusal, 15),
    (Fate::Calm, 15),
    (Fate::LastCall, 15),
];
/// Of the streams that a connection begins, in thousandths: GOAWAY for one before it.
const BELOW: u32 = 30;

/// Each of them has to be met.
pub fn every_fate() -> impl Iterator<Item = Fate> {
    [Fate::Answered, Fate::Below, Fate::BelowAndCalm].into_iter().chain(FATES.map(|(fate, _)| fate))
}

/// What the origin did.
pub struct World {
    /// For each logical POST the keys that came with each of its effects.
    effects: Mutex<HashMap<String, Vec<Option<String>>>>,
    dice: Mutex<fastrand::Rng>,
    met: Mutex<BTreeMap<Fate, usize>>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let dice = Mutex::new(fastrand::Rng::with_seed(seed));
        Self { effects: Mutex::default(), dice, met: Mutex::default() }
    }

    pub fn effects(&self) -> HashMap<String, Vec<Option<String>>> {
        self.effects.lock().unwrap().clone()
    }

    pub fn met(&self) -> BTreeMap<Fate, usize> {
        self.met.lock().unwrap().clone()
    }

    /// What the next exchange comes to.
    fn fate(&self) -> Fate {
        let mut left = self.dice.lock().unwrap().u32(..1_000);
        for (fate, share) in FATES {
            match left.checked_sub(share) {
                None => return fate,
                Some(rest) => left = rest,
            }
        }
        Fate::Answered
    }

    /// Whether a stream is refused by a GOAWAY, and by which.
    pub fn below(&self) -> Option<Fate> {
        let mut dice = self.dice.lock().unwrap();
        let calm = dice.bool();
        (dice.u32(..1_000) < BELOW).then_some(if calm { Fate::BelowAndCalm } else { Fate::Below })
    }

    /// A request came to this.
    pub fn meet(&self, fate: Fate) {
        *self.met.lock().unwrap().entry(fate).or_default() += 1;
    }

    fn perform(&self, order: &str, key: Option<String>) {
        self.effects.lock().unwrap().entry(order.to_owned()).or_default().push(key);
    }
}

fn field(request: &str, name: &str) -> Option<String> {
    request.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// The order of `/pay/ORDER`.
fn order_in(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// The head of a request alone, byte by byte, so that nothing of the body is read.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Answers for the head alone, and is gone.
async fn early(world: &World, stream: &mut TcpStream, fate: Fate, status: u16) {
    let Some(head) = read_head(stream).await else { return };
    world.meet(fate);
    if fate != Fate::EarlyRefusal {
        let path = head.split(' ').nth(1).unwrap_or_default();
        world.perform(order_in(path), field(&head, "idempotency-key"));
    }
    let body = if matches!(fate, Fate::EarlyCut(_)) { "" } else { "done" };
    let answer = format!("HTTP/1.1 {status} Early\r\nContent-Length: 4\r\nRetry-After: 0\r\n\r\n{body}");
    let _ = stream.write_all(answer.as_bytes()).await;
}

async fn http1(world: Arc<World>, mut stream: TcpStream) {
    loop {
        let fate = world.fate();
        match fate {
            Fate::CutBeforeReading => {
                // A request may be on its way already, or may come to a connection that is closed.
                let _ = stream.readable().await;
                return world.meet(fate);
            }
            Fate::CutAfterHead => {
                let mut some = [0_u8; 20];
                let _ = stream.read(&mut some).await;
                return world.meet(fate);
            }
            Fate::EarlyCut(status) | Fate::EarlyAnswer(status) => {
                return early(&world, &mut stream, fate, status).await;
            }
            Fate::EarlyRefusal => return early(&world, &mut stream, fate, 429).await,
            _ => {}
        }
        let Some(request) = read_request(&mut stream).await else { return };
        world.meet(fate);
        let order = request.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned();
        if let Fate::Refused(status) = fate {
            let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\nRetry-After: 0\r\n\r\nno");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        world.perform(&order, field(&request, "idempotency-key"));
        let status = match fate {
            Fate::FailedAfterEffect(status) => status,
            _ => 200,
        };
        let answer = format!("HTTP/1.1 {status} Done\r\nContent-Length: 4\r\n\r\ndone");
        let cut = match fate {
            Fate::CutAfterEffect => Some(0),
            Fate::CutInTheAnswersHead => Some(12),
            Fate::CutInTheAnswersBody => Some(answer.len() - 2),
            _ => None,
        };
        match (fate, cut) {
            (Fate::Silent, _) => {
                // Until the proxy gives up.
                let _ = stream.read(&mut [0_u8; 1]).await;
                return;
            }
            (Fate::ResetAfterEffect, _) => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
            (_, Some(cut)) => {
                let _ = stream.write_all(&answer.as_bytes()[..cut]).await;
                return;
            }
            (_, None) => {
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// How a connection ends for all of its streams.
enum End {
    Cut,
    Calm,
    LastCall,
}

async fn http2<S>(world: Arc<World>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let (end, mut ends) = tokio::sync::mpsc::channel(1);
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            Some(end) = ends.recv() => match end {
                // Dropping the connection breaks every stream on it.
                End::Cut => return,
                End::Calm => {
                    connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                    continue;
                }
                End::LastCall => {
                    connection.graceful_shutdown();
                    continue;
                }
            },
        };
        let Some(Ok((request, respond))) = accepted else { return };
        tokio::spawn(stream_of(world.clone(), request, respond, end.clone()));
    }
}

async fn stream_of(
    world: Arc<World>,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    end: tokio::sync::mpsc::Sender<End>,
) {
    let fate = world.fate();
    let (head, mut body) = request.into_parts();
    let key = head.headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
    let answer =
        |status: u16| http::Response::builder().status(status).header("retry-after", "0").body(()).unwrap();
    match fate {
        // RFC 9113 section 8.7: not processed at all.
        Fate::CutBeforeReading => {
            world.meet(fate);
            return respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
        Fate::CutAfterHead => {
            world.meet(fate);
            return respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
        Fate::EarlyCut(status) | Fate::EarlyAnswer(status) => {
            world.meet(fate);
            world.perform(order_in(head.uri.path()), key);
            let Ok(mut stream) = respond.send_response(answer(status), false) else { return };
            let reason = if let Fate::EarlyCut(_) = fate {
                h2::Reason::INTERNAL_ERROR
            } else {
                let _ = stream.send_data(Bytes::from_static(b"done"), true);
                // RFC 9113 section 8.1: the rest of the body is not wanted.
                h2::Reason::NO_ERROR
            };
            return stream.send_reset(reason);
        }
        Fate::EarlyRefusal => {
            world.meet(fate);
            let _ = respond.send_response(answer(429), true);
            return respond.send_reset(h2::Reason::NO_ERROR);
        }
        _ => {}
    }
    let mut order = Vec::new();
    while let Some(data) = body.data().await {
        // A request that was cut is none: nothing is done for it.
        let Ok(data) = data else { return };
        let _ = body.flow_control().release_capacity(data.len());
        order.extend_from_slice(&data);
    }
    assert_eq!(std::str::from_utf8(&order), Ok(order_in(head.uri.path())), "a whole request has its body");
    world.meet(fate);
    if let Fate::Refused(status) = fate {
        let _ = respond.send_response(answer(status), true);
        return;
    }
    world.perform(order_in(head.uri.path()), key);
    match fate {
        Fate::CutAfterEffect => {
            let _ = end.send(End::Cut).await;
        }
        Fate::Calm => {
            let _ = end.send(End::Calm).await;
        }
        Fate::ResetAfterEffect => respond.send_reset(h2::Reason::INTERNAL_ERROR),
        Fate::CutInTheAnswersHead => respond.send_reset(h2::Reason::CANCEL),
        Fate::CutInTheAnswersBody => {
            if let Ok(mut stream) = respond.send_response(answer(200), false) {
                let _ = stream.send_data(Bytes::from_static(b"do"), false);
                stream.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
        Fate::Silent => {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
        Fate::FailedAfterEffect(status) => {
            let _ = respond.send_response(answer(status), true);
        }
        _ => {
            if let Fate::LastCall = fate {
                let _ = end.send(End::LastCall).await;
            }
            if let Ok(mut stream) = respond.send_response(answer(200), false) {
                let _ = stream.send_data(Bytes::from_static(b"done"), true);
            }
        }
    }
}

/// Starts both origins: HTTP/1.1 in the clear, and HTTP/2 over TLS.
pub async fn origins(world: &Arc<World>, ca: &TestCa) -> (SocketAddr, SocketAddr) {
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secure = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = (plain.local_addr().unwrap(), secure.local_addr().unwrap());
    let one = world.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = plain.accept().await {
            tokio::spawn(http1(one.clone(), stream));
        }
    });
    let (two, tls) = (world.clone(), TlsAcceptor::from(ca.server(&["two.example.test"], &["h2"])));
    tokio::spawn(async move {
        while let Ok((stream, _)) = secure.accept().await {
            let (world, tls) = (two.clone(), tls.clone());
            tokio::spawn(async move {
                if let Ok(stream) = tls.accept(stream).await {
                    let refusing = world.clone();
                    http2(world, goaway::between(stream, refusing)).await;
                }
            });
        }
    });
    addresses
}
