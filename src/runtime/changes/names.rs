//! Which names are no source code: what editors, version control, compilers and databases write beside it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

/// Directories and files with exactly these names.
const WHOLE: &[&str] = &[
    // Version control.
    ".git",
    ".hg",
    ".svn",
    ".jj",
    // Made from the source.
    "__pycache__",
    "node_modules",
    "target",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".tox",
    // Editors; vim makes 4913 to see whether it can.
    ".idea",
    ".vscode",
    "4913",
];

/// Files that end like this. SQLite opens its file for writing even to read it, so each request would be a change.
const ENDINGS: &[&str] = &[
    "~", ".swp", ".swo", ".swx", ".pyc", ".pyo", ".log", ".pid", ".db", ".sqlite", ".sqlite3", "-journal", "-wal",
    "-shm",
];

/// Emacs' locks and unsaved copies.
const BEGINNINGS: &[&str] = &[".#", "#"];

/// Whether a change of a file or directory of this name is none.
pub(super) fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_bytes();
    WHOLE.iter().any(|whole| name == whole.as_bytes())
        || ENDINGS.iter().any(|end| name.ends_with(end.as_bytes()))
        || BEGINNINGS.iter().any(|begin| name.starts_with(begin.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_code_counts_and_what_is_written_beside_it_does_not() {
        for name in ["app.py", "app.toml", "index.html", "Makefile", ".env", "targets", "catalog", "a.js"] {
            assert!(!is_ignored(OsStr::new(name)), "{name}");
        }
        for name in [
            ".git",
            "__pycache__",
            "a.pyc",
            "target",
            "node_modules",
            ".app.py.swp",
            "4913",
            "app.py~",
            "db.sqlite3-wal",
            ".#app.py",
        ] {
            assert!(is_ignored(OsStr::new(name)), "{name}");
        }
    }
}
