//! HTTP/2 by hand: frames and header blocks that no library would write, and what comes back.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::support::client::PATIENCE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const ALTSVC: u8 = 10;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PROTOCOL_ERROR: u32 = 1;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame (RFC 9113 section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals that are never indexed and never Huffman-coded (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        string(name, &mut bytes);
        string(value, &mut bytes);
    }
    bytes
}

fn string(text: &[u8], bytes: &mut Vec<u8>) {
    let mut length = text.len();
    if length < 127 {
        bytes.push(u8::try_from(length).unwrap());
    } else {
        bytes.push(127);
        length -= 127;
        while length >= 128 {
            bytes.push(u8::try_from(length % 128).unwrap() | 128);
            length /= 128;
        }
        bytes.push(u8::try_from(length).unwrap());
    }
    bytes.extend(text);
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A head came with this status.
    Status(u16),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code.
    GoAway(u32),
    /// The connection ended.
    Ended,
}

/// Any byte stream.
pub trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Bytes for S {}

/// A connection that speaks frames.
pub struct H2 {
    pub stream: Box<dyn Bytes>,
    buffer: Vec<u8>,
}

impl H2 {
    pub fn over(stream: impl Bytes + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new() }
    }

    /// Sends the preface and settings, and takes the peer's.
    pub async fn begin(stream: impl Bytes + 'static, settings: &[u8]) -> Self {
        let mut this = Self::over(stream);
        this.send(&[PREFACE, &frame(SETTINGS, 0, 0, settings), &frame(SETTINGS, ACK, 0, &[])].concat()).await;
        let first = this.next().await.expect("settings");
        assert_eq!((first.kind, first.flags), (SETTINGS, 0));
        this
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        assert!(self.try_send(bytes).await, "the connection ended");
    }

    /// Sends, or says that the connection has ended.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout(PATIENCE, sent).await.expect("sending ends").is_ok()
    }

    /// The next frame, or nothing at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        timeout(PATIENCE, self.read()).await.expect("a frame, or the end, in time")
    }

    /// The next frame if one comes soon; `Some(None)` is the end.
    pub async fn soon(&mut self, wait: Duration) -> Option<Option<Frame>> {
        timeout(wait, self.read()).await.ok()
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            if self.buffer.len() >= 9 {
                let length = u32::from_be_bytes([0, self.buffer[0], self.buffer[1], self.buffer[2]]) as usize;
                if self.buffer.len() >= 9 + length {
                    let bytes: Vec<u8> = self.buffer.drain(..9 + length).collect();
                    let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]) & 0x7fff_ffff;
                    let (kind, flags) = (bytes[3], bytes[4]);
                    return Some(Frame { kind, flags, stream, payload: bytes[9..].to_vec() });
                }
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(read) if read > 0 => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }

    /// What becomes of a stream; the connection's own end counts for every stream.
    pub async fn fate(&mut self, stream: u32) -> Fate {
        loop {
            let Some(frame) = self.next().await else { return Fate::Ended };
            match frame.kind {
                GOAWAY => return Fate::GoAway(code(&frame.payload[4..])),
                RST_STREAM if frame.stream == stream => return Fate::Reset(code(&frame.payload)),
                HEADERS if frame.stream == stream => return Fate::Status(status(&frame.payload)),
                _ => {}
            }
        }
    }

    /// The code of the GOAWAY before the end of the connection, if there was one.
    pub async fn last_word(&mut self) -> Option<u32> {
        let mut word = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                word = Some(code(&frame.payload[4..]));
            }
        }
        word
    }
}

/// What a flood came to.
#[derive(Debug)]
pub struct Flooded {
    /// Bytes that the connection took.
    pub written: usize,
    /// The code of its GOAWAY.
    pub goaway: Option<u32>,
}

impl H2 {
    /// Writes `piece(0)`, `piece(1)` ... until the connection ends, reading beside it. Fails if it does not end.
    pub async fn flood(self, pieces: usize, piece: impl Fn(usize) -> Vec<u8> + Send + 'static) -> Flooded {
        let (reader, mut writer) = tokio::io::split(self.stream);
        let written = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
        let count = written.clone();
        let writing = tokio::spawn(async move {
            for number in 0..pieces {
                let bytes = piece(number);
                if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                    break;
                }
                count.fetch_add(bytes.len(), std::sync::atomic::Ordering::SeqCst);
            }
            // Kept open: it is the other side that has to end it.
            std::future::pending::<()>().await;
        });
        let mut reading = Self::over(tokio::io::join(reader, tokio::io::sink()));
        reading.buffer = self.buffer;
        let goaway = reading.last_word().await;
        writing.abort();
        Flooded { written: written.load(std::sync::atomic::Ordering::SeqCst), goaway }
    }
}

fn code(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The status of the first head of a connection: the first field of its block (RFC 7541 appendix A, and appendix B for
/// the codes of digits).
fn status(block: &[u8]) -> u16 {
    let skipped = block.iter().take_while(|byte| **byte & 0xe0 == 0x20).count();
    match block[skipped..] {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8a, ..] => 206,
        [0x8b, ..] => 304,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x48 | 0x08 | 0x18, length, ref text @ ..] if length & 0x80 != 0 => {
            huffman_digits(&text[..usize::from(length & 0x7f)])
        }
        [0x48 | 0x08 | 0x18, length, ref text @ ..] => {
            std::str::from_utf8(&text[..usize::from(length)]).unwrap().parse().unwrap()
        }
        ref other => panic!("no status in {other:02x?}"),
    }
}

fn huffman_digits(bytes: &[u8]) -> u16 {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let (mut at, mut number) = (0, 0);
    let value = |bits: &[u8]| bits.iter().fold(0_u16, |sum, bit| sum * 2 + u16::from(*bit));
    for _ in 0..3 {
        let short = value(&bits[at..at + 5]);
        let digit = if short <= 2 {
            at += 5;
            short
        } else {
            let long = value(&bits[at..at + 6]);
            at += 6;
            long - 0b01_1001 + 3
        };
        number = number * 10 + digit;
    }
    number
}

/// The frames of a request without body.
pub fn get(stream: u32, door: &Way, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&door.fields("GET", path, &[])))
}

/// How a connection reaches the provider.
#[derive(Clone)]
pub struct Way {
    pub authority: String,
    pub scheme: &'static str,
    pub prefix: &'static str,
    paths: std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>,
}

impl Way {
    pub fn new(authority: String, scheme: &'static str, prefix: &'static str) -> Self {
        Self { authority, scheme, prefix, paths: std::sync::Arc::default() }
    }

    /// Pseudo-header fields and then `more`. The path lives as long as the test.
    pub fn fields<'a>(
        &'a self,
        method: &'a str,
        path: &str,
        more: &[(&'a [u8], &'a [u8])],
    ) -> Vec<(&'a [u8], &'a [u8])> {
        let path = self.path(path);
        let mut fields: Vec<(&[u8], &[u8])> = vec![
            (b":method", method.as_bytes()),
            (b":scheme", self.scheme.as_bytes()),
            (b":authority", self.authority.as_bytes()),
            (b":path", path.as_bytes()),
        ];
        fields.extend(more);
        fields
    }

    fn path(&self, path: &str) -> &'static str {
        let whole = format!("{}{path}", self.prefix);
        let mut known = self.paths.lock().unwrap();
        if let Some(found) = known.iter().find(|known| **known == whole) {
            return found;
        }
        let leaked: &'static str = whole.leak();
        known.push(leaked);
        leaked
    }
}
