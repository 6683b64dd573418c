//! How the scenes are printed.

use serde_json::Value as Json;

use super::columns::{Line, Tone, flow, paint, side_by_side, wrap};
use super::scenes::{Check, Scene, Told};
use super::stage::Stage;
use super::{DemoError, Style, say};

/// Indentation of what belongs to a scene.
const INDENT: usize = 3;
/// Keys of the log record that are shown, in their order; the rest of a line is in the file.
const SHOWN: [&str; 18] = [
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
        say("");
        self.indented(&stage.policy.lines().map(str::to_owned).collect::<Vec<_>>(), Tone::Faint);
    }

    /// One scene: three columns, the record, the verdict.
    pub fn scene(&mut self, number: usize, scene: &Scene, told: &Result<Told, DemoError>) {
        self.scenes += 1;
        say("");
        say(&self.style.bold(&format!("{number}. {}", scene.title)));
        self.indented(&wrap(scene.note, self.width - INDENT), Tone::Faint);
        say("");
        match told {
            Ok(told) => self.told(number, scene, told),
            Err(error) => {
                self.indented(&wrap(&error.to_string(), self.width - INDENT), Tone::Bad);
                self.failed.push(format!("{number}. {}: {error}", scene.title));
            }
        }
    }

    fn told(&mut self, number: usize, scene: &Scene, told: &Told) {
        let cells = [("app sent", &told.sent), ("provider saw", &told.saw), ("app got", &told.got)];
        let cells = cells.map(|(title, lines)| {
            let title = Line::new(Tone::Faint, title.to_uppercase());
            std::iter::once(title).chain(lines.iter().cloned()).collect::<Vec<_>>()
        });
        for line in side_by_side(&self.style, self.width, INDENT, &cells) {
            say(&line);
        }
        say("");
        self.record(&told.record);
        self.checks(&told.checks);
        let wrong = told.checks.iter().filter(|check| !check.holds);
        self.failed.extend(wrong.map(|check| format!("{number}. {}: not so: {}", scene.title, check.what)));
        self.example.get_or_insert_with(|| told.line.clone());
    }

    fn record(&self, record: &Json) {
        let pairs: Vec<String> = SHOWN.iter().filter_map(|key| Some(pair(key, record.get(*key)?))).collect();
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

/// `key=value`, strings without quotes; of the durations the total, in milliseconds.
fn pair(key: &str, value: &Json) -> String {
    match value {
        Json::String(text) => format!("{key}={text}"),
        Json::Object(parts) => format!("{key}.total={}ms", parts.get("total").unwrap_or(&Json::Null)),
        other => format!("{key}={other}"),
    }
}
