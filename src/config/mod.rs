//! Text in, a [`model::Config`] that cannot be wrong out.
//!
//! [`load`] reads the file and lays the flags over it; every key is described once, in [`key`]. Whatever is wrong is
//! told all at once, each with its place and its remedy ([`diagnostic`]). [`resolve`] says what it means on this
//! [`machine`].

mod combine;
pub mod diagnostic;
pub mod key;
pub mod machine;
pub mod model;
mod raw;
mod read;
pub mod resolve;
mod rules;
pub mod signal;
pub mod units;
mod value;

use std::path::PathBuf;
use std::sync::Arc;

pub use combine::Runner;
pub use raw::Flags;

use diagnostic::{Diagnostic, Diagnostics, Origin, Source};
use key::Key;
use model::Config;
use rules::Rules;

/// What was asked for on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// Flags, which beat the file.
    pub flags: Flags,
    /// Who runs the manager.
    pub runner: Runner,
}

/// A configuration, and where all of it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What is wanted.
    pub config: Config,
    /// The file's text.
    pub source: Option<Arc<Source>>,
    /// Where each given value stands; a key that is not in here has its default.
    pub origins: std::collections::BTreeMap<Key, Origin>,
    /// What is legal but probably not meant.
    pub warnings: Diagnostics,
}

impl Loaded {
    /// Where a key's value comes from, for people: `default`, `FILE:LINE` or the flag.
    pub fn origin(&self, key: Key) -> String {
        match (self.origins.get(&key), &self.source) {
            (Some(Origin::File(span)), Some(source)) => {
                format!("{}:{}", source.path, source.position(span.start).0)
            }
            (Some(Origin::Flag(flag)), _) => flag.clone(),
            _ => "default".to_owned(),
        }
    }
}

/// Read the file, lay the flags over it, check every rule. All that is wrong comes back at once.
pub fn load(invocation: &Invocation) -> Result<Loaded, Diagnostics> {
    let mut found = Vec::new();
    let mut values = raw::Values::new();
    let mut source = None;
    if let Some(file) = &invocation.file {
        match read::read(file, invocation.runner.uid) {
            Ok(text) => {
                (values, found) = raw::read_file(&text);
                source = Some(Arc::new(text));
            }
            Err(failure) => {
                let (text, diagnostic) = *failure;
                return Err(Diagnostics::new(Some(Arc::new(text)), vec![diagnostic]));
            }
        }
    }
    let broken = broken_lines(&found, source.as_deref());
    raw::lay_over(&mut values, &invocation.flags, &mut found);
    let mut rules = Rules::new(&values);
    let config = rules.config(invocation.file.as_deref());
    combine::check(&mut rules, &config, &invocation.runner);
    let follows_from_broken_line = |diagnostic: &Diagnostic| match (&diagnostic.origin, &source) {
        (Origin::File(span), Some(source)) => broken.contains(&source.position(span.start).0),
        (Origin::Whole | Origin::Default, _) => !broken.is_empty(),
        _ => false,
    };
    found.extend(rules.found.into_iter().filter(|diagnostic| !follows_from_broken_line(diagnostic)));
    if !found.is_empty() {
        return Err(Diagnostics::new(source, found));
    }
    let warnings = combine::warnings(&config, &invocation.runner);
    let origins = values.into_iter().map(|(key, node)| (key, node.origin)).collect();
    Ok(Loaded { config, warnings: Diagnostics::new(source.clone(), warnings), source, origins })
}

/// Lines that are not TOML: whatever else seems wrong there is not worth telling.
fn broken_lines(found: &[Diagnostic], source: Option<&Source>) -> Vec<usize> {
    let syntax = found.iter().filter(|diagnostic| diagnostic.key.is_empty());
    syntax
        .filter_map(|diagnostic| match (&diagnostic.origin, source) {
            (Origin::File(span), Some(source)) => Some(source.position(span.start).0),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
