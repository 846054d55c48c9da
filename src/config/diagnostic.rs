//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::observe::escape::single_line;

/// The longest text of one title or remedy, in bytes: values of the file appear in them.
const LONGEST_LINE: usize = 1000;

/// A configuration file's text, under the name that the operator knows it by.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Its path as given.
    pub path: String,
    /// What it says.
    pub text: String,
}

impl Source {
    /// Line and column, both from 1, of a byte; columns count characters.
    pub fn position(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        (line, column)
    }
}

/// Where a value, or a fault, stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// These bytes of the file.
    File(Range<usize>),
    /// A flag, with its dashes.
    Flag(String),
    /// The file as a whole, or the command line if there is none.
    Whole,
}

/// Which exit status a fault leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The text of the file or the command line is wrong.
    Text,
    /// The file cannot be read, or the machine cannot do what it says.
    Machine,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whose it is.
    pub fault: Fault,
    /// Where.
    pub origin: Origin,
    /// The key, such as `memory.max`; empty: none.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: Option<String>,
    /// Other places that have to do with it, each with what stands there.
    pub context: Vec<(Range<usize>, String)>,
    /// The file that `origin` is in, if that is not the configuration file.
    pub source: Option<Arc<Source>>,
}

impl Diagnostic {
    /// A fault in the text.
    pub fn text(origin: Origin, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            fault: Fault::Text,
            origin,
            key: key.into(),
            message: message.into(),
            remedy: None,
            context: Vec::new(),
            source: None,
        }
    }

    /// A fault of the machine.
    pub fn machine(origin: Origin, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { fault: Fault::Machine, ..Self::text(origin, key, message) }
    }

    /// The same, with what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The same, pointing to another place too, if that is in the file.
    #[must_use]
    pub fn context(mut self, origin: &Origin, label: impl Into<String>) -> Self {
        if let Origin::File(span) = origin {
            self.context.push((span.clone(), label.into()));
        }
        self
    }

    /// The same, in another file.
    #[must_use]
    pub fn of(mut self, source: Arc<Source>) -> Self {
        self.source = Some(source);
        self
    }

    /// What is wrong, with the key or flag in front.
    fn title(&self) -> String {
        match (&self.origin, self.key.as_str()) {
            (Origin::Flag(flag), _) => format!("{flag}: {}", self.message),
            (_, "") => self.message.clone(),
            (_, key) => format!("{key}: {}", self.message),
        }
    }
}

/// Everything that is wrong, or worth a warning, with the text that it speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    source: Option<Arc<Source>>,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// In the order of the file, then other files, then flags.
    pub fn new(source: Option<Arc<Source>>, mut list: Vec<Diagnostic>) -> Self {
        list.sort_by_key(|diagnostic| match &diagnostic.origin {
            Origin::File(span) if diagnostic.source.is_none() => (0, span.start),
            Origin::File(span) => (1, span.start),
            Origin::Flag(_) => (2, 0),
            Origin::Default | Origin::Whole => (3, 0),
        });
        Self { source, list }
    }

    /// One by one.
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// 2 if any text is wrong, else 1.
    pub fn exit_code(&self) -> u8 {
        if self.list.iter().any(|diagnostic| diagnostic.fault == Fault::Text) { 2 } else { 1 }
    }

    /// For a terminal: each with its line of the file and a caret below, as errors.
    pub fn render_errors(&self, colour: bool) -> String {
        self.render(&Level::ERROR, colour)
    }

    /// The same, as warnings.
    pub fn render_warnings(&self, colour: bool) -> String {
        self.render(&Level::WARNING, colour)
    }

    fn render(&self, level: &Level<'static>, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let reports: Vec<String> =
            self.list.iter().map(|diagnostic| self.render_one(diagnostic, level.clone(), &renderer)).collect();
        reports.join("\n\n")
    }

    /// The text that a place is in.
    fn source_of<'a>(&'a self, diagnostic: &'a Diagnostic) -> Option<&'a Source> {
        diagnostic.source.as_deref().or(self.source.as_deref())
    }

    fn render_one(&self, diagnostic: &Diagnostic, level: Level<'static>, renderer: &Renderer) -> String {
        let title = visible(&diagnostic.title());
        let remedy = diagnostic.remedy.as_deref().map(visible);
        let mut group = match (&diagnostic.origin, self.source_of(diagnostic)) {
            (Origin::Whole, Some(source)) => {
                let title = format!("{}: {title}", visible(&source.path));
                Group::with_title(level.primary_title(title))
            }
            _ => Group::with_title(level.primary_title(title)),
        };
        if let (Origin::File(span), Some(source)) = (&diagnostic.origin, self.source_of(diagnostic)) {
            let mut snippet = Snippet::source(same_length(&source.text))
                .path(visible(&source.path))
                .annotation(AnnotationKind::Primary.span(clamp(span, &source.text)));
            for (span, label) in &diagnostic.context {
                snippet =
                    snippet.annotation(AnnotationKind::Context.span(clamp(span, &source.text)).label(visible(label)));
            }
            group = group.element(snippet);
        }
        if let Some(remedy) = remedy {
            group = group.element(Level::HELP.message(remedy));
        }
        renderer.render(&[group])
    }
}

/// A line each, `FILE:LINE:COLUMN: KEY: what is wrong; what to do`, for logs and replies.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if let Some(source) = self.source_of(diagnostic) {
                match &diagnostic.origin {
                    Origin::File(span) => {
                        let (line, column) = source.position(span.start);
                        write!(f, "{}:{line}:{column}: ", visible(&source.path))?;
                    }
                    Origin::Whole => write!(f, "{}: ", visible(&source.path))?,
                    Origin::Default | Origin::Flag(_) => {}
                }
            }
            f.write_str(&visible(&diagnostic.title()))?;
            if let Some(remedy) = &diagnostic.remedy {
                write!(f, "; {}", visible(remedy))?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// The span within the text, on character boundaries, or the text's end.
fn clamp(span: &Range<usize>, text: &str) -> Range<usize> {
    if text.get(span.clone()).is_some() { span.clone() } else { text.len()..text.len() }
}

/// The text with what the renderer would let through although it moves a cursor or reorders what a reader sees: each such
/// character is shown as another one of its length, so that every place stays where it is.
fn same_length(text: &str) -> String {
    let shown = |character: char| match character {
        '\u{80}'..='\u{9f}' | '\u{61c}' => '\u{b7}',
        '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' => char::REPLACEMENT_CHARACTER,
        other => other,
    };
    text.chars().map(shown).collect()
}

/// Without control characters, which could play tricks on a terminal.
fn visible(text: &str) -> String {
    single_line(text, LONGEST_LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_line_keeps_its_places_and_plays_no_tricks() {
        let text = "a\u{9b}b\u{61c}c\u{2028}d\u{200f}\u{e9}\u{1f600}";
        assert_eq!(same_length(text), "a\u{b7}b\u{b7}c\u{fffd}d\u{fffd}\u{e9}\u{1f600}");
        assert_eq!(same_length(text).len(), text.len());
        let source = Arc::new(Source { path: "x.toml".to_owned(), text: text.to_owned() });
        let fault = Diagnostic::text(Origin::File(text.len() - 4..text.len()), "key", "wrong");
        let shown = Diagnostics::new(Some(source), vec![fault]).render_errors(false);
        assert!(!shown.contains(['\u{9b}', '\u{61c}', '\u{2028}', '\u{200f}']), "{shown:?}");
    }
}
