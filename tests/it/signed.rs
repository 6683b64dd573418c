//! `aws_sigv4`: what arrives is signed with outgate's keys, by the host that it arrives at; keys that end are replaced.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::capture::Capture;
use super::support::ca::TestCa;
use super::support::client::local_request;
use super::support::origin::{HttpOrigin, Seen, text};
use super::support::proxy::Proxy;
use super::world::{HOST, directory, policy};

const SECRET: &str = "CANARYsecretAccessKeyOfOutgate";
const SESSION: &str = "CANARYsessionTokenOfOutgate";

/// A container's endpoint that gives other keys each time, and repeats what it was asked with where it refuses.
async fn keys() -> HttpOrigin {
    let count = AtomicUsize::new(0);
    HttpOrigin::with(None, move |seen: Seen| {
        if seen.uri.path() != "/keys" || seen.header("authorization") != Some("CANARYauthorizationOfThePod") {
            return text(403, &format!("{seen:?} {SECRET}"));
        }
        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
        text(
            200,
            &format!(
                r#"{{"AccessKeyId":"AKIDOURS{number}","SecretAccessKey":"{SECRET}","Token":"{SESSION}","Expiration":"2040-01-01T00:00:00Z"}}"#
            ),
        )
    })
    .await
}

fn credential(keys: &HttpOrigin, path: &str, more: &str) -> String {
    format!(
        "    credential: {{ aws_sigv4: {{ credentials: {{ container: {{ endpoint: \"http://{}{path}\", token_file: \"{{dir}}/token\" }} }}, region: eu-west-1, service: s3{more} }} }}\n",
        keys.address
    )
}

/// An origin that takes the keys with this number, or any with 0, and the proxy.
async fn world(
    accepted: usize,
    path: &str,
    more: &str,
    keys_policy: &str,
) -> (Proxy, HttpOrigin, HttpOrigin) {
    let (ca, metadata) = (TestCa::new(), keys().await);
    let wanted = if accepted == 0 {
        "Credential=AKIDOURS".to_owned()
    } else {
        format!("Credential=AKIDOURS{accepted}/")
    };
    let origin = HttpOrigin::with(Some(ca.server(&[HOST], &["http/1.1"])), move |seen: Seen| {
        if seen.header("authorization").is_some_and(|text| text.contains(&wanted)) {
            return text(200, "{}");
        }
        let mut answer = text(400, "{}");
        answer.headers_mut().insert("x-amzn-errortype", "ExpiredTokenException".parse().unwrap());
        answer
    })
    .await;
    let dir = directory(&ca);
    std::fs::write(dir.path().join("token"), "CANARYauthorizationOfThePod\n").unwrap();
    let text = policy(origin.address, &(credential(&metadata, path, more) + keys_policy), "");
    (Proxy::start_in(dir, &text).await, origin, metadata)
}

const THEIRS: &str = "Authorization: AWS4-HMAC-SHA256 Credential=THEIRS/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=THEIRS\r\n\
    X-Amz-Date: THEIRS\r\nX-Amz-Security-Token: THEIRS\r\nX-Amz-Meta-Who: me\r\n";

#[tokio::test]
async fn a_request_is_signed_for_the_host_it_goes_to_and_what_the_client_signed_is_gone() {
    let (log, _guard) = Capture::start(tracing::Level::TRACE);
    let (proxy, origin, _keys) = world(0, "/keys", "", "").await;
    let got = local_request(proxy.address(), "PUT", "/api/bucket/key", THEIRS, "body").await;
    assert_eq!(got.status, 200);
    let seen = origin.only();
    let authorization = seen.header("authorization").unwrap();
    assert!(authorization.contains("/eu-west-1/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-meta-who;x-amz-security-token,"), "{authorization}");
    assert_eq!((seen.uri.path(), &seen.body[..]), ("/bucket/key", &b"body"[..]));
    assert_eq!(seen.header("x-amz-security-token"), Some(SESSION));
    assert_eq!(seen.header("x-amz-content-sha256"), Some("UNSIGNED-PAYLOAD"));
    assert!(!format!("{:?}", seen.headers).contains("THEIRS"));
    let record = proxy.records(1).await.remove(0).to_string();
    for (what, text) in [("log", log.text()), ("record", record), ("metrics", proxy.metrics())] {
        for secret in [SECRET, SESSION, "CANARYauthorizationOfThePod"] {
            assert!(!text.contains(secret), "{what}");
        }
    }
}

#[tokio::test]
async fn keys_that_are_refused_are_got_again_and_the_request_is_signed_anew() {
    let rows = "    responses:\n      - when: { status: [400, 403], header: { X-Amzn-ErrorType: \"ExpiredToken*\" } }\n        is: unauthorized\n";
    let (proxy, origin, keys) = world(2, "/keys", "", rows).await;
    let got = local_request(proxy.address(), "PUT", "/api/bucket/key", THEIRS, "body").await;
    assert_eq!(got.status, 200);
    let seen = origin.requests();
    assert_eq!(seen.len(), 2);
    let by = |at: usize, id: &str| seen[at].header("authorization").unwrap().contains(&format!("={id}/"));
    assert!(by(0, "AKIDOURS1") && by(1, "AKIDOURS2"), "{seen:#?}");
    assert_eq!(seen[1].body, seen[0].body);
    assert_eq!(keys.requests().len(), 2, "once at the start, once to heal");
    // And the new ones stay.
    assert_eq!(local_request(proxy.address(), "GET", "/api/bucket/key", "", "").await.status, 200);
    assert_eq!((origin.requests().len(), keys.requests().len()), (3, 2));
}

/// What S3, SES and SNS say of keys that ended, as their presets know it: one new read of the keys, one more request.
#[tokio::test]
async fn the_presets_of_aws_heal_keys_that_ended_and_nothing_that_other_keys_do_not_mend() {
    const ENDED: &str = "<Error><Code>ExpiredToken</Code><Message>The security token included in the request is expired</Message></Error>";
    const SKEWED: &str = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
    for preset in ["aws-s3", "aws-ses", "aws-sns"] {
        let metadata = keys().await;
        let origin = HttpOrigin::with(None, |seen: Seen| match seen.uri.path() {
            "/skewed" => text(403, SKEWED),
            "/never" => text(403, ENDED),
            _ if seen.header("authorization").unwrap().contains("=AKIDOURS1/") => text(403, ENDED),
            _ => text(200, "{}"),
        })
        .await;
        let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("token"), "CANARYauthorizationOfThePod\n").unwrap();
        let policy = format!(
            "providers:\n  api:\n    preset: {preset}\n    with: {{ region: eu-west-1 }}\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n{}",
            origin.address,
            credential(&metadata, "/keys", "")
        );
        let proxy = Proxy::start_in(dir, &policy).await;
        let post = async |path: &str| local_request(proxy.address(), "POST", path, "", "body").await;
        let skewed = post("/api/skewed").await;
        assert_eq!((skewed.status, metadata.requests().len()), (403, 1), "{preset}");
        let got = post("/api/x").await;
        assert_eq!((got.status, origin.requests().len(), metadata.requests().len()), (200, 3, 2), "{preset}");
        // A second one goes to the app, and no third set of keys is asked for within half a minute.
        let got = post("/api/never").await;
        assert_eq!((got.status, got.text().as_str()), (403, ENDED), "{preset}");
        assert_eq!(metadata.requests().len(), 2, "{preset}");
    }
}

#[tokio::test]
async fn without_keys_nothing_is_sent_and_nothing_of_the_refusal_is_told() {
    let (log, _guard) = Capture::start(tracing::Level::TRACE);
    let (proxy, origin, _keys) = world(0, "/refused", "", "").await;
    let got = local_request(proxy.address(), "GET", "/api/bucket/key", "", "").await;
    assert_eq!((got.status, got.header("outgate-error")), (503, Some("credential_unavailable")));
    assert!(got.header("retry-after").is_some());
    assert!(origin.requests().is_empty());
    for text in [log.text(), got.text(), proxy.metrics()] {
        assert!(!text.contains("CANARY"), "{text}");
    }
}

#[tokio::test]
async fn the_chunks_of_an_upload_are_signed_anew_and_its_length_stays() {
    let (proxy, origin, _keys) = world(0, "/keys", "", "").await;
    let theirs = "0".repeat(64);
    let body = format!("5;chunk-signature={theirs}\r\nhello\r\n0;chunk-signature={theirs}\r\n\r\n");
    let lines = "X-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD\r\nX-Amz-Decoded-Content-Length: 5\r\nContent-Encoding: aws-chunked\r\n";
    let got = local_request(proxy.address(), "PUT", "/api/bucket/key", lines, &body).await;
    assert_eq!(got.status, 200);
    let seen = origin.only();
    let arrived = String::from_utf8(seen.body.to_vec()).unwrap();
    assert_eq!(arrived.len(), body.len());
    assert_eq!(seen.header("content-length").unwrap(), body.len().to_string());
    assert!(!arrived.contains(&theirs) && arrived.contains("\r\nhello\r\n"), "{arrived}");
}

#[tokio::test]
async fn what_cannot_be_signed_is_told_and_not_sent() {
    let (proxy, origin, _keys) = world(0, "/keys", ", max_buffer: 4B", "").await;
    let theirs = "0".repeat(64);
    let chunk = format!("5;chunk-signature={theirs}\r\nhello\r\n0;chunk-signature={theirs}\r\n\r\n");
    let chunked = "X-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD\r\n";
    let events = "X-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-EVENTS\r\n";
    for (path, lines, body, status, code) in [
        ("/api/k?X-Amz-Signature=1", "", "", 403, "denied"),
        ("/api/k", events, "x", 400, "bad_request"),
        ("/api/k", chunked, &*chunk, 413, "payload_too_large"),
        ("/api/k", chunked, "hello", 400, "bad_request"),
    ] {
        let got = local_request(proxy.address(), "PUT", path, lines, body).await;
        assert_eq!((got.status, got.header("outgate-error")), (status, Some(code)), "{path} {lines} {body}");
    }
    assert!(origin.requests().is_empty());
}
