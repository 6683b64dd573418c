//! `outgate probe`: asks a running outgate whether it is healthy, over plain HTTP/1.1, for images without a shell or curl.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::fail;

/// Arguments of `probe`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Admin or health address.
    #[arg(long, default_value = "127.0.0.1:9901", value_name = "ADDRESS|unix:PATH")]
    address: String,
    /// What is asked: `/healthz` (the process lives) or `/readyz` (it serves).
    #[arg(long, default_value = "/healthz")]
    path: String,
    /// How long an answer may take, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
    /// Ask again, ten times a second, until the answer is good, for so many seconds at most.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    wait: u64,
}

const AGAIN: Duration = Duration::from_millis(100);

/// 0 where the answer is 200.
pub fn run(arguments: &Arguments) -> ExitCode {
    let begun = Instant::now();
    loop {
        let message = match ask(arguments) {
            Ok(200) => return ExitCode::SUCCESS,
            Ok(status) => format!("{} answered {status}", arguments.path),
            Err(error) => format!("{}: {error}", arguments.address),
        };
        if begun.elapsed() >= Duration::from_secs(arguments.wait) {
            return fail(message);
        }
        // Nothing else runs in this process.
        std::thread::sleep(AGAIN);
    }
}

fn ask(arguments: &Arguments) -> std::io::Result<u16> {
    let timeout = Duration::from_millis(arguments.timeout.max(1));
    if let Some(path) = arguments.address.strip_prefix("unix:") {
        let stream = UnixStream::connect(PathBuf::from(path))?;
        stream.set_read_timeout(Some(timeout))?;
        return exchange(stream, &arguments.path);
    }
    let address: SocketAddr = arguments.address.parse().map_err(std::io::Error::other)?;
    let stream = connect(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    exchange(stream, &arguments.path)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a probe dials outgate itself; no provider is reached this way"
)]
fn connect(address: &SocketAddr, timeout: Duration) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(address, timeout)
}

fn exchange(mut stream: impl Read + Write, path: &str) -> std::io::Result<u16> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut head = [0_u8; 12];
    stream.read_exact(&mut head)?;
    let status =
        head.strip_prefix(b"HTTP/1.1 ").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    status.ok_or_else(|| std::io::Error::other("the answer is not HTTP/1.1"))
}
