//! The file of `environment_file`, in the syntax of systemd.exec(5), `EnvironmentFile=`.
//!
//! The text is read as systemd reads it: comments with `#` or `;`, single and double quotes over several lines,
//! backslashes, continued lines. What systemd ignores in silence is a fault here: a line without `=`, a name that is
//! none, a quote that is never closed.

use std::path::Path;
use std::sync::Arc;

use super::diagnostic::{Diagnostic, Origin};
use super::key::Key;
use super::read;
use super::rules::is_variable_name;

/// Variables in the order of the file; a later one beats an earlier one of the same name.
pub type Variables = Vec<(String, String)>;

/// Read the file that `environment_file` names; `origin` is where that stands, `ruled` the user that its variables would
/// rule, if that is the manager's own.
pub(super) fn load(path: &Path, origin: &Origin, ruled: Option<u32>) -> Result<Variables, Vec<Diagnostic>> {
    let key = Key::EnvironmentFile.path();
    match read::read(path, ruled) {
        Err(failure) => {
            let (source, fault) = *failure;
            let message = format!("{}: {}", source.path, fault.message);
            let mut diagnostic = Diagnostic { origin: origin.clone(), key, message, ..fault };
            if let Origin::File(span) = &fault.origin {
                diagnostic.origin = Origin::File(span.clone());
                diagnostic = diagnostic.of(Arc::new(source));
            }
            Err(vec![diagnostic])
        }
        Ok(source) => {
            let source = Arc::new(source);
            parse(&source.text)
                .map_err(|faults| faults.into_iter().map(|fault| fault.of(Arc::clone(&source))).collect())
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    BeforeName,
    Name,
    BeforeValue,
    Value,
    ValueEscape,
    SingleQuoted,
    DoubleQuoted,
    DoubleQuotedEscape,
    Comment,
    CommentEscape,
}

/// What has been read so far of an assignment.
#[derive(Default)]
struct Parser {
    name: String,
    value: String,
    /// Where white space at the value's end began, which does not belong to it.
    trailing: Option<usize>,
    name_start: usize,
    quote_start: usize,
    variables: Variables,
    faults: Vec<Diagnostic>,
}

const fn is_newline(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// All variables, or all that is wrong.
pub(crate) fn parse(text: &str) -> Result<Variables, Vec<Diagnostic>> {
    let mut parser = Parser::default();
    let mut state = State::BeforeName;
    for (at, c) in text.char_indices() {
        state = parser.step(state, at, c);
    }
    match state {
        State::Name => parser.no_assignment(text.len()),
        State::SingleQuoted | State::DoubleQuoted | State::DoubleQuotedEscape => {
            let span = parser.quote_start..parser.quote_start + 1;
            let fault = Diagnostic::text(Origin::File(span), "", "this quote is never closed");
            parser.faults.push(fault.remedy("close it, or write \\ before it"));
        }
        State::BeforeValue | State::Value | State::ValueEscape => parser.assign(),
        State::BeforeName | State::Comment | State::CommentEscape => {}
    }
    if parser.faults.is_empty() { Ok(parser.variables) } else { Err(parser.faults) }
}

impl Parser {
    fn step(&mut self, state: State, at: usize, c: char) -> State {
        match state {
            State::BeforeName => match c {
                '#' | ';' => State::Comment,
                c if is_space(c) => State::BeforeName,
                c => {
                    self.name_start = at;
                    self.name.push(c);
                    State::Name
                }
            },
            State::Name => match c {
                c if is_newline(c) => {
                    self.no_assignment(at);
                    State::BeforeName
                }
                '=' => State::BeforeValue,
                c => {
                    self.name.push(c);
                    State::Name
                }
            },
            State::BeforeValue => match c {
                c if is_newline(c) => self.end(),
                '\'' => self.quote(at, State::SingleQuoted),
                '"' => self.quote(at, State::DoubleQuoted),
                '\\' => State::ValueEscape,
                c if is_space(c) => State::BeforeValue,
                c => {
                    self.value.push(c);
                    State::Value
                }
            },
            State::Value => match c {
                c if is_newline(c) => {
                    if let Some(end) = self.trailing {
                        self.value.truncate(end);
                    }
                    self.end()
                }
                '\\' => {
                    self.trailing = None;
                    State::ValueEscape
                }
                c => {
                    self.trailing = if is_space(c) { self.trailing.or(Some(self.value.len())) } else { None };
                    self.value.push(c);
                    State::Value
                }
            },
            State::ValueEscape => {
                if !is_newline(c) {
                    self.value.push(c);
                }
                State::Value
            }
            State::SingleQuoted if c == '\'' => State::BeforeValue,
            State::DoubleQuoted if c == '"' => State::BeforeValue,
            State::DoubleQuoted if c == '\\' => State::DoubleQuotedEscape,
            State::SingleQuoted | State::DoubleQuoted => {
                self.value.push(c);
                state
            }
            State::DoubleQuotedEscape => {
                // As in a shell: the backslash stays where it escapes nothing, and joins lines.
                match c {
                    '"' | '\\' | '`' | '$' => self.value.push(c),
                    '\n' => {}
                    c => self.value.extend(['\\', c]),
                }
                State::DoubleQuoted
            }
            State::Comment => match c {
                '\\' => State::CommentEscape,
                c if is_newline(c) => State::BeforeName,
                _ => State::Comment,
            },
            State::CommentEscape if is_newline(c) => State::BeforeName,
            State::CommentEscape => State::Comment,
        }
    }

    fn quote(&mut self, at: usize, state: State) -> State {
        self.quote_start = at;
        state
    }

    fn end(&mut self) -> State {
        self.assign();
        State::BeforeName
    }

    /// The assignment is complete.
    fn assign(&mut self) {
        if let Some(end) = self.trailing.take() {
            self.value.truncate(end);
        }
        let value = std::mem::take(&mut self.value);
        let written = std::mem::take(&mut self.name);
        let name = written.trim_end_matches(is_space);
        let span = self.name_start..self.name_start + name.len();
        if !is_variable_name(name) {
            let fault = Diagnostic::text(Origin::File(span), "", format!("{name:?} cannot name a variable"));
            let remedy = match name.strip_prefix("export ") {
                Some(_) => "remove `export`: this is not a shell script",
                None => "letters, digits and `_`, not beginning with a digit",
            };
            self.faults.push(fault.remedy(remedy));
        } else if value.contains('\0') {
            let fault = Diagnostic::text(Origin::File(span), "", format!("{name}: contains a NUL character"));
            self.faults.push(fault.remedy("remove it: no variable can hold one"));
        } else {
            self.variables.push((name.to_owned(), value));
        }
    }

    /// A line ended before its `=`.
    fn no_assignment(&mut self, end: usize) {
        self.name.clear();
        let fault = Diagnostic::text(Origin::File(self.name_start..end), "", "not an assignment");
        self.faults.push(fault.remedy("write NAME=VALUE, or # in front of a comment"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap_or_else(|faults| panic!("{text:?}: {faults:?}"))
    }

    #[test]
    fn assignments_read_as_systemd_reads_them() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("A=1", &[("A", "1")]),
            ("A=1\nB=2\r\n\n", &[("A", "1"), ("B", "2")]),
            ("  A  =  one two  \n", &[("A", "one two")]),
            ("A=\nB=", &[("A", ""), ("B", "")]),
            ("# A=1\n; B=2\nC=3 # no comment\n", &[("C", "3 # no comment")]),
            ("# continued \\\nA=1", &[("A", "1")]),
            ("A='one\ntwo'", &[("A", "one\ntwo")]),
            ("A=\"one\\\ntwo\"", &[("A", "onetwo")]),
            ("A=\"\\\"\\$\\`\\\\\\n\"", &[("A", "\"$`\\\\n")]),
            ("A='a\\'b", &[("A", "a\\b")]),
            ("A='a' \"b\" c", &[("A", "abc")]),
            ("A=one\\\ntwo\\ \n", &[("A", "onetwo ")]),
            ("A=a\\", &[("A", "a")]),
            ("A=it's", &[("A", "it's")]),
            ("A=1\nA=2", &[("A", "1"), ("A", "2")]),
            ("A=b=c", &[("A", "b=c")]),
        ];
        for (text, expected) in cases {
            let expected: Vec<(String, String)> =
                expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(read(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_systemd_ignores_is_a_fault_with_its_place() {
        let cases = [
            ("A=1\nB", 4..5, "not an assignment"),
            ("A=1\nlonely \nC=2", 4..11, "not an assignment"),
            ("export A=1", 0..8, "\"export A\" cannot name a variable"),
            ("1A=1", 0..2, "\"1A\" cannot name a variable"),
            ("=1", 0..2, "not an assignment"),
            ("A=1\nB=\"x\nC=1", 6..7, "this quote is never closed"),
            ("A='x", 2..3, "this quote is never closed"),
            ("A=x\0", 0..1, "A: contains a NUL character"),
        ];
        for (text, span, message) in cases {
            let faults = parse(text).unwrap_err();
            let told: Vec<_> = faults.iter().map(|fault| (fault.origin.clone(), fault.message.as_str())).collect();
            assert_eq!(told, [(Origin::File(span), message)], "{text:?}");
        }
    }

    #[test]
    fn every_fault_is_told() {
        assert_eq!(parse("A\nB\n2=3\n").unwrap_err().len(), 3);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[A-C= \\n\\r'\"\\\\#;$\\PC]{0,60}") {
            if let Err(faults) = parse(&text) {
                for fault in faults {
                    let Origin::File(span) = fault.origin else { panic!("no place") };
                    prop_assert!(text.get(span).is_some());
                }
            }
        }

        #[test]
        fn what_is_quoted_comes_back(value in "[^'\\x00]{0,40}") {
            prop_assert_eq!(read(&format!("A='{value}'\n")), vec![("A".to_owned(), value)]);
        }
    }
}
