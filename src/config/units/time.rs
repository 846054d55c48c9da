//! Spans of time, in microseconds, as systemd.time(7) writes them.

use std::fmt::Write as _;
use std::time::Duration;

use thiserror::Error;

const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// systemd.time(7): "defined as 30.44 days".
const MONTH: u64 = 2_629_800 * SECOND;
/// systemd.time(7): "defined as 365.25 days".
const YEAR: u64 = 31_557_600 * SECOND;

/// Every spelling, those that begin alike in the order in which systemd tries them.
const UNITS: [(&str, u64); 29] = [
    ("seconds", SECOND),
    ("second", SECOND),
    ("sec", SECOND),
    ("s", SECOND),
    ("minutes", MINUTE),
    ("minute", MINUTE),
    ("min", MINUTE),
    ("months", MONTH),
    ("month", MONTH),
    ("M", MONTH),
    ("msec", 1000),
    ("ms", 1000),
    ("m", MINUTE),
    ("hours", HOUR),
    ("hour", HOUR),
    ("hr", HOUR),
    ("h", HOUR),
    ("days", DAY),
    ("day", DAY),
    ("d", DAY),
    ("weeks", WEEK),
    ("week", WEEK),
    ("w", WEEK),
    ("years", YEAR),
    ("year", YEAR),
    ("y", YEAR),
    ("usec", 1),
    ("us", 1),
    ("µs", 1),
];

/// The other letter that looks like µ: Greek mu beside the micro sign.
const GREEK_MICROSECOND: &str = "μs";

/// Why a text is not a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TimeError {
    /// Nothing there.
    #[error("empty")]
    Empty,
    /// Not numbers with units.
    #[error("not a time")]
    Malformed,
    /// Does not fit into 64 bits of microseconds.
    #[error("too long")]
    TooLong,
    /// Below zero.
    #[error("negative")]
    Negative,
}

impl TimeError {
    /// What to write instead.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Empty | Self::Malformed | Self::Negative => {
                "seconds, or numbers with us, ms, s, min, h, d or w, such as \"1min 30s\""
            }
            Self::TooLong => "less than 584,000 years, or \"infinity\"",
        }
    }
}

/// A span as `parse_sec()` of systemd's `time-util.c` reads it: `30`, `1min 30s`, `500ms`, `1.5h`; a bare number is
/// seconds, `infinity` is [`Duration::MAX`]. Precise to the microsecond.
pub fn parse_time(text: &str) -> Result<Duration, TimeError> {
    let mut rest = text.trim_matches(is_space);
    if rest.is_empty() {
        return Err(TimeError::Empty);
    }
    if rest == "infinity" {
        return Ok(Duration::MAX);
    }
    let mut sum: u64 = 0;
    while !rest.is_empty() {
        let (term, after) = parse_term(rest)?;
        // The last value means infinity to systemd, so a span must stay below it.
        sum = sum.checked_add(term).filter(|sum| *sum != u64::MAX).ok_or(TimeError::TooLong)?;
        rest = after.trim_start_matches(is_space);
    }
    Ok(Duration::from_micros(sum))
}

/// The white space of systemd's `WHITESPACE`.
const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// One number with its unit, in microseconds, and what follows it.
fn parse_term(text: &str) -> Result<(u64, &str), TimeError> {
    if text.starts_with('-') {
        return Err(TimeError::Negative);
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let (whole, mut rest) = digits(unsigned);
    let mut fraction = None;
    if let Some(after) = rest.strip_prefix('.') {
        let (decimals, after) = digits(after);
        fraction = Some(decimals);
        rest = after;
    } else if whole.is_empty() {
        return Err(TimeError::Malformed);
    }
    if fraction == Some("") {
        return Err(TimeError::Malformed);
    }
    let spaced = rest.trim_start_matches(is_space);
    let (unit, after) = strip_unit(spaced).unwrap_or((SECOND, spaced));
    if after.len() == rest.len() && !rest.is_empty() {
        return Err(TimeError::Malformed);
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| TimeError::TooLong)? };
    let mut term = whole.checked_mul(unit).ok_or(TimeError::TooLong)?;
    // systemd's own way: each decimal weighs a tenth of the one before, rounded down.
    let mut weight = unit / 10;
    for digit in fraction.unwrap_or_default().bytes() {
        term = term.checked_add(u64::from(digit - b'0') * weight).ok_or(TimeError::TooLong)?;
        weight /= 10;
    }
    Ok((term, after))
}

/// A unit's microseconds, and what follows its name.
fn strip_unit(text: &str) -> Option<(u64, &str)> {
    if let Some(after) = text.strip_prefix(GREEK_MICROSECOND) {
        return Some((1, after));
    }
    UNITS.iter().find_map(|(name, unit)| text.strip_prefix(name).map(|after| (*unit, after)))
}

/// Leading digits, and what follows them.
fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// `1min 30s`, `500ms`, `infinity`: what [`parse_time`] reads as the same span, to the microsecond.
pub fn render_time(span: Duration) -> String {
    if span == Duration::MAX {
        return "infinity".to_owned();
    }
    let mut rest = u64::try_from(span.as_micros()).unwrap_or(u64::MAX - 1);
    if rest == 0 {
        return "0".to_owned();
    }
    let mut text = String::new();
    let units = [("d", DAY), ("h", HOUR), ("min", MINUTE), ("s", SECOND), ("ms", 1000), ("us", 1)];
    for (name, unit) in units {
        let count = rest / unit;
        rest %= unit;
        if count > 0 {
            let space = if text.is_empty() { "" } else { " " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{space}{count}{name}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_read_as_systemd_reads_them() {
        let cases = [
            ("0", 0),
            ("30", 30 * SECOND),
            (" 30 ", 30 * SECOND),
            ("+30", 30 * SECOND),
            ("1min 30s", 90 * SECOND),
            ("1min30s", 90 * SECOND),
            ("1min 30", 90 * SECOND),
            ("5 30s", 35 * SECOND),
            ("500ms", 500_000),
            ("2h", 2 * HOUR),
            ("1.5h", 90 * MINUTE),
            (".5s", 500_000),
            ("2 weeks 3d", 2 * WEEK + 3 * DAY),
            ("1y 1M 1m", YEAR + MONTH + MINUTE),
            ("3us 4usec 5µs 6μs", 18),
            ("12.34s.56", 12_900_000),
            ("12.34 .56", 12_900_000),
            ("1.0000009s", SECOND),
        ];
        for (text, micros) in cases {
            assert_eq!(parse_time(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        assert_eq!(parse_time(" infinity "), Ok(Duration::MAX));
    }

    #[test]
    fn every_spelling_of_a_unit_is_read() {
        for (name, unit) in UNITS {
            let expected = Ok(Duration::from_micros(3 * unit));
            assert_eq!(parse_time(&format!("3{name}")), expected, "{name}");
            assert_eq!(parse_time(&format!("3 {name} 0s")), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_time_says_why() {
        let cases = [
            ("", TimeError::Empty),
            ("soon", TimeError::Malformed),
            ("s", TimeError::Malformed),
            ("5x", TimeError::Malformed),
            ("5 x", TimeError::Malformed),
            ("1minute30secs", TimeError::Malformed),
            ("12.34.56", TimeError::Malformed),
            ("3.", TimeError::Malformed),
            ("3.s", TimeError::Malformed),
            ("3. 1", TimeError::Malformed),
            ("3.+1", TimeError::Malformed),
            ("infinity 3s", TimeError::Malformed),
            ("3s infinity", TimeError::Malformed),
            ("-1", TimeError::Negative),
            ("5s -1", TimeError::Negative),
            ("99999999999999999999", TimeError::TooLong),
            ("600000y", TimeError::TooLong),
            ("18446744073709551615us", TimeError::TooLong),
        ];
        for (text, error) in cases {
            assert_eq!(parse_time(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_rendered_time_is_short() {
        let cases = [
            (0, "0"),
            (90 * SECOND, "1min 30s"),
            (30 * SECOND, "30s"),
            (100_000, "100ms"),
            (6 * HOUR, "6h"),
            (DAY + 1, "1d 1us"),
        ];
        for (micros, text) in cases {
            assert_eq!(render_time(Duration::from_micros(micros)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_rendered_reads_the_same(micros in 0..u64::MAX, shift in 0u32..64) {
            let span = Duration::from_micros(micros >> shift);
            prop_assert_eq!(parse_time(&render_time(span)), Ok(span));
        }

        #[test]
        fn any_text_is_survived(text in "[-+0-9. a-zMµμ\\PC]{0,24}") {
            let _ = parse_time(&text);
        }
    }
}
