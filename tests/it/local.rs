//! The local endpoint: its names, its links, and whom it answers.

use super::support::ca::TestCa;
use super::support::client::{Got, Raw, local_get};
use super::support::origin::{Answer, HttpOrigin, Seen, text};
use super::support::proxy::Proxy;
use super::world::{HOST, directory};

const OTHER: &str = "files.example.test";

async fn world(handler: impl Fn(Seen) -> Answer + Send + Sync + 'static) -> (Proxy, HttpOrigin) {
    let ca = TestCa::new();
    let origin =
        HttpOrigin::with(Some(ca.server(&[HOST, OTHER, "other.example.test"], &["http/1.1"])), handler).await;
    let policy = format!(
        "providers:\n  api:\n    hosts: [{HOST}, {OTHER}]\n    upstream: {{ connect_to: \"{0}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}\n    credential: {{ bearer: \"file:{{dir}}/secret\" }}\n    local: {{ address: \"127.0.0.1:0\" }}\n  renamed:\n    hosts: [other.example.test]\n    upstream: {{ connect_to: \"{0}\", tls: {{ ca: \"{{dir}}/origin.pem\" }} }}\n    local: {{ path: /elsewhere/v2, host: elsewhere.localhost }}\n",
        origin.address
    );
    (Proxy::start_in(directory(&ca), &policy).await, origin)
}

async fn ask(address: std::net::SocketAddr, target: &str, host: &str, fields: &str) -> Got {
    let mut raw = Raw::connect(address).await;
    raw.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n")).await;
    raw.answer().await
}

/// The request as the origin saw it: host and target.
fn seen(origin: &HttpOrigin) -> String {
    let last = origin.requests().pop().unwrap();
    format!("{}{}", last.header("host").unwrap(), last.uri)
}

#[tokio::test]
async fn every_way_to_name_a_provider() {
    let (proxy, origin) = world(|_| text(200, "ok")).await;
    let own = proxy.address().to_string();
    let port = proxy.address().port();
    let to = |name: &str| format!("{name}:{port}");
    for (target, host, expected) in [
        ("/api/v1/x?a=1&b", own.clone(), format!("{HOST}/v1/x?a=1&b")),
        ("/api", own.clone(), format!("{HOST}/")),
        ("/api/", own.clone(), format!("{HOST}/")),
        ("/api?a=1", own.clone(), format!("{HOST}/?a=1")),
        ("/api/v1/x", to("localhost"), format!("{HOST}/v1/x")),
        (&format!("/api@{OTHER}/v1/x"), own.clone(), format!("{OTHER}/v1/x")),
        (&format!("/api@{HOST}/v1/x"), own.clone(), format!("{HOST}/v1/x")),
        ("/v1/x", to("api.localhost"), format!("{HOST}/v1/x")),
        ("/api/x", to("api.localhost"), format!("{HOST}/api/x")),
        ("/v1/x", HOST.to_owned(), format!("{HOST}/v1/x")),
        ("/v1/x", OTHER.to_owned(), format!("{OTHER}/v1/x")),
        (&format!("http://{own}/api/v1/x?a=1"), own.clone(), format!("{HOST}/v1/x?a=1")),
        (&format!("http://localhost:{port}/api/v1/x"), to("localhost"), format!("{HOST}/v1/x")),
    ] {
        let before = origin.requests().len();
        let got = ask(proxy.address(), target, &host, "").await;
        assert_eq!(got.status, 200, "{target} at {host}: {}", got.text());
        assert_eq!(origin.requests().len(), before + 1);
        assert_eq!(seen(&origin), expected, "{target} at {host}");
        assert!(origin.requests().pop().unwrap().headers.contains_key("authorization"));
    }
    // A port of its own: the path is the provider's.
    let own_port = proxy.app.listeners[1];
    assert_eq!(ask(own_port, "/v1/x", &own_port.to_string(), "").await.status, 200);
    assert_eq!(seen(&origin), format!("{HOST}/v1/x"));
    // Another prefix and name.
    assert_eq!(ask(proxy.address(), "/elsewhere/v2/x", &own, "").await.status, 200);
    assert_eq!(seen(&origin), "other.example.test/x");
    assert_eq!(ask(proxy.address(), "/x", &to("elsewhere.localhost"), "").await.status, 200);
    assert_eq!(seen(&origin), "other.example.test/x");
}

#[tokio::test]
async fn names_that_are_not_answered() {
    let (proxy, origin) = world(|_| text(200, "ok")).await;
    let own = proxy.address().to_string();
    for (target, host, status) in [
        ("/api/x", "rebound.example", 421),
        ("/api/x", "169.254.169.254", 421),
        ("/", "nobody.localhost", 421),
        ("/nobody/x", own.as_str(), 403),
        ("/apiary/x", own.as_str(), 403),
        ("/renamed/x", own.as_str(), 403),
        ("/api@evil.example/x", own.as_str(), 403),
        ("/api@other.example.test/x", own.as_str(), 403),
        ("/", own.as_str(), 403),
    ] {
        let got = ask(proxy.address(), target, host, "").await;
        assert_eq!(got.status, status, "{target} at {host}");
    }
    // The port of one provider is no way to another.
    let own_port = proxy.app.listeners[1];
    assert_eq!(ask(own_port, "/x", "rebound.example", "").await.status, 421);
    assert!(origin.requests().is_empty() && proxy.names.questions().is_empty());
}

#[tokio::test]
async fn browsers_of_other_sites_are_refused() {
    let (proxy, origin) = world(|_| text(200, "ok")).await;
    let own = proxy.address().to_string();
    for (fields, status) in [
        ("Sec-Fetch-Site: cross-site\r\n".to_owned(), 403),
        ("Sec-Fetch-Site: same-site\r\n".to_owned(), 403),
        ("Origin: https://evil.example\r\n".to_owned(), 403),
        ("Origin: null\r\n".to_owned(), 403),
        ("Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n".to_owned(), 403),
        ("Sec-Fetch-Site: same-origin\r\n".to_owned(), 200),
        ("Sec-Fetch-Site: none\r\n".to_owned(), 200),
        (format!("Origin: http://{own}\r\n"), 200),
        (String::new(), 200),
    ] {
        let before = origin.requests().len();
        let got = ask(proxy.address(), "/api/x", &own, &fields).await;
        assert_eq!(got.status, status, "{fields}");
        assert_eq!(origin.requests().len() - before, usize::from(status == 200), "{fields}");
    }
}

#[tokio::test]
async fn links_stay_inside() {
    let (proxy, _origin) = world(|seen| {
        let mut answer = text(302, "");
        let headers = answer.headers_mut();
        let link = seen.header("x-link").unwrap_or_default().parse::<http::HeaderValue>().unwrap();
        headers.insert("location", link.clone());
        headers.insert("content-location", link.clone());
        let link = link.to_str().unwrap();
        let list = format!("<{link}>; rel=\"next\", <https://elsewhere.example/>; rel=\"help\"");
        headers.append("link", list.parse().unwrap());
        answer
    })
    .await;
    let own = proxy.address().to_string();
    let port = proxy.address().port();
    let named = format!("api.localhost:{port}");
    let own_port = proxy.app.listeners[1];
    let direct = own_port.to_string();
    let first = format!("https://{HOST}/v1/y?page=2#f");
    let second = format!("https://{OTHER}/z");
    for (address, target, host, link, expected) in [
        (proxy.address(), "/api/x", &own, first.as_str(), format!("http://{own}/api/v1/y?page=2#f")),
        (proxy.address(), "/api/x", &own, &second, format!("http://{own}/api@{OTHER}/z")),
        (proxy.address(), "/api/x", &own, "/v1/y", "/api/v1/y".to_owned()),
        (proxy.address(), "/api/x", &own, "y?page=2", "y?page=2".to_owned()),
        (proxy.address(), "/api/x", &own, "//evil.example/x", "//evil.example/x".to_owned()),
        (
            proxy.address(),
            "/api/x",
            &own,
            "https://elsewhere.example/",
            "https://elsewhere.example/".to_owned(),
        ),
        (proxy.address(), "/api/x", &own, &format!("https://{HOST}"), format!("http://{own}/api")),
        (proxy.address(), "/api/x", &own, &format!("https://{HOST}:444/x"), format!("https://{HOST}:444/x")),
        // A relative link of another host of the provider stays at that host.
        (proxy.address(), &format!("/api@{OTHER}/x"), &own, "/z", format!("/api@{OTHER}/z")),
        (proxy.address(), "/x", &named, &first, format!("http://{named}/v1/y?page=2#f")),
        (proxy.address(), "/x", &named, "/v1/y", "/v1/y".to_owned()),
        (own_port, "/x", &direct, &first, format!("http://{direct}/v1/y?page=2#f")),
        (
            proxy.address(),
            "/elsewhere/v2/x",
            &own,
            "https://other.example.test/a",
            format!("http://{own}/elsewhere/v2/a"),
        ),
    ] {
        let got = ask(address, target, host, &format!("X-Link: {link}\r\n")).await;
        assert_eq!(got.status, 302);
        for name in ["location", "content-location"] {
            assert_eq!(got.header(name), Some(expected.as_str()), "{name} of {link} at {host}{target}");
        }
        let list = format!("<{expected}>; rel=\"next\", <https://elsewhere.example/>; rel=\"help\"");
        assert_eq!(got.header("link"), Some(list.as_str()), "{link} at {host}{target}");
    }
}

#[tokio::test]
async fn links_of_other_doors_are_left_alone() {
    let (proxy, _origin) = world(|_| {
        let mut answer = text(302, "");
        answer.headers_mut().insert("location", format!("https://{HOST}/y").parse().unwrap());
        answer
    })
    .await;
    let got = ask(proxy.address(), &format!("http://{HOST}/x"), HOST, "").await;
    assert_eq!((got.status, got.header("location")), (302, Some(format!("https://{HOST}/y").as_str())));
}

#[tokio::test]
async fn a_listener_without_the_local_door_and_names_of_its_own() {
    let ca = TestCa::new();
    let origin = HttpOrigin::start(Some(ca.server(&[HOST], &["http/1.1"]))).await;
    let listeners = "listeners:\n  - { address: \"127.0.0.1:0\", accept: [forward, connect] }\n  - { address: \"127.0.0.1:0\", accept: [local], hosts: [outgate.internal] }\n";
    let proxy = super::world::start(&ca, origin.address, "", listeners).await;
    let [closed, named] = proxy.app.listeners[..] else { panic!("two listeners") };
    assert_eq!(ask(closed, "/api/x", &closed.to_string(), "").await.status, 400);
    assert_eq!(ask(named, "/api/x", &format!("outgate.internal:{}", named.port()), "").await.status, 200);
    assert_eq!(ask(named, "/api/x", "outgate.external", "").await.status, 421);
    assert_eq!(ask(named, &format!("http://{HOST}/x"), HOST, "").await.status, 400, "no forward door");
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn a_provider_of_wildcards_wants_its_host_named() {
    let origin = HttpOrigin::start(None).await;
    let policy = format!(
        "providers:\n  shops:\n    hosts: [\"*.example.test\"]\n    upstream: {{ scheme: http, connect_to: \"{}\" }}\n",
        origin.address
    );
    let proxy = Proxy::start(&policy).await;
    let got = local_get(&proxy, "/shops/v1").await;
    assert_eq!((got.status, got.header("outgate-error")), (403, Some("denied")));
    assert!(got.text().contains("name the host, as in `/shops@<host>/...`"), "{}", got.text());
    assert_eq!(local_get(&proxy, "/shops@a.example.test/v1").await.status, 200);
    assert_eq!(origin.only().header("host"), Some("a.example.test"));
    let records = proxy.records(2).await;
    assert_eq!(records[0]["outgate.flag"], "NR");
    assert!(!proxy.log.text(&proxy.app.telemetry).contains("invalid"));
}
