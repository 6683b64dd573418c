//! One provider, `api` at api.example.test, in front of an origin with TLS: what most behaviour tests stand on.

use std::net::SocketAddr;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::support::CANARY;
use super::support::ca::TestCa;
use super::support::origin::{RawOrigin, Script, Stream, read_request};
use super::support::proxy::Proxy;

/// The provider's host.
pub const HOST: &str = "api.example.test";

/// A directory with the origin's CA and the secret.
pub fn directory(ca: &TestCa) -> Arc<TempDir> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("origin.pem"), &ca.pem).unwrap();
    std::fs::write(dir.path().join("secret"), CANARY).unwrap();
    Arc::new(dir)
}

/// A policy with the provider; `keys` are further lines of it (indented by four), `top` further keys of the policy.
pub fn policy(origin: SocketAddr, keys: &str, top: &str) -> String {
    let credential =
        if keys.contains("credential:") { "" } else { "    credential: { bearer: \"file:{dir}/secret\" }\n" };
    format!(
        "{top}\nproviders:\n  api:\n    hosts: [{HOST}]\n    upstream: {{ connect_to: \"{origin}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}\n{credential}{keys}\n"
    )
}

/// The proxy with that policy.
pub async fn start(ca: &TestCa, origin: SocketAddr, keys: &str, top: &str) -> Proxy {
    Proxy::start_in(directory(ca), &policy(origin, keys, top)).await
}

/// A TLS origin (HTTP/1.1) that does with each connection what `script` says, and the proxy before it.
pub async fn scripted(script: Script, keys: &str, top: &str) -> (Proxy, RawOrigin) {
    let ca = TestCa::new();
    let origin = RawOrigin::start(Some(ca.server(&[HOST], &["http/1.1"])), script).await;
    let proxy = start(&ca, origin.address, keys, top).await;
    (proxy, origin)
}

/// A script that answers each request with what `answer` says to it, on kept-alive connections. Nothing closes the
/// connection without an answer.
pub fn answering(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Script {
    let answer = Arc::new(answer);
    Arc::new(move |mut stream: Box<dyn Stream>, _| {
        let answer = answer.clone();
        Box::pin(async move {
            while let Some(request) = read_request(&mut stream).await {
                match answer(&request) {
                    Some(bytes) if stream.write_all(&bytes).await.is_ok() => {}
                    _ => break,
                }
                let _ = stream.flush().await;
            }
            let _ = stream.shutdown().await;
        })
    })
}

/// Waits until `condition` holds; fails after ten seconds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}
