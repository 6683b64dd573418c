//! The measured program: its policy, its start, its ports.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::Process;
use crate::{Bench, Outcome, certificates};

/// A first answer that takes longer than this is an error, not a figure.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often the listener is tried: fine enough for a figure of some milliseconds.
const POLL: Duration = Duration::from_micros(200);

/// A running outgate with one worker.
pub struct Outgate {
    /// Its process, for CPU and memory.
    pub process: Process,
    /// Its listener.
    pub address: SocketAddr,
    /// From just before exec to the first answered request.
    pub first_answer: Duration,
    access_log: PathBuf,
}

impl Outgate {
    /// Starts it, and waits until it has answered one request with the credential injected.
    pub fn start(bench: &Bench) -> Outcome<Self> {
        let directory = bench.directory.path();
        let ports = [free_address()?, free_address()?];
        std::fs::write(directory.join("proxy.yaml"), policy(directory, ports, bench.origin))?;

        let mut command = Command::new(&bench.program);
        command.args(["run", "--config"]).arg(directory.join("proxy.yaml"));
        // A clean environment: variables of this shell (SSL_CERT_FILE, OUTGATE_LOG) would change what is measured.
        command.env_clear().env("BENCH_TOKEN", crate::origin::TOKEN);
        let log = std::fs::File::create(directory.join("outgate.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut process = Process::start(command, bench.cores.proxy)?;
        match first_answer(&mut process, ports[0]) {
            Ok(answered) => Ok(Self {
                first_answer: answered - process.started,
                process,
                address: ports[0],
                access_log: directory.join("access.log"),
            }),
            Err(error) => Err(format!("{error}; it said:\n{}", tail(&directory.join("outgate.log"))).into()),
        }
    }

    /// Empties the access log, so that a round does not pay for writing back what the rounds before it wrote.
    pub fn forget_log(&self) -> Outcome<()> {
        Ok(std::fs::OpenOptions::new().write(true).open(&self.access_log)?.set_len(0)?)
    }
}

/// Where the CA of interception lies, once outgate has run.
pub fn ca(directory: &Path) -> PathBuf {
    directory.join("ca/ca.pem")
}

/// One listener; a provider with a credential over each HTTP version, and one that is tunnelled.
fn policy(directory: &Path, [listener, admin]: [SocketAddr; 2], origin: SocketAddr) -> String {
    let directory = directory.display();
    let (bench, blind, ca) = (certificates::BENCH_HOST, certificates::BLIND_HOST, certificates::ORIGIN_CA);
    let mut text = format!(
        r#"version: 1
listeners: [{{ address: "{listener}" }}]
admin: {{ address: "{admin}" }}
interception: {{ ca: {{ directory: "{directory}/ca" }}, bundle: "{directory}/bundle.pem" }}
runtime: {{ workers: 1, max_connections: 10000 }}
telemetry: {{ access_log: {{ format: json, output: {{ file: "{directory}/access.log" }} }} }}
providers:
  blind:
    hosts: [{blind}]
    intercept: never
    upstream: {{ connect_to: "{origin}" }}
"#
    );
    let four_off = "limits: off\n    retry: off\n    breaker: off\n    concurrency: off";
    let off = format!("quota: off\n    {four_off}");
    let on = "limits: [{ name: a, rate: 1000000/s, burst: 100000 }]\n    quota: {}\n    retry: {}\n    breaker: {}\n    concurrency: { max: 1000 }";
    let bearer = "bearer: \"env:BENCH_TOKEN\"".to_owned();
    let token = format!(
        "oauth2_client_credentials: {{ token_url: \"https://{origin}/oauth/token\", ca: \"{directory}/{ca}\", client_id: \"plain:bench\", client_secret: \"env:BENCH_TOKEN\" }}"
    );
    let signed = "aws_sigv4: { access_key_id: \"plain:AKIAIOSFODNN7EXAMPLE\", secret_access_key: \"env:BENCH_TOKEN\", region: us-east-1, service: execute-api }";
    // The origin lets it pass without a credential.
    let free = format!("headers: {{ set: {{ {}: \"1\" }}, remove: [authorization] }}", crate::origin::FREE);
    for (name, http, doors, credential, more) in [
        ("bench", "http1", "forward, connect, local", &*bearer, ""),
        ("bench2", "http2", "local", &bearer, ""),
        ("bare", "http1", "local", &bearer, &off),
        ("quota", "http1", "local", &bearer, four_off),
        ("layers", "http1", "local", &bearer, on),
        ("token", "http1", "local", &token, ""),
        ("signed", "http1", "local", signed, ""),
        ("free", "http1", "local", "none: {}", &free),
    ] {
        // A string takes everything that is written into it.
        let _ = write!(
            text,
            r#"  {name}:
    hosts: [{bench}]
    doors: [{doors}]
    upstream: {{ connect_to: "{origin}", http: {http}, tls: {{ ca: "{directory}/{ca}" }} }}
    credential: {{ {credential} }}
    {more}
"#
        );
    }
    text
}

/// A port that is free now. Another program could take it before outgate does; then the start fails, and says so.
fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Asks until the answer is 200, and says when that was.
fn first_answer(process: &mut Process, address: SocketAddr) -> Outcome<Instant> {
    while process.started.elapsed() < START_LIMIT {
        if matches!(ask(address), Ok(true)) {
            return Ok(Instant::now());
        }
        if process.ended() {
            return Err("outgate ended at its start".into());
        }
        std::thread::sleep(POLL);
    }
    Err(format!("outgate gave no good answer for {START_LIMIT:?}").into())
}

fn ask(address: SocketAddr) -> Outcome<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(stream, "GET /bench/ HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    Ok(head == *b"HTTP/1.1 200")
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
