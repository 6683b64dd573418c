//! The second act: requests to a provider that throttles, fails and recovers, and what must come of them.

use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::Value as Json;

use super::DemoError;
use super::client::{Ask, Call, Verb, Way};
use super::columns::{Line, Tone};
use super::moods::{ORDERS_PATH, PAYMENTS_PATH, QUOTE_PATH, RATES_PATH, SEARCH_PATH, SHOP_HOST, STOCK_PATH};
use super::provider::Seen;
use super::scenes::{Check, Told, check, clean, field_line, nothing, record};
use super::stage::{ALLOWED, OPEN_FOR, Stage};

/// Requests one after the other to one path, and what must come of them.
pub struct Trial {
    /// What it shows.
    pub title: &'static str,
    /// Why it comes out so.
    pub note: &'static str,
    verb: Verb,
    path: &'static str,
    steps: &'static [Step],
    judge: fn(&[Round]) -> Vec<Check>,
}

/// What the app does.
#[derive(Clone, Copy)]
enum Step {
    /// Asks.
    Ask,
    /// Asks so many times at once.
    AtOnce(usize),
    /// Waits.
    Wait(Duration),
}

/// All of them, in their order. The two of the breaker belong together.
pub const ALL: [Trial; 7] = [
    Trial {
        title: "Throttled, and waited out",
        note: "429 with `Retry-After: 1`: the app only notices that its answer takes a second",
        verb: Verb::Get,
        path: QUOTE_PATH,
        steps: &[Step::Ask],
        judge: throttled,
    },
    Trial {
        title: "A POST that breaks off after it acted",
        note: "it may have acted, so it is not sent again, and the app is told that, in the provider's words as well",
        verb: Verb::Post,
        path: ORDERS_PATH,
        steps: &[Step::Ask],
        judge: not_repeated,
    },
    Trial {
        title: "The same, where the provider honours idempotency keys",
        note: "outgate adds a key and sends the request again with the same one: one payment, and the app knows of nothing",
        verb: Verb::Post,
        path: PAYMENTS_PATH,
        steps: &[Step::Ask],
        judge: repeated,
    },
    Trial {
        title: "The provider goes down",
        note: "after three failures in a row the breaker opens: the app is answered at once, the provider left alone",
        verb: Verb::Get,
        path: STOCK_PATH,
        steps: &[Step::Ask; 4],
        judge: opened,
    },
    Trial {
        title: "The provider recovers",
        note: "when the time is over, one request goes as a probe, whoever else comes; it succeeds, and the others follow",
        verb: Verb::Get,
        path: STOCK_PATH,
        // A little longer than it is open.
        steps: &[Step::Wait(OPEN_FOR.saturating_add(MARGIN)), Step::AtOnce(3), Step::Ask, Step::Ask],
        judge: recovered,
    },
    Trial {
        title: "A limit that rejects",
        note: "three in a minute: what is above it never leaves, and the app is told when to come back",
        verb: Verb::Get,
        path: SEARCH_PATH,
        steps: &[Step::Ask; ALLOWED + 2],
        judge: limited,
    },
    Trial {
        title: "A cached answer",
        note: "the provider says `max-age=60`: who asks again within a minute is answered by outgate",
        verb: Verb::Get,
        path: RATES_PATH,
        steps: &[Step::Ask, Step::Wait(Duration::from_millis(1100)), Step::Ask],
        judge: cached,
    },
];

const MARGIN: Duration = Duration::from_millis(100);
/// The app's way: its base URL is outgate's.
const WAY: Way = Way::Local { prefix: "/shop" };
/// Attempts closer to each other are not told apart by time.
const NOTICED: Duration = Duration::from_millis(50);
/// What is shown of answers before the last one.
const TELLING: [&str; 4] = ["outgate-error", "retry-after", "cache-status", "ratelimit"];

/// What came of one step.
struct Round {
    step: Step,
    /// By their statuses.
    exchanges: Vec<Exchange>,
    seen: Vec<Seen>,
    dialled: bool,
}

/// One request, and its log record.
struct Exchange {
    call: Call,
    line: String,
    record: Json,
}

/// Plays a scene.
pub async fn play(trial: &Trial, stage: &Stage) -> Result<Told, DemoError> {
    stage.provider.take_seen();
    let mut rounds = Vec::new();
    for &step in trial.steps {
        rounds.push(round(step, trial, stage).await?);
    }
    let mut checks = (trial.judge)(&rounds);
    let all_clean = exchanges(&rounds).all(|one| clean(&one.call, &one.line, &stage.key));
    let real = seen(&rounds).all(|seen| seen.real_key);
    checks.push(check("each attempt bore the real key, no answer and no log line has it", all_clean && real));
    let rows = rows(&rounds);
    let last = rounds.into_iter().rev().find_map(|mut round| round.exchanges.pop());
    let Exchange { line, record, .. } = last.ok_or(DemoError::NoRecord)?;
    Ok(Told { rows, line, record, checks })
}

async fn round(step: Step, trial: &Trial, stage: &Stage) -> Result<Round, DemoError> {
    let connections = stage.provider.connections();
    let count = match step {
        Step::Ask => 1,
        Step::AtOnce(count) => count,
        Step::Wait(time) => {
            tokio::time::sleep(time).await;
            0
        }
    };
    let ask = Ask { way: WAY, verb: trial.verb, host: SHOP_HOST, path: trial.path };
    let mut calls = try_join_all((0..count).map(|_| stage.client.call(ask))).await?;
    calls.sort_by_key(|call| call.status);
    let mut exchanges = Vec::new();
    for call in calls {
        let (line, record) = record(stage, &call.request_id).await?;
        exchanges.push(Exchange { call, line, record });
    }
    let dialled = stage.provider.connections() > connections;
    Ok(Round { step, exchanges, seen: stage.provider.take_seen(), dialled })
}

/// The first request and the last answer are shown in full.
fn rows(rounds: &[Round]) -> Vec<[Vec<Line>; 3]> {
    let asks = || rounds.iter().enumerate().filter(|(_, round)| !round.exchanges.is_empty());
    let (first, last) = (asks().next().map(|(at, _)| at), asks().next_back().map(|(at, _)| at));
    let row = |(at, round): (usize, &Round)| {
        [app_sent(round, Some(at) == first), provider_saw(round), app_got(round, Some(at) == last)]
    };
    rounds.iter().enumerate().map(row).collect()
}

fn app_sent(round: &Round, whole: bool) -> Vec<Line> {
    let mut lines = match round.exchanges.first() {
        Some(one) if whole => one.call.sent.clone(),
        Some(one) => one.call.sent.iter().take(1).cloned().collect(),
        None => Vec::new(),
    };
    match round.step {
        Step::Ask => {}
        Step::AtOnce(count) => lines.insert(1.min(lines.len()), faint(format!("({count} at once)"))),
        Step::Wait(time) => lines.push(faint(format!("(waits {:.1} s)", time.as_secs_f64()))),
    }
    lines
}

fn app_got(round: &Round, whole: bool) -> Vec<Line> {
    let of_one = |one: &Exchange| {
        if whole {
            return one.call.got.clone();
        }
        let status = one.call.got.iter().take(1).cloned();
        let field = |name: &&str| Some(Line::plain(format!("{name}: {}", one.call.field(name)?)));
        status.chain(TELLING.iter().filter_map(field)).collect()
    };
    round.exchanges.iter().flat_map(of_one).collect()
}

fn provider_saw(round: &Round) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut earlier = None;
    for seen in &round.seen {
        let since = earlier.replace(seen.at).map(|at| seen.at.saturating_duration_since(at));
        if let Some(since) = since.filter(|since| *since >= NOTICED) {
            lines.push(faint(format!("({:.2} s later)", since.as_secs_f64())));
        }
        lines.push(Line::new(Tone::Bold, &seen.request_line));
        let telling =
            |field: &&String| field.starts_with("authorization:") || field.starts_with("idempotency-key:");
        lines.extend(seen.fields.iter().filter(telling).map(|field| field_line(seen, field)));
        lines.extend(seen.mood.iter().map(|mood| faint(format!("({mood})"))));
    }
    if round.seen.is_empty() && !round.exchanges.is_empty() {
        lines.push(nothing(round.dialled));
    }
    lines
}

fn faint(text: String) -> Line {
    Line::new(Tone::Faint, text)
}

fn exchanges(rounds: &[Round]) -> impl DoubleEndedIterator<Item = &Exchange> {
    rounds.iter().flat_map(|round| &round.exchanges)
}

fn seen(rounds: &[Round]) -> impl DoubleEndedIterator<Item = &Seen> {
    rounds.iter().flat_map(|round| &round.seen)
}

/// That the statuses are these, in their order.
fn statuses(rounds: &[Round], expected: &[u16]) -> Check {
    let text: Vec<String> = expected.iter().map(u16::to_string).collect();
    let holds = exchanges(rounds).map(|one| one.call.status.as_u16()).eq(expected.iter().copied());
    check(format!("status {}", text.join(", ")), holds)
}

/// That the provider saw so many requests at each step.
fn saw(rounds: &[Round], expected: &[usize]) -> bool {
    rounds.iter().map(|round| round.seen.len()).eq(expected.iter().copied())
}

/// That the last record says how often it was sent, and why again.
fn logged(rounds: &[Round], attempts: u64, reason: &str) -> Check {
    let holds = exchanges(rounds).next_back().is_some_and(|one| {
        let reasons = one.record.get("outgate.retry.reason").and_then(Json::as_array);
        one.record.get("outgate.attempts").and_then(Json::as_u64) == Some(attempts)
            && reasons.is_some_and(|reasons| reasons.iter().any(|told| told == reason))
    });
    check(format!("logged with attempts {attempts} and retry.reason {reason}"), holds)
}

/// A field of the last answer.
fn last_field<'a>(rounds: &'a [Round], name: &str) -> Option<&'a str> {
    exchanges(rounds).next_back()?.call.field(name)
}

/// That the last answer has this code, and says when to come back.
fn refused(rounds: &[Round], code: &str) -> Check {
    let after = last_field(rounds, "retry-after").and_then(|after| after.parse::<u64>().ok());
    let holds = last_field(rounds, "outgate-error") == Some(code) && after.is_some_and(|after| after > 0);
    check(format!("code {code}, with Retry-After"), holds)
}

fn throttled(rounds: &[Round]) -> Vec<Check> {
    let times: Vec<_> = seen(rounds).map(|seen| seen.at).collect();
    let apart =
        matches!(times[..], [first, second] if second.duration_since(first) >= Duration::from_secs(1));
    vec![
        statuses(rounds, &[200]),
        check("the provider saw two, a second apart", apart),
        logged(rounds, 2, "throttle"),
    ]
}

fn not_repeated(rounds: &[Round]) -> Vec<Check> {
    let told = last_field(rounds, "outgate-sent") == Some("maybe");
    let hint = last_field(rounds, "x-should-retry") == Some("false");
    vec![
        statuses(rounds, &[502]),
        check("the provider saw one, without a key", saw(rounds, &[1]) && keys(rounds) == [None]),
        check("`Outgate-Sent: maybe`, and the provider's hint not to repeat it", told && hint),
    ]
}

fn repeated(rounds: &[Round]) -> Vec<Check> {
    let same = matches!(keys(rounds)[..], [Some(first), Some(second)] if first == second);
    let made = exchanges(rounds)
        .next_back()
        .is_some_and(|one| one.call.got.last().is_some_and(|body| body.text.contains(r#""payment":1"#)));
    vec![
        statuses(rounds, &[200]),
        check("the provider saw two, with the same key", same),
        check("one payment was made, and the app has its number", made),
        logged(rounds, 2, "reset"),
    ]
}

/// The idempotency keys that the provider saw.
fn keys(rounds: &[Round]) -> Vec<Option<&str>> {
    seen(rounds).map(|seen| seen.idempotency_key.as_deref()).collect()
}

fn opened(rounds: &[Round]) -> Vec<Check> {
    let own = exchanges(rounds).take(3).all(|one| one.call.error().is_none());
    let alone = saw(rounds, &[1, 1, 1, 0]) && rounds.last().is_some_and(|round| !round.dialled);
    vec![
        statuses(rounds, &[503; 4]),
        check("three are the provider's own", own),
        refused(rounds, "breaker_open"),
        check("the provider saw nothing of the fourth", alone),
    ]
}

fn recovered(rounds: &[Round]) -> Vec<Check> {
    let refused = exchanges(rounds).filter(|one| one.call.error() == Some("breaker_open")).count();
    vec![
        statuses(rounds, &[200, 503, 503, 200, 200]),
        check("one probe, the two others refused", saw(rounds, &[0, 1, 1, 1]) && refused == 2),
        check("then everything passes", exchanges(rounds).rev().take(2).all(|one| one.call.status == 200)),
    ]
}

fn limited(rounds: &[Round]) -> Vec<Check> {
    let fields = ["ratelimit", "ratelimit-policy"].iter().all(|name| last_field(rounds, name).is_some());
    let expected: Vec<u16> = [200; ALLOWED].into_iter().chain([429, 429]).collect();
    vec![
        statuses(rounds, &expected),
        refused(rounds, "rate_limited"),
        check("with the RateLimit fields", fields),
        check(format!("the provider saw {ALLOWED}"), saw(rounds, &[1, 1, 1, 0, 0])),
    ]
}

fn cached(rounds: &[Round]) -> Vec<Check> {
    let bodies: Vec<_> = exchanges(rounds).filter_map(|one| one.call.got.last()).collect();
    let same = matches!(bodies[..], [first, second] if first == second);
    let age = last_field(rounds, "age").and_then(|age| age.parse::<u64>().ok());
    let hit = last_field(rounds, "cache-status").is_some_and(|status| status.contains("; hit"));
    vec![
        statuses(rounds, &[200, 200]),
        check("the same answer", same),
        check("with Age and `Cache-Status: hit`", age.is_some_and(|age| age > 0) && hit),
        check("the provider saw the first alone", saw(rounds, &[1, 0, 0])),
    ]
}
