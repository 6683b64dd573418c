//! How the scenes are printed.

use serde_json::Value as Json;

use super::columns::{Line, Tone, flow, paint, side_by_side, wrap};
use super::scenes::{Check, Told};
use super::stage::Stage;
use super::{DemoError, Style, say};

/// Indentation of what belongs to a scene.
const INDENT: usize = 3;
/// Keys of the log record that are shown, in their order; the rest of a line is in the file.
const SHOWN: [&str; 20] = [
    "outgate.door",
    "http.request.method",
    "url.scheme",
    "server.address",
    "url.path",
    "network.protocol.version",
    "http.response.status_code",
    "outgate.flag",
    "error.type",
    "outgate.error.detail",
    "outgate.sent",
    "outgate.attempts",
    "outgate.retry.reason",
    "outgate.provider",
    "outgate.route",
    "outgate.credential",
    "outgate.scrubbed",
    "outgate.upstream.protocol",
    "outgate.upstream.reused",
    "duration",
];

/// Prints, and remembers what went wrong.
pub struct Report {
    /// Colours.
    pub style: Style,
    width: usize,
    scenes: usize,
    failed: Vec<String>,
    /// A line of the log, shown at the end.
    example: Option<String>,
}

impl Report {
    /// A report in `width` columns.
    pub fn new(style: Style, width: usize) -> Self {
        Self { style, width, scenes: 0, failed: Vec::new(), example: None }
    }

    /// Whether everything went as it must.
    pub fn good(&self) -> bool {
        self.failed.is_empty()
    }

    /// Who takes part, and the policy.
    pub fn opening(&self, stage: &Stage) {
        say(&self.style.bold("outgate demo"));
        say("");
        let parts = [
            ("app", "sends what it always sends; instead of a key it has a placeholder".to_owned()),
            ("outgate", format!("{}, with the policy below", stage.client.outgate)),
            (
                "provider",
                format!("{}, TLS with an authority of its own; knows the real key", stage.provider.address),
            ),
            ("secret", format!("a random key in a file, {} bytes, printed nowhere", stage.key.len())),
        ];
        for (name, what) in parts {
            self.indented(&wrap(&format!("{name:<9} {what}"), self.width - INDENT), Tone::Plain);
        }
        self.act("First act: what leaves, and what does not", &stage.policy);
    }

    /// What the second act is about, and its part of the policy.
    pub fn second_act(&self, stage: &Stage) {
        let title = "Second act: a provider that throttles, fails and recovers";
        self.act(title, &stage.second_policy);
    }

    fn act(&self, title: &str, policy: &str) {
        let rule = self.width.saturating_sub(title.chars().count() + 1);
        say("");
        say(&format!("{} {}", self.style.bold(title), self.style.faint(&"\u{2500}".repeat(rule))));
        say("");
        for line in policy.lines() {
            // What is wrapped goes on below the words, and not at the margin.
            let margin = line.chars().take_while(|&character| character == ' ').count();
            for line in wrap(&line[margin..], self.width - INDENT - margin) {
                self.indented(&[format!("{}{line}", " ".repeat(margin))], Tone::Faint);
            }
        }
    }

    /// One scene: three columns, the record, the verdict.
    pub fn scene(&mut self, title: &str, note: &str, told: &Result<Told, DemoError>) {
        self.scenes += 1;
        let title = format!("{}. {title}", self.scenes);
        say("");
        say(&self.style.bold(&title));
        self.indented(&wrap(note, self.width - INDENT), Tone::Faint);
        say("");
        match told {
            Ok(told) => self.told(&title, told),
            Err(error) => {
                self.indented(&wrap(&error.to_string(), self.width - INDENT), Tone::Bad);
                self.failed.push(format!("{title}: {error}"));
            }
        }
    }

    fn told(&mut self, title: &str, told: &Told) {
        let titles = ["app sent", "provider saw", "app got"];
        let mut head = titles.map(|title| vec![Line::new(Tone::Faint, title.to_uppercase())]);
        for row in &told.rows {
            let cells: Vec<_> = head.iter().zip(row).map(|(head, cell)| [&head[..], cell].concat()).collect();
            for line in side_by_side(&self.style, self.width, INDENT, &cells) {
                say(&line);
            }
            // Between one step and the next.
            head = titles.map(|_| vec![Line::plain("")]);
        }
        say("");
        self.record(&told.record);
        self.checks(&told.checks);
        let wrong = told.checks.iter().filter(|check| !check.holds);
        self.failed.extend(wrong.map(|check| format!("{title}: not so: {}", check.what)));
        self.example.get_or_insert_with(|| told.line.clone());
    }

    fn record(&self, record: &Json) {
        let pairs: Vec<String> = SHOWN.iter().filter_map(|key| pair(key, record.get(*key)?)).collect();
        self.labelled("log", &flow(&pairs, self.width - INDENT - LABEL), Tone::Plain);
    }

    fn checks(&self, checks: &[Check]) {
        let texts: Vec<String> = checks.iter().map(verdict).collect();
        let tone = if checks.iter().all(|check| check.holds) { Tone::Good } else { Tone::Bad };
        self.labelled("", &flow(&texts, self.width - INDENT - LABEL), tone);
    }

    /// Where else the key was looked for, a whole log line, and how it went.
    pub fn summary(&mut self, leaks: &[Check]) {
        say("");
        say(&self.style.bold("One log record in full"));
        if let Some(line) = &self.example {
            self.indented(&wrap(line, self.width - INDENT), Tone::Plain);
        }
        say("");
        say(&self.style.bold("The key is not to be found in"));
        self.indented(
            &flow(&leaks.iter().map(verdict).collect::<Vec<_>>(), self.width - INDENT),
            Tone::Plain,
        );
        self.failed.extend(
            leaks.iter().filter(|leak| !leak.holds).map(|leak| format!("the key is in: {}", leak.what)),
        );
        say("");
        if self.good() {
            say(&self.style.good(&format!("{} scenes, all as they must be.", self.scenes)));
            return;
        }
        say(&self.style.bad(&format!("{} scenes; not as it must be:", self.scenes)));
        self.indented(&self.failed, Tone::Bad);
    }

    fn indented(&self, lines: &[String], tone: Tone) {
        for line in lines {
            say(&format!("{}{}", " ".repeat(INDENT), paint(&self.style, tone, line)));
        }
    }

    /// A label before the first line, and the others below it.
    fn labelled(&self, label: &str, lines: &[String], tone: Tone) {
        for (index, line) in lines.iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            let label = self.style.faint(&format!("{label:<LABEL$}"));
            say(&format!("{}{label}{}", " ".repeat(INDENT), paint(&self.style, tone, line)));
        }
    }
}

/// Room for a label.
const LABEL: usize = 5;

fn verdict(check: &Check) -> String {
    format!("{} {}", if check.holds { "\u{2713}" } else { "\u{2717}" }, check.what)
}

/// `key=value`, strings without quotes; of the durations the total, and a wait that can be felt, in milliseconds. That there
/// was one attempt goes without saying.
fn pair(key: &str, value: &Json) -> Option<String> {
    Some(match value {
        Json::String(text) => format!("{key}={text}"),
        Json::Array(items) => {
            let items: Vec<&str> = items.iter().filter_map(Json::as_str).collect();
            format!("{key}={}", items.join(","))
        }
        Json::Object(parts) => {
            let total = format!("{key}.total={}ms", parts.get("total").unwrap_or(&Json::Null));
            match parts.get("queue").filter(|queue| queue.as_f64().is_some_and(|queue| queue >= FELT)) {
                Some(queue) => format!("{key}.queue={queue}ms  {total}"),
                None => total,
            }
        }
        Json::Number(count) if key == ATTEMPTS && count.as_u64().is_some_and(|count| count < 2) => {
            return None;
        }
        other => format!("{key}={other}"),
    })
}

/// How often a request was sent.
const ATTEMPTS: &str = "outgate.attempts";
/// Milliseconds.
const FELT: f64 = 100.0;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_told_by_what_says_something() {
        for (key, value, expected) in [
            ("url.path", json!("/a"), Some("url.path=/a")),
            ("status", json!(200), Some("status=200")),
            ("outgate.attempts", json!(0), None),
            ("outgate.attempts", json!(1), None),
            ("outgate.attempts", json!(2), Some("outgate.attempts=2")),
            ("reason", json!(["throttle", "reset"]), Some("reason=throttle,reset")),
            ("duration", json!({ "total": 3.5, "queue": 0.1 }), Some("duration.total=3.5ms")),
            (
                "duration",
                json!({ "total": 1010, "queue": 1001 }),
                Some("duration.queue=1001ms  duration.total=1010ms"),
            ),
        ] {
            assert_eq!(pair(key, &value).as_deref(), expected, "{key} {value}");
        }
    }
}
