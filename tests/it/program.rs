//! The real program as a child process, on free ports; ended when it is dropped.

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A running `outgate run`.
pub struct Program {
    child: Child,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// Address of the first listener.
    pub listener: SocketAddr,
    /// Address of the admin listener.
    pub admin: SocketAddr,
}

/// A command of the program with a clean environment. `OUTGATE_TEST_PROGRAM` names another build of it, such as the release
/// build, whose figures say more.
pub fn outgate(arguments: &[&str]) -> Command {
    let other = std::env::var_os("OUTGATE_TEST_PROGRAM");
    let mut command = Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_outgate").into()));
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// Runs it to its end.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// What `Proxy::start` adds to a policy, for the program.
pub fn write_policy(dir: &Path, policy: &str) -> String {
    let mut text = String::new();
    for (key, default) in [
        ("version:", "version: 1\n"),
        ("listeners:", "listeners: [{ address: \"127.0.0.1:0\" }]\n"),
        ("admin:", "admin: { address: \"127.0.0.1:0\" }\n"),
        (
            "interception:",
            "interception: { ca: { directory: \"{dir}/ca\" }, bundle: \"{dir}/bundle.pem\" }\n",
        ),
    ] {
        if !policy.lines().any(|line| line.starts_with(key)) {
            text.push_str(default);
        }
    }
    text.push_str(policy);
    let path = dir.join("proxy.yaml");
    std::fs::write(&path, text.replace("{dir}", &dir.to_string_lossy())).unwrap();
    path.to_string_lossy().into_owned()
}

impl Program {
    /// Writes the policy and starts; returns when outgate says that it is ready.
    pub fn start(dir: &Path, policy: &str, log: &str, environment: &[(&str, &str)]) -> Self {
        let path = write_policy(dir, policy);
        let mut command = outgate(&["run", "--config", &path, "--log", log]);
        command.envs(environment.iter().copied());
        Self::started(command)
    }

    /// Starts a command that must become ready.
    pub fn started(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let (listener, admin) = loop {
            if let Some(addresses) = ready(&text(&stderr)) {
                break addresses;
            }
            if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let _ = child.kill();
                panic!("outgate did not become ready: {}", text(&stderr));
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        Self { child, stdout, stderr, listener, admin }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output.
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// What it has written to standard error.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Sends it a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "outgate did not end within {limit:?}: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most resident memory so far, in bytes.
    pub fn resident_peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether it ended by itself with this code.
pub fn ended_with(status: ExitStatus, code: i32) -> bool {
    status.signal().is_none() && status.code() == Some(code)
}

fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let bytes = Arc::<Mutex<Vec<u8>>>::default();
    let into = bytes.clone();
    std::thread::spawn(move || {
        let mut buffer = [0_u8; 16 * 1024];
        while let Ok(read) = from.read(&mut buffer) {
            if read == 0 {
                break;
            }
            into.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
    });
    bytes
}

fn text(bytes: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&bytes.lock().unwrap()).into_owned()
}

fn ready(log: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line = log.lines().find(|line| line.contains("outgate is ready"))?;
    let field = |name: &str| {
        let rest = line.split_once(name)?.1;
        Some(rest.trim_start_matches('"').split(['"', ' ']).next()?.to_owned())
    };
    let admin = field("admin=")?.parse().unwrap_or_else(|_| ([127, 0, 0, 1], 0).into());
    let listener = field("listeners=")?.parse().unwrap_or_else(|_| ([127, 0, 0, 1], 0).into());
    Some((listener, admin))
}
