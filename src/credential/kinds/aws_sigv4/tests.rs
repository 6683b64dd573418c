mod chain;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use tokio::time::Instant;

use super::chunked::Resigned;
use super::payload::Chunks;
use super::*;
use crate::credential::location::Locations;
use crate::credential::rewrite::{Rewrite, Secrets};
use crate::message::body::{Body, BodyError};
use crate::message::failure::Fault;
use crate::message::request::{EgressParts, EgressRequest, Exchange};
use crate::message::target::{Host, Scheme, Target};
use crate::secret::aws::sign::{ChunkKey, EMPTY_SHA256, Scope, sha256_hex};
use crate::secret::{SecretValue, SecretVersion};

fn config(yaml: &str) -> Result<Vec<MemberSettings>, String> {
    let config: Config = serde_yaml::from_str(yaml).map_err(|error| error.to_string())?;
    config.members(Path::new("/nowhere"))
}

fn settings(yaml: &str) -> Settings {
    let member = config(yaml).unwrap().remove(0);
    let Some(PerRequest::AwsSigV4(settings)) = member.per_request else { panic!("no work") };
    settings
}

fn secrets(values: &[&str]) -> Secrets {
    let version = |text: &&str| {
        Arc::new(SecretVersion {
            value: SecretValue::new(text.as_bytes().to_vec()),
            number: 1,
            read_at: Instant::now(),
            read_at_wall: SystemTime::now(),
            expires: None,
        })
    };
    Secrets::new(values.iter().map(version).collect())
}

const WHOLE: &str =
    r#"{"AccessKeyId":"AKIDOURS","SecretAccessKey":"CANARY-secret-of-ours","SessionToken":"our-session"}"#;

fn request(method: Method, url: &str, headers: &[(&str, &str)], body: Body) -> EgressRequest {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (host, path) = rest.split_at(rest.find('/').unwrap());
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let mut fields = HeaderMap::new();
    for (name, value) in headers {
        fields.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    EgressRequest::from(EgressParts {
        method,
        target: Target { scheme, host: Host::parse(host).unwrap(), port: scheme.default_port() },
        path_and_query: path.parse().unwrap(),
        headers: fields,
        body,
        upgrade: false,
        credential_choice: 0,
        tenant: None,
        leave: None,
        exchange: Arc::new(Exchange::new(None)),
    })
}

fn field<'a>(request: &'a EgressRequest, name: &str) -> &'a str {
    request.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[test]
fn what_names_no_keys_or_too_many_is_told() {
    for (yaml, part) in [
        ("region: eu-west-1", "names no keys"),
        ("{ access_key_id: 'plain:A' }", "`secret_access_key` is missing"),
        ("{ secret_access_key: env:S }", "`access_key_id` is missing"),
        ("{ keys: env:K, credentials: chain }", "three ways"),
        ("{ keys: env:K, region: EU West }", "`region`"),
        ("{ keys: env:K, max_buffer: 1GiB }", "`max_buffer`"),
        (
            "{ credentials: { container: { endpoint: 'http://203.0.113.5/x' } } }",
            "credentials.container.endpoint",
        ),
        (
            "{ credentials: { web_identity: { endpoint: 'http://sts.example.com' } } }",
            "web_identity.endpoint",
        ),
        ("{ credentials: { nobody: {} } }", "nobody"),
        ("{ keys: AKIDEXAMPLE }", "literal"),
    ] {
        let error = config(yaml).unwrap_err();
        assert!(error.contains(part), "{yaml}: {error}");
    }
    assert_eq!(config("{ keys: [env:NEW, env:OLD] }").unwrap().len(), 2, "an overlap has a member for each");
    let chain = config("{ credentials: { web_identity: { role_arn: 'arn:x', region: eu-west-1 } } }")
        .unwrap()
        .remove(0);
    assert_eq!(chain.tokens.len(), 1);
    assert!(chain.parts.is_empty(), "keys stand in no header");
}

#[tokio::test]
async fn bodies_are_declared_trusted_or_held_and_the_scope_is_the_hosts() {
    let hash = "ab".repeat(32);
    let ses = sha256_hex(b"Action=SendEmail");
    let whole = [WHOLE];
    // method, url, declared, body, then: payload, scope; or the fault.
    let table = [
        ("GET", "https://b.s3.eu-west-1.amazonaws.com/k", "", "", Ok((EMPTY_SHA256, "eu-west-1/s3"))),
        ("PUT", "https://b.s3.eu-west-1.amazonaws.com/k", &*hash, "body", Ok((&*hash, "eu-west-1/s3"))),
        ("PUT", "https://b.s3.amazonaws.com/k", "", "body", Ok(("UNSIGNED-PAYLOAD", "us-east-1/s3"))),
        (
            "PUT",
            "https://b.s3.amazonaws.com/k",
            "UNSIGNED-PAYLOAD",
            "body",
            Ok(("UNSIGNED-PAYLOAD", "us-east-1/s3")),
        ),
        (
            "PUT",
            "http://b.s3.amazonaws.com/k",
            "UNSIGNED-PAYLOAD",
            "Action=SendEmail",
            Ok((&*ses, "us-east-1/s3")),
        ),
        (
            "PUT",
            "https://b.s3.amazonaws.com/k",
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "body",
            Ok(("STREAMING-UNSIGNED-PAYLOAD-TRAILER", "us-east-1/s3")),
        ),
        (
            "PUT",
            "http://b.s3.amazonaws.com/k",
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "body",
            Err("Forbidden"),
        ),
        (
            "POST",
            "https://email.eu-west-1.amazonaws.com/",
            "",
            "Action=SendEmail",
            Ok((&*ses, "eu-west-1/ses")),
        ),
        (
            "POST",
            "https://email.eu-west-1.amazonaws.com/",
            "",
            "twenty bytes are much",
            Err("BodyTooLargeToRewrite"),
        ),
        ("POST", "https://sts.amazonaws.com/", "STREAMING-AWS4-HMAC-SHA256-EVENTS", "x", Err("Unfit")),
        ("PUT", "https://b.s3.amazonaws.com/k", "abc", "x", Err("Unfit")),
        ("GET", "https://b.s3express-use1-az5.us-east-1.amazonaws.com/k", "", "", Err("Unfit")),
        ("GET", "https://minio.example.com/k", "", "", Err("Credential")),
        ("GET", "https://b.s3.amazonaws.com/k?X-Amz-Signature=1", "", "", Err("Forbidden")),
    ];
    let settings = settings("{ keys: file:k, max_buffer: 20B }");
    for (method, url, declared, body, expected) in table {
        let headers = [("x-amz-content-sha256", declared)];
        let headers = if declared.is_empty() { &[][..] } else { &headers[..] };
        let asked = request(method.parse().unwrap(), url, headers, Body::full(body.to_owned()));
        let got = settings.rewrite(asked, &secrets(&whole)).await;
        match (got, expected) {
            (Ok(signed), Ok((payload, scope))) => {
                assert_eq!(field(&signed, "x-amz-content-sha256"), payload, "{url}");
                let authorization = field(&signed, "authorization");
                assert!(authorization.contains("Credential=AKIDOURS/"), "{authorization}");
                assert!(authorization.contains(&format!("/{scope}/aws4_request")), "{url}: {authorization}");
                assert_eq!(field(&signed, "x-amz-security-token"), "our-session");
                assert_eq!(
                    signed.into_parts().body.collect().await.unwrap().to_bytes(),
                    body,
                    "the body is the same"
                );
            }
            (Err(failure), Err(fault)) => {
                assert!(format!("{:?}", failure.fault).starts_with(fault), "{url}: {failure:?}")
            }
            (Ok(_), Err(fault)) => panic!("{url}: expected {fault}"),
            (Err(failure), Ok(_)) => panic!("{url}: {failure:?}"),
        }
    }
}

#[tokio::test]
async fn keys_come_from_their_parts_and_a_url_of_others_passes_without_them() {
    let parts = settings(
        "{ access_key_id: env:ID, secret_access_key: env:S, session_token: env:T, presigned: pass }",
    );
    let values = ["CANARY-secret-of-ours", "our-session", "AKIDPARTS"];
    let used: Vec<_> = Rewrite::secrets(&parts).iter().map(|used| used.reference.to_string()).collect();
    assert_eq!(used, ["env:S", "env:T", "env:ID"]);
    let get = |url| request(Method::GET, url, &[], Body::empty());
    let signed = parts.rewrite(get("https://sqs.eu-west-1.amazonaws.com/"), &secrets(&values)).await.unwrap();
    assert!(field(&signed, "authorization").contains("Credential=AKIDPARTS/"));
    let url = "https://b.s3.amazonaws.com/k?X-Amz-Signature=1&X-Amz-Credential=theirs";
    let passed = parts.rewrite(get(url), &secrets(&values)).await.unwrap();
    assert_eq!(passed.path_and_query, "/k?X-Amz-Signature=1&X-Amz-Credential=theirs");
    assert!(passed.headers.is_empty());
    let not_json =
        settings("{ keys: env:K }").rewrite(get("https://sts.amazonaws.com/"), &secrets(&["CANARY"])).await;
    let failure = not_json.err().unwrap();
    assert!(failure.fault == Fault::Credential && !format!("{failure:?}").contains("CANARY"));
}

#[test]
fn the_secret_and_the_session_are_looked_for_in_answers_and_the_id_is_not() {
    let whole = settings("{ keys: env:K }");
    let needles: Vec<String> = whole
        .needles(&secrets(&[WHOLE]))
        .iter()
        .map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
        .collect();
    assert_eq!(needles, ["CANARY-secret-of-ours", "our-session"]);
}

/// A field or parameter in which clients put signatures, in odd spellings.
fn signature_name() -> impl Strategy<Value = String> {
    let names = vec![
        "authorization",
        "x-amz-date",
        "x-amz-security-token",
        "x-amz-region-set",
        "x-amz-s3session-token",
    ];
    (prop::sample::select(names), any::<u32>()).prop_map(|(name, bits)| {
        let turn = |(at, byte): (usize, char)| match byte {
            '-' if bits >> (at % 32) & 1 == 1 => '_',
            other if bits >> (at % 32) & 1 == 1 => other.to_ascii_uppercase(),
            other => other,
        };
        name.chars().enumerate().map(turn).collect()
    })
}

proptest! {
    #[test]
    fn nothing_of_a_clients_signature_survives(
        fields in prop::collection::vec(signature_name(), 0..8),
        parameters in prop::collection::vec(prop::sample::select(vec![
            "X-Amz-Signature", "x-amz-credential", "X-AMZ-Date", "X-Amz-Algorithm", "X-Amz-%53ecurity-Token",
            "X-Amz-Expires", "X-Amz-SignedHeaders", "AWSAccessKeyId",
        ]), 0..8),
    ) {
        let settings = settings("{ keys: env:K, presigned: resign }");
        let query: Vec<String> = parameters.iter().map(|name| format!("{name}=THEIRS")).chain(["a=b".to_owned()]).collect();
        let url = format!("https://b.s3.amazonaws.com/k?{}", query.join("&"));
        let theirs: Vec<(&str, &str)> = fields.iter().map(|name| (name.as_str(), "THEIRS")).collect();
        let mut asked = request(Method::GET, &url, &theirs, Body::empty());
        Locations::new(settings.locations()).strip_headers(&mut asked.headers);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let signed = runtime.block_on(async { settings.rewrite(asked, &secrets(&[WHOLE])).await.unwrap() });
        prop_assert_eq!(&signed.path_and_query, "/k?a=b");
        prop_assert!(signed.headers.values().all(|value| value != HeaderValue::from_static("THEIRS")));
        for name in ["authorization", "x-amz-date", "x-amz-security-token"] {
            prop_assert_eq!(signed.headers.get_all(name).iter().count(), 1, "{}", name);
        }
    }
}

const DATE: &str = "20130524T000000Z";
const SEED: &str = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
const SEED_TRAILER: &str = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e";

fn resigned(pieces: Vec<Bytes>, chunks: Chunks, max: u64) -> Resigned {
    let keys =
        crate::secret::aws::keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None);
    let key = ChunkKey::new(&keys, &Scope { region: "us-east-1".into(), service: "s3".into() }, DATE);
    let seed = if chunks == Chunks::Trailer { SEED_TRAILER } else { SEED };
    let pieces = pieces.into_iter().map(|piece| Ok::<_, BodyError>(Frame::data(piece)));
    let body = Body::boxed(StreamBody::new(futures_util::stream::iter(pieces)));
    Resigned::new(body, key, seed.to_owned(), chunks, max)
}

/// A body as a client sends it, with its own signatures or with those given.
fn upload(signatures: [&str; 3], end: &str) -> String {
    let (first, second) = ("a".repeat(65536), "a".repeat(1024));
    let [one, two, three] = signatures;
    format!(
        "10000;chunk-signature={one}\r\n{first}\r\n400;chunk-signature={two}\r\n{second}\r\n0;chunk-signature={three}\r\n{end}"
    )
}

fn cut(text: &str, size: usize) -> Vec<Bytes> {
    text.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect()
}

#[tokio::test]
async fn the_published_uploads_come_out_however_they_are_cut() {
    let theirs = "f".repeat(64);
    let theirs = [&*theirs; 3];
    let ours = [
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ];
    let ours_trailer = [
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
    ];
    let trailer = |signature: &str, end: &str| {
        format!("x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:{signature}\r\n{end}")
    };
    let last = "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435";
    for size in [1, 7, 1000, 65536, 1 << 20] {
        for (chunks, before, after) in [
            (Chunks::Plain, upload(theirs, "\r\n"), upload(ours, "\r\n")),
            (
                Chunks::Trailer,
                upload(theirs, &trailer(theirs[0], "\r\n")),
                upload(ours_trailer, &trailer(last, "\r\n")),
            ),
            (
                Chunks::Trailer,
                upload(theirs, &trailer(theirs[0], "")),
                upload(ours_trailer, &trailer(last, "")),
            ),
        ] {
            let body = resigned(cut(&before, size), chunks, 65536);
            let got = body.collect().await.unwrap().to_bytes();
            assert_eq!(got.len(), before.len(), "the length stays");
            assert!(got == after.as_bytes(), "{chunks:?} in pieces of {size}");
        }
    }
}

#[tokio::test]
async fn a_broken_upload_is_never_completed() {
    let good = "f".repeat(64);
    let chunk = |size: &str, data: &str| format!("{size};chunk-signature={good}\r\n{data}\r\n");
    let end = format!("0;chunk-signature={good}\r\n");
    for (text, chunks, expected) in [
        (String::new(), Chunks::Plain, "ends before"),
        (chunk("3", "abc"), Chunks::Plain, "ends before"),
        (chunk("3", "abcd"), Chunks::Plain, "longer than its size"),
        (chunk("3", "ab"), Chunks::Plain, "CR LF"),
        (chunk("x", "abc"), Chunks::Plain, "begin with"),
        (chunk("-3", "abc"), Chunks::Plain, "begin with"),
        (chunk("11111111111111111", ""), Chunks::Plain, "begin with"),
        (chunk("65", ""), Chunks::Plain, "larger than"),
        ("3;chunk-signature=abc\r\nabc\r\n".to_owned(), Chunks::Plain, "begin with"),
        ("3\r\nabc\r\n".to_owned(), Chunks::Plain, "begin with"),
        ("3".repeat(2000), Chunks::Plain, "too long"),
        (end.clone(), Chunks::Plain, "ends before"),
        (format!("{end}\r\nmore"), Chunks::Plain, "behind its end"),
        (format!("{end}x-amz-checksum-crc32:AAA=\r\n\r\n"), Chunks::Plain, "of its kind"),
        (format!("{end}\r\n"), Chunks::Trailer, "no signature"),
        (format!("{end}x-amz-checksum-crc32:AAA=\r\n"), Chunks::Trailer, "ends before"),
        (format!("{end}x-amz-trailer-signature:abc\r\n\r\n"), Chunks::Trailer, "64"),
        (format!("{end}x-amz-trailer-signature:{good}\r\nb:c\r\n\r\n"), Chunks::Trailer, "of its kind"),
        (format!("{end}no colon\r\n\r\n"), Chunks::Trailer, "of its kind"),
    ] {
        let error = resigned(cut(&text, 5), chunks, 100).collect().await.err().map(|error| error.to_string());
        let error = error.unwrap_or_else(|| "completed".to_owned());
        assert!(error.contains(expected), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
    fn sizes_and_data_stay_whatever_they_are(sizes in prop::collection::vec(1_usize..300, 0..6), piece in 1_usize..500) {
        let signature = "0".repeat(64);
        let mut text = String::new();
        for size in sizes {
            text.push_str(&format!("{size:x};chunk-signature={signature}\r\n{}\r\n", "d".repeat(size)));
        }
        text.push_str(&format!("0;chunk-signature={signature}\r\n\r\n"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let got = runtime.block_on(resigned(cut(&text, piece), Chunks::Plain, 300).collect()).unwrap().to_bytes();
        let got = std::str::from_utf8(&got).unwrap();
        let bare = |text: &str| {
            text.split("\r\n").map(|line| line.split(';').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        prop_assert_eq!(got.len(), text.len());
        prop_assert_eq!(bare(got), bare(&text));
    }
}

#[tokio::test]
async fn several_trailers_are_signed_in_the_order_of_their_names() {
    let theirs = "f".repeat(64);
    let body = |lines: &str| {
        format!("0;chunk-signature={theirs}\r\n{lines}x-amz-trailer-signature:{theirs}\r\n\r\n")
    };
    let signature = |text: &str| {
        let (_, rest) = text.split_once("x-amz-trailer-signature:").unwrap();
        rest.trim_end().to_owned()
    };
    let mut seen = Vec::new();
    for lines in [
        "x-amz-checksum-crc32:AAAAAA==\r\nx-amz-meta-end:1\r\n",
        "x-amz-meta-end:1\r\nX-Amz-Checksum-Crc32: AAAAAA==\r\n",
    ] {
        let got = resigned(cut(&body(lines), 5), Chunks::Trailer, 100).collect().await.unwrap().to_bytes();
        let got = String::from_utf8(got.to_vec()).unwrap();
        assert!(got.contains(lines), "their own order and spelling stay: {got}");
        seen.push(signature(&got));
    }
    assert!(seen[0] == seen[1] && seen[0] != theirs, "{seen:?}");
    // What AWS signs: `AWS4-HMAC-SHA256-TRAILER`, with the sorted lines' hash.
    let keys =
        crate::secret::aws::keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None);
    let key = ChunkKey::new(&keys, &Scope { region: "us-east-1".into(), service: "s3".into() }, DATE);
    let last = key.chunk(SEED_TRAILER, EMPTY_SHA256);
    let lines = sha256_hex(b"x-amz-checksum-crc32:AAAAAA==\nx-amz-meta-end:1\n");
    assert_eq!(seen[0], key.trailer(&last, &lines));
}

/// A piece of a larger buffer, which counts how many of its like are alive.
struct Piece([u8; 4096], Arc<std::sync::atomic::AtomicUsize>);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.1.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_chunk_that_comes_byte_by_byte_keeps_no_buffers_alive() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    const SIZE: usize = 100_000;
    let alive = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let text = format!(
        "{SIZE:x};chunk-signature={0}\r\n{1}\r\n0;chunk-signature={0}\r\n\r\n",
        "0".repeat(64),
        "d".repeat(SIZE)
    );
    let (living, peak) = (alive.clone(), most.clone());
    // Each byte in a buffer of its own, as of a client that sends bytes one by one.
    let pieces = text.clone().into_bytes().into_iter().map(move |byte| {
        peak.fetch_max(living.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let mut bytes = [0; 4096];
        bytes[0] = byte;
        Ok::<_, BodyError>(Frame::data(Bytes::from_owner(Piece(bytes, living.clone())).slice(..1)))
    });
    let keys = crate::secret::aws::keys("AKID", "secret", None);
    let key = ChunkKey::new(&keys, &Scope { region: "us-east-1".into(), service: "s3".into() }, DATE);
    let body = Body::boxed(StreamBody::new(futures_util::stream::iter(pieces)));
    let mut body = Resigned::new(body, key, SEED.to_owned(), Chunks::Plain, 1 << 20);
    let mut frames = 0;
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        (frames, length) = (frames + 1, length + frame.unwrap().into_data().unwrap().len());
    }
    assert_eq!(length, text.len());
    assert!(most.load(Ordering::SeqCst) <= 2, "{most:?} buffers were alive at once");
    assert!(frames < 20, "{frames}: the chunk's bytes go out together");
}
