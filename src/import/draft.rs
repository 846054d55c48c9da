//! A configuration in the making: keys with what they were made from, what could not be taken over, and the commented
//! file that says it all.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::table::{Fate, Row};
use crate::config::key::Key;
use crate::config::{self, Runner, render};
use crate::observe::escape::single_line;

/// Columns of a comment.
const WIDTH: usize = 110;

/// The longest value that is quoted in a comment, in bytes.
const LONGEST_VALUE: usize = 160;

/// A key's value, and why.
#[derive(Debug, Clone, PartialEq)]
struct Assignment {
    value: Value,
    comments: Vec<String>,
    /// Whether it is in force, or only proposed in a comment.
    active: bool,
}

/// A setting of the peer's that is no key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    /// As the peer writes it, with its value.
    setting: String,
    /// What is to say about it.
    note: String,
}

/// Where an item is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Heap {
    Unsupported,
    Unknown,
    Changed,
    Kept,
    NotNeeded,
}

impl Heap {
    const ALL: [Self; 5] = [Self::Unsupported, Self::Unknown, Self::Changed, Self::Kept, Self::NotNeeded];

    fn heading(self, peer: &str) -> String {
        match self {
            Self::Unsupported => "Not taken over, and nothing here does what they did:".to_owned(),
            Self::Unknown => format!("Neither paddock nor {peer} knows these:"),
            Self::Changed => format!("Still {peer}'s, but different here:"),
            Self::Kept => format!("Still {peer}'s, unchanged:"),
            Self::NotNeeded => "Left out, because nothing is lost:".to_owned(),
        }
    }
}

/// A configuration in the making.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The peer's name.
    peer: &'static str,
    header: Vec<String>,
    assignments: BTreeMap<Key, Assignment>,
    heaps: BTreeMap<Heap, Vec<Item>>,
}

/// A finished file, and what to tell whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file's text, which paddock's own parser has accepted.
    pub text: String,
    /// What needs a human, one line each.
    pub attention: Vec<String>,
    /// Counts, in a sentence.
    pub summary: String,
}

impl Draft {
    /// Nothing yet.
    pub fn new(peer: &'static str) -> Self {
        Self { peer, header: Vec::new(), assignments: BTreeMap::new(), heaps: BTreeMap::new() }
    }

    /// A line for the top of the file; empty: a gap.
    pub fn say(&mut self, line: impl Into<String>) {
        self.header.push(line.into());
    }

    /// A key's value, and what it was made from.
    pub fn set(&mut self, key: Key, value: impl Into<Value>, comment: impl Into<String>) {
        self.assign(key, value.into(), comment.into(), true);
    }

    /// A value that whoever reads it may want; it is in force only when they take the `#` away.
    pub fn suggest(&mut self, key: Key, value: impl Into<Value>, comment: impl Into<String>) {
        if !self.assignments.contains_key(&key) {
            self.assign(key, value.into(), comment.into(), false);
        }
    }

    fn assign(&mut self, key: Key, value: Value, comment: String, active: bool) {
        let mut comments = self.assignments.remove(&key).map(|before| before.comments).unwrap_or_default();
        if !comment.is_empty() {
            comments.push(comment);
        }
        self.assignments.insert(key, Assignment { value, comments, active });
    }

    /// One more thing to know about a key.
    pub fn remark(&mut self, key: Key, comment: impl Into<String>) {
        if let Some(assignment) = self.assignments.get_mut(&key) {
            assignment.comments.push(comment.into());
        }
    }

    /// The value of a key that is in force.
    pub fn value(&self, key: Key) -> Option<&Value> {
        self.assignments.get(&key).filter(|assignment| assignment.active).map(|assignment| &assignment.value)
    }

    /// Whether a key stands in the file, in force or proposed.
    pub fn mentions(&self, key: Key) -> bool {
        self.assignments.contains_key(&key)
    }

    /// List a setting where its fate puts it; a mapped one is listed with its key, so not here.
    pub fn list(&mut self, setting: &str, row: &Row) {
        let heap = match row.fate {
            Fate::Mapped(_) => return,
            Fate::Kept => Heap::Kept,
            Fate::Changed => Heap::Changed,
            Fate::NotNeeded => Heap::NotNeeded,
            Fate::Unsupported => Heap::Unsupported,
        };
        self.put(heap, setting, row.note);
    }

    /// List a setting that stays with the server as it is.
    pub fn keep(&mut self, setting: &str, note: &str) {
        self.put(Heap::Kept, setting, note);
    }

    /// List a setting that cannot be taken over.
    pub fn refuse(&mut self, setting: &str, reason: &str) {
        self.put(Heap::Unsupported, setting, reason);
    }

    /// List a setting that is not needed.
    pub fn leave_out(&mut self, setting: &str, reason: &str) {
        self.put(Heap::NotNeeded, setting, reason);
    }

    /// List a setting that nobody knows.
    pub fn unknown(&mut self, setting: &str, note: &str) {
        self.put(Heap::Unknown, setting, note);
    }

    fn put(&mut self, heap: Heap, setting: &str, note: &str) {
        let item = Item { setting: single_line(setting, LONGEST_VALUE + 80), note: note.to_owned() };
        let items = self.heaps.entry(heap).or_default();
        if !items.contains(&item) {
            items.push(item);
        }
    }

    /// The file. Values that paddock's parser refuses become comments that say why.
    pub fn write(mut self) -> Written {
        // Each round silences at least one key, so this ends.
        for _ in 0..=Key::ALL.len() {
            let Err(wrong) = config::understand_text("imported.toml", self.render(), root()) else { break };
            let mut silenced = false;
            for diagnostic in wrong.list() {
                let Some(key) = Key::ALL.iter().find(|key| key.path() == diagnostic.key) else { continue };
                let Some(assignment) = self.assignments.get_mut(key).filter(|assignment| assignment.active) else {
                    continue;
                };
                let remedy = diagnostic.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
                assignment.active = false;
                assignment.comments.push(format!("TO DO: paddock refuses this: {}{remedy}", diagnostic.message));
                silenced = true;
            }
            if !silenced {
                break;
            }
        }
        Written { text: self.render(), attention: self.attention(), summary: self.summary() }
    }

    fn attention(&self) -> Vec<String> {
        let to_do = |line: &&String| line.starts_with("TO DO");
        let mut lines: Vec<String> = self.header.iter().filter(to_do).map(|line| single_line(line, 400)).collect();
        for (key, assignment) in &self.assignments {
            for comment in assignment.comments.iter().filter(to_do) {
                lines.push(format!("{key}: {}", single_line(comment, 400)));
            }
        }
        for (heap, what) in [(Heap::Unsupported, "not supported"), (Heap::Unknown, "unknown")] {
            for item in self.heaps.get(&heap).into_iter().flatten() {
                lines.push(format!("{what}: {}: {}", item.setting, single_line(&item.note, 400)));
            }
        }
        lines
    }

    fn summary(&self) -> String {
        let count = |heap| self.heaps.get(&heap).map_or(0, Vec::len);
        format!(
            "{} keys written; of {}'s settings {} kept, {} kept but different, {} not needed, {} not supported, {} unknown",
            self.assignments.values().filter(|assignment| assignment.active).count(),
            self.peer,
            count(Heap::Kept),
            count(Heap::Changed),
            count(Heap::NotNeeded),
            count(Heap::Unsupported),
            count(Heap::Unknown),
        )
    }

    fn render(&self) -> String {
        let mut text = String::new();
        for line in &self.header {
            comment(&mut text, "", line);
        }
        let (first, last) = Heap::ALL.split_at(3);
        self.render_heaps(&mut text, first);
        let mut table = "";
        for (key, assignment) in &self.assignments {
            text.push('\n');
            if key.spec().table != table {
                table = key.spec().table;
                // Writing to a String cannot fail.
                let _ = writeln!(text, "[{table}]");
            }
            for line in &assignment.comments {
                comment(&mut text, "", line);
            }
            let line = format!("{} = {}", key.spec().name, spread(&assignment.value));
            if assignment.active {
                let _ = writeln!(text, "{line}");
            } else {
                for line in line.lines() {
                    let _ = writeln!(text, "# {line}");
                }
            }
        }
        self.render_heaps(&mut text, last);
        text
    }

    fn render_heaps(&self, text: &mut String, heaps: &[Heap]) {
        for heap in heaps {
            let Some(items) = self.heaps.get(heap) else { continue };
            text.push('\n');
            comment(text, "", &heap.heading(self.peer));
            for item in items {
                let line = match item.note.as_str() {
                    "" => item.setting.clone(),
                    note => format!("{}: {note}", item.setting),
                };
                comment(text, "  ", &line);
            }
        }
    }
}

/// Importing is not running: the file is for whoever may do what it says.
fn root() -> Runner {
    Runner { uid: 0, user: Some("root".to_owned()), gid: 0, group: Some("root".to_owned()) }
}

/// A value, a long array with a line for each member.
fn spread(value: &Value) -> String {
    let line = render::toml(value);
    let Some(members) = value.as_array().filter(|_| line.chars().count() > 100) else { return line };
    let mut text = "[\n".to_owned();
    for member in members {
        let _ = writeln!(text, "    {},", render::toml(member));
    }
    text + "]"
}

/// A comment, broken at spaces; nothing in it can end it.
fn comment(text: &mut String, indent: &str, line: &str) {
    let safe = single_line(line, 4000);
    if safe.is_empty() {
        text.push_str("#\n");
        return;
    }
    let mut column = 0;
    for word in safe.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push('\n');
            column = 0;
        }
        if column == 0 {
            let _ = write!(text, "# {indent}");
            // What continues a list's item stands further to the right.
            if !text.is_empty() && !indent.is_empty() && !safe.starts_with(word) {
                text.push_str("  ");
            }
        } else {
            text.push(' ');
        }
        text.push_str(word);
        column += 1 + length;
    }
    text.push('\n');
}

/// A value of the peer's, as a comment quotes it.
pub fn quote(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => "None".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    single_line(&text, LONGEST_VALUE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn accepted(text: &str) {
        if let Err(wrong) = config::understand_text("imported.toml", text.to_owned(), root()) {
            panic!("{wrong}\n{text}");
        }
    }

    #[test]
    fn values_that_are_refused_become_comments() {
        let mut draft = Draft::new("peer");
        draft.set(Key::Command, json!(["a"]), "");
        draft.set(Key::Workers, json!(0), "was: workers = 0");
        draft.set(Key::Group, json!("shop"), "");
        draft.set(Key::Bind, json!(["127.0.0.1:80", "nowhere"]), "");
        draft.set(Key::Backlog, json!(64), "");
        let written = draft.write();
        accepted(&written.text);
        assert!(written.text.contains("# workers = 0"), "{}", written.text);
        assert!(written.text.contains("# group = \"shop\""), "{}", written.text);
        assert!(written.text.contains("# bind = "), "{}", written.text);
        assert!(written.text.contains("\nbacklog = 64"), "{}", written.text);
        assert_eq!(written.attention.len(), 3, "{:?}", written.attention);
    }

    #[test]
    fn no_text_of_the_peers_gets_out_of_its_comment_or_its_value() {
        let evil = "x\n[memory]\nmax = \"1M\"\r\u{85}\u{2028}\u{7f}\"\"\"\\";
        let mut draft = Draft::new("peer");
        draft.say(format!("from {evil}"));
        draft.set(Key::Command, json!(["a", evil]), evil);
        draft.unknown(&format!("{evil} = {}", quote(&json!(evil))), evil);
        let written = draft.write();
        let loaded = config::understand_text("imported.toml", written.text.clone(), root()).unwrap();
        assert_eq!(loaded.config.command, ["a", evil], "{}", written.text);
        assert_eq!(loaded.config.memory.max, None);
    }

    #[test]
    fn a_proposal_never_replaces_a_value() {
        let mut draft = Draft::new("peer");
        draft.set(Key::Command, json!(["a"]), "");
        draft.set(Key::Workers, json!(3), "");
        draft.suggest(Key::Workers, json!(4), "");
        draft.suggest(Key::MaxRequests, json!(4), "if you like");
        let written = draft.write();
        assert!(written.text.contains("\nworkers = 3\n"), "{}", written.text);
        assert!(written.text.contains("[recycle]\n# if you like\n# max_requests = 4\n"), "{}", written.text);
    }
}
