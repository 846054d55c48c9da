//! Text into values with a place each: the file's table and the flags, walked by hand so that nothing stops at the
//! first fault.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Origin, Source};
use super::key::{Fallback, Key, Shape};

/// Flags of the command line, as they were given: each key with its texts, in order.
pub type Flags = BTreeMap<Key, Vec<String>>;

/// A value, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// What TOML can say.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    /// Digits with their sign, and their base.
    Integer(String, u32),
    Float(String),
    Boolean(bool),
    Datetime,
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A member of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where the name stands.
    pub(super) origin: Origin,
    pub(super) node: Node,
}

impl Value {
    /// What it is, for an error.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(..) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a date",
            Self::List(_) => "an array",
            Self::Table(_) => "a table",
        }
    }
}

impl Node {
    /// Where the members of a table stand.
    pub(super) fn member_origins(&self) -> BTreeMap<String, Origin> {
        let Value::Table(members) = &self.value else { return BTreeMap::new() };
        members.iter().map(|member| (member.name.clone(), member.origin.clone())).collect()
    }

    /// Whether it was written as a flag (or a default), where everything is text.
    pub(super) const fn is_untyped(&self) -> bool {
        matches!(self.origin, Origin::Flag(_) | Origin::Default)
    }
}

/// What was given, by key.
pub(super) type Values = BTreeMap<Key, Node>;

/// The values of a file, and what is wrong with its shape.
pub(super) fn read_file(source: &Source) -> (Values, Vec<Diagnostic>) {
    let (document, faults) = DeTable::parse_recoverable(&source.text);
    let mut found = syntax(source, &faults);
    let mut values = Values::new();
    for entry in in_order(document.get_ref()) {
        let name = entry.name.as_str();
        if let Some(key) = Key::find("", name) {
            values.insert(key, entry.node);
        } else if Key::tables().contains(&name) {
            read_table(entry, &mut values, &mut found);
        } else {
            found.push(unknown("", &entry));
        }
    }
    (values, found)
}

/// What is not TOML: the first fault of each line, the others follow from it.
fn syntax(source: &Source, faults: &[toml::de::Error]) -> Vec<Diagnostic> {
    let mut lines = BTreeSet::new();
    let mut found = Vec::new();
    for fault in faults {
        let origin = fault.span().map_or(Origin::Whole, Origin::File);
        if let Origin::File(span) = &origin
            && !lines.insert(source.position(span.start).0)
        {
            continue;
        }
        let message = fault.message().trim_end();
        let diagnostic = Diagnostic::text(origin, "", format!("TOML: {message}"));
        found.push(diagnostic.remedy(syntax_remedy(message)));
    }
    found
}

/// What to do about the faults that people make most.
fn syntax_remedy(message: &str) -> &'static str {
    let remedies = [
        ("duplicate key", "remove one of the two"),
        ("must be quoted", "put it in double quotes"),
        ("escape", "write \\\\ for a backslash, or put the text in single quotes"),
        ("string", "close the text with the quote that it began with"),
        ("array", "an array is [\"one\", \"two\"]"),
        ("table", "a table is a line [name], and its keys in the lines below"),
    ];
    let known = remedies.iter().find(|(part, _)| message.contains(part));
    known.map_or("write a line as key = value", |(_, remedy)| remedy)
}

/// The members of `[listen]` and its like.
fn read_table(table: Entry, values: &mut Values, found: &mut Vec<Diagnostic>) {
    let Value::Table(members) = table.node.value else {
        let kind = table.node.value.kind();
        let message = format!("{kind} where a table is expected");
        let remedy = format!("write its keys below a line [{}]", table.name);
        found.push(Diagnostic::text(table.node.origin, table.name, message).remedy(remedy));
        return;
    };
    for entry in members {
        if let Some(key) = Key::find(&table.name, &entry.name) {
            values.insert(key, entry.node);
        } else {
            found.push(unknown(&table.name, &entry));
        }
    }
}

/// A table's members in the order of the text.
fn in_order(table: &DeTable<'_>) -> Vec<Entry> {
    let mut entries: Vec<(usize, Entry)> = table
        .iter()
        .map(|(name, value)| {
            let entry =
                Entry { name: name.get_ref().to_string(), origin: Origin::File(name.span()), node: node(value) };
            (name.span().start, entry)
        })
        .collect();
    entries.sort_by_key(|(start, _)| *start);
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn node(spanned: &Spanned<DeValue<'_>>) -> Node {
    let value = match spanned.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => Value::Integer(integer.as_str().to_owned(), integer.radix()),
        DeValue::Float(float) => Value::Float(float.as_str().to_owned()),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(array) => Value::List(array.iter().map(node).collect()),
        DeValue::Table(table) => Value::Table(in_order(table)),
    };
    Node { value, origin: Origin::File(spanned.span()) }
}

/// A key that does not exist, with the one that was probably meant.
fn unknown(table: &str, entry: &Entry) -> Diagnostic {
    let what = match (&entry.node.value, table) {
        (Value::Table(_), "") => "unknown table",
        _ => "unknown key",
    };
    let path = if table.is_empty() { entry.name.clone() } else { format!("{table}.{}", entry.name) };
    let diagnostic = Diagnostic::text(entry.origin.clone(), path, what);
    match suggestion(table, &entry.name) {
        Some(remedy) => diagnostic.remedy(remedy),
        None => diagnostic.remedy("`man 5 paddock.toml` has them all"),
    }
}

/// "Did you mean": the same name in another table, else the most similar one in this table, else anywhere.
fn suggestion(table: &str, name: &str) -> Option<String> {
    let plain = name.replace('-', "_").to_ascii_lowercase();
    let exact = Key::ALL.iter().copied().find(|key| {
        let spec = key.spec();
        spec.name == plain || spec.flag.replace('-', "_") == plain
    });
    if let Some(key) = exact {
        return Some(place(table, key));
    }
    let near = |candidate: &str| {
        let likeness = strsim::jaro_winkler(&plain, candidate);
        (likeness > 0.8).then_some(likeness)
    };
    let here = Key::ALL.iter().filter(|key| key.spec().table == table).map(|key| key.spec().name);
    let tables = Key::tables().into_iter().filter(|other| table.is_empty() && !other.is_empty());
    let best = here
        .chain(tables)
        .filter_map(|candidate| near(candidate).map(|likeness| (likeness, candidate)))
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    if let Some((_, candidate)) = best {
        return Some(format!("did you mean `{candidate}`?"));
    }
    Key::ALL
        .iter()
        .copied()
        .filter_map(|key| near(key.spec().name).map(|likeness| (likeness, key)))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, key)| place(table, key))
}

/// Where a key belongs.
fn place(table: &str, key: Key) -> String {
    let spec = key.spec();
    if spec.table == table {
        format!("did you mean `{}`?", spec.name)
    } else if spec.table.is_empty() {
        format!("`{}` belongs at the top, above the first [table]", spec.name)
    } else {
        format!("did you mean `{}` in [{}]?", spec.name, spec.table)
    }
}

/// Lay the flags over the file's values.
pub(super) fn lay_over(values: &mut Values, flags: &Flags, found: &mut Vec<Diagnostic>) {
    for (key, texts) in flags {
        let origin = flag_origin(*key);
        let text_node = |text: &String| Node { value: Value::Text(text.clone()), origin: origin.clone() };
        let value = match key.spec().shape {
            Shape::One | Shape::Switch => match texts.last() {
                Some(text) => Value::Text(text.clone()),
                None => continue,
            },
            Shape::Many | Shape::Command => Value::List(texts.iter().map(text_node).collect()),
            Shape::Map => {
                let below = values.remove(key);
                lay_members(below, texts, &origin, *key, found)
            }
        };
        let origin = origin.clone();
        values.insert(*key, Node { value, origin });
    }
}

/// The flag of a key, as an error names it.
pub(super) fn flag_origin(key: Key) -> Origin {
    match key.spec().shape {
        Shape::Command => Origin::Flag("command after --".to_owned()),
        Shape::One | Shape::Switch | Shape::Many | Shape::Map => Origin::Flag(format!("--{}", key.spec().flag)),
    }
}

/// `NAME=VALUE` texts behind the members of the file's table: the last one of a name counts.
fn lay_members(below: Option<Node>, texts: &[String], origin: &Origin, key: Key, found: &mut Vec<Diagnostic>) -> Value {
    let mut members = match below {
        Some(Node { value: Value::Table(members), .. }) => members,
        Some(other) => {
            // What is wrong with the file must not be hidden by a flag.
            let message = format!("{} where a table is expected", other.value.kind());
            found.push(Diagnostic::text(other.origin, key.path(), message));
            Vec::new()
        }
        None => Vec::new(),
    };
    for text in texts {
        let Some((name, value)) = text.split_once('=') else {
            let message = format!("{text:?} has no `=`");
            let remedy = format!("write --{} NAME=VALUE", key.spec().flag);
            found.push(Diagnostic::text(origin.clone(), key.path(), message).remedy(remedy));
            continue;
        };
        members.push(Entry {
            name: name.to_owned(),
            origin: origin.clone(),
            node: Node { value: Value::Text(value.to_owned()), origin: origin.clone() },
        });
    }
    Value::Table(members)
}

/// The default's text as a value, if the key has one.
pub(super) fn default_node(key: Key) -> Option<Node> {
    match key.spec().default {
        Fallback::Value(text) => Some(Node { value: Value::Text(text.to_owned()), origin: Origin::Default }),
        Fallback::Unset(_) | Fallback::Derived(_) => None,
    }
}
