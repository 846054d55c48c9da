//! What commands print, and how wide and colourful it may be.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use crate::control::client::ClientError;
use crate::observe::escape::single_line;

/// How output may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// Whether colours are welcome.
    pub colour: bool,
    /// Columns of the terminal; none: lines may be of any length.
    pub width: Option<usize>,
}

impl Look {
    /// For standard output: colours and a width only on a terminal, no colours with `NO_COLOR` (no-color.org) or on a
    /// terminal that says it is dumb.
    pub fn of_stdout() -> Self {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Self::default();
        }
        let unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let width = rustix::termios::tcgetwinsize(&stdout)
            .ok()
            .map(|size| usize::from(size.ws_col))
            .filter(|columns| *columns > 0);
        Self { colour: unset("NO_COLOR") && !dumb, width }
    }

    /// `text` in a colour, if colours are welcome.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        if !self.colour || colour == Colour::Plain || text.is_empty() {
            return text.to_owned();
        }
        format!("\x1b[{}m{text}\x1b[0m", colour.code())
    }
}

/// What stands out, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// As everything.
    Plain,
    /// A headline.
    Bold,
    /// Less important than the rest.
    Dim,
    /// As it should be.
    Green,
    /// On its way.
    Cyan,
    /// Worth a look.
    Yellow,
    /// Wrong.
    Red,
}

impl Colour {
    /// Select Graphic Rendition (ECMA-48).
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Cyan => "36",
            Self::Yellow => "33",
            Self::Red => "31",
        }
    }
}

/// The longest text of one line that is shown.
const LINE: usize = 64 * 1024;

/// Print to standard output. Whoever closed it does not want it.
pub fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

/// Print a line to standard error, with nothing in it that a terminal would obey.
pub fn complain(text: &str) {
    let mut stderr = io::stderr().lock();
    for line in text.lines() {
        let _ = writeln!(stderr, "{}", single_line(line, LINE));
    }
}

/// Say why it was not done, with the worker's last words if there are any; returns the exit code.
pub fn fail(error: &ClientError) -> ExitCode {
    // A diagnostic of the configuration file has a heading of its own.
    let heading = if matches!(error, ClientError::Invalid { .. }) { "" } else { "paddock: " };
    complain(&format!("{heading}{error}"));
    if let ClientError::Failed { last_words, .. } = error
        && !last_words.is_empty()
    {
        complain("the worker's last words:");
        for line in last_words {
            complain(&format!("  {line}"));
        }
    }
    ExitCode::from(error.exit_code())
}
