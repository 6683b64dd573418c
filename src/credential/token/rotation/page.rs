//! What is written on a shelf: who is busy, and sealed what was got last.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use zeroize::Zeroizing;

use super::Exchange;
use super::shelf::Sheet;
use crate::credential::token::Issued;
use crate::credential::token::endpoint::TokenAnswer;
use crate::secret::TokenFault;
use crate::secret::stores::document::Document;
use crate::secret::stores::sealed::SealKey;

/// What its key is derived for, and what it is sealed under.
const PURPOSE: &str = "outgate refresh token, 1";
/// A token that lives no longer than this, or a quarter of its life, is not taken from a shelf: it would be replaced at once.
const SHORT: Duration = Duration::from_secs(10);

/// Seals pages.
pub(super) struct PageKey(SealKey);

impl PageKey {
    pub(super) fn of(seed: &[u8]) -> Option<Self> {
        SealKey::derived(seed, PURPOSE).ok().map(Self)
    }
}

/// What stands on a shelf.
#[derive(Default)]
pub(super) struct Page {
    /// The mark of a process that is asking.
    pub busy: Option<String>,
    /// What was got last; none also where it was sealed with another key.
    pub record: Option<Record>,
    /// What another key has sealed, as it stands there: that of a process with another refresh token in its policy. It stays
    /// until an exchange has brought something better.
    pub foreign: Option<String>,
}

/// What one exchange gave. No `Debug`: it holds tokens.
#[derive(Clone)]
pub(super) struct Record {
    /// One more than the one before.
    pub generation: u64,
    /// The refresh token that is good now.
    pub refresh: Zeroizing<String>,
    access: Option<Access>,
}

#[derive(Clone)]
struct Access {
    token: Zeroizing<String>,
    /// Tells what it was asked for with from all else: endpoint, client, scopes and so on.
    mark: String,
    /// Seconds since 1970, and the whole life in seconds: a clock that was set back makes no token live longer.
    ends: Option<(u64, u64)>,
}

#[derive(Serialize)]
struct Outside<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    busy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<&'a str>,
}

#[derive(Serialize)]
struct Inside<'a> {
    generation: u64,
    refresh_token: &'a str,
    access_token: Option<&'a str>,
    mark: Option<&'a str>,
    ends: Option<u64>,
    life: Option<u64>,
}

impl Page {
    /// What cannot be read is as if it were not there: it belongs to another refresh token of the policy's secret.
    pub(super) fn read(sheet: &Sheet, key: &PageKey) -> Self {
        let Some(page) = sheet.text.as_ref().and_then(|text| Document::parse(text.as_bytes()).ok()) else {
            return Self::default();
        };
        let sealed = page.text(&["grant"]);
        let record = sealed.and_then(|sealed| Record::open(sealed, key));
        let foreign = sealed.filter(|_| record.is_none()).map(str::to_owned);
        Self { busy: page.text(&["busy"]).map(str::to_owned), record, foreign }
    }
}

/// The text of a page.
pub(super) fn write(
    busy: Option<&str>,
    record: Option<&Record>,
    foreign: Option<&str>,
    key: &PageKey,
) -> Result<Zeroizing<String>, TokenFault> {
    let grant = record.map(|record| record.seal(key)).transpose()?;
    let text = serde_json::to_string(&Outside { busy, grant: grant.as_deref().or(foreign) });
    text.map(Zeroizing::new).map_err(|_| TokenFault::NotKept("it cannot be written down"))
}

/// A mark that no other process has.
pub(super) fn nonce() -> Option<String> {
    let mut id = [0; 12];
    aws_lc_rs::rand::fill(&mut id).ok()?;
    Some(URL_SAFE_NO_PAD.encode(id))
}

impl Record {
    /// What an answer brought to who asked at `asked`. Without a new refresh token the old one stays good (RFC 6749 section 6).
    pub(super) fn of(
        answer: &TokenAnswer,
        old: &[u8],
        generation: u64,
        exchange: &dyn Exchange,
        asked: SystemTime,
    ) -> Self {
        let refresh = answer.text("refresh_token").filter(|token| !token.is_empty()).map(str::to_owned);
        let issued = answer.issued(exchange.lifetime()).ok();
        Self {
            generation,
            refresh: Zeroizing::new(refresh.unwrap_or_else(|| String::from_utf8_lossy(old).into_owned())),
            access: issued.and_then(|issued| Access::of(&issued, exchange.mark(), asked)),
        }
    }

    /// The access token, if it was asked for in the same way and lives on for a while.
    pub(super) fn issued(&self, mark: &str, now: SystemTime) -> Option<Issued> {
        let access = self.access.as_ref().filter(|access| access.mark == mark)?;
        let life = match access.ends {
            None => None,
            Some((ends, life)) => {
                let left = UNIX_EPOCH.checked_add(Duration::from_secs(ends))?.duration_since(now).ok()?;
                let life = Duration::from_secs(life);
                Some(left.min(life)).filter(|left| *left > SHORT.min(life / 4)).map(Some)?
            }
        };
        Some(Issued { token: access.token.as_bytes().to_vec().into(), life })
    }

    fn seal(&self, key: &PageKey) -> Result<String, TokenFault> {
        let inside = Inside {
            generation: self.generation,
            refresh_token: &self.refresh,
            access_token: self.access.as_ref().map(|access| access.token.as_str()),
            mark: self.access.as_ref().map(|access| access.mark.as_str()),
            ends: self.access.as_ref().and_then(|access| access.ends).map(|(ends, _)| ends),
            life: self.access.as_ref().and_then(|access| access.ends).map(|(_, life)| life),
        };
        let tokens = self.refresh.len() + self.access.as_ref().map_or(0, |access| access.token.len());
        // Room for escapes: when a vector grows by itself, a copy stays behind.
        let mut text = Zeroizing::new(Vec::with_capacity(tokens * 6 + 256));
        let fault = TokenFault::NotKept("it cannot be sealed");
        serde_json::to_writer(&mut *text, &inside).map_err(|_| fault.clone())?;
        key.0.seal(PURPOSE, &text).map_err(|_| fault)
    }

    fn open(sealed: &str, key: &PageKey) -> Option<Self> {
        let inside = Document::parse(&key.0.open(PURPOSE, sealed).ok()?).ok()?;
        let mark = inside.text(&["mark"]).unwrap_or_default();
        let ends = inside.number(&["ends"]).zip(inside.number(&["life"]));
        Some(Self {
            generation: inside.number(&["generation"])?,
            refresh: Zeroizing::new(inside.text(&["refresh_token"])?.to_owned()),
            access: inside.text(&["access_token"]).map(|token| Access {
                token: Zeroizing::new(token.to_owned()),
                mark: mark.to_owned(),
                ends,
            }),
        })
    }
}

impl Access {
    fn of(issued: &Issued, mark: &str, asked: SystemTime) -> Option<Self> {
        let token = std::str::from_utf8(&issued.token).ok()?;
        let since_1970 = asked.duration_since(UNIX_EPOCH).unwrap_or_default();
        let ends = issued.life.map(|life| (since_1970.saturating_add(life).as_secs(), life.as_secs()));
        Some(Self { token: Zeroizing::new(token.to_owned()), mark: mark.to_owned(), ends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::future::BoxFuture;

    /// One that is never made.
    struct Asked;

    impl Exchange for Asked {
        fn ask<'a>(&'a self, _: &'a [u8]) -> BoxFuture<'a, Result<TokenAnswer, TokenFault>> {
            Box::pin(async { Err(TokenFault::Dead) })
        }
        fn lifetime(&self) -> Option<Duration> {
            None
        }
        fn mark(&self) -> &str {
            "mine"
        }
    }

    fn record(body: &str, now: SystemTime) -> Record {
        let answer = TokenAnswer::of(body);
        Record::of(&answer, b"old", 7, &Asked, now)
    }

    #[test]
    fn a_page_is_read_back_by_who_has_the_seed_and_by_nobody_else() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let key = PageKey::of(b"seed").unwrap();
        let got = record(r#"{"access_token":"CANARY-a","refresh_token":"CANARY-r","expires_in":100}"#, now);
        let text = write(Some("me"), Some(&got), None, &key).unwrap();
        assert!(!text.contains("CANARY"), "{}", *text);
        let sheet = Sheet { text: Some(text), version: 0, now };
        let page = Page::read(&sheet, &key);
        let read = page.record.unwrap();
        assert_eq!(
            (page.busy.as_deref(), read.generation, read.refresh.as_str()),
            (Some("me"), 7, "CANARY-r")
        );
        let issued = read.issued("mine", now).unwrap();
        assert_eq!(
            (issued.token.as_slice(), issued.life),
            (&b"CANARY-a"[..], Some(Duration::from_secs(100)))
        );
        // Nearly over; over; and not longer than it ever was, by a clock that was set back.
        assert!(read.issued("mine", now + Duration::from_secs(91)).is_none());
        assert!(read.issued("mine", now + Duration::from_secs(200)).is_none());
        assert!(read.issued("of other scopes", now).is_none());
        assert_eq!(read.issued("mine", UNIX_EPOCH).unwrap().life, Some(Duration::from_secs(100)));
        let other = Page::read(&sheet, &PageKey::of(b"another seed").unwrap());
        assert!(other.busy.is_some() && other.record.is_none());
        let garbled = Sheet { text: Some(Zeroizing::new("<html>".to_owned())), version: 0, now };
        assert!(Page::read(&garbled, &key).record.is_none());
    }

    #[test]
    fn the_old_refresh_token_stays_where_no_new_one_came() {
        let got = record(r#"{"access_token":"a"}"#, UNIX_EPOCH);
        assert_eq!(got.refresh.as_str(), "old");
        assert_eq!(got.issued("mine", UNIX_EPOCH).unwrap().life, None);
        // A new refresh token is kept even where the access token cannot be used.
        let got = record(r#"{"refresh_token":"new"}"#, UNIX_EPOCH);
        assert!(got.refresh.as_str() == "new" && got.issued("mine", UNIX_EPOCH).is_none());
    }
}
