//! The log: what the core notes, what adapters trace, what workers print, in one of three forms. It never waits for
//! whoever reads it.

mod journald;
mod layer;
mod record;
mod stderr;
mod text;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::model::LogFormat;
use crate::supervisor::note::{Level, Note, NoteKind};
use crate::systemd::journal::{self, JournalSocket};

#[cfg(any(test, fuzzing))]
pub(crate) use text::{as_json, as_text};

pub use record::{Field, OutputSource, Record};
pub use stderr::Stderr;

/// One log for the whole process; clones share it.
#[derive(Debug, Clone)]
pub struct Log {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    app: String,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Journald(JournalSocket),
    Text { out: Stderr, colour: bool },
    Json(Stderr),
}

impl Log {
    /// The log of `app` in this form. If the journal was asked for and is not there, the lines go to stderr as text.
    pub fn open(app: &str, format: LogFormat, environment: impl Fn(&str) -> Option<OsString>) -> Self {
        let journal = match format {
            LogFormat::Journald => true,
            LogFormat::Auto => journal::stderr_is_journal(&environment),
            LogFormat::Text | LogFormat::Json => false,
        };
        let opened = if journal { Some(JournalSocket::open()) } else { None };
        let (sink, problem) = match opened {
            Some(Ok(socket)) => (Sink::Journald(socket), None),
            Some(Err(error)) => (Sink::text(&environment), Some(error)),
            None if format == LogFormat::Json => (Sink::Json(Stderr::of_process()), None),
            None => (Sink::text(&environment), None),
        };
        let log = Self { inner: Arc::new(Mutex::new(Inner { app: app.to_owned(), sink })) };
        if let Some(error) = problem {
            log.say(Level::Warning, &format!("the journal cannot be reached ({error}): the log goes to stderr"));
        }
        log
    }

    /// Lines for people, to this file.
    pub fn text_to(app: &str, out: Stderr, colour: bool) -> Self {
        let sink = Sink::Text { out, colour };
        Self { inner: Arc::new(Mutex::new(Inner { app: app.to_owned(), sink })) }
    }

    /// One object a line, to this file.
    pub fn json_to(app: &str, out: Stderr) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { app: app.to_owned(), sink: Sink::Json(out) })) }
    }

    /// Entries to this journald.
    pub fn journald_to(app: &str, socket: JournalSocket) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { app: app.to_owned(), sink: Sink::Journald(socket) })) }
    }

    /// Whether it goes to the journal.
    pub fn is_journald(&self) -> bool {
        matches!(self.inner.lock().unwrap_or_else(PoisonError::into_inner).sink, Sink::Journald(_))
    }

    /// What the core notes; `unit` is the worker's scope, where it has one.
    pub fn note(&self, note: &Note, unit: Option<&str>) {
        self.record(&Record::of_note(note, unit));
    }

    /// A sentence of the runtime's own.
    pub fn say(&self, level: Level, message: &str) {
        self.record(&Record::of_message(level, message));
    }

    /// A line that a worker wrote, where it has no stream into the journal of its own.
    pub fn output(&self, source: &OutputSource, line: &[u8]) {
        let line = crate::observe::escape::single_line_bytes(line, record::OUTPUT_MOST);
        self.record(&Record::of_output(source, &line));
    }

    /// Any record.
    pub fn record(&self, record: &Record<'_>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { app, sink } = &mut *inner;
        match sink {
            Sink::Journald(socket) => journald::write(socket, app, record),
            Sink::Text { out, colour } => text::write(out, app, *colour, record),
            Sink::Json(out) => text::write_json(out, app, record),
        }
    }

    /// Try again to write what stderr did not take; cheap when nothing waits. Once in a turn of the loop is enough.
    pub fn flush(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut inner.sink {
            Sink::Journald(_) => {}
            Sink::Text { out, .. } | Sink::Json(out) => out.flush(),
        }
    }

    /// Send what adapters say with [`tracing`] here as well, once for the process. False if something else listens.
    pub fn install(&self) -> bool {
        layer::install(self.clone())
    }
}

impl Sink {
    fn text(environment: impl Fn(&str) -> Option<OsString>) -> Self {
        // no-color.org: any non-empty value.
        let unwanted = environment("NO_COLOR").is_some_and(|value| !value.is_empty())
            || environment("TERM").is_some_and(|term| term == "dumb");
        let colour = !unwanted && std::io::stderr().is_terminal();
        Self::Text { out: Stderr::of_process(), colour }
    }
}
