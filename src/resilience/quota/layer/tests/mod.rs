mod recheck;
mod wide;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use tokio::task::yield_now;
use tokio::time::{advance, sleep, timeout};
use tower::service_fn;

use super::*;
use crate::message::failure::Fault;
use crate::resilience::mistake::Mistakes;
use crate::resilience::mode::Mode;
use crate::resilience::pointer::Pointer;
use crate::resilience::quota::config::{FieldSet, LeftField, QuotaConfig, ReserveConfig, ResetField};
use crate::resilience::quota::fields;
use crate::resilience::quota::key_state::Answer;
use crate::resilience::quota::{MOST_KEYS, OnThrottle};
use crate::resilience::responses::format::Format;
use crate::resilience::responses::{Judge, Table};
use crate::resilience::timeout::tests::request_with;
use crate::resilience::verdict::Verdict;

type Fields = Vec<(&'static str, String)>;
type Script = Arc<Mutex<VecDeque<(u16, Fields)>>>;
type Seen = Arc<Mutex<Vec<String>>>;

const SECOND: Duration = Duration::from_secs(1);

/// An origin that answers at once: what is in the script, then plain 200s. Records the paths that it saw.
fn origin(script: &[(u16, Fields)]) -> (impl Inner, Seen) {
    let script: Script = Arc::new(Mutex::new(script.iter().cloned().collect()));
    let seen = Seen::default();
    let log = seen.clone();
    let service = service_fn(move |request: EgressRequest| {
        log.lock().unwrap().push(request.path_and_query.to_string());
        let (status, fields) = script.lock().unwrap().pop_front().unwrap_or((200, vec![]));
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in fields {
            answer
                .headers_mut()
                .insert(HeaderName::from_static(name), HeaderValue::from_str(&value).unwrap());
        }
        async move { Ok::<_, Failure>(answer) }
    });
    (Judge::new(service, Arc::new(Table::default())), seen)
}

fn told(remaining: u64, limit: u64, reset: &str) -> Fields {
    let field = |name, value: String| (name, value);
    vec![
        field("ratelimit-remaining", remaining.to_string()),
        field("ratelimit-limit", limit.to_string()),
        field("ratelimit-reset", reset.to_owned()),
    ]
}

fn wait(seconds: &str) -> Fields {
    vec![("retry-after", seconds.to_owned())]
}

fn layer<S: Inner>(inner: S, settings: QuotaSettings) -> (QuotaLayer<S>, Arc<Quota>) {
    let quota = Arc::new(Quota::new("p"));
    (QuotaLayer::new(inner, quota.clone(), settings, source(), None, false), quota)
}

fn source() -> KeySource {
    KeySource { route: "r".into(), credential: ["env:KEY".into()].into() }
}

fn request(path: &str) -> EgressRequest {
    let mut request = request_with(Body::empty(), None);
    request.path_and_query = path.parse().unwrap();
    request
}

fn patient() -> QuotaSettings {
    QuotaSettings { max_wait: Duration::from_secs(600), ..QuotaSettings::default() }
}

#[tokio::test(start_paused = true)]
async fn what_is_used_up_is_held_until_the_reset() {
    let (origin, seen) = origin(&[(200, told(0, 10, "7"))]);
    let (mut layer, quota) = layer(origin, patient());
    layer.call(request("/1")).await.unwrap();
    let started = Instant::now();
    let second = request("/2");
    let exchange = second.exchange.clone();
    layer.call(second).await.unwrap();
    // Whole seconds may have been rounded down.
    assert_eq!(started.elapsed(), 8 * SECOND);
    assert_eq!(exchange.facts().queue, Some(8 * SECOND));
    assert_eq!(seen.lock().unwrap().len(), 2);
    let status = quota.status();
    assert_eq!((status.held, status.waited, status.refused, status.throttled), (1, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_last_ones_are_not_given_away_twice() {
    let (sender, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let service = service_fn(move |request: EgressRequest| {
        let (answer, answered) = tokio::sync::oneshot::channel::<u64>();
        sender.send(answer).unwrap();
        async move {
            drop(request);
            let left = answered.await.unwrap();
            let mut answer = Response::new(Body::empty());
            for (name, value) in told(left, 10, "60") {
                answer.headers_mut().insert(HeaderName::from_static(name), value.parse().unwrap());
            }
            Ok::<_, Failure>(answer)
        }
    });
    let (layer, _) = layer(service, patient());
    let mut tasks = tokio::task::JoinSet::new();
    let mut send = || {
        let mut layer = layer.clone();
        tasks.spawn(async move { layer.call(request("/")).await.map(drop) });
    };
    send();
    asked.recv().await.unwrap().send(3).unwrap();
    yield_now().await;
    (0..10).for_each(|_| send());
    sleep(SECOND).await;
    let mut answers = vec![];
    while let Ok(answer) = asked.try_recv() {
        answers.push(answer);
    }
    assert_eq!(answers.len(), 3, "three are left, ten ask");
    // They come back in another order than they were counted in; nobody else may pass.
    for (answer, left) in answers.into_iter().rev().zip([0, 2, 1]) {
        answer.send(left).unwrap();
        sleep(SECOND).await;
    }
    assert!(asked.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_reserve_is_kept() {
    for (reserve, left) in [(ReserveConfig::Count(3), 3), (ReserveConfig::Share("30%".parse().unwrap()), 3)] {
        let (origin, _) = origin(&[(200, told(left + 1, 10, "60")), (200, told(left, 10, "60"))]);
        let settings = QuotaSettings { reserve, on_excess: QuotaExcess::Reject, ..patient() };
        let (mut layer, _) = layer(origin, settings);
        for _ in 0..2 {
            layer.call(request("/")).await.unwrap();
        }
        let failure = layer.call(request("/")).await.err().unwrap();
        assert_eq!((failure.fault, failure.retry_after), (Fault::QuotaHeld, Some(61 * SECOND)));
        let limit = failure.limit.unwrap();
        assert_eq!((limit.quota, limit.remaining, limit.reset), (10, 0, 61 * SECOND));
    }
}

#[tokio::test(start_paused = true)]
async fn a_reserve_above_the_limit_holds_nobody_for_ever() {
    let (origin, _) = origin(&[(200, told(10, 10, "60"))]);
    let settings = QuotaSettings { reserve: ReserveConfig::Count(50), ..patient() };
    let (mut layer, quota) = layer(origin, settings);
    for _ in 0..2 {
        layer.call(request("/")).await.unwrap();
    }
    assert_eq!(quota.status().absurd, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_pauses_the_key_and_one_asks_first() {
    let (origin, seen) = origin(&[(429, wait("10"))]);
    let slow = service_fn(move |request: EgressRequest| {
        let mut origin = origin.clone();
        async move {
            let answer = origin.call(request).await;
            sleep(SECOND / 2).await;
            answer
        }
    });
    let (mut layer, quota) = layer(slow, patient());
    let told: Arc<Mutex<Vec<(String, Duration)>>> = Arc::default();
    let log = told.clone();
    let on_throttle: OnThrottle =
        Arc::new(move |name, pause| log.lock().unwrap().push((name.to_owned(), pause)));
    quota.on_throttle(on_throttle);
    assert_eq!(layer.call(request("/0")).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(*told.lock().unwrap(), [("p|env:KEY|0000000000000000|api.example".to_owned(), 10 * SECOND)]);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=4 {
        let mut layer = layer.clone();
        tasks.spawn(async move { layer.call(request(&format!("/{number}"))).await.map(drop) });
        yield_now().await;
    }
    sleep(Duration::from_millis(9_999)).await;
    assert_eq!(seen.lock().unwrap().len(), 1);
    assert_eq!(quota.status().waiting, 4);
    sleep(Duration::from_millis(101)).await;
    assert_eq!(*seen.lock().unwrap(), ["/0", "/1"], "one asks");
    sleep(SECOND).await;
    assert_eq!(*seen.lock().unwrap(), ["/0", "/1", "/2", "/3", "/4"], "first in, first out");
}

#[tokio::test(start_paused = true)]
async fn refusals_without_a_wait_double_the_pause() {
    let (origin, _) = origin(&vec![(429, vec![]); 9]);
    let (mut layer, _) = layer(origin, patient());
    let mut waited = vec![];
    for _ in 0..9 {
        let before = Instant::now();
        layer.call(request("/")).await.unwrap();
        waited.push(before.elapsed().as_secs());
    }
    assert_eq!(waited, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
}

#[tokio::test(start_paused = true)]
async fn absurd_waits_and_resets_hold_nobody_for_ever() {
    let hour = Duration::from_secs(3600);
    let (origin, _) =
        origin(&[(429, wait("99999999999999999999")), (200, told(0, 10, "1767225600")), (200, vec![])]);
    let settings = QuotaSettings { max_wait: 2 * hour, ..QuotaSettings::default() };
    let (mut layer, quota) = layer(origin, settings);
    layer.call(request("/")).await.unwrap();
    let started = Instant::now();
    layer.call(request("/")).await.unwrap();
    assert_eq!(started.elapsed(), hour, "a wait is cut");
    layer.call(request("/")).await.unwrap();
    assert_eq!(started.elapsed(), hour, "a reset beyond is ignored");
    assert_eq!(quota.status().absurd, 2);
}

#[tokio::test(start_paused = true)]
async fn what_certainly_comes_too_late_is_refused_at_once() {
    let (origin, seen) = origin(&[(429, wait("30"))]);
    let (mut layer, quota) = layer(origin, QuotaSettings::default());
    layer.call(request("/")).await.unwrap();
    let started = Instant::now();
    let failure = layer.call(request("/")).await.err().unwrap();
    assert_eq!((failure.fault, failure.retry_after), (Fault::QuotaHeld, Some(30 * SECOND)));
    assert_eq!(started.elapsed(), Duration::ZERO);
    // The deadline is nearer than `max_wait`.
    advance(27 * SECOND).await;
    let hurried = request_with(Body::empty(), Some(Instant::now() + 2 * SECOND));
    let failure = layer.call(hurried).await.err().unwrap();
    assert_eq!(failure.retry_after, Some(3 * SECOND));
    layer.call(request("/")).await.unwrap();
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert_eq!(quota.status().refused, 2);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_who_leaves_makes_room() {
    let (origin, seen) = origin(&[(429, wait("4"))]);
    let settings = QuotaSettings { max_queue: 2, ..QuotaSettings::default() };
    let (mut layer, quota) = layer(origin, settings);
    layer.call(request("/0")).await.unwrap();
    let spawn = |path: &'static str| {
        let mut layer = layer.clone();
        tokio::spawn(async move { layer.call(request(path)).await.map(drop) })
    };
    let (first, second) = (spawn("/1"), spawn("/2"));
    sleep(SECOND).await;
    let failure = layer.clone().call(request("/3")).await.err().unwrap();
    assert_eq!((failure.fault, failure.retry_after), (Fault::QueueFull, Some(3 * SECOND)));
    first.abort();
    yield_now().await;
    assert_eq!(quota.status().waiting, 1);
    let third = spawn("/4");
    second.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
    assert_eq!(*seen.lock().unwrap(), ["/0", "/2", "/4"]);
    assert_eq!(quota.status().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn who_is_dropped_while_asking_gives_the_place_back() {
    let stuck = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (origin, _) = origin(&[(429, wait("1"))]);
    let flag = stuck.clone();
    let service = service_fn(move |request: EgressRequest| {
        let (mut origin, stuck) = (origin.clone(), flag.swap(false, std::sync::atomic::Ordering::Relaxed));
        async move {
            if stuck {
                std::future::pending::<()>().await;
            }
            origin.call(request).await
        }
    });
    let (mut layer, _) = layer(service, patient());
    layer.call(request("/")).await.unwrap();
    stuck.store(true, std::sync::atomic::Ordering::Relaxed);
    sleep(SECOND).await;
    let asks = timeout(SECOND / 10, layer.call(request("/"))).await;
    assert!(asks.is_err());
    let started = Instant::now();
    layer.call(request("/")).await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_counts_and_lets_pass() {
    let (origin, seen) = origin(&[(429, wait("30"))]);
    let quota = Arc::new(Quota::new("p"));
    let mut layer = QuotaLayer::new(
        origin,
        quota.clone(),
        QuotaSettings::default(),
        source(),
        Some("quota".into()),
        false,
    );
    layer.call(request("/")).await.unwrap();
    let shadowed = request("/");
    let exchange = shadowed.exchange.clone();
    layer.call(shadowed).await.unwrap();
    assert_eq!(exchange.facts().shadowed, [std::sync::Arc::<str>::from("quota")]);
    assert_eq!(seen.lock().unwrap().len(), 2);
    let status = quota.status();
    assert_eq!((status.shadowed, status.refused, status.waited), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn credentials_tenants_and_hosts_are_apart() {
    let (origin, seen) = origin(&[(429, wait("30"))]);
    let quota = Arc::new(Quota::new("p"));
    let source = KeySource { credential: ["env:A".into(), "env:B".into()].into(), ..source() };
    let mut layer = QuotaLayer::new(origin, quota, QuotaSettings::default(), source, None, false);
    layer.call(request("/")).await.unwrap();
    let mut other = request("/");
    other.credential_choice = 1;
    layer.call(other).await.unwrap();
    let mut other = request("/");
    other.tenant = Some("acme".into());
    layer.call(other).await.unwrap();
    let mut other = request("/");
    other.target.host = crate::message::target::Host::parse("other.example").unwrap();
    layer.call(other).await.unwrap();
    assert!(layer.call(request("/")).await.is_err());
    assert_eq!(seen.lock().unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_provider_names_the_bucket() {
    let field = HeaderName::from_static("x-ratelimit-resource");
    let named = |bucket: &str, left| {
        let mut fields = told(left, 30, "30");
        fields.push(("x-ratelimit-resource", bucket.to_owned()));
        (200, fields)
    };
    let (origin, _) = origin(&[named("core", 20), named("search", 0)]);
    let settings = QuotaSettings { bucket: Bucket::Header(field), ..QuotaSettings::default() };
    let (mut layer, quota) = layer(origin, settings);
    layer.call(request("/repos/a")).await.unwrap();
    layer.call(request("/search/code")).await.unwrap();
    assert!(layer.call(request("/search/code?q=1")).await.is_err(), "this bucket is used up");
    layer.call(request("/repos/a/issues")).await.unwrap();
    let buckets: Vec<_> = quota.status().list.into_iter().map(|key| key.bucket).collect();
    assert_eq!(buckets[..2], ["api.example/bucket:search", "api.example/bucket:core"]);
}

#[tokio::test(start_paused = true)]
async fn the_request_names_the_bucket_and_what_has_no_name_shares_one() {
    let (origin, seen) = origin(&[(429, wait("30")), (200, vec![]), (429, wait("30"))]);
    let bucket = Bucket::Field(Pointer::parse("/model").unwrap());
    let settings = QuotaSettings { bucket, on_excess: QuotaExcess::Reject, ..QuotaSettings::default() };
    let (layer, quota) = layer(origin, settings);
    let ask = |model: Option<&str>| {
        let (mut layer, request) = (layer.clone(), request("/v1/chat"));
        if let Some(model) = model {
            request.exchange.set_bucket(model.into());
        }
        async move { layer.call(request).await.is_ok() }
    };
    for (model, passes) in [
        (Some("a"), true),
        (Some("a"), false),
        (Some("b"), true),
        (None, true),
        (None, false),
        (Some("b"), true),
    ] {
        assert_eq!(ask(model).await, passes, "{model:?}");
    }
    assert_eq!(seen.lock().unwrap().len(), 4);
    let status = quota.status();
    let paused: Vec<_> = status.list.iter().filter(|key| key.paused_seconds.is_some()).collect();
    let mut buckets: Vec<_> = paused.iter().map(|key| key.bucket.as_str()).collect();
    buckets.sort_unstable();
    assert_eq!(buckets, ["api.example", "api.example/field:a"]);
}

#[tokio::test(start_paused = true)]
async fn templates_name_the_bucket_and_what_fits_none_its_beginning() {
    let mut mistakes = Mistakes::default();
    let config: QuotaConfig =
        serde_yaml::from_str("bucket: { paths: [/users/*, '/users/*/{part}/**'] }").unwrap();
    let settings = QuotaSettings { on_excess: QuotaExcess::Reject, ..config.compile(&mut mistakes) };
    assert!(mistakes.into_vec().is_empty());
    let throttled = (429, wait("30"));
    let (origin, _) = origin(&[throttled.clone(), throttled.clone(), throttled, (200, vec![])]);
    let (mut layer, _) = layer(origin, settings);
    let mut ask = async |method: http::Method, path: &str| {
        let mut request = request(path);
        request.method = method;
        layer.call(request).await.is_ok()
    };
    let (get, put) = (http::Method::GET, http::Method::PUT);
    for (method, path, passes) in [
        (&get, "/users/1/mails/7", true),
        (&get, "/users/2/mails", false),
        (&get, "/users/2", true),
        (&get, "/users/3/", false),
        (&get, "/a/b/c/d", true),
        (&get, "/a/b/c/e", false),
        (&get, "/a/b/d", true),
        (&put, "/users/2/mails", true),
    ] {
        assert_eq!(ask(method.clone(), path).await, passes, "{method} {path}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_settings_keep_what_was_learned() {
    let (origin, _) = origin(&[(429, wait("30"))]);
    let (mut before, quota) = layer(origin.clone(), QuotaSettings::default());
    before.call(request("/")).await.unwrap();
    let edited =
        QuotaSettings { max_wait: SECOND, reserve: ReserveConfig::Count(1), ..QuotaSettings::default() };
    let mut after = QuotaLayer::new(origin, quota, edited, source(), None, false);
    assert_eq!(after.call(request("/")).await.err().unwrap().retry_after, Some(30 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn hints_of_other_instances_pause_known_and_unknown_keys() {
    let (origin, seen) = origin(&[]);
    let (mut layer, quota) = layer(origin, patient());
    let name = "p|env:KEY|0000000000000000|api.example";
    quota.pause(name, 5 * SECOND);
    let started = Instant::now();
    layer.call(request("/")).await.unwrap();
    assert_eq!(started.elapsed(), 5 * SECOND, "not known before");
    quota.pause(name, 7 * SECOND);
    quota.pause("p|env:OTHER|0000000000000000|api.example", 70 * SECOND);
    quota.pause("", 70 * SECOND);
    layer.call(request("/")).await.unwrap();
    assert_eq!(started.elapsed(), 12 * SECOND);
    assert_eq!(seen.lock().unwrap().len(), 2);
    // One that is too long is cut.
    quota.pause(name, Duration::MAX);
    let waiting = timeout(Duration::from_secs(590), layer.call(request("/"))).await;
    assert_eq!(waiting.unwrap().err().unwrap().retry_after, Some(Duration::from_secs(3600)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_learned_where_the_policy_says_so() {
    let (origin, seen) = origin(&[(429, wait("30"))]);
    let (mut layer, quota) = layer(origin, QuotaSettings { learn: false, ..QuotaSettings::default() });
    for _ in 0..3 {
        layer.call(request("/")).await.unwrap();
    }
    assert_eq!(seen.lock().unwrap().len(), 3);
    assert_eq!(quota.status().keys, 0);
}

#[tokio::test(start_paused = true)]
async fn keys_are_bounded_and_swept() {
    let (origin, _) = origin(&vec![(200, told(5, 10, "60")); 2_000]);
    let (mut layer, quota) = layer(origin, QuotaSettings::default());
    for tenant in 0..2_000 {
        let mut request = request("/");
        request.tenant = Some(tenant.to_string().into());
        layer.call(request).await.unwrap();
    }
    let status = quota.status();
    assert_eq!((status.keys, status.list.len()), (2_000, 50));
    advance(62 * SECOND).await;
    assert_eq!(quota.status().keys, 0, "nothing is known any more");
    // Keys of which nothing is known go as others come.
    for tenant in 0..20_000 {
        let mut request = request("/");
        request.tenant = Some(tenant.to_string().into());
        layer.call(request).await.unwrap();
    }
    assert_eq!(quota.status().overflow, 0);
    assert_eq!(quota.status().keys, 0);
}

#[tokio::test(start_paused = true)]
async fn where_all_keys_are_known_the_least_worth_goes() {
    let quota = Quota::new("p");
    let entry = |tenant: u64| {
        let names = || Names { credential: "".into(), tenant, bucket: "".into() };
        quota.entry(Key::of(&[&tenant.to_string()]), Instant::now(), names)
    };
    for tenant in 0..100 {
        entry(tenant).pause(Instant::now(), 60 * SECOND);
    }
    for tenant in 100..200_000 {
        let entry = entry(tenant);
        let pass = entry.force(Instant::now());
        let readings = fields::Readings {
            list: vec![fields::Reading {
                name: "m",
                remaining: 5,
                limit: Some(10),
                reset: crate::resilience::responses::format::Span { least: 60 * SECOND, step: SECOND },
            }],
            absurd: 0,
        };
        let answer = Answer { verdict: Verdict::SUCCESS, readings, max_hold: 60 * SECOND };
        entry.answered(Instant::now(), pass, &answer, ReserveConfig::Count(0));
    }
    let status = quota.status();
    assert!(status.keys <= MOST_KEYS && status.keys > MOST_KEYS / 2, "{}", status.keys);
    assert_eq!(status.overflow, 0);
    assert!(status.list.iter().all(|key| key.paused_seconds.is_some()), "those that are held stay");
}

#[test]
fn all_keys_together_stay_below_32_mebibytes() {
    // The entry with its counts, one meter with its name, the names, and the place in a map that is half empty; 16 bytes
    // for each allocation.
    let place = 2 * (size_of::<Key>() + size_of::<Arc<Entry>>() + 1);
    let names = 2 * (16 + 64);
    let meter = crate::resilience::quota::METER_SIZE + 16 + 16 + 32;
    let one = size_of::<Entry>() + 16 + 16 + meter + names + place;
    // Several meters and a learned rate make it twice as much.
    assert!(MOST_KEYS * one * 2 < 32 * 1024 * 1024, "{one} bytes for each key");
}

#[tokio::test(start_paused = true)]
async fn where_only_the_use_is_told_one_asks_now_and_then() {
    let used = |text: &str| (200, vec![("x-info", text.to_owned())]);
    let script =
        ["use=4999/5000; app=1/9", "use=5000/5000", "use=5001/5000", "use=4000/5000", "use=4001/5000"];
    let (origin, seen) = origin(&script.map(used));
    let fields = vec![FieldSet {
        left: LeftField::Used { name: HeaderName::from_static("x-info"), of: Some("use".into()) },
        reset: ResetField::AskAfter(300 * SECOND),
    }];
    let (mut layer, quota) = layer(origin, QuotaSettings { fields, max_wait: 900 * SECOND, ..patient() });
    let started = Instant::now();
    for (calls, after) in [(1, 0), (2, 0), (3, 300), (4, 600), (5, 600)] {
        layer.call(request("/")).await.unwrap();
        assert_eq!((seen.lock().unwrap().len(), started.elapsed()), (calls, after * SECOND));
    }
    let meter = quota.status().list[0].meters[0].clone();
    assert_eq!((meter.name.as_str(), meter.remaining, meter.limit), ("use", Some(999), Some(5000)));
}

#[tokio::test(start_paused = true)]
async fn fields_of_the_policy_are_read() {
    let fields = vec![FieldSet {
        left: LeftField::Remaining { name: HeaderName::from_static("x-left"), limit: None },
        reset: ResetField::Told(HeaderName::from_static("x-reset"), Format::Duration),
    }];
    let (origin, _) = origin(&[(200, vec![("x-left", "0".to_owned()), ("x-reset", "1m2.5s".to_owned())])]);
    let (mut layer, _) = layer(origin, QuotaSettings { fields, ..patient() });
    layer.call(request("/")).await.unwrap();
    let started = Instant::now();
    layer.call(request("/")).await.unwrap();
    let waited = started.elapsed();
    assert!(waited >= Duration::from_millis(62_500) && waited <= Duration::from_millis(62_601), "{waited:?}");
}
