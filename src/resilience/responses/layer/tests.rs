use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use tower::service_fn;

use super::*;
use crate::message::body::BodyError;
use crate::resilience::mistake::Mistakes;
use crate::resilience::responses::config::{self, ResponsesConfig};
use crate::resilience::timeout::tests::{channel, request_with};
use crate::resilience::timeout::{AttemptTimeouts, Timeout};
use crate::resilience::verdict::{Class, Verdict};

const TABLE: &str = r#"
- when: { status: 429, header: { Stripe-Rate-Limited-Reason: "*-concurrency" } }
  is: concurrency
- when: { status: 429, header: { Stripe-Rate-Limited-Reason: "*" } }
  is: throttle
- when: { status: 200, json: { /ok: false, /error: ratelimited } }
  is: throttle
- when: { status: 200, json: { /errors/0/type: RATE_LIMITED } }
  is: throttle
- when: { status: 200, json: { /error/code: 104 } }
  is: quota
- when: { status: [403, 429], header: { X-RateLimit-Remaining: 0 } }
  is: throttle
- when: { status: [403, 429], json: { /message: "*secondary rate*" } }
  is: throttle
- when: { status: 429, json: { /error/code: insufficient_quota } }
  is: quota
- when: { status: 429, header: { Retry-After-Ms: "*" } }
  is: throttle
  wait: { header: retry-after-ms, format: delta_ms }
- when: { status: 529 }
  is: overload
"#;

fn table() -> Arc<Table> {
    let rows: ResponsesConfig = serde_yaml::from_str(TABLE).unwrap();
    let mut mistakes = Mistakes::default();
    let table = Table::new(config::compile(&rows, &mut mistakes), Arc::default());
    assert!(mistakes.into_vec().is_empty());
    Arc::new(table)
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        answer.headers_mut().append(*name, value.parse().unwrap());
    }
    answer
}

async fn text(body: Body) -> Bytes {
    body.collect().await.unwrap().to_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

#[tokio::test]
async fn each_providers_answers_are_what_they_mean() {
    let secs = |seconds| Some(Duration::from_secs(seconds));
    let table = table();
    for (status, headers, body, class, wait) in [
        (200, vec![], "", Class::Success, None),
        (304, vec![], "", Class::Success, None),
        (500, vec![], "", Class::Success, None),
        (404, vec![], "", Class::Final, None),
        (401, vec![], "", Class::Unauthorized, None),
        (429, vec![("retry-after", "7")], "", Class::Throttle, secs(7)),
        (
            429,
            vec![("retry-after", "Thu, 01 Jan 2026 00:00:09 GMT"), ("date", "Thu, 01 Jan 2026 00:00:00 GMT")],
            "",
            Class::Throttle,
            secs(9),
        ),
        (
            429,
            vec![("retry-after-ms", "1500"), ("retry-after", "9")],
            "",
            Class::Throttle,
            Some(Duration::from_millis(1500)),
        ),
        (429, vec![("retry-after-ms", "-1"), ("retry-after", "9")], "", Class::Throttle, secs(9)),
        (429, vec![("retry-after", "NaN")], "", Class::Throttle, None),
        (503, vec![("retry-after", "3")], "", Class::Unavailable, secs(3)),
        (529, vec![], "", Class::Overload, None),
        (429, vec![("stripe-rate-limited-reason", "global-concurrency")], "", Class::Concurrency, None),
        (429, vec![("stripe-rate-limited-reason", "global-rate")], "", Class::Throttle, None),
        (403, vec![("x-ratelimit-remaining", "0")], "", Class::Throttle, None),
        (
            403,
            vec![("x-ratelimit-remaining", "10"), JSON],
            r#"{"message":"You have exceeded a secondary rate limit."}"#,
            Class::Throttle,
            None,
        ),
        (403, vec![JSON], r#"{"message":"Resource not accessible"}"#, Class::Final, None),
        (429, vec![JSON], r#"{"error":{"code":"insufficient_quota"}}"#, Class::Quota, None),
        (
            429,
            vec![("content-type", "text/html")],
            r#"{"error":{"code":"insufficient_quota"}}"#,
            Class::Throttle,
            None,
        ),
        (200, vec![JSON], r#"{"ok":false,"error":"ratelimited"}"#, Class::Throttle, None),
        (200, vec![JSON], r#"{"ok":true}"#, Class::Success, None),
        (200, vec![JSON], r#"{"error":{"code":104.0}}"#, Class::Quota, None),
        (200, vec![JSON], "{not json", Class::Success, None),
        (
            200,
            vec![("content-type", "application/graphql-response+json")],
            r#"{"errors":[{"type":"RATE_LIMITED"}]}"#,
            Class::Throttle,
            None,
        ),
        (
            200,
            vec![("content-type", "text/event-stream")],
            r#"{"ok":false,"error":"ratelimited"}"#,
            Class::Success,
            None,
        ),
    ] {
        let headers_given = headers.clone();
        let service = service_fn(move |_: EgressRequest| {
            let answer = answer(status, &headers_given, Body::full(body));
            async move { Ok::<_, Failure>(answer) }
        });
        let answer =
            Judge::new(service, table.clone()).call(request_with(Body::empty(), None)).await.unwrap();
        let verdict = Verdict::of(&answer);
        assert_eq!((verdict.class, verdict.wait), (class, wait), "{status} {headers:?} {body}");
        assert_eq!(verdict.acted, class.acted());
        assert_eq!(answer.body().exact_length(), Some(body.len() as u64));
        assert_eq!(text(answer.into_body()).await, body);
    }
    assert_eq!(table.counts().status().absurd_waits, 2);
}

#[tokio::test]
async fn gzip_is_decoded_for_the_look_and_handed_on_as_it_came() {
    let table = table();
    let throttle = gzip(br#"{"ok":false,"error":"ratelimited"}"#);
    let bomb =
        gzip(format!(r#"{{"ok":false,"error":"ratelimited","x":"{}"}}"#, "0".repeat(1 << 20)).as_bytes());
    assert!(bomb.len() < look::MOST);
    let cut = throttle[..throttle.len() - 9].to_vec();
    for (coding, body, class) in [
        ("gzip", throttle.clone(), Class::Throttle),
        ("gzip", bomb, Class::Success),
        ("gzip", cut, Class::Success),
        ("br", throttle.clone(), Class::Success),
    ] {
        let sent = body.clone();
        let service = service_fn(move |_: EgressRequest| {
            let answer = answer(200, &[JSON, ("content-encoding", coding)], Body::full(sent.clone()));
            async move { Ok::<_, Failure>(answer) }
        });
        let answer =
            Judge::new(service, table.clone()).call(request_with(Body::empty(), None)).await.unwrap();
        assert_eq!(Verdict::of(&answer).class, class);
        assert_eq!(text(answer.into_body()).await, body);
    }
}

/// Sends pieces as the body of a 200 with JSON, each after a pause, and returns the answer as judged.
async fn streamed(pieces: Vec<Bytes>, pause: Duration) -> Response<Body> {
    let body = Arc::new(Mutex::new(Some(pieces)));
    let service = service_fn(move |_: EgressRequest| {
        let pieces = body.lock().unwrap().take().unwrap();
        let (sender, body) = channel();
        tokio::spawn(async move {
            for piece in pieces {
                tokio::time::sleep(pause).await;
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        async move { Ok::<_, Failure>(answer(200, &[JSON], body)) }
    });
    let timeouts =
        AttemptTimeouts { response: Duration::from_secs(60), idle: Duration::from_secs(3), total: None };
    let service = Timeout::new(service, timeouts);
    Judge::new(service, table()).call(request_with(Body::empty(), None)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn pieces_are_put_together_and_a_long_body_is_streamed_on() {
    let answer = streamed(
        vec![Bytes::from_static(br#"{"ok":false,"#), Bytes::from_static(br#""error":"ratelimited"}"#)],
        Duration::from_secs(1),
    )
    .await;
    assert_eq!(Verdict::of(&answer).class, Class::Throttle);
    assert_eq!(text(answer.into_body()).await, r#"{"ok":false,"error":"ratelimited"}"#);

    let piece = Bytes::from(vec![b'{'; 40 * 1024]);
    let answer = streamed(vec![piece.clone(); 4], Duration::from_millis(1)).await;
    assert_eq!(Verdict::of(&answer).class, Class::Success);
    assert_eq!(text(answer.into_body()).await.len(), 160 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_handed_on_and_a_stuck_one_breaks_in_its_idle_time() {
    let started = tokio::time::Instant::now();
    let answer = streamed(vec![Bytes::from_static(b"{"); 10], Duration::from_secs(2)).await;
    assert_eq!(started.elapsed(), look::LOOK_FOR);
    assert_eq!(text(answer.into_body()).await, "{{{{{{{{{{");

    let started = tokio::time::Instant::now();
    let answer = streamed(vec![Bytes::from_static(b"{"); 2], Duration::from_secs(4)).await;
    assert_eq!(started.elapsed(), Duration::from_secs(3));
    assert!(matches!(answer.into_body().frame().await, Some(Err(BodyError::UpstreamIdle))));
}

/// A list that streams its elements is none of the maps that the rows read, which shows in its first byte.
#[tokio::test(start_paused = true)]
async fn where_rows_read_maps_a_list_is_handed_on_with_its_first_piece() {
    let started = tokio::time::Instant::now();
    let pieces = [" ", "\n[{},", "{}]"].map(|piece| Bytes::from_static(piece.as_bytes()));
    let answer = streamed(pieces.to_vec(), Duration::from_secs(1)).await;
    assert_eq!(started.elapsed(), Duration::from_secs(2));
    assert_eq!(Verdict::of(&answer).class, Class::Success);
    assert_eq!(text(answer.into_body()).await, " \n[{},{}]");
}

#[tokio::test]
async fn what_is_accepted_is_narrowed_only_where_a_row_looks() {
    let rows: ResponsesConfig = serde_yaml::from_str("- { when: { status: 403 }, is: throttle }").unwrap();
    let plain = Arc::new(Table::new(config::compile(&rows, &mut Mistakes::default()), Arc::default()));
    for (table, sent) in [(table(), "gzip"), (plain, "gzip, br")] {
        let seen = Arc::new(Mutex::new(HeaderMap::new()));
        let log = seen.clone();
        let service = service_fn(move |request: EgressRequest| {
            *log.lock().unwrap() = request.into_parts().headers;
            async { Ok::<_, Failure>(Response::new(Body::empty())) }
        });
        let mut request = request_with(Body::empty(), None);
        request.headers.insert("accept-encoding", "gzip, br".parse().unwrap());
        Judge::new(service, table).call(request).await.unwrap();
        assert_eq!(seen.lock().unwrap()["accept-encoding"], sent);
    }
}
