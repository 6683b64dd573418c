//! CONNECT through a corporate proxy.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// Longest head of the proxy's answer.
const MAX_HEAD: usize = 16 * 1024;
/// Interim answers before the final one.
const MAX_INTERIM: usize = 8;

/// Why the proxy did not open a tunnel. Holds nothing that the proxy said apart from its status.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The connection broke.
    #[error("the connection to the corporate proxy broke")]
    Io(#[from] std::io::Error),
    /// The answer is not HTTP.
    #[error("the corporate proxy's answer is not HTTP")]
    Malformed,
    /// The head of the answer is longer than 16 KiB.
    #[error("the head of the corporate proxy's answer is too large")]
    TooLarge,
    /// The proxy said no.
    #[error("the corporate proxy answered {0}")]
    Refused(u16),
}

/// Asks for a tunnel to `authority` and reads the proxy's answer, and not one byte more: what follows belongs to the
/// tunnel.
pub async fn open(
    stream: &mut TcpStream,
    authority: &str,
    user_password: Option<&str>,
) -> Result<(), TunnelError> {
    let mut ask = Zeroizing::new(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"));
    if let Some(user_password) = user_password {
        ask.push_str("Proxy-Authorization: Basic ");
        ask.push_str(&Zeroizing::new(STANDARD.encode(user_password)));
        ask.push_str("\r\n");
    }
    ask.push_str("\r\n");
    stream.write_all(ask.as_bytes()).await?;
    for _ in 0..MAX_INTERIM {
        let head = read_head(stream).await?;
        match status(&head)? {
            101 => return Err(TunnelError::Malformed),
            100..200 => {}
            200..300 => return Ok(()),
            other => return Err(TunnelError::Refused(other)),
        }
    }
    Err(TunnelError::Malformed)
}

/// Peeks, and takes only what belongs to the head.
async fn read_head(stream: &mut TcpStream) -> Result<Vec<u8>, TunnelError> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while head.len() < MAX_HEAD {
        let seen = stream.peek(&mut buffer).await?;
        if seen == 0 {
            return Err(TunnelError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let before = head.len();
        head.extend_from_slice(&buffer[..seen]);
        let end = end_of_head(&head, before);
        let take = end.unwrap_or(head.len()) - before;
        stream.read_exact(&mut buffer[..take]).await?;
        if let Some(end) = end {
            head.truncate(end);
            return Ok(head);
        }
    }
    Err(TunnelError::TooLarge)
}

/// Where the head ends, where it does; `from` = how much was searched before.
fn end_of_head(head: &[u8], from: usize) -> Option<usize> {
    let start = from.saturating_sub(3);
    head[start..].windows(4).position(|window| window == b"\r\n\r\n").map(|at| start + at + 4)
}

fn status(head: &[u8]) -> Result<u16, TunnelError> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| TunnelError::Malformed)?;
    let rest = line.strip_prefix("HTTP/1.").ok_or(TunnelError::Malformed)?;
    match rest.as_bytes() {
        [b'0' | b'1', b' ', code @ ..] if code.len() >= 3 && code[..3].iter().all(u8::is_ascii_digit) => {
            rest[2..5].parse().map_err(|_| TunnelError::Malformed)
        }
        _ => Err(TunnelError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one CONNECT with `answer`; returns what was asked, and what the client read after the answer.
    async fn exchange(answer: &'static [u8], auth: Option<&str>) -> (String, Result<Vec<u8>, TunnelError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let asked = read_head(&mut stream).await.unwrap();
            stream.write_all(answer).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let opened = open(&mut stream, "192.0.2.1:443", auth).await;
        let asked = proxy.await.unwrap();
        let mut rest = Vec::new();
        let result = match opened {
            Ok(()) => {
                stream.read_to_end(&mut rest).await.unwrap();
                Ok(rest)
            }
            Err(error) => Err(error),
        };
        (asked, result)
    }

    #[tokio::test]
    async fn the_tunnel_begins_right_after_the_head() {
        let (asked, rest) =
            exchange(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nfirst", Some("user:pass")).await;
        assert_eq!(rest.unwrap(), b"first");
        assert_eq!(
            asked,
            "CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1:443\r\nProxy-Authorization: Basic dXNlcjpwYXNz\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_told_apart() {
        let (asked, refused) = exchange(b"HTTP/1.1 407 Auth\r\n\r\n", None).await;
        assert!(matches!(refused, Err(TunnelError::Refused(407))));
        assert!(!asked.contains("Authorization"));
        for nonsense in [&b"SSH-2.0\r\n\r\n"[..], b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 20\r\n\r\n"] {
            assert!(matches!(exchange(nonsense, None).await.1, Err(TunnelError::Malformed)));
        }
        assert!(matches!(exchange(b"HTTP/1.1 200", None).await.1, Err(TunnelError::Io(_))));
        static LARGE: [u8; 20_000] = [b'x'; 20_000];
        assert!(matches!(exchange(&LARGE, None).await.1, Err(TunnelError::TooLarge)));
    }
}
