//! The groups that an earlier manager of an app may have left.

use std::collections::BTreeMap;

use super::super::{FenceName, name};
use super::hierarchy::Home;

/// The names of an app's groups below these homes, whoever made them.
pub(super) fn of<'a>(homes: impl Iterator<Item = &'a Home>, app: &str) -> Vec<FenceName> {
    let mut found = BTreeMap::new();
    for home in homes {
        for entry in std::fs::read_dir(&home.dir).into_iter().flatten().flatten() {
            let directory = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = name::parse(&directory).filter(|name| name.app == app) {
                found.insert(directory, name);
            }
        }
    }
    found.into_values().collect()
}
