//! The manager's log, line by line, as it arrives.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::pace;

/// One line.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) at: Instant,
    pub(crate) text: String,
    json: Value,
}

impl Line {
    fn new(text: String) -> Self {
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Self { at: Instant::now(), text, json }
    }

    /// A field of the manager's own JSON, or of `journalctl --output=json`, which has names and quotes of its own.
    fn field(&self, key: &str) -> &Value {
        let own = &self.json[key];
        if own.is_null() { &self.json[journal_field(key)] } else { own }
    }

    fn str(&self, key: &str) -> &str {
        self.field(key).as_str().unwrap_or_default()
    }

    /// What kind of thing happened: `worker-ready`, `worker-died`…
    pub(crate) fn event(&self) -> &str {
        self.str("event")
    }

    /// Cause of a recycle or verdict of a death.
    pub(crate) fn reason(&self) -> &str {
        self.str("reason")
    }

    /// The sentence.
    pub(crate) fn message(&self) -> &str {
        self.str("message")
    }

    /// The slot.
    pub(crate) fn slot(&self) -> Option<u64> {
        self.number("slot")
    }

    /// The worker's first process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.number("pid").and_then(|pid| u32::try_from(pid).ok())
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        let field = self.field(key);
        field.as_u64().or_else(|| field.as_str()?.parse().ok())
    }

    /// Whether this is that event.
    pub(crate) fn is(&self, event: &str) -> bool {
        self.event() == event
    }

    /// Whether this is that event of that process.
    pub(crate) fn is_of(&self, event: &str, pid: u32) -> bool {
        self.event() == event && self.pid() == Some(pid)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn journal_field(key: &str) -> String {
    match key {
        "message" => "MESSAGE".to_owned(),
        "pid" => "PADDOCK_WORKER_PID".to_owned(),
        _ if key.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_') => {
            format!("PADDOCK_{}", key.to_ascii_uppercase())
        }
        _ => key.to_owned(),
    }
}

/// All lines so far.
#[derive(Clone, Default)]
pub(crate) struct Log {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    ended: bool,
}

impl Log {
    /// Collects from a pipe in a thread of its own, until its end.
    pub(crate) fn collect(&self, pipe: impl Read + Send + 'static) {
        let log = self.clone();
        log.change(|state| state.ended = false);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n') {
                let Ok(line) = line else { break };
                let line = Line::new(String::from_utf8_lossy(&line).into_owned());
                log.change(|state| state.lines.push(line));
            }
            log.change(|state| state.ended = true);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.1.notify_all();
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lines_after(0)
    }

    /// The lines from a mark on.
    pub(crate) fn lines_after(&self, mark: usize) -> Vec<Line> {
        let state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.lines.get(mark..).unwrap_or_default().to_vec()
    }

    /// How many lines there are: a mark for [`Self::wait_after`].
    pub(crate) fn mark(&self) -> usize {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).lines.len()
    }

    /// All lines so far that fit.
    pub(crate) fn all(&self, fits: impl Fn(&Line) -> bool) -> Vec<Line> {
        self.lines().into_iter().filter(fits).collect()
    }

    /// How many lines so far fit.
    pub(crate) fn count(&self, fits: impl Fn(&Line) -> bool) -> usize {
        self.all(fits).len()
    }

    /// Waits for the first line from `mark` on that fits.
    pub(crate) fn try_wait_after(&self, mark: usize, bound: Duration, fits: impl Fn(&Line) -> bool) -> Option<Line> {
        let until = Instant::now() + bound;
        let mut next = mark;
        let mut state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = state.lines.iter().skip(next).find(|line| fits(line)) {
                return Some(line.clone());
            }
            next = state.lines.len().max(mark);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                return None;
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Self::try_wait_after`]; that it does not come fails the test.
    #[track_caller]
    pub(crate) fn wait_after(&self, mark: usize, bound: Duration, what: &str, fits: impl Fn(&Line) -> bool) -> Line {
        let bound = pace::patient(bound);
        self.try_wait_after(mark, bound, fits).unwrap_or_else(|| panic!("not in the log within {bound:?}: {what}"))
    }

    /// As [`Self::wait_after`], from the beginning.
    #[track_caller]
    pub(crate) fn wait(&self, bound: Duration, what: &str, fits: impl Fn(&Line) -> bool) -> Line {
        self.wait_after(0, bound, what, fits)
    }

    /// Waits until whoever writes it has closed it.
    pub(crate) fn wait_end(&self, bound: Duration) {
        let state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ended = self.shared.1.wait_timeout_while(state, bound, |state| !state.ended);
    }

    /// Everything as text.
    pub(crate) fn text(&self) -> String {
        self.lines().iter().fold(String::new(), |text, line| text + &line.text + "\n")
    }
}
