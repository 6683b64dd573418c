//! Dates of RFC 3339, as providers write them: with an offset or without, with a fraction or without.

use std::time::{Duration, SystemTime};

/// The shortest date with a time: `2030-01-01T00:00:00`.
const SHORTEST: usize = 19;

/// The moment that a date names; UTC where it has no offset. `None` where it is no date.
#[must_use]
pub fn rfc3339(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let (date, offset) = match text.strip_suffix(['Z', 'z']) {
        Some(date) => (date, None),
        None => with_offset(text)?,
    };
    let moment = humantime::parse_rfc3339_weak(date).ok()?;
    match offset {
        None => Some(moment),
        Some((true, offset)) => moment.checked_sub(offset),
        Some((false, offset)) => moment.checked_add(offset),
    }
}

/// What stands before `+02:00` or `+0200`, whether the offset is ahead of UTC, and how much.
fn with_offset(text: &str) -> Option<(&str, Option<(bool, Duration)>)> {
    let Some(at) = text.rfind(['+', '-']).filter(|at| *at >= SHORTEST) else { return Some((text, None)) };
    let (date, offset) = text.split_at(at);
    let digits: String = offset[1..].chars().filter(|c| *c != ':').collect();
    let is_time = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let (hours, minutes) = digits.split_at_checked(2).filter(|_| is_time)?;
    let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
    let seconds = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
    Some((date, Some((offset.starts_with('+'), Duration::from_secs(seconds)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_part_of_the_moment() {
        let noon = humantime::parse_rfc3339("2030-01-01T12:00:00Z").unwrap();
        for text in [
            "2030-01-01T12:00:00Z",
            "2030-01-01T12:00:00z",
            "2030-01-01 12:00:00",
            "2030-01-01T12:00:00.000Z",
            "2030-01-01T14:00:00+02:00",
            "2030-01-01T14:00:00.000+02:00",
            "2030-01-01T14:00:00.000+0200",
            "2030-01-01T07:00:00-05:00",
            "2030-01-01T07:00:00.000000-05:00",
            "2030-01-01T12:00:00+00:00",
            "2030-01-01T12:00:00-00:00",
            "2030-01-02T01:45:00+13:45",
        ] {
            assert_eq!(rfc3339(text), Some(noon), "{text}");
        }
        for text in [
            "",
            "soon",
            "2030-01-01",
            "2030-01-01T12:00:00+2",
            "2030-01-01T12:00:00+24:00",
            "2030-01-01T12:00:00+02:60",
            "2030-01-01T12:00:00+",
            "2030-01-01T12:00:00+02:00Z",
            "2030-01-01T12:00:00 +02:00",
            "+02:00",
            "2030-01-01T12:00:00+\u{e4}\u{e4}",
        ] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }
}
