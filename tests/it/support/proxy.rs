//! outgate in process, on free ports, with a policy of the test's own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use outgate::app::{App, Overrides};
use outgate::pipeline::reload::{ReloadOutcome, read};
use outgate::upstream::resolver::Resolver;
use serde_json::Value;
use tempfile::TempDir;

use super::log::Log;

/// Answers of the scripted resolver, changeable while the proxy runs, and the questions it was asked.
#[derive(Clone, Default)]
pub struct Names {
    answers: Arc<Mutex<HashMap<String, Vec<IpAddr>>>>,
    questions: Arc<Mutex<Vec<String>>>,
}

impl Names {
    pub fn set(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.answers.lock().unwrap().insert(name.to_owned(), addresses);
    }

    pub fn questions(&self) -> Vec<String> {
        self.questions.lock().unwrap().clone()
    }

    fn resolver(&self) -> Resolver {
        let names = self.clone();
        Resolver::scripted(Arc::new(move |name: &str| {
            names.questions.lock().unwrap().push(name.to_owned());
            let answers = names.answers.lock().unwrap();
            answers.get(name).cloned().ok_or_else(|| std::io::Error::other("no such name"))
        }))
    }
}

/// Where clients of a transparent listener had dialled; none: the listener itself.
pub type Dialled = Arc<Mutex<Option<SocketAddr>>>;

/// A running outgate. Ends with its runtime; its files go when it is dropped.
pub struct Proxy {
    pub app: App,
    pub log: Log,
    pub names: Names,
    pub dir: Arc<TempDir>,
    pub policy: PathBuf,
}

impl Proxy {
    /// Starts with a policy in a directory of its own.
    pub async fn start(policy: &str) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), policy).await
    }

    /// Starts with a policy, in a directory that the test may have filled. `{dir}` stands for that directory; listeners and
    /// admin are on free ports unless the policy says something else.
    pub async fn start_in(dir: Arc<TempDir>, policy: &str) -> Self {
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, complete(policy, dir.path())).unwrap();
        let compiled = read(&path).unwrap_or_else(|rejection| panic!("{}", rejection.render(false)));
        let (log, names) = (Log::default(), Names::default());
        let overrides =
            Overrides { resolver: Some(names.resolver()), log: Some(log.output()), ..Overrides::default() };
        let app = App::start(path.clone(), compiled, overrides).await.unwrap();
        Self { app, log, names, dir, policy: path }
    }

    /// Address of the first listener.
    pub fn address(&self) -> SocketAddr {
        self.app.listeners[0]
    }

    /// Address of the admin listener.
    pub fn admin(&self) -> SocketAddr {
        self.app.admin.unwrap()
    }

    /// PEM of the interception CA.
    pub fn ca(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("ca/ca.pem")).unwrap()
    }

    /// Starts with a listener whose connections count as redirected from what `original` says now.
    pub async fn start_redirected(dir: Arc<TempDir>, policy: &str, original: &Dialled) -> Self {
        let policy = format!("listeners: [{{ address: \"127.0.0.1:0\", accept: [transparent] }}]\n{policy}");
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, complete(&policy, dir.path())).unwrap();
        let compiled = read(&path).unwrap_or_else(|rejection| panic!("{}", rejection.render(false)));
        let (log, names) = (Log::default(), Names::default());
        let dialled = original.clone();
        let overrides = Overrides {
            resolver: Some(names.resolver()),
            log: Some(log.output()),
            original: Some(Arc::new(move |stream| match *dialled.lock().unwrap() {
                Some(address) => Ok(address),
                None => stream.local_addr(),
            })),
            ..Overrides::default()
        };
        let app = App::start(path.clone(), compiled, overrides).await.unwrap();
        Self { app, log, names, dir, policy: path }
    }

    /// Writes another policy and reads it at once.
    pub async fn reload(&self, policy: &str) -> ReloadOutcome {
        std::fs::write(&self.policy, complete(policy, self.dir.path())).unwrap();
        self.app.reload().await
    }

    /// Waits for `count` access-log records and returns them all.
    pub async fn records(&self, count: usize) -> Vec<Value> {
        self.log.wait_for(&self.app.telemetry, count).await
    }

    /// The metrics as text.
    pub fn metrics(&self) -> String {
        self.app.telemetry.metrics.encode()
    }
}

/// Adds what a test usually does not care about.
fn complete(policy: &str, dir: &Path) -> String {
    let mut text = String::new();
    for (key, default) in [
        ("version:", "version: 1\n".to_owned()),
        ("listeners:", "listeners: [{ address: \"127.0.0.1:0\" }]\n".to_owned()),
        ("admin:", "admin: { address: \"127.0.0.1:0\" }\n".to_owned()),
        (
            "interception:",
            "interception: { ca: { directory: \"{dir}/ca\" }, bundle: \"{dir}/bundle.pem\" }\n".to_owned(),
        ),
    ] {
        if !policy.lines().any(|line| line.starts_with(key)) {
            text.push_str(&default);
        }
    }
    text.push_str(policy);
    text.replace("{dir}", &dir.to_string_lossy())
}

impl Proxy {
    /// Starts with a resolver of the test's own, such as one whose answers change from question to question.
    pub async fn start_resolving(
        dir: Arc<TempDir>,
        policy: &str,
        answer: impl Fn(&str) -> std::io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, complete(policy, dir.path())).unwrap();
        let compiled = read(&path).unwrap_or_else(|rejection| panic!("{}", rejection.render(false)));
        let log = Log::default();
        let resolver = Some(Resolver::scripted(Arc::new(answer)));
        let overrides = Overrides { resolver, log: Some(log.output()), ..Overrides::default() };
        let app = App::start(path.clone(), compiled, overrides).await.unwrap();
        Self { app, log, names: Names::default(), dir, policy: path }
    }
}
