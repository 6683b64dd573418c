//! The provider's moods, one for each path of one host: at each request it takes the next turn, and after the last one the
//! first again, so that what was shown can be tried by hand as often as one likes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::header::{CACHE_CONTROL, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use serde_json::{Value as Json, json};

/// The host whose provider has moods.
pub const SHOP_HOST: &str = "shop.demo.example";
/// Throttles every other request.
pub const QUOTE_PATH: &str = "/quote";
/// Acts and breaks off.
pub const ORDERS_PATH: &str = "/orders";
/// The same, by another policy.
pub const PAYMENTS_PATH: &str = "/payments";
/// Is down for a while.
pub const STOCK_PATH: &str = "/stock";
/// Is well.
pub const SEARCH_PATH: &str = "/search";
/// Lets its answer be kept.
pub const RATES_PATH: &str = "/rates";
/// The field by which it knows a request again.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// How long a slow answer takes: others come meanwhile.
const SLOW: Duration = Duration::from_millis(600);
/// Idempotency keys that are remembered.
const REMEMBERED: usize = 64;

/// What comes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// 200.
    Well,
    /// 200, after a while.
    Slow,
    /// 200, that may be kept for a minute.
    Kept,
    /// 429, and when to come back.
    Throttled,
    /// 503.
    Down,
    /// Makes what is named here, and breaks off before it has said so; who comes again with the same key is told what was made.
    Acts(&'static str),
}

/// The turns at each path, in their order.
const MOODS: [(&str, &[Turn]); 6] = [
    (QUOTE_PATH, &[Turn::Throttled, Turn::Well]),
    (ORDERS_PATH, &[Turn::Acts("order")]),
    (PAYMENTS_PATH, &[Turn::Acts("payment")]),
    (STOCK_PATH, &[Turn::Down, Turn::Down, Turn::Down, Turn::Slow, Turn::Well, Turn::Well]),
    (SEARCH_PATH, &[Turn::Well]),
    (RATES_PATH, &[Turn::Kept]),
];

/// What the provider does.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// It answers.
    Answer {
        /// Status.
        status: StatusCode,
        /// One more field.
        field: Option<(HeaderName, &'static str)>,
        /// Body.
        body: Json,
        /// How long it takes.
        after: Duration,
    },
    /// It makes something, and does not answer.
    BreaksOff {
        /// What it made.
        what: &'static str,
        /// Its number.
        number: usize,
    },
}

impl Reply {
    /// In a few words.
    pub fn summary(&self) -> String {
        match self {
            Self::BreaksOff { what, number } => format!("makes {what} {number}, then breaks off"),
            Self::Answer { status, field: Some((name, value)), .. } => {
                format!("answers {}, {name}: {value}", status.as_u16())
            }
            Self::Answer { status, after, .. } if !after.is_zero() => {
                format!("answers {}, after {} ms", status.as_u16(), after.as_millis())
            }
            Self::Answer { status, .. } => format!("answers {}", status.as_u16()),
        }
    }
}

/// How far it is at each path, and what it made.
#[derive(Debug, Default)]
pub struct Moods {
    asked: [AtomicUsize; MOODS.len()],
    made: [Mutex<Made>; MOODS.len()],
}

#[derive(Debug, Default)]
struct Made {
    count: usize,
    /// For which key, the oldest first.
    keys: VecDeque<(String, usize)>,
}

impl Moods {
    /// What comes of a request; nothing where the path has no mood.
    pub fn reply(&self, path: &str, key: Option<&str>) -> Option<Reply> {
        let at = MOODS.iter().position(|(known, _)| *known == path)?;
        let turns = MOODS[at].1;
        let turn = turns[self.asked[at].fetch_add(1, Ordering::Relaxed) % turns.len()];
        Some(match turn {
            Turn::Well => answer(StatusCode::OK, None, well(path)),
            Turn::Slow => slow(well(path)),
            Turn::Kept => answer(StatusCode::OK, Some((CACHE_CONTROL, "max-age=60")), well(path)),
            Turn::Throttled => {
                let body = json!({ "error": "too many requests" });
                answer(StatusCode::TOO_MANY_REQUESTS, Some((RETRY_AFTER, "1")), body)
            }
            Turn::Down => answer(StatusCode::SERVICE_UNAVAILABLE, None, json!({ "error": "out of service" })),
            Turn::Acts(what) => self.made[at].lock().unwrap_or_else(PoisonError::into_inner).act(what, key),
        })
    }
}

impl Made {
    fn act(&mut self, what: &'static str, key: Option<&str>) -> Reply {
        let known = self.keys.iter().find(|(known, _)| Some(&**known) == key);
        if let Some((_, number)) = known {
            return answer(StatusCode::OK, None, json!({ what: number, "known": "by its key" }));
        }
        self.count += 1;
        if let Some(key) = key {
            if self.keys.len() == REMEMBERED {
                self.keys.pop_front();
            }
            self.keys.push_back((key.to_owned(), self.count));
        }
        Reply::BreaksOff { what, number: self.count }
    }
}

fn well(path: &str) -> Json {
    json!({ "path": path, "well": true })
}

fn answer(status: StatusCode, field: Option<(HeaderName, &'static str)>, body: Json) -> Reply {
    Reply::Answer { status, field, body, after: Duration::ZERO }
}

fn slow(body: Json) -> Reply {
    Reply::Answer { status: StatusCode::OK, field: None, body, after: SLOW }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(moods: &Moods, path: &str, count: usize) -> Vec<u16> {
        let status = |_| match moods.reply(path, None) {
            Some(Reply::Answer { status, .. }) => status.as_u16(),
            Some(Reply::BreaksOff { .. }) => 0,
            None => 1,
        };
        (0..count).map(status).collect()
    }

    #[test]
    fn each_path_has_its_mood_and_begins_it_again() {
        let moods = Moods::default();
        for (path, expected) in [
            (QUOTE_PATH, [429, 200, 429, 200, 429, 200, 429]),
            (STOCK_PATH, [503, 503, 503, 200, 200, 200, 503]),
            (ORDERS_PATH, [0; 7]),
            (SEARCH_PATH, [200; 7]),
            (RATES_PATH, [200; 7]),
            ("/hello", [1; 7]),
        ] {
            assert_eq!(statuses(&moods, path, 7), expected, "{path}");
        }
    }

    #[test]
    fn what_comes_of_a_request_is_told_in_a_few_words() {
        let moods = Moods::default();
        for (path, expected) in [
            (QUOTE_PATH, "answers 429, retry-after: 1"),
            (QUOTE_PATH, "answers 200"),
            (ORDERS_PATH, "makes order 1, then breaks off"),
            (PAYMENTS_PATH, "makes payment 1, then breaks off"),
            (STOCK_PATH, "answers 503"),
            (RATES_PATH, "answers 200, cache-control: max-age=60"),
        ] {
            assert_eq!(moods.reply(path, None).unwrap().summary(), expected, "{path}");
        }
        assert_eq!(slow(Json::Null).summary(), "answers 200, after 600 ms");
    }

    #[test]
    fn a_key_that_is_known_makes_nothing_new() {
        let moods = Moods::default();
        let made = |key| match moods.reply(PAYMENTS_PATH, key) {
            Some(Reply::BreaksOff { number, .. }) => (number, false),
            Some(Reply::Answer { body, .. }) => {
                (usize::try_from(body["payment"].as_u64().unwrap()).unwrap(), true)
            }
            None => panic!("no mood"),
        };
        let cases = [(None, (1, false)), (Some("a"), (2, false)), (Some("b"), (3, false))];
        let again = [(Some("a"), (2, true)), (Some("b"), (3, true)), (None, (4, false))];
        for (key, expected) in cases.into_iter().chain(again) {
            assert_eq!(made(key), expected, "{key:?}");
        }
    }

    #[test]
    fn no_more_keys_are_remembered_than_there_is_room_for() {
        let mut made = Made::default();
        for key in 0..=REMEMBERED {
            made.act("order", Some(&key.to_string()));
        }
        assert_eq!(made.keys.len(), REMEMBERED);
        let again = made.act("order", Some("0"));
        assert_eq!(again, Reply::BreaksOff { what: "order", number: REMEMBERED + 2 });
    }
}
