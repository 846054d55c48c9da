//! `paddock import`: from the configuration of what stood where paddock stands now.
//!
//! For each peer a table says what becomes of each of its settings ([`table`]), a reader finds out what is set (in the
//! user's own Python where the configuration is a program, [`python`]), and a pure function turns that into a
//! [`draft`], which writes the commented file. The guides in docs/ show the same tables.

pub mod celery;
pub mod draft;
pub mod gunicorn;
mod memory;
pub mod python;
pub mod table;
pub mod uwsgi;

use std::path::PathBuf;

use thiserror::Error;

use python::PythonError;

/// Why there is nothing to write.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The text of a file or of the command line is wrong.
    #[error("{0}")]
    Text(String),
    /// Something is missing, or cannot be read.
    #[error("{0}")]
    Machine(String),
    /// The user's Python gave no answer.
    #[error(transparent)]
    Python(#[from] PythonError),
}

impl ImportError {
    /// 2 if a text is wrong, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Text(_) | Self::Python(PythonError::Failed { .. }) => 2,
            Self::Machine(_) | Self::Python(_) => 1,
        }
    }
}

/// Where the import runs: what relative names are relative to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The working directory.
    pub directory: PathBuf,
    /// The Python that was named or found.
    pub python: PathBuf,
}

impl Place {
    /// The working directory as a text, if it is one.
    fn directory_text(&self) -> Option<&str> {
        self.directory.to_str()
    }
}

/// Split words off a command line that may begin with the program's own name.
fn without_program<'a>(words: &'a [String], program: &str) -> &'a [String] {
    match words.split_first() {
        Some((first, rest)) if std::path::Path::new(first).file_name().is_some_and(|name| name == program) => rest,
        _ => words,
    }
}

/// A name that paddock accepts for an app, made from another text; none if nothing is left of it.
fn app_name(text: &str) -> Option<String> {
    let mapped: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '-' }).collect();
    let name: String = mapped.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).chars().take(48).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_what_may_be_in_one() {
        assert_eq!(app_name("shop web/1").as_deref(), Some("shop-web-1"));
        assert_eq!(app_name("--x").as_deref(), Some("x"));
        assert_eq!(app_name("…"), None);
        assert_eq!(app_name(&"a".repeat(99)).map(|name| name.len()), Some(48));
    }

    #[test]
    fn the_program_may_be_there_or_not() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(without_program(&words("/usr/bin/gunicorn -w 4"), "gunicorn"), words("-w 4"));
        assert_eq!(without_program(&words("-w 4"), "gunicorn"), words("-w 4"));
    }
}
