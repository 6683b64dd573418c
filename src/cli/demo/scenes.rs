//! The first act, what leaves and what does not: one request by each door, and what must come of it.

use std::time::Duration;

use serde_json::Value as Json;

use super::DemoError;
use super::client::{Ask, Call, PLACEHOLDER, Trust, Verb, Way};
use super::columns::{Line, Tone};
use super::provider::{API_HOST, BLIND_HOST, CARELESS_PATH, Seen};
use super::stage::{MISSING_HOST, PRIVATE_HOST, Stage, UNKNOWN_HOST};

/// How often the log is looked at for a record; its lines are written some milliseconds after the exchange.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// One request, and what must come of it.
pub struct Scene {
    /// What it shows.
    pub title: &'static str,
    /// Why it comes out so, or how an app gets there.
    pub note: &'static str,
    way: Way,
    host: &'static str,
    path: &'static str,
    /// `outgate.door` of the record.
    door: &'static str,
    outcome: Outcome,
}

/// What must come of a request.
enum Outcome {
    /// The provider sees the real key in the placeholder's stead.
    Injected,
    /// As `Injected`; the provider repeats the key, and the app gets asterisks.
    Masked,
    /// The provider sees what the app sent.
    Untouched,
    /// outgate answers itself, and the provider sees nothing.
    Refused {
        status: u16,
        /// `Outgate-Error`.
        code: &'static str,
    },
}

const INTERCEPTED_HTTP1: Way = Way::HttpsProxy { trust: Trust::Bundle, http2: false };
const INTERCEPTED_HTTP2: Way = Way::HttpsProxy { trust: Trust::Bundle, http2: true };
const BLIND: Way = Way::HttpsProxy { trust: Trust::Provider, http2: false };

/// All scenes, in their order.
pub const ALL: [Scene; 9] = [
    Scene {
        title: "The local endpoint",
        note: "a base URL of http://127.0.0.1:<port>/demo is all that the app needs; outgate makes it TLS",
        way: Way::Local { prefix: "/demo" },
        host: API_HOST,
        path: "/hello",
        door: "local",
        outcome: Outcome::Injected,
    },
    Scene {
        title: "HTTP_PROXY, with an http:// URL",
        note: "the key never goes in the clear: what leaves outgate is TLS, because the provider's scheme is https",
        way: Way::HttpProxy,
        host: API_HOST,
        path: "/hello",
        door: "forward",
        outcome: Outcome::Injected,
    },
    Scene {
        title: "HTTPS_PROXY, intercepted, HTTP/1.1",
        note: "CONNECT; the app believes outgate's bundle (SSL_CERT_FILE), so outgate may look inside",
        way: INTERCEPTED_HTTP1,
        host: API_HOST,
        path: "/hello",
        door: "intercept",
        outcome: Outcome::Injected,
    },
    Scene {
        title: "HTTPS_PROXY, intercepted, HTTP/2",
        note: "the same door; ALPN decides what is spoken inside",
        way: INTERCEPTED_HTTP2,
        host: API_HOST,
        path: "/hello",
        door: "intercept",
        outcome: Outcome::Injected,
    },
    Scene {
        title: "A provider that repeats the key in its answer",
        note: "it stands in a field and in the body of what the provider sends; on its way to the app it is masked",
        way: Way::Local { prefix: "/demo" },
        host: API_HOST,
        path: CARELESS_PATH,
        door: "local",
        outcome: Outcome::Masked,
    },
    Scene {
        title: "A blind tunnel",
        note: "`intercept: never`: the app sees the provider's own certificate, and its own key goes through untouched",
        way: BLIND,
        host: BLIND_HOST,
        path: "/hello",
        door: "tunnel",
        outcome: Outcome::Untouched,
    },
    Scene {
        title: "A host that no provider names",
        note: "what the policy does not name is denied before anything is resolved or dialled",
        way: INTERCEPTED_HTTP1,
        host: UNKNOWN_HOST,
        path: "/",
        door: "connect",
        outcome: Outcome::Refused { status: 403, code: "denied" },
    },
    Scene {
        title: "A host that resolves to a private address",
        note: "the policy names it, but its name leads into the network at home: 10.0.0.5",
        way: Way::HttpProxy,
        host: PRIVATE_HOST,
        path: "/",
        door: "forward",
        outcome: Outcome::Refused { status: 403, code: "address_denied" },
    },
    Scene {
        title: "A secret that is not there",
        note: "no key, no request; the other providers go on",
        way: Way::Local { prefix: "/missing" },
        host: MISSING_HOST,
        path: "/hello",
        door: "local",
        outcome: Outcome::Refused { status: 503, code: "credential_unavailable" },
    },
];

/// Something that must be so, and whether it is.
pub struct Check {
    /// What must be so.
    pub what: String,
    /// Whether it is.
    pub holds: bool,
}

/// What came of a scene.
pub struct Told {
    /// What the app sent, what the provider saw of it, and what the app got: once for each step.
    pub rows: Vec<[Vec<Line>; 3]>,
    /// The last request's line in the access log.
    pub line: String,
    /// What the line says.
    pub record: Json,
    /// Whether it is as it must be.
    pub checks: Vec<Check>,
}

/// Sends the request, and gathers what everybody saw.
pub async fn play(scene: &Scene, stage: &Stage) -> Result<Told, DemoError> {
    stage.provider.take_seen();
    let connections = stage.provider.connections();
    let ask = Ask { way: scene.way, verb: Verb::Get, host: scene.host, path: scene.path };
    let call = stage.client.call(ask).await?;
    let (line, record) = record(stage, &call.request_id).await?;
    let seen = stage.provider.take_seen();
    let dialled = stage.provider.connections() > connections;
    let evidence =
        Evidence { call: &call, seen: &seen, dialled, line: &line, record: &record, key: &stage.key };
    let checks = scene.judge(&evidence);
    let saw = provider_saw(scene, &seen, dialled);
    Ok(Told { rows: vec![[call.sent, saw, call.got]], line, record, checks })
}

/// The log record of a request: its line, and what it says.
pub async fn record(stage: &Stage, request_id: &str) -> Result<(String, Json), DemoError> {
    let wanted = Json::from(request_id);
    // The caller bounds the wait.
    loop {
        let log = stage.access_log().await?;
        let mut records =
            log.lines().filter_map(|line| Some((line, serde_json::from_str::<Json>(line).ok()?)));
        if let Some((line, record)) =
            records.find(|(_, record)| record.get("outgate.request_id") == Some(&wanted))
        {
            return Ok((line.to_owned(), record));
        }
        if request_id.is_empty() {
            return Err(DemoError::NoRecord);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn provider_saw(scene: &Scene, seen: &[Seen], dialled: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    for request in seen {
        lines.push(Line::new(Tone::Bold, &request.request_line));
        lines.extend(request.fields.iter().map(|field| field_line(request, field)));
    }
    if seen.is_empty() {
        lines.push(nothing(dialled));
    }
    if matches!(scene.outcome, Outcome::Masked) {
        lines.push(Line::new(Tone::Faint, "(its answer holds the whole key)"));
    }
    lines
}

/// A field as the provider saw it; the real key stands out.
pub fn field_line(request: &Seen, field: &str) -> Line {
    let key = request.real_key && field.starts_with("authorization:");
    Line::new(if key { Tone::Good } else { Tone::Plain }, field)
}

/// What stands in the provider's column where it saw no request.
pub fn nothing(dialled: bool) -> Line {
    let text = if dialled { "a connection, and no request" } else { "nothing: no request, no connection" };
    Line::new(Tone::Faint, text)
}

/// What everybody knows of a request.
struct Evidence<'a> {
    call: &'a Call,
    seen: &'a [Seen],
    dialled: bool,
    line: &'a str,
    record: &'a Json,
    key: &'a str,
}

impl Scene {
    fn judge(&self, evidence: &Evidence<'_>) -> Vec<Check> {
        let Evidence { call, seen, record, .. } = *evidence;
        let status = match self.outcome {
            Outcome::Refused { status, .. } => status,
            Outcome::Injected | Outcome::Masked | Outcome::Untouched => 200,
        };
        let mut checks = vec![check(format!("status {status}"), call.status == status)];
        let real_key = matches!(seen, [one] if one.real_key);
        match self.outcome {
            Outcome::Injected => checks.push(check("the provider saw the real key", real_key)),
            Outcome::Masked => {
                checks.push(check("the provider saw the real key", real_key));
                let masks = record.get("outgate.scrubbed").and_then(Json::as_u64);
                checks.push(check("it was masked twice", masks == Some(2)));
            }
            Outcome::Untouched => {
                let sent = format!("Bearer {PLACEHOLDER}");
                let own = matches!(seen, [one] if one.authorization == sent.as_bytes());
                checks.push(check("the provider saw the app's own key", own));
            }
            Outcome::Refused { code, .. } => {
                checks.push(check(format!("code {code}"), call.error() == Some(code)));
                checks.push(check("the provider saw nothing", seen.is_empty() && !evidence.dialled));
            }
        }
        let clean = clean(call, evidence.line, evidence.key);
        checks.push(check("the key is neither in the answer nor in the log", clean));
        let door = record.get("outgate.door").and_then(Json::as_str);
        checks.push(check(format!("logged by the door `{}`", self.door), door == Some(self.door)));
        checks
    }
}

/// Whether the key is neither in what the app got nor in the log.
pub fn clean(call: &Call, line: &str, key: &str) -> bool {
    !contains(&call.received, key) && !contains(line.as_bytes(), key)
}

/// Something that must be so.
pub fn check(what: impl Into<String>, holds: bool) -> Check {
    Check { what: what.into(), holds }
}

/// Looks for the key wherever outgate shows something.
pub async fn leaks(stage: &Stage) -> Result<Vec<Check>, DemoError> {
    let log = stage.access_log().await?;
    let mut checks = vec![check("access log", !contains(log.as_bytes(), &stage.key))];
    if let Some(admin) = stage.app.admin {
        for path in ["/metrics", "/status"] {
            let page = stage.client.page(admin, path).await?;
            checks.push(check(path, !page.is_empty() && !contains(&page, &stage.key)));
        }
    }
    Ok(checks)
}

fn contains(text: &[u8], wanted: &str) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_what_is_there() {
        for (text, found) in
            [("a key here", true), ("key", true), ("ke y", false), ("ke", false), ("", false)]
        {
            assert_eq!(contains(text.as_bytes(), "key"), found, "{text}");
        }
    }
}
