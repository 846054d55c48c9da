//! Wording: notes and the figures in them.

use std::time::Duration;

use super::action::Action;
use super::id::{SlotId, WorkerId};
use super::note::{Level, Note, NoteKind};
use super::worker::Worker;
use super::{Cx, Supervisor};

/// Bytes for people: `512.0M`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    for (unit, letter) in UNITS {
        if bytes >= unit {
            let tenths = u128::from(bytes) * 10 / u128::from(unit);
            return format!("{}.{}{letter}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes}")
}

/// A span for people: `250ms`, `1.5s`, `30s`, `10min`, `6h`.
pub(super) fn span(span: Duration) -> String {
    let millis = span.as_millis();
    let seconds = span.as_secs();
    if span == Duration::MAX {
        "infinity".to_owned()
    } else if millis < 1000 {
        format!("{millis}ms")
    } else if !millis.is_multiple_of(1000) && seconds < 60 {
        format!("{}.{}s", seconds, millis % 1000 / 100)
    } else if seconds >= 3600 && seconds.is_multiple_of(3600) {
        format!("{}h", seconds / 3600)
    } else if seconds >= 60 && seconds.is_multiple_of(60) {
        format!("{}min", seconds / 60)
    } else {
        format!("{seconds}s")
    }
}

/// `; last words: …`, or nothing: the last line of what a worker wrote.
pub(super) fn last_words(words: &[String]) -> String {
    words.last().map_or_else(String::new, |line| format!("; last words: {line}"))
}

/// `1 worker`, `4 workers`.
pub(super) fn workers(count: u32) -> String {
    if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") }
}

/// A note about the app as a whole.
pub(super) fn general(level: Level, kind: NoteKind, message: String) -> Note {
    Note {
        level,
        kind,
        slot: None,
        worker: None,
        generation: None,
        pid: None,
        reason: None,
        memory: None,
        limit: None,
        message,
    }
}

impl Supervisor {
    /// Says something about one worker; `text` follows the worker's title.
    pub(super) fn say(
        &self,
        id: WorkerId,
        level: Level,
        kind: NoteKind,
        reason: Option<&str>,
        text: &str,
        cx: &mut Cx<'_>,
    ) {
        if let Some(worker) = self.workers.get(&id) {
            cx.act(Action::Note(about(id, worker, level, kind, reason, text)));
        }
    }
}

/// A note about one worker; `text` follows the worker's title.
pub(super) fn about(
    id: WorkerId,
    worker: &Worker,
    level: Level,
    kind: NoteKind,
    reason: Option<&str>,
    text: &str,
) -> Note {
    Note {
        level,
        kind,
        slot: Some(worker.slot),
        worker: Some(id),
        generation: Some(worker.generation()),
        pid: worker.pid,
        reason: reason.map(str::to_owned),
        memory: worker.unreclaimable,
        limit: worker.memory_max,
        message: format!("{}: {text}", worker.title()),
    }
}

/// A note about a slot without a worker.
pub(super) fn place(level: Level, kind: NoteKind, slot: SlotId, text: &str) -> Note {
    Note { slot: Some(slot), ..general(level, kind, format!("slot {slot}: {text}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_systemd_reads_them() {
        assert_eq!(size(512 << 20), "512.0M");
        assert_eq!(size(1536 << 20), "1.5G");
        assert_eq!(size(1023), "1023");
        assert_eq!(size(u64::MAX), "16777215.9T");
    }

    #[test]
    fn spans_are_short() {
        assert_eq!(span(Duration::from_millis(100)), "100ms");
        assert_eq!(span(Duration::from_millis(1500)), "1.5s");
        assert_eq!(span(Duration::from_secs(30)), "30s");
        assert_eq!(span(Duration::from_mins(10)), "10min");
        assert_eq!(span(Duration::from_hours(6)), "6h");
        assert_eq!(span(Duration::from_secs(90)), "90s");
        assert_eq!(span(Duration::MAX), "infinity");
    }
}
