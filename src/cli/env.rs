//! `outgate env`: everything that points an app at outgate, as shell, dotenv, JSON or docker arguments.

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{PolicyArgument, fail, load, print};
use crate::policy::compiled::{CompiledPolicy, ListenAddress, Listener};
use crate::tls::truststore::PASSWORD;

/// Arguments of `env`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    policy: PolicyArgument,
    /// How it is written.
    #[arg(long, value_enum, default_value = "shell")]
    format: Format,
    /// Runtimes that read other variables.
    #[arg(long, value_enum, value_delimiter = ',')]
    runtime: Vec<AppRuntime>,
}

/// A runtime that does not go by the usual variables.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AppRuntime {
    /// JAVA_TOOL_OPTIONS, with the truststore of `interception.truststore`. The JVM prints a line on stderr because of it.
    Java,
}

/// How the environment is written.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// `export NAME='value'`, for `eval`.
    Shell,
    /// `NAME=value`.
    Dotenv,
    /// One JSON object.
    Json,
    /// `--env NAME=value` for `docker run`.
    Docker,
}

/// Prints the environment.
pub fn run(arguments: &Arguments) -> ExitCode {
    let policy = match load(&arguments.policy) {
        Ok(policy) => policy,
        Err(code) => return code,
    };
    match all(&policy, arguments) {
        Ok(variables) => {
            tell(&notes(&policy, matches!(arguments.format, Format::Docker)));
            print(&written(&variables, arguments.format))
        }
        Err(message) => fail(message),
    }
}

/// What the variables alone do not do.
pub fn notes(policy: &CompiledPolicy, in_container: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let bundle = &policy.fixed.interception.bundle;
    if !bundle.exists() {
        notes.push(format!(
            "{} does not exist yet, and clients fail without it: `outgate ca init` makes it, and so does `outgate run`",
            bundle.display()
        ));
    }
    if proxy_listener(policy).is_some_and(|listener| listener.tokens.is_some()) {
        notes.push(
            "the listener wants a token, which is not written here: `http://outgate:TOKEN@HOST:PORT` as the proxy's URL".to_owned(),
        );
    }
    if in_container {
        notes.push(format!(
            "in a container these need `--network host`, and `--volume {bundle}:{bundle}:ro`",
            bundle = bundle.display()
        ));
    }
    notes
}

/// Says it beside the output, which may be read by a shell.
pub fn tell(notes: &[String]) {
    for note in notes {
        let _ = writeln!(std::io::stderr(), "outgate: {note}");
    }
}

fn all(policy: &CompiledPolicy, arguments: &Arguments) -> Result<Vec<(&'static str, String)>, String> {
    let mut variables = variables(policy)?;
    if arguments.runtime.contains(&AppRuntime::Java) {
        if matches!(arguments.format, Format::Docker) {
            return Err(
                "JAVA_TOOL_OPTIONS holds spaces: write `--format dotenv` to a file, for `--env-file`"
                    .to_owned(),
            );
        }
        variables.push(("JAVA_TOOL_OPTIONS", java(policy)?));
    }
    Ok(variables)
}

/// What of NO_PROXY is in the words of `http.nonProxyHosts`.
const NON_PROXY_HOSTS: &str = "localhost|127.*|[::1]|*.localhost";

/// The options of a JVM. It splits them at white space.
fn java(policy: &CompiledPolicy) -> Result<String, String> {
    let Some(truststore) = &policy.fixed.interception.truststore else {
        return Err("Java needs a truststore: set `interception.truststore` in the policy".to_owned());
    };
    let truststore = absolute(truststore)?;
    if truststore.contains(char::is_whitespace) {
        return Err(format!("JAVA_TOOL_OPTIONS cannot name a path with spaces: {truststore}"));
    }
    let address = proxy_address(policy)?;
    let mut options = Vec::new();
    for scheme in ["http", "https"] {
        options.push(format!("-D{scheme}.proxyHost={}", address.ip()));
        options.push(format!("-D{scheme}.proxyPort={}", address.port()));
    }
    options.push(format!("-Dhttp.nonProxyHosts={NON_PROXY_HOSTS}"));
    options.push(format!("-Djavax.net.ssl.trustStore={truststore}"));
    options.push("-Djavax.net.ssl.trustStoreType=PKCS12".to_owned());
    options.push(format!("-Djavax.net.ssl.trustStorePassword={PASSWORD}"));
    Ok(options.join(" "))
}

fn written(variables: &[(&'static str, String)], format: Format) -> String {
    let lines = |line: fn(&str, &str) -> String| {
        variables.iter().map(|(name, value)| line(name, value)).collect::<String>()
    };
    match format {
        Format::Shell => lines(|name, value| format!("export {name}='{}'\n", value.replace('\'', "'\\''"))),
        Format::Dotenv => lines(|name, value| format!("{name}={value}\n")),
        Format::Docker => lines(|name, value| format!("--env {name}={value}\n")),
        Format::Json => {
            let map: serde_json::Map<_, _> =
                variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect();
            format!("{:#}\n", serde_json::Value::Object(map))
        }
    }
}

/// Names that never go through the proxy: itself, and what listens beside the app.
const NO_PROXY: &str = "localhost,127.0.0.1,::1,.localhost";

/// Variables that hold the bundle of system roots and the CA. Each of them *replaces* its client's roots.
const BUNDLE: [&str; 9] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "PIP_CERT",
];

/// Variables whose file is *added* to the client's roots.
const ADDED: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

/// The listener that an app is pointed at.
fn proxy_listener(policy: &CompiledPolicy) -> Option<&Listener> {
    policy.fixed.listeners.iter().find(|listener| listener.doors.connect && listener.provider.is_none())
}

/// The address of the listener that an app is pointed at. Who listens on every address is reached on loopback.
fn proxy_address(policy: &CompiledPolicy) -> Result<SocketAddr, String> {
    let Some(listener) = proxy_listener(policy) else {
        return Err("no listener of the policy accepts CONNECT".to_owned());
    };
    let ListenAddress::Tcp(address) = &listener.address else {
        return Err(format!("the listener is at {}, which proxy variables cannot name", listener.address));
    };
    let ip = match address.ip() {
        ip if ip.is_unspecified() && ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        ip if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, address.port()))
}

/// The whole environment of an app, in a stable order.
pub fn variables(policy: &CompiledPolicy) -> Result<Vec<(&'static str, String)>, String> {
    let proxy = format!("http://{}", proxy_address(policy)?);
    let bundle = absolute(&policy.fixed.interception.bundle)?;
    let mut variables = Vec::new();
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"] {
        variables.push((name, proxy.clone()));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        variables.push((name, NO_PROXY.to_owned()));
    }
    variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
    for name in BUNDLE.into_iter().chain(ADDED) {
        variables.push((name, bundle.clone()));
    }
    Ok(variables)
}

fn absolute(path: &Path) -> Result<String, String> {
    let path: PathBuf = std::path::absolute(path).map_err(|error| error.to_string())?;
    path.into_os_string().into_string().map_err(|_| "the bundle's path is not UTF-8".to_owned())
}
