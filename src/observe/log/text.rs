//! Records as lines: for people, and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::record::{Record, level_name};
use super::stderr::Stderr;
use crate::observe::escape::single_line;
use crate::supervisor::note::Level;

/// The longest sentence.
const MESSAGE_MOST: usize = 16 * 1024;

/// A line for people. How it happened (`Debug`) is left out.
pub(super) fn write(out: &mut Stderr, app: &str, colour: bool, record: &Record<'_>) {
    if record.level() == Level::Debug {
        return;
    }
    write_lost(out, app, colour);
    out.line(text(app, colour, now(), record).as_bytes());
}

/// A line for programs.
pub(super) fn write_json(out: &mut Stderr, app: &str, record: &Record<'_>) {
    write_lost_json(out, app);
    out.line(json(app, now(), record).as_bytes());
}

/// What was kept, and then how many lines were not.
pub(super) fn write_lost(out: &mut Stderr, app: &str, colour: bool) {
    if let Some(lost) = lost(out) {
        out.line(text(app, colour, now(), &Record::of_message(Level::Warning, &lost)).as_bytes());
    }
}

/// As [`write_lost`], for programs.
pub(super) fn write_lost_json(out: &mut Stderr, app: &str) {
    if let Some(lost) = lost(out) {
        out.line(json(app, now(), &Record::of_message(Level::Warning, &lost)).as_bytes());
    }
}

fn lost(out: &mut Stderr) -> Option<String> {
    let lost = out.take_lost();
    (lost > 0).then(|| format!("{lost} log lines were lost because nobody read them"))
}

fn text(app: &str, colour: bool, time: TimeOfDay, record: &Record<'_>) -> String {
    let (dim, paint, plain) = match (colour, record.level()) {
        (false, _) => ("", "", ""),
        (true, Level::Error) => ("\x1b[2m", "\x1b[1;31m", "\x1b[0m"),
        (true, Level::Warning) => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
        (true, Level::Info | Level::Debug) => ("\x1b[2m", "", "\x1b[0m"),
    };
    let message = single_line(record.message, MESSAGE_MOST);
    let mut line = format!("{dim}{time}{plain} ");
    if let (true, Some(slot), Some(pid)) = (record.is_output, record.slot, record.pid) {
        let _ = write!(line, "{dim}{app}[{slot}:{pid}] |{plain} {message}");
    } else {
        match record.level() {
            level @ (Level::Error | Level::Warning) => {
                let _ = write!(line, "{app}: {paint}{}: {message}{plain}", level_name(level));
            }
            Level::Info | Level::Debug => {
                let _ = write!(line, "{app}: {message}");
            }
        }
    }
    for (name, value) in &record.fields {
        let _ = write!(line, " {dim}{name}={plain}{}", single_line(value, MESSAGE_MOST));
    }
    line.push('\n');
    line
}

#[derive(Serialize)]
struct Json<'a> {
    time: String,
    level: &'static str,
    app: &'a str,
    event: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    fields: BTreeMap<&'a str, &'a str>,
}

fn json(app: &str, time: TimeOfDay, record: &Record<'_>) -> String {
    let object = Json {
        time: time.to_string(),
        level: level_name(record.level()),
        app,
        event: record.event.map_or("output", super::NoteKind::name),
        message: record.message,
        slot: record.slot,
        generation: record.generation,
        worker: record.worker,
        pid: record.pid,
        reason: record.reason,
        memory_bytes: record.memory,
        memory_limit_bytes: record.limit,
        unit: record.unit,
        fields: record.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
    };
    // Text and numbers only: this cannot fail, and an empty line would be the smallest harm if it did.
    let mut line = serde_json::to_string(&object).unwrap_or_default();
    line.push('\n');
    line
}

/// The line that people see, at the beginning of time.
#[cfg(any(test, fuzzing))]
pub(crate) fn as_text(app: &str, record: &Record<'_>) -> String {
    text(app, false, TimeOfDay { seconds: 0, millis: 0 }, record)
}

/// The line that programs see, likewise.
#[cfg(any(test, fuzzing))]
pub(crate) fn as_json(app: &str, record: &Record<'_>) -> String {
    json(app, TimeOfDay { seconds: 0, millis: 0 }, record)
}

/// A date and time in UTC, as RFC 3339 writes it.
#[derive(Clone, Copy)]
struct TimeOfDay {
    seconds: u64,
    millis: u32,
}

#[expect(clippy::disallowed_methods, reason = "the time of day of a log line is for people; nothing is decided by it")]
fn now() -> TimeOfDay {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeOfDay { seconds: since.as_secs(), millis: since.subsec_millis() }
}

impl std::fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (days, second) = (self.seconds / 86_400, self.seconds % 86_400);
        // Years that begin in March, so that the leap day comes last; eras of 400 years have the same length.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.millis
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::OutputSource;
    use super::*;

    const TIME: TimeOfDay = TimeOfDay { seconds: 1_709_210_096, millis: 7 };

    fn record(level: Level) -> Record<'static> {
        let fields = vec![("unit".to_owned(), "a\nb".to_owned())];
        Record { fields, ..Record::of_message(level, "a sentence\x1b[2J") }
    }

    #[test]
    fn dates_are_right() {
        let date = |seconds| TimeOfDay { seconds, millis: 0 }.to_string();
        assert_eq!(TIME.to_string(), "2024-02-29T12:34:56.007Z");
        assert_eq!(date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date(951_868_799), "2000-02-29T23:59:59.000Z");
        assert_eq!(date(951_868_800), "2000-03-01T00:00:00.000Z");
        assert_eq!(date(1_798_761_599), "2026-12-31T23:59:59.000Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_line_for_people() {
        assert_eq!(
            text("shop", false, TIME, &record(Level::Warning)),
            "2024-02-29T12:34:56.007Z shop: warning: a sentence\\x1b[2J unit=a\\nb\n"
        );
        let source = OutputSource { slot: 1, worker: 2, generation: 3, pid: 4 };
        assert_eq!(
            text("shop", false, TIME, &Record::of_output(&source, "hello")),
            "2024-02-29T12:34:56.007Z shop[1:4] | hello\n"
        );
    }

    #[test]
    fn colour_is_only_paint() {
        let painted = text("shop", true, TIME, &record(Level::Error));
        let mut bare = painted.clone();
        for paint in ["\x1b[2m", "\x1b[1;31m", "\x1b[0m"] {
            bare = bare.replace(paint, "");
        }
        assert_ne!(bare, painted);
        assert_eq!(bare, text("shop", false, TIME, &record(Level::Error)));
    }

    #[test]
    fn a_line_for_programs() {
        assert_eq!(
            json("shop", TIME, &record(Level::Info)),
            "{\"time\":\"2024-02-29T12:34:56.007Z\",\"level\":\"info\",\"app\":\"shop\",\"event\":\"notice\",\
             \"message\":\"a sentence\\u001b[2J\",\"fields\":{\"unit\":\"a\\nb\"}}\n"
        );
        let source = OutputSource { slot: 1, worker: 2, generation: 3, pid: 4 };
        assert_eq!(
            json("shop", TIME, &Record::of_output(&source, "hello")),
            "{\"time\":\"2024-02-29T12:34:56.007Z\",\"level\":\"info\",\"app\":\"shop\",\"event\":\"output\",\
             \"message\":\"hello\",\"slot\":1,\"generation\":3,\"worker\":2,\"pid\":4}\n"
        );
    }
}
