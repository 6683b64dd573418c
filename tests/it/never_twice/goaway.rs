//! Between the wire and the HTTP/2 origin: refuses a stream by a GOAWAY whose last stream lies before it (RFC 9113 section
//! 6.8), while those before go on. The origin never hears of what was refused, so it has no effect.

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::origin::{Fate, World};

const PREFACE: usize = 24;
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;

/// What the origin reads and writes instead of `wire`.
pub fn between<S>(wire: S, world: Arc<World>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (wire_read, wire_write) = tokio::io::split(wire);
    let (far_read, far_write) = tokio::io::split(far);
    let (refusals, refused) = mpsc::unbounded_channel();
    tokio::spawn(inbound(wire_read, far_write, world, refusals));
    tokio::spawn(outbound(far_read, wire_write, refused));
    near
}

/// Frames from the client, but for those of refused streams. The tables of HPACK are out of step after the first that is
/// left out, but then all later ones are.
async fn inbound(
    mut wire: impl AsyncRead + Unpin,
    mut origin: impl AsyncWrite + Unpin,
    world: Arc<World>,
    refusals: mpsc::UnboundedSender<Vec<u8>>,
) {
    let mut preface = [0; PREFACE];
    if wire.read_exact(&mut preface).await.is_err() || origin.write_all(&preface).await.is_err() {
        return;
    }
    let (mut bytes, mut seen, mut refusal) = (BytesMut::new(), 0, None);
    while let Some(frame) = next_frame(&mut wire, &mut bytes).await {
        let stream = number(&frame[5..]);
        if frame[3] == HEADERS && stream > seen {
            seen = stream;
            if refusal.is_none()
                && let Some(fate) = world.below()
            {
                refusal = Some((stream, fate));
                let _ = refusals.send(goaway(stream.saturating_sub(2), fate));
            }
            if let Some((_, fate)) = refusal {
                world.meet(fate);
            }
        }
        if refusal.is_some_and(|(first, _)| stream >= first) {
            continue;
        }
        if origin.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Frames to the client, and the GOAWAY between two of them.
async fn outbound(
    mut origin: impl AsyncRead + Unpin,
    mut wire: impl AsyncWrite + Unpin,
    mut refused: mpsc::UnboundedReceiver<Vec<u8>>,
) {
    let mut bytes = BytesMut::new();
    loop {
        let frame = tokio::select! {
            frame = next_frame(&mut origin, &mut bytes) => frame,
            Some(goaway) = refused.recv() => Some(goaway),
        };
        let Some(frame) = frame else {
            let _ = wire.shutdown().await;
            return;
        };
        if wire.write_all(&frame).await.is_err() || wire.flush().await.is_err() {
            return;
        }
    }
}

/// One frame; cancelling it loses nothing, what was read stays in `bytes`.
async fn next_frame(stream: &mut (impl AsyncRead + Unpin), bytes: &mut BytesMut) -> Option<Vec<u8>> {
    loop {
        if bytes.len() >= HEAD {
            let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
            if bytes.len() >= HEAD + length {
                return Some(bytes.split_to(HEAD + length).to_vec());
            }
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn number(mut bytes: &[u8]) -> u32 {
    bytes.get_u32() & 0x7fff_ffff
}

fn goaway(last: u32, fate: Fate) -> Vec<u8> {
    let reason =
        if fate == Fate::BelowAndCalm { h2::Reason::ENHANCE_YOUR_CALM } else { h2::Reason::NO_ERROR };
    let mut frame = vec![0, 0, 8, GOAWAY, 0, 0, 0, 0, 0];
    frame.extend(last.to_be_bytes());
    frame.extend(u32::from(reason).to_be_bytes());
    frame
}
