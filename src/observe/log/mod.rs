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
use std::time::Duration;

use tokio::io::Interest;

use crate::config::model::LogFormat;
use crate::supervisor::note::{Level, Note, NoteKind};
use crate::sys;
use crate::systemd::journal::{self, JournalSocket};

#[cfg(any(test, fuzzing))]
pub(crate) use text::{as_json, as_text};

pub use record::{Field, OutputSource, Record};
pub use stderr::Stderr;

/// How long a worker's output may wait for a reader who does not read.
const LAG_MOST: Duration = Duration::from_secs(1);

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

    /// Try again to write what stderr did not take, and how much it cost; cheap when nothing waits. Once in a turn of the
    /// loop is enough.
    pub fn flush(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { app, sink } = &mut *inner;
        match sink {
            Sink::Journald(_) => {}
            Sink::Text { out, colour } => text::write_lost(out, app, *colour),
            Sink::Json(out) => text::write_lost_json(out, app),
        }
    }

    /// When stderr has room for what waits, or never if nothing waits; [`Self::flush`] then.
    pub async fn room(&self) {
        let file =
            self.stderr(|out| out.waits_on()).flatten().and_then(|file| sys::watch(file, Interest::WRITABLE).ok());
        match file {
            Some(file) => drop(file.writable().await),
            None => std::future::pending().await,
        }
    }

    /// For those who hand on what workers print: let the others have a turn, and a reader who lags behind some time. One
    /// who has stopped reading is not waited for again before he goes on.
    pub async fn pace(&self) {
        tokio::task::yield_now().await;
        let until = tokio::time::Instant::now() + LAG_MOST;
        while self.stderr(|out| out.is_behind()).unwrap_or(false) {
            if tokio::time::timeout_at(until, self.room()).await.is_err() {
                self.stderr(Stderr::give_up);
            }
            self.flush();
            // Everybody who waits is woken by the same room.
            tokio::task::yield_now().await;
        }
    }

    fn stderr<T>(&self, ask: impl FnOnce(&mut Stderr) -> T) -> Option<T> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut inner.sink {
            Sink::Journald(_) => None,
            Sink::Text { out, .. } | Sink::Json(out) => Some(ask(out)),
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use rustix::pipe::pipe;

    use super::*;

    fn on_a_loop(test: impl AsyncFnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    }

    fn stalled(writer: OwnedFd, lines: usize) -> Log {
        let log = Log::text_to("shop", Stderr::new(writer), false);
        for number in 0..lines {
            log.say(Level::Info, &format!("line {number} {}", "x".repeat(1000)));
        }
        log
    }

    #[test]
    fn what_waited_is_written_when_there_is_room_and_what_it_cost_is_told() {
        on_a_loop(async || {
            let (reader, writer) = pipe().unwrap();
            let log = stalled(writer, 1000);
            let mut reader = std::fs::File::from(reader);
            let mut text = Vec::new();
            // Nothing is said any more: only room makes it go on.
            while !String::from_utf8_lossy(&text).contains("lines were lost because nobody read them\n") {
                let mut some = vec![0; 4 * 1024];
                let count = reader.read(&mut some).unwrap();
                text.extend_from_slice(&some[..count]);
                if log.stderr(|out| out.waits_on()).flatten().is_some() {
                    log.room().await;
                    log.flush();
                }
            }
            let text = String::from_utf8(text).unwrap();
            let (kept, told) = text.trim_end().rsplit_once('\n').unwrap();
            let lost = 1000 - kept.lines().count();
            assert!(told.ends_with(&format!("warning: {lost} log lines were lost because nobody read them")), "{told}");
        });
    }

    #[test]
    fn a_reader_who_lags_behind_is_waited_for_and_one_who_is_gone_is_not() {
        on_a_loop(async || {
            let (reader, writer) = pipe().unwrap();
            let log = stalled(writer, 200);
            assert_eq!(log.stderr(|out| out.is_behind()), Some(true));
            let begun = tokio::time::Instant::now();
            log.pace().await;
            assert!(begun.elapsed() >= LAG_MOST, "he is waited for");
            assert_eq!(log.stderr(|out| out.is_behind()), Some(false), "but only once");

            let mut reader = std::fs::File::from(reader);
            let mut some = vec![0; 64 * 1024];
            let mut read = reader.read(&mut some).unwrap();
            log.flush();
            assert_eq!(log.stderr(|out| out.is_behind()), Some(true), "he is back");
            let reading = std::thread::spawn(move || {
                while read < 150 * 1024 {
                    read += reader.read(&mut some).unwrap();
                }
            });
            log.pace().await;
            assert_eq!(log.stderr(|out| out.is_behind()), Some(false));
            reading.join().unwrap();
        });
    }
}
