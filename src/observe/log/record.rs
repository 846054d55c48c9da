//! One line of the log, in no form yet.

use crate::supervisor::note::{Level, Note, NoteKind};

/// The longest line of a worker's that is passed on.
pub(super) const OUTPUT_MOST: usize = 16 * 1024;

/// A named fact that has no place of its own.
pub type Field = (String, String);

/// One line: a sentence and its facts.
#[derive(Debug, Clone, Default)]
pub struct Record<'a> {
    /// How loud.
    pub level: Option<Level>,
    /// The sentence.
    pub message: &'a str,
    /// What kind of thing happened; none for what a worker wrote.
    pub event: Option<NoteKind>,
    /// Where.
    pub slot: Option<u32>,
    /// To whom.
    pub worker: Option<u64>,
    /// Its generation.
    pub generation: Option<u64>,
    /// Its first process.
    pub pid: Option<u32>,
    /// Cause or verdict.
    pub reason: Option<&'a str>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes.
    pub limit: Option<u64>,
    /// The worker's scope.
    pub unit: Option<&'a str>,
    /// Whether a worker wrote it.
    pub is_output: bool,
    /// What else there is to know.
    pub fields: Vec<Field>,
}

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputSource {
    /// Its slot.
    pub slot: u32,
    /// Its number.
    pub worker: u64,
    /// Its generation.
    pub generation: u64,
    /// Its first process.
    pub pid: u32,
}

impl<'a> Record<'a> {
    /// What the core notes.
    pub fn of_note(note: &'a Note, unit: Option<&'a str>) -> Self {
        Self {
            level: Some(note.level),
            message: &note.message,
            event: Some(note.kind),
            slot: note.slot.map(|slot| slot.0),
            worker: note.worker.map(|worker| worker.0),
            generation: note.generation.map(|generation| generation.0),
            pid: note.pid,
            reason: note.reason.as_deref(),
            memory: note.memory,
            limit: note.limit,
            unit,
            is_output: false,
            fields: Vec::new(),
        }
    }

    /// A sentence.
    pub fn of_message(level: Level, message: &'a str) -> Self {
        Self { level: Some(level), message, event: Some(NoteKind::Notice), ..Self::default() }
    }

    /// What a worker wrote.
    pub fn of_output(source: &OutputSource, line: &'a str) -> Self {
        Self {
            message: line,
            slot: Some(source.slot),
            worker: Some(source.worker),
            generation: Some(source.generation),
            pid: Some(source.pid),
            is_output: true,
            ..Self::default()
        }
    }

    /// The level, `Info` where none was given.
    pub fn level(&self) -> Level {
        self.level.unwrap_or(Level::Info)
    }
}

/// The level's number in the journal (`syslog(3)`).
pub(super) const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warning => 4,
        Level::Info => 6,
        Level::Debug => 7,
    }
}

/// The level's name.
pub(super) const fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
    }
}
