//! Text in columns side by side, and text wrapped below each other. Pure: text in, text out.

use super::Style;

/// Between two columns.
const GAP: &str = " \u{2502} ";
/// What a wrapped line goes on with.
const HANGING: usize = 2;

/// How a line is coloured, where there are colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// What one need not read.
    Faint,
    /// A heading.
    Bold,
    /// What should be so.
    Good,
    /// What must not be.
    Bad,
}

/// One line of a cell, before wrapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its text, without line breaks.
    pub text: String,
    /// Its colour.
    pub tone: Tone,
}

impl Line {
    /// A line of a tone.
    pub fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }

    /// A line without colour.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::new(Tone::Plain, text)
    }
}

/// Paints a text in a tone.
pub fn paint(style: &Style, tone: Tone, text: &str) -> String {
    match tone {
        Tone::Plain => text.to_owned(),
        Tone::Faint => style.faint(text),
        Tone::Bold => style.bold(text),
        Tone::Good => style.good(text),
        Tone::Bad => style.bad(text),
    }
}

/// Lays the cells out side by side in `width` columns of text, equally wide, each line indented by `indent`.
pub fn side_by_side(style: &Style, width: usize, indent: usize, cells: &[Vec<Line>]) -> Vec<String> {
    let gaps = GAP.chars().count() * cells.len().saturating_sub(1);
    let each = (width.saturating_sub(indent + gaps) / cells.len().max(1)).max(1);
    let wrapped: Vec<Vec<Line>> = cells.iter().map(|lines| wrap_lines(lines, each)).collect();
    let height = wrapped.iter().map(Vec::len).max().unwrap_or(0);
    let empty = Line::plain("");
    let row = |row: usize| {
        let cells = wrapped.iter().map(|lines| lines.get(row).unwrap_or(&empty));
        let cells: Vec<String> =
            cells.map(|line| paint(style, line.tone, &padded(&line.text, each))).collect();
        format!("{}{}", " ".repeat(indent), cells.join(&style.faint(GAP))).trim_end().to_owned()
    };
    (0..height).map(row).collect()
}

fn wrap_lines(lines: &[Line], width: usize) -> Vec<Line> {
    let wrapped = |line: &Line| {
        let tone = line.tone;
        wrap(&line.text, width).into_iter().map(move |text| Line { text, tone })
    };
    lines.iter().flat_map(wrapped).collect()
}

fn padded(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{}", " ".repeat(missing))
}

/// Breaks a text into lines of at most `width` characters: at a space or after a comma, else after other punctuation in the
/// line's second half, else anywhere. What follows the first line is indented.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest: Vec<char> = text.chars().collect();
    let mut indent = 0;
    loop {
        let room = width.saturating_sub(indent).max(1);
        if rest.len() <= room {
            lines.push(indented(indent, &rest));
            return lines;
        }
        let end = break_at(&rest, room);
        lines.push(indented(indent, &rest[..end]).trim_end().to_owned());
        let skipped = rest[end..].iter().take_while(|&&character| character == ' ').count();
        rest.drain(..end + skipped);
        // A column too narrow for an indentation does without.
        indent = if width > 2 * HANGING { HANGING } else { 0 };
    }
}

/// How many characters go into this line; more than `room` are there.
fn break_at(text: &[char], room: usize) -> usize {
    let good = |end: &usize| text[*end] == ' ' || matches!(text[*end - 1], ' ' | ',' | ';');
    let fair = |end: &usize| matches!(text[*end - 1], '/' | '-' | ':' | '=' | '&' | '.' | '_');
    // A line that is left emptier than this looks broken, and not wrapped.
    let from = |least: usize| (least + 1..=room).rev();
    from(room / 5).find(good).or_else(|| from(room / 2).find(fair)).unwrap_or(room)
}

fn indented(indent: usize, text: &[char]) -> String {
    " ".repeat(indent).chars().chain(text.iter().copied()).collect()
}

/// Puts parts one after the other, two spaces between them, into lines of at most `width` characters; a part is broken only
/// if it is longer than a line.
pub fn flow(parts: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + part.chars().count() <= width => {
                line.push_str("  ");
                line.push_str(part);
            }
            Some(_) | None => lines.extend(wrap(part, width)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { colour: false };

    #[test]
    fn texts_are_wrapped_where_one_would_break_them() {
        let cases: &[(&str, usize, &[&str])] = &[
            ("", 10, &[""]),
            ("short", 10, &["short"]),
            ("exactly 10", 10, &["exactly 10"]),
            ("a few words here", 10, &["a few", "  words", "  here"]),
            (r#"{"a":"b","c":"d","e":1}"#, 12, &[r#"{"a":"b","#, r#"  "c":"d","#, r#"  "e":1}"#]),
            ("0123456789abcdef", 10, &["0123456789", "  abcdef"]),
            ("01a1fde9-b832-7d15", 14, &["01a1fde9-b832-", "  7d15"]),
            ("x early0123456789", 10, &["x early012", "  3456789"]),
            ("abcdef", 3, &["abc", "def"]),
            ("grüße überall", 8, &["grüße", "  überal", "  l"]),
        ];
        for (text, width, expected) in cases {
            assert_eq!(wrap(text, *width), *expected, "{text:?} in {width}");
        }
    }

    #[test]
    fn no_line_is_wider_than_it_may_be_and_no_character_is_lost() {
        let text = "GET https://api.demo.example/v1/hello?a=b,c;d HTTP/1.1 with-some-words and a tail";
        for width in 1..text.len() + 2 {
            let lines = wrap(text, width);
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}: {lines:?}");
            let kept = |text: &str| text.chars().filter(|c| *c != ' ').collect::<String>();
            assert_eq!(kept(&lines.concat()), kept(text), "{width}");
        }
    }

    #[test]
    fn cells_stand_side_by_side() {
        let cells = [
            vec![Line::plain("one"), Line::plain("two words")],
            vec![Line::plain("1")],
            vec![Line::plain("x"), Line::plain("y"), Line::plain("z")],
        ];
        let lines = side_by_side(&PLAIN, 26, 2, &cells);
        assert_eq!(
            lines,
            [
                "  one    │ 1      │ x",
                "  two    │        │ y",
                "    word │        │ z",
                "    s    │        │"
            ]
        );
    }

    #[test]
    fn colours_do_not_move_the_columns() {
        let cells = [vec![Line::new(Tone::Good, "one")], vec![Line::new(Tone::Bad, "two")]];
        let plain = side_by_side(&PLAIN, 23, 0, &cells);
        let coloured = side_by_side(&Style { colour: true }, 23, 0, &cells);
        assert_eq!(plain, ["one        │ two"]);
        assert_eq!(coloured, ["\x1b[32mone       \x1b[0m\x1b[2m │ \x1b[0m\x1b[31mtwo       \x1b[0m"]);
    }

    #[test]
    fn parts_flow_and_stay_whole() {
        let parts = ["a=1", "b=2", "long=part", "c"].map(str::to_owned);
        assert_eq!(flow(&parts, 10), ["a=1  b=2", "long=part", "c"]);
        assert_eq!(flow(&["much=too long".to_owned()], 8), ["much=too", "  long"]);
        assert!(flow(&[], 8).is_empty());
    }
}
