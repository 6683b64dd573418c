//! Origins as they count, in paused time: ten times the allowed load, and after the first window no refusal.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Service, service_fn};

use super::config::{FieldSet, LeftField, QuotaSettings, ResetField};
use super::{Quota, QuotaLayer};
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::resilience::key::KeySource;
use crate::resilience::responses::format::Format;
use crate::resilience::responses::{Judge, Table};
use crate::resilience::timeout::tests::request_with;

/// How an origin counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Counting {
    /// Windows one after the other; the first began so long before the first request.
    Fixed { begun: f64 },
    /// No window of the length holds more.
    Sliding,
    /// A bucket that fills all the time and is full in one window.
    Bucket,
}

/// What an origin tells.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    GitHub,
    OpenAi,
    Ietf,
    IetfTriple,
    Anthropic,
    /// 429 with `Retry-After`.
    Slack,
    /// 429 alone.
    Stripe,
}

struct Origin {
    counting: Counting,
    style: Style,
    limit: usize,
    window: Duration,
    started: Instant,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    /// Accepted requests that count now.
    counted: VecDeque<Instant>,
    window: u128,
    level: f64,
    level_at: Option<Instant>,
    accepted: Vec<Duration>,
    refused: Vec<Duration>,
}

/// What the origin knows after a request: accepted, left, until the reset.
struct Count {
    accepted: bool,
    left: usize,
    reset: Duration,
}

impl Origin {
    fn take(&self, now: Instant) -> Count {
        let mut log = self.log.lock().unwrap();
        let count = match self.counting {
            Counting::Fixed { begun } => self.fixed(&mut log, now, Duration::from_secs_f64(begun)),
            Counting::Sliding => self.sliding(&mut log, now),
            Counting::Bucket => self.bucket(&mut log, now),
        };
        let at = now - self.started;
        if count.accepted {
            log.accepted.push(at)
        } else {
            log.refused.push(at)
        }
        count
    }

    fn fixed(&self, log: &mut Log, now: Instant, begun: Duration) -> Count {
        let since = now - self.started + begun;
        let window = since.as_nanos() / self.window.as_nanos();
        if window != log.window {
            log.window = window;
            log.counted.clear();
        }
        let accepted = log.counted.len() < self.limit;
        if accepted {
            log.counted.push_back(now);
        }
        let end = self.window * u32::try_from(window + 1).unwrap();
        Count { accepted, left: self.limit - log.counted.len(), reset: end - since }
    }

    /// The reset is when the next one comes back.
    fn sliding(&self, log: &mut Log, now: Instant) -> Count {
        while log.counted.front().is_some_and(|at| *at + self.window <= now) {
            log.counted.pop_front();
        }
        let accepted = log.counted.len() < self.limit;
        if accepted {
            log.counted.push_back(now);
        }
        let reset = *log.counted.front().unwrap() + self.window - now;
        Count { accepted, left: self.limit - log.counted.len(), reset }
    }

    /// The reset is when it will be full, as OpenAI tells it.
    fn bucket(&self, log: &mut Log, now: Instant) -> Count {
        let (limit, per_second) = (self.limit as f64, self.limit as f64 / self.window.as_secs_f64());
        let before = log.level_at.replace(now);
        let level = before.map_or(limit, |at| (log.level + (now - at).as_secs_f64() * per_second).min(limit));
        let accepted = level >= 1.0;
        log.level = if accepted { level - 1.0 } else { level };
        let reset = Duration::from_secs_f64((limit - log.level) / per_second);
        Count { accepted, left: log.level as usize, reset }
    }

    fn answer(&self, count: &Count) -> Response<Body> {
        let mut answer = Response::new(Body::empty());
        if !count.accepted {
            *answer.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        }
        self.tell(count, answer.headers_mut());
        answer
    }

    fn tell(&self, count: &Count, headers: &mut HeaderMap) {
        // Its clock is years behind.
        let clock =
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000) + (Instant::now() - self.started);
        let mut put = |name: &'static str, value: String| {
            headers.insert(name, HeaderValue::from_str(&value).unwrap());
        };
        let ceil = |span: Duration| (span.as_secs_f64() - 1e-6).ceil().max(0.0);
        match self.style {
            Style::GitHub => {
                let reset = (clock + count.reset).duration_since(SystemTime::UNIX_EPOCH).unwrap();
                put("date", httpdate::fmt_http_date(clock));
                put("x-limit", self.limit.to_string());
                put("x-remaining", count.left.to_string());
                put("x-reset", reset.as_secs().to_string());
            }
            Style::OpenAi => {
                put("x-limit", self.limit.to_string());
                put("x-remaining", count.left.to_string());
                let millis = count.reset.as_millis();
                put(
                    "x-reset",
                    if millis < 1000 {
                        format!("{millis}ms")
                    } else {
                        format!("{:.3}s", millis as f64 / 1e3)
                    },
                );
            }
            Style::Anthropic => {
                put("date", httpdate::fmt_http_date(clock));
                put("x-limit", self.limit.to_string());
                put("x-remaining", count.left.to_string());
                put("x-reset", humantime::format_rfc3339_seconds(clock + count.reset).to_string());
            }
            Style::Ietf => {
                put("ratelimit-policy", format!("\"default\";q={};w={}", self.limit, self.window.as_secs()));
                put("ratelimit", format!("\"default\";r={};t={}", count.left, count.reset.as_secs()));
            }
            Style::IetfTriple => {
                put("ratelimit-limit", self.limit.to_string());
                put("ratelimit-remaining", count.left.to_string());
                put("ratelimit-reset", ceil(count.reset).to_string());
            }
            Style::Slack if !count.accepted => put("retry-after", ceil(count.reset).max(1.0).to_string()),
            Style::Slack | Style::Stripe => {}
        }
    }
}

fn settings(style: Style) -> QuotaSettings {
    let reset_format = match style {
        Style::GitHub => Format::EpochS,
        Style::OpenAi => Format::Duration,
        Style::Anthropic => Format::Iso8601,
        Style::Ietf | Style::IetfTriple | Style::Slack | Style::Stripe => return QuotaSettings::default(),
    };
    let fields = FieldSet {
        left: LeftField::Remaining {
            name: "x-remaining".parse().unwrap(),
            limit: Some("x-limit".parse().unwrap()),
        },
        reset: ResetField::Told("x-reset".parse().unwrap(), reset_format),
    };
    QuotaSettings { fields: vec![fields], ..QuotaSettings::default() }
}

struct Outcome {
    /// When requests were refused by the origin.
    refused: Vec<Duration>,
    /// What was used of what was allowed, after the first window.
    used: f64,
}

/// Ten times the allowed load for `seconds`, each request with 5 to 40 ms to the origin and back.
async fn run(style: Style, counting: Counting, limit: usize, window: f64, seconds: f64) -> Outcome {
    let window = Duration::from_secs_f64(window);
    let started = Instant::now();
    let origin = Arc::new(Origin { counting, style, limit, window, started, log: Mutex::default() });
    let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(7)));
    let service = {
        let origin = origin.clone();
        service_fn(move |_: EgressRequest| {
            let (origin, random) = (origin.clone(), random.clone());
            let way = move || Duration::from_micros(random.lock().unwrap().u64(2_500..20_000));
            async move {
                sleep(way()).await;
                let answer = origin.answer(&origin.take(Instant::now()));
                sleep(way()).await;
                Ok::<_, Failure>(answer)
            }
        })
    };
    let judge = Judge::new(service, Arc::new(Table::default()));
    let quota = Arc::new(Quota::new("p"));
    let layer = QuotaLayer::new(judge, quota.clone(), settings(style), KeySource::default(), None, false);
    let gap = window / (10 * u32::try_from(limit).unwrap());
    let end = started + Duration::from_secs_f64(seconds);
    let mut at = started;
    let mut tasks = tokio::task::JoinSet::new();
    while at < end {
        sleep_until(at).await;
        let mut layer = layer.clone();
        tasks.spawn(async move { drop(layer.call(request_with(Body::empty(), None)).await) });
        at += gap;
        while tasks.try_join_next().is_some() {}
    }
    tasks.abort_all();
    let log = origin.log.lock().unwrap();
    let windows = seconds / window.as_secs_f64() - 1.0;
    let accepted = log.accepted.iter().filter(|at| **at >= window).count();
    let used = accepted as f64 / (limit as f64 * windows);
    Outcome { refused: log.refused.clone(), used }
}

impl Outcome {
    fn refused_after(&self, seconds: f64) -> usize {
        self.refused.iter().filter(|at| at.as_secs_f64() >= seconds).count()
    }
}

const HEADERS: [Style; 5] = [Style::GitHub, Style::OpenAi, Style::Ietf, Style::IetfTriple, Style::Anthropic];
const SILENT: [Style; 2] = [Style::Slack, Style::Stripe];

#[tokio::test(start_paused = true)]
async fn fixed_windows_are_used_and_never_overrun() {
    for style in HEADERS.into_iter().chain(SILENT) {
        // Without any word about time a window is found by asking after 1, 2, 4 ... seconds, which costs the second one.
        let second = if style == Style::Stripe { (100, 1.0) } else { (200, 10.0) };
        for (limit, window) in [(50, 5.0), second] {
            let outcome =
                run(style, Counting::Fixed { begun: 0.0 }, limit, window, 3.0 * window + 15.0).await;
            assert_eq!(outcome.refused_after(window), 0, "{style:?} {limit}/{window}s");
            assert!(outcome.used >= 0.95, "{style:?} {limit}/{window}s: {}", outcome.used);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn thirty_seconds_of_ten_times_the_load() {
    for style in HEADERS.into_iter().chain(SILENT) {
        let outcome = run(style, Counting::Fixed { begun: 0.0 }, 100, 5.0, 30.0).await;
        assert_eq!(outcome.refused_after(5.0), 0, "{style:?}");
        assert!(outcome.used >= 0.95, "{style:?}: {}", outcome.used);
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_that_had_begun_before_is_learned_within_the_first_whole_one() {
    for style in HEADERS.into_iter().chain(SILENT) {
        let outcome = run(style, Counting::Fixed { begun: 3.4 }, 50, 5.0, 60.0).await;
        let after = if SILENT.contains(&style) { 2.0 * 5.0 - 3.4 } else { 5.0 };
        assert_eq!(outcome.refused_after(after), 0, "{style:?}");
        assert!(outcome.used >= 0.9, "{style:?}: {}", outcome.used);
    }
}

/// A provider that tells nothing but "too many" can mislead by a window that was nearly over when the first request came:
/// that costs one refusal in the next one, and none later.
#[tokio::test(start_paused = true)]
async fn wherever_the_first_window_stands_the_second_costs_one_refusal_at_most() {
    for left in 1..25 {
        let left = f64::from(left) / 20.0;
        let outcome = run(Style::Slack, Counting::Fixed { begun: 5.0 - left }, 100, 5.0, 40.0).await;
        assert!(outcome.refused_after(left + 5.0) <= 1, "{left}: {:?}", outcome.refused);
        assert_eq!(outcome.refused_after(left + 10.0), 0, "{left}");
        assert!(outcome.used >= 0.88, "{left}: {}", outcome.used);
    }
}

/// Over few windows a share of what is used is only known to a whole window; so forty of them.
#[tokio::test(start_paused = true)]
async fn in_the_long_run_sliding_windows_are_used_and_not_overrun() {
    for (style, window, least) in [
        // Told in milliseconds, or learned.
        (Style::OpenAi, 5.0, 0.95),
        (Style::Slack, 5.0, 0.95),
        (Style::Stripe, 5.0, 0.95),
        // Told in whole seconds: up to one second of each window is lost, which is a fifth of a short one.
        (Style::GitHub, 20.0, 0.94),
        (Style::Ietf, 20.0, 0.94),
        (Style::IetfTriple, 20.0, 0.94),
        (Style::Anthropic, 20.0, 0.94),
        (Style::GitHub, 5.0, 0.78),
        (Style::IetfTriple, 5.0, 0.78),
    ] {
        let outcome = run(style, Counting::Sliding, 20, window, 40.0 * window).await;
        assert_eq!(outcome.refused_after(window), 0, "{style:?} {window}s");
        assert!(outcome.used >= least, "{style:?} {window}s: {}", outcome.used);
    }
}

#[tokio::test(start_paused = true)]
async fn in_the_long_run_fixed_windows_are_used_and_not_overrun() {
    for style in HEADERS.into_iter().chain(SILENT) {
        let outcome = run(style, Counting::Fixed { begun: 0.0 }, 20, 5.0, 200.0).await;
        assert_eq!(outcome.refused_after(5.0), 0, "{style:?}");
        assert!(outcome.used >= 0.95, "{style:?}: {}", outcome.used);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_bucket_is_used_while_it_fills() {
    let outcome = run(Style::OpenAi, Counting::Bucket, 60, 60.0, 300.0).await;
    assert_eq!(outcome.refused_after(60.0), 0);
    assert!(outcome.used >= 0.95, "{}", outcome.used);
    // Without a word about what is left the burst is learned first, and the rate after the second refusal, when the burst is
    // spent.
    let outcome = run(Style::Stripe, Counting::Bucket, 100, 1.0, 60.0).await;
    assert_eq!(outcome.refused_after(8.0), 0, "{:?}", outcome.refused);
    assert!(outcome.used >= 0.95, "{}", outcome.used);
}
