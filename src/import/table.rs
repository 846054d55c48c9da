//! What becomes of each of a peer's settings: one table for each peer, read by the importer and shown in the guides.

use std::fmt::Write as _;

use crate::config::key::Key;

/// What becomes of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// These keys of paddock's say it.
    Mapped(&'static [Key]),
    /// The server goes on reading it, and it means what it meant.
    Kept,
    /// The server goes on reading it, but something about it is different now.
    Changed,
    /// Left out: nothing is lost.
    NotNeeded,
    /// Left out: nothing here does what it did.
    Unsupported,
}

impl Fate {
    /// For the table of a guide.
    fn cell(self) -> String {
        match self {
            Self::Mapped(keys) => {
                let keys: Vec<String> = keys.iter().map(|key| format!("`{}`", key_name(*key))).collect();
                keys.join(", ")
            }
            Self::Kept => "kept".to_owned(),
            Self::Changed => "kept, but different".to_owned(),
            Self::NotNeeded => "not needed".to_owned(),
            Self::Unsupported => "not supported".to_owned(),
        }
    }
}

/// `[recycle] max_requests`: as people say it.
pub fn key_name(key: Key) -> String {
    let spec = key.spec();
    if spec.table.is_empty() { spec.name.to_owned() } else { format!("[{}] {}", spec.table, spec.name) }
}

/// Settings that share a fate.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its names, the usual one first; `name*` stands for all that begin so.
    pub names: &'static [&'static str],
    /// What becomes of it.
    pub fate: Fate,
    /// How, or why.
    pub note: &'static str,
}

/// A peer's rows, in groups with a heading each.
pub type Table = [(&'static str, &'static [Row])];

/// The row of a setting: by its own name, else by the longest `name*` that it begins with.
pub fn find(table: &Table, name: &str) -> Option<&'static Row> {
    let rows = || table.iter().flat_map(|(_, rows)| rows.iter());
    let exact = rows().find(|row| row.names.contains(&name));
    exact.or_else(|| {
        let length = |row: &Row| {
            let prefixes = row.names.iter().filter_map(|pattern| pattern.strip_suffix('*'));
            prefixes.filter(|prefix| name.starts_with(prefix)).map(str::len).max()
        };
        rows().filter(|row| length(row).is_some()).max_by_key(|row| length(row))
    })
}

/// The table as a guide shows it.
pub fn markdown(table: &Table) -> String {
    let mut text = String::new();
    for (heading, rows) in table {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "### {heading}\n\n| setting | becomes | |\n|---|---|---|");
        for row in *rows {
            let names: Vec<String> = row.names.iter().map(|name| format!("`{name}`")).collect();
            let _ = writeln!(text, "| {} | {} | {} |", names.join(", "), row.fate.cell(), row.note.replace('|', "\\|"));
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// What holds for every table.
    pub(in super::super) fn is_sound(table: &Table) {
        let mut seen = BTreeSet::new();
        for row in table.iter().flat_map(|(_, rows)| rows.iter()) {
            assert!(!row.names.is_empty());
            for name in row.names {
                assert!(seen.insert(*name), "{name} has two rows");
            }
            let speaks = matches!(row.fate, Fate::Kept) || !row.note.is_empty();
            assert!(speaks, "{:?} says nothing", row.names);
            assert!(!matches!(row.fate, Fate::Mapped([])), "{:?}", row.names);
        }
    }

    /// Names of the peer's that no row is about.
    pub(in super::super) fn missing<'a>(table: &Table, known: &BTreeSet<&'a str>) -> Vec<&'a str> {
        known.iter().copied().filter(|name| find(table, name).is_none()).collect()
    }

    /// Names and patterns of the table that stand for nothing the peer knows.
    pub(in super::super) fn invented(table: &Table, known: &BTreeSet<&str>) -> Vec<&'static str> {
        let stands = |name: &str| match name.strip_suffix('*') {
            Some(prefix) => known.iter().any(|one| one.starts_with(prefix)),
            None => known.contains(name),
        };
        let rows = table.iter().flat_map(|(_, rows)| rows.iter());
        rows.flat_map(|row| row.names).copied().filter(|name| !stands(name)).collect()
    }

    #[test]
    fn an_exact_name_beats_a_pattern_and_a_long_pattern_a_short_one() {
        const ROWS: &[Row] = &[
            Row { names: &["http*"], fate: Fate::Unsupported, note: "router" },
            Row { names: &["http-socket*"], fate: Fate::Kept, note: "" },
            Row { names: &["http-socket"], fate: Fate::Mapped(&[Key::Bind]), note: "" },
        ];
        let table: &Table = &[("All", ROWS)];
        let fate = |name| find(table, name).map(|row| row.fate);
        assert_eq!(fate("http-socket"), Some(Fate::Mapped(&[Key::Bind])));
        assert_eq!(fate("http-socket-modifier1"), Some(Fate::Kept));
        assert_eq!(fate("http-to"), Some(Fate::Unsupported));
        assert_eq!(fate("socket"), None);
    }
}
