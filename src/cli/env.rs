//! `outgate env`: everything that points an app at outgate, as shell, dotenv, JSON or docker arguments.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{PolicyArgument, fail, load, print};
use crate::policy::compiled::{CompiledPolicy, ListenAddress};

/// Arguments of `env`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    policy: PolicyArgument,
    /// How it is written.
    #[arg(long, value_enum, default_value = "shell")]
    format: Format,
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
    match variables(&policy) {
        Ok(variables) => print(&written(&variables, arguments.format)),
        Err(message) => fail(message),
    }
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

/// The whole environment of an app, in a stable order.
pub fn variables(policy: &CompiledPolicy) -> Result<Vec<(&'static str, String)>, String> {
    let listener =
        policy.fixed.listeners.iter().find(|listener| listener.doors.connect && listener.provider.is_none());
    let Some(listener) = listener else { return Err("no listener of the policy accepts CONNECT".to_owned()) };
    let ListenAddress::Tcp(address) = &listener.address else {
        return Err("the listener is a unix socket, which proxy variables cannot name".to_owned());
    };
    // Who listens on every address is reached on loopback.
    let host = match address.ip() {
        ip if ip.is_unspecified() && ip.is_ipv4() => "127.0.0.1".to_owned(),
        ip if ip.is_unspecified() => "[::1]".to_owned(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        std::net::IpAddr::V4(ip) => ip.to_string(),
    };
    let proxy = format!("http://{host}:{}", address.port());
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
