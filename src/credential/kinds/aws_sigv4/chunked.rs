//! `aws-chunked` bodies whose chunks are signed: while the body streams through, each signature is replaced by one of
//! outgate's keys. <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html>
//!
//! A chunk's signature stands before its data, so one chunk is held (its pieces, of which only small ones are copied), and no more. Sizes stay, and
//! signatures are all 64 characters long; so the body's length stays. What the client signed is not checked: its keys are
//! anybody's, and the provider checks what outgate signed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest;
use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::payload::Chunks;
use crate::message::body::{Body, BodyError};
use crate::secret::aws::sign::{ChunkKey, EMPTY_SHA256, hex, sha256_hex};

/// Bytes of a line: a chunk's head, a trailer.
const MAX_LINE: usize = 1024;
/// Bytes of all trailers together.
const MAX_TRAILERS: usize = 8 * 1024;
const SIGNATURE: &[u8] = b";chunk-signature=";
const SIGNATURE_LENGTH: usize = 64;
const TRAILER_SIGNATURE: &[u8] = b"x-amz-trailer-signature";

/// The body.
pub(super) struct Resigned {
    inner: Body,
    signer: Signer,
    /// Bytes still to be given out, where the length is known.
    left: Option<u64>,
}

impl Resigned {
    /// Signs the chunks of `inner`, the first behind `seed`, the signature of the head.
    pub(super) fn new(inner: Body, key: ChunkKey, seed: String, chunks: Chunks, max_chunk: u64) -> Self {
        let left = inner.exact_length();
        Self { inner, signer: Signer::new(key, seed, chunks, max_chunk), left }
    }
}

impl HttpBody for Resigned {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.signer.out.pop_front() {
                this.left = this.left.map(|left| left.saturating_sub(piece.len() as u64));
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && let Err(error) = this.signer.take(data)
                    {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if this.signer.is_complete() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(framing("it ends before its last chunk")))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.signer.out.is_empty() && self.signer.is_complete() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

fn framing(what: &'static str) -> BodyError {
    BodyError::DownstreamFraming(what)
}

/// Where in the body the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In the line before a chunk.
    Head,
    /// In its data, of which so much is to come.
    Data(u64),
    /// In the line end behind it.
    DataEnd,
    /// In the trailer section, or the line end that stands in its place.
    Trailer,
    /// Behind the end.
    End,
}

/// Pieces smaller than this are copied together: each would keep the whole buffer alive that it was read into.
const SMALL: usize = 4 * 1024;

/// The data of one chunk.
#[derive(Default)]
struct Held {
    pieces: Vec<Bytes>,
    /// Small pieces behind those.
    small: BytesMut,
}

impl Held {
    fn push(&mut self, piece: Bytes) {
        if piece.len() < SMALL {
            self.small.extend_from_slice(&piece);
            return;
        }
        self.flush();
        self.pieces.push(piece);
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(self.small.split().freeze());
        }
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.flush();
        std::mem::take(&mut self.pieces)
    }
}

/// Signs what it takes, and gives it out.
struct Signer {
    key: ChunkKey,
    /// The signature of the piece before.
    previous: String,
    chunks: Chunks,
    max_chunk: u64,
    at: At,
    line: Vec<u8>,
    /// The size of the present chunk as it was written.
    size: Vec<u8>,
    held: Held,
    hash: digest::Context,
    /// Name and value of each, as they are signed.
    trailers: Vec<(Vec<u8>, Vec<u8>)>,
    trailer_bytes: usize,
    trailer_signed: bool,
    out: VecDeque<Bytes>,
}

impl Signer {
    fn new(key: ChunkKey, seed: String, chunks: Chunks, max_chunk: u64) -> Self {
        Self {
            key,
            previous: seed,
            chunks,
            max_chunk,
            at: At::Head,
            line: Vec::new(),
            size: Vec::new(),
            held: Held::default(),
            hash: digest::Context::new(&digest::SHA256),
            trailers: Vec::new(),
            trailer_bytes: 0,
            trailer_signed: false,
            out: VecDeque::new(),
        }
    }

    /// Whether the body may end here. Some clients leave out the last line end behind a trailer section.
    fn is_complete(&self) -> bool {
        self.at == At::End || (self.at == At::Trailer && self.trailer_signed && self.line.is_empty())
    }

    fn take(&mut self, mut data: Bytes) -> Result<(), BodyError> {
        while data.has_remaining() {
            match self.at {
                At::Data(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
                    let piece = data.split_to(length);
                    self.hash.update(&piece);
                    self.held.push(piece);
                    self.at = At::Data(left - length as u64);
                    if left == length as u64 {
                        self.end_chunk();
                    }
                }
                At::End => return Err(framing("something stands behind its end")),
                At::Head | At::DataEnd | At::Trailer => self.take_line(&mut data)?,
            }
        }
        Ok(())
    }

    /// Takes up to a line end; does what the line says when it is whole.
    fn take_line(&mut self, data: &mut Bytes) -> Result<(), BodyError> {
        let end = data.iter().position(|byte| *byte == b'\n');
        let piece = data.split_to(end.map_or(data.len(), |at| at + 1));
        self.line.extend_from_slice(&piece);
        if self.line.len() > MAX_LINE {
            return Err(framing("a line of it is too long"));
        }
        if end.is_none() {
            return Ok(());
        }
        let line = std::mem::take(&mut self.line);
        let text = line.strip_suffix(b"\r\n").ok_or(framing("a line of it does not end with CR LF"))?;
        match self.at {
            At::Head => self.head(text),
            At::DataEnd if text.is_empty() => {
                self.out.push_back(Bytes::from_static(b"\r\n"));
                self.at = At::Head;
                Ok(())
            }
            At::DataEnd => Err(framing("a chunk is longer than its size")),
            _ => self.trailer(text),
        }
    }

    fn head(&mut self, text: &[u8]) -> Result<(), BodyError> {
        const HEAD: &str = "a chunk does not begin with `size;chunk-signature=` and 64 hexadecimal digits";
        let at = text.iter().position(|byte| *byte == b';').ok_or(framing(HEAD))?;
        let (size, rest) = text.split_at(at);
        let signature = rest.strip_prefix(SIGNATURE).ok_or(framing(HEAD))?;
        if !is_signature(signature)
            || !(1..=16).contains(&size.len())
            || !size.iter().all(u8::is_ascii_hexdigit)
        {
            return Err(framing(HEAD));
        }
        let length = std::str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
        let length = length.ok_or(framing(HEAD))?;
        if length > self.max_chunk {
            return Err(BodyError::TooLarge);
        }
        self.size = size.to_vec();
        self.at = At::Data(length);
        if length == 0 {
            self.previous = self.key.chunk(&self.previous, EMPTY_SHA256);
            self.give_head();
            self.at = At::Trailer;
        }
        Ok(())
    }

    fn end_chunk(&mut self) {
        let hash = std::mem::replace(&mut self.hash, digest::Context::new(&digest::SHA256)).finish();
        self.previous = self.key.chunk(&self.previous, &hex(hash.as_ref()));
        self.give_head();
        self.out.extend(self.held.take());
        self.at = At::DataEnd;
    }

    fn give_head(&mut self) {
        let head = [&self.size[..], SIGNATURE, self.previous.as_bytes(), b"\r\n"].concat();
        self.out.push_back(head.into());
    }

    fn trailer(&mut self, text: &[u8]) -> Result<(), BodyError> {
        if text.is_empty() {
            if self.chunks == Chunks::Trailer && !self.trailer_signed {
                return Err(framing("its trailers have no signature"));
            }
            self.at = At::End;
            self.out.push_back(Bytes::from_static(b"\r\n"));
            return Ok(());
        }
        self.trailer_bytes += text.len();
        let colon = text.iter().position(|byte| *byte == b':').filter(|_| self.chunks == Chunks::Trailer);
        let (Some(colon), true, false) = (colon, self.trailer_bytes <= MAX_TRAILERS, self.trailer_signed)
        else {
            return Err(framing("its end is not that of its kind"));
        };
        let (name, value) = (&text[..colon], text[colon + 1..].trim_ascii());
        if !name.eq_ignore_ascii_case(TRAILER_SIGNATURE) {
            self.trailers.push((name.to_ascii_lowercase(), value.to_vec()));
            self.out.push_back([text, b"\r\n"].concat().into());
            return Ok(());
        }
        if !is_signature(value) {
            return Err(framing("its trailers' signature has not 64 hexadecimal digits"));
        }
        // They are signed in the order of their names, whatever their order in the body is.
        self.trailers.sort();
        let line = |(name, value): &(Vec<u8>, Vec<u8>)| [&name[..], b":", value, b"\n"].concat();
        let canonical: Vec<u8> = self.trailers.iter().flat_map(line).collect();
        let signature = self.key.trailer(&self.previous, &sha256_hex(&canonical));
        // The same length: what stood between colon and signature stays.
        let before = &text[..text.len() - text[colon + 1..].trim_ascii_start().len()];
        let after = &text[text.trim_ascii_end().len()..];
        self.out.push_back([before, signature.as_bytes(), after, b"\r\n"].concat().into());
        self.trailer_signed = true;
        Ok(())
    }
}

fn is_signature(text: &[u8]) -> bool {
    text.len() == SIGNATURE_LENGTH && text.iter().all(u8::is_ascii_hexdigit)
}
