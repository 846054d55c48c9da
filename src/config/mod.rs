//! Text in, a [`model::Config`] that cannot be wrong out.
//!
//! [`load`] reads the file and lays the flags over it; every key is described once, in [`key`]. Whatever is wrong is
//! told all at once, each with its place and its remedy ([`diagnostic`]). [`resolve`] says what it means on this
//! [`machine`].

pub mod changes;
mod combine;
pub mod diagnostic;
pub(crate) mod env_file;
pub mod key;
pub mod machine;
pub mod model;
mod raw;
mod read;
pub mod render;
pub mod resolve;
mod rules;
pub mod signal;
pub mod units;
mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use combine::Runner;
pub use env_file::Variables;
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
    pub origins: BTreeMap<Key, Origin>,
    /// What `environment_file` holds.
    pub file_environment: Variables,
    /// Where each variable of `environment` stands.
    pub environment_origins: BTreeMap<String, Origin>,
    /// What is legal but probably not meant.
    pub warnings: Diagnostics,
}

impl Loaded {
    /// Where a key's value comes from, for people: `default`, `FILE:LINE` or the flag.
    pub fn origin(&self, key: Key) -> String {
        self.spell(self.origins.get(&key))
    }

    /// The same of a variable of `environment`.
    pub fn variable_origin(&self, name: &str) -> String {
        self.spell(self.environment_origins.get(name))
    }

    fn spell(&self, origin: Option<&Origin>) -> String {
        match (origin, &self.source) {
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
    let source = match &invocation.file {
        None => None,
        Some(file) => match read::read(file, Some(invocation.runner.uid)) {
            Ok(source) => Some(Arc::new(source)),
            Err(failure) => {
                let (source, diagnostic) = *failure;
                return Err(Diagnostics::new(Some(Arc::new(source)), vec![diagnostic]));
            }
        },
    };
    understand(invocation, source)
}

/// What a text means as the configuration file of this path, which need not exist.
pub fn understand_text(path: &str, text: String, runner: Runner) -> Result<Loaded, Diagnostics> {
    let source = Arc::new(Source { path: path.to_owned(), text });
    understand(&Invocation { file: Some(path.into()), flags: Flags::new(), runner }, Some(source))
}

/// What the text and the flags mean.
pub(crate) fn understand(invocation: &Invocation, source: Option<Arc<Source>>) -> Result<Loaded, Diagnostics> {
    let (mut values, mut found) = source.as_deref().map(raw::read_file).unwrap_or_default();
    let broken = broken_lines(&found, source.as_deref());
    raw::lay_over(&mut values, &invocation.flags, &mut found);
    let mut rules = Rules::new(&values);
    let config = rules.config(invocation.file.as_deref());
    combine::check(&mut rules, &config, &invocation.runner);
    let mut file_environment = Variables::new();
    if let Some(path) = &config.environment_file {
        // Workers that keep the manager's user do what their environment says (LD_PRELOAD) as that user.
        let subject = config.user.is_none().then_some(invocation.runner.uid);
        match env_file::load(path, &rules.origin(Key::EnvironmentFile), subject) {
            Ok(variables) => file_environment = variables,
            Err(faults) => rules.found.extend(faults),
        }
    }
    found.append(&mut rules.found);
    found.retain(|diagnostic| !follows_from(&broken, diagnostic, source.as_deref()));
    if !found.is_empty() {
        return Err(Diagnostics::new(source, found));
    }
    let warnings = combine::warnings(&rules, &config, &invocation.runner);
    let environment_origins = values.get(&Key::Environment).map(raw::Node::member_origins).unwrap_or_default();
    let origins = values.into_iter().map(|(key, node)| (key, node.origin)).collect();
    Ok(Loaded {
        config,
        warnings: Diagnostics::new(source.clone(), warnings),
        source,
        origins,
        file_environment,
        environment_origins,
    })
}

/// Lines that are not TOML.
fn broken_lines(found: &[Diagnostic], source: Option<&Source>) -> Vec<usize> {
    let syntax = found.iter().filter(|diagnostic| diagnostic.key.is_empty());
    syntax.filter_map(|diagnostic| line(diagnostic, source)).collect()
}

/// The line of the configuration file that a fault stands in.
fn line(diagnostic: &Diagnostic, source: Option<&Source>) -> Option<usize> {
    match (&diagnostic.origin, source) {
        (Origin::File(span), Some(source)) if diagnostic.source.is_none() => Some(source.position(span.start).0),
        _ => None,
    }
}

/// Whether a fault is only there because a line is not TOML: what else seems wrong in that line, what seems missing,
/// and all that seems misplaced further down.
fn follows_from(broken: &[usize], diagnostic: &Diagnostic, source: Option<&Source>) -> bool {
    let Some(first) = broken.iter().min() else { return false };
    if diagnostic.key.is_empty() {
        return false;
    }
    match line(diagnostic, source) {
        Some(line) => broken.contains(&line) || (line > *first && diagnostic.message.starts_with("unknown ")),
        None => matches!(diagnostic.origin, Origin::Whole | Origin::Default),
    }
}

#[cfg(test)]
mod tests;
