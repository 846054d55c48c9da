//! From given values to a [`Config`]: every key by its own rule, then what keys say about each other.
#![expect(clippy::wildcard_enum_match_arm, reason = "whatever is not refused passes")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use super::diagnostic::{Diagnostic, Origin};
use super::key::Key;
use super::model::{
    Bind, BindAddress, Config, Control, IsolationChoice, Limits, Listen, Log, LogFormat, Memory, Ready, Recycle,
    Reload, Restart, Share, Signal, Size, Timeouts, Workers,
};
use super::raw::{self, Node, Value, Values};
use super::value::{self, Parsed, Problem};

/// Values on their way to a configuration.
pub(super) struct Rules<'a> {
    values: &'a Values,
    /// What is wrong.
    pub(super) found: Vec<Diagnostic>,
    /// Keys whose value is wrong: nothing more is said of them.
    pub(super) bad: BTreeSet<Key>,
}

impl<'a> Rules<'a> {
    pub(super) const fn new(values: &'a Values) -> Self {
        Self { values, found: Vec::new(), bad: BTreeSet::new() }
    }

    /// Where a key's value stands.
    pub(super) fn origin(&self, key: Key) -> Origin {
        self.values.get(&key).map_or(Origin::Default, |node| node.origin.clone())
    }

    /// Whether somebody gave it.
    pub(super) fn is_given(&self, key: Key) -> bool {
        self.values.contains_key(&key)
    }

    /// Record what is wrong with a key's value.
    pub(super) fn report(&mut self, key: Key, problem: Problem) {
        let origin = problem.at.unwrap_or_else(|| self.origin(key));
        self.bad.insert(key);
        let mut diagnostic = Diagnostic::text(origin, key.path(), problem.message);
        let example = || format!("for example {}", key.example(matches!(diagnostic.origin, Origin::Flag(_))));
        diagnostic.remedy = Some(problem.remedy.unwrap_or_else(example));
        self.found.push(diagnostic);
    }

    /// A given value; none if there is none or it is wrong.
    fn given<T>(&mut self, key: Key, parse: impl FnOnce(&'a Node) -> Parsed<T>) -> Option<T> {
        let node = self.values.get(&key)?;
        match parse(node) {
            Ok(meaning) => Some(meaning),
            Err(problem) => {
                self.report(key, problem);
                None
            }
        }
    }

    /// A given value, else the key's default; `stopgap` only ever stands in for a wrong value, which fails the whole
    /// configuration.
    fn value<T>(&mut self, key: Key, stopgap: T, parse: impl Fn(&Node) -> Parsed<T>) -> T {
        if self.is_given(key) {
            return self.given(key, parse).unwrap_or(stopgap);
        }
        raw::default_node(key).and_then(|node| parse(&node).ok()).unwrap_or(stopgap)
    }

    /// The whole configuration. Wrong only if something was [found](Self::found).
    pub(super) fn config(&mut self, file: Option<&Path>) -> Config {
        let command = self.command();
        let name = self.name(file, command.first().map(String::as_str));
        Config {
            name,
            command,
            workers: self.value(Key::Workers, Workers::Auto, value::workers),
            ready: self.value(Key::Ready, Ready::Notify, value::ready),
            drain_signal: self.value(Key::DrainSignal, Signal(15), value::drain_signal),
            isolation: self.value(Key::Isolation, IsolationChoice::Auto, value::isolation),
            working_directory: self.given(Key::WorkingDirectory, value::path),
            user: self.given(Key::User, value::account),
            group: self.given(Key::Group, value::account),
            umask: self.value(Key::Umask, 0o022, value::mode),
            environment: self.environment(),
            environment_file: self.given(Key::EnvironmentFile, value::path),
            inherit_environment: self.value(Key::InheritEnvironment, true, value::boolean),
            listen: self.listen(),
            memory: self.memory(),
            recycle: self.recycle(),
            timeouts: Timeouts {
                start: self.value(Key::TimeoutStart, Duration::MAX, value::bound),
                settle: self.value(Key::TimeoutSettle, Duration::ZERO, value::some_time),
                watchdog: self.value(Key::TimeoutWatchdog, None, value::optional_time),
                graceful: self.value(Key::TimeoutGraceful, Duration::MAX, value::bound),
                abort: self.value(Key::TimeoutAbort, Duration::ZERO, value::bounded_time),
            },
            restart: Restart {
                backoff: self.value(Key::Backoff, Duration::ZERO, value::some_time),
                backoff_max: self.value(Key::BackoffMax, Duration::MAX, value::some_time),
            },
            reload: Reload { hold: self.value(Key::Hold, Duration::ZERO, value::bounded_time) },
            limits: Limits {
                tasks_max: self.given(Key::TasksMax, value::number_or_infinity),
                cpu_weight: self.given(Key::CpuWeight, |node| value::number_within(node, 1, 10_000)),
                nofile: self.given(Key::Nofile, |node| value::number_within(node, 16, 1 << 30)),
            },
            log: Log { format: self.value(Key::LogFormat, LogFormat::Auto, value::log_format) },
            control: Control { group: self.given(Key::ControlGroup, value::account) },
        }
    }

    /// A given array, member by member, so that every wrong one is named.
    fn members<T>(&mut self, key: Key, parse: impl Fn(&Node) -> Parsed<T>) -> Vec<(T, Origin)> {
        let mut members = Vec::new();
        for node in self.given(key, value::list).unwrap_or_default() {
            match parse(node) {
                Ok(meaning) => members.push((meaning, node.origin.clone())),
                Err(mut problem) => {
                    problem.at = Some(node.origin.clone());
                    self.report(key, problem);
                }
            }
        }
        members
    }

    fn command(&mut self) -> Vec<String> {
        if !self.is_given(Key::Command) {
            self.bad.insert(Key::Command);
            let diagnostic = Diagnostic::text(Origin::Whole, "command", "missing");
            let remedy = "say what the workers run: command = [\"program\", \"argument\"] in the file, or -- PROGRAM ARGUMENT… at the end of the command line";
            self.found.push(diagnostic.remedy(remedy));
            return Vec::new();
        }
        let words = self.members(Key::Command, value::text);
        let words: Vec<String> = words.into_iter().map(|(word, _)| word).collect();
        let program_is_empty = words.first().is_none_or(|program| program.trim().is_empty());
        if program_is_empty && !self.bad.contains(&Key::Command) {
            let problem = Problem::new("names no program");
            self.report(Key::Command, problem.remedy("[\"program\", \"argument\"]"));
        }
        words
    }

    /// The given name, else the file's stem, else the command's basename.
    fn name(&mut self, file: Option<&Path>, program: Option<&str>) -> String {
        if self.is_given(Key::Name) {
            return self.given(Key::Name, value::app_name).unwrap_or_default();
        }
        let derived = match file {
            Some(file) => file.file_stem(),
            None => program.and_then(|program| Path::new(program).file_name()),
        };
        let derived = derived.map(OsStr::to_string_lossy).unwrap_or_default();
        if derived.is_empty() && self.bad.contains(&Key::Command) {
            return String::new();
        }
        if let Err(problem) = value::check_app_name(&derived) {
            self.bad.insert(Key::Name);
            let message = format!("none given, and {}", problem.message);
            let remedy =
                "write name = \"…\" at the top of the file, or --name: letters, digits, `_`, `.` and `-`, at most 48";
            let diagnostic = Diagnostic::text(Origin::Whole, "name", message);
            self.found.push(diagnostic.remedy(remedy));
        }
        derived.into_owned()
    }

    fn environment(&mut self) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        let Some(node) = self.values.get(&Key::Environment) else {
            return variables;
        };
        let Value::Table(members) = &node.value else {
            let message = format!("{} where a table is expected", node.value.kind());
            self.report(Key::Environment, Problem::new(message));
            return variables;
        };
        for member in members {
            if !is_variable_name(&member.name) {
                let mut problem = Problem::new(format!("{:?} cannot name a variable", member.name))
                    .remedy("letters, digits and `_`, not beginning with a digit");
                problem.at = Some(member.origin.clone());
                self.report(Key::Environment, problem);
                continue;
            }
            if is_protocol(&member.name) {
                let mut problem = Problem::new(format!("{} is for paddock to set", member.name))
                    .remedy("remove it: every worker gets its own");
                problem.at = Some(member.origin.clone());
                self.report(Key::Environment, problem);
                continue;
            }
            match value::text(&member.node) {
                Ok(text) => {
                    variables.insert(member.name.clone(), text);
                }
                Err(mut problem) => {
                    problem.message = format!("{}: {}", member.name, problem.message);
                    problem.remedy = Some("write its value in quotes".to_owned());
                    problem.at = Some(member.node.origin.clone());
                    self.report(Key::Environment, problem);
                }
            }
        }
        variables
    }

    fn listen(&mut self) -> Listen {
        let addresses = self.members(Key::Bind, value::bind);
        let names = self.members(Key::Names, value::socket_name);
        let mut seen: Vec<(&BindAddress, &Origin)> = Vec::new();
        let mut twice = Vec::new();
        for (address, origin) in &addresses {
            let takes_any_port = matches!(address, BindAddress::Tcp(tcp) if tcp.port() == 0);
            if let Some((_, first)) = seen.iter().find(|(other, _)| *other == address) {
                let diagnostic = Diagnostic::text(origin.clone(), Key::Bind.path(), "the same address a second time");
                let remedy = "remove one; all workers share the one socket";
                twice.push(diagnostic.remedy(remedy).context(first, "first here"));
            } else if !takes_any_port {
                seen.push((address, origin));
            }
        }
        if !twice.is_empty() {
            self.bad.insert(Key::Bind);
            self.found.append(&mut twice);
        }
        if names.len() > addresses.len() && self.sound(&[Key::Bind, Key::Names]) {
            let message = format!("{} names for {} addresses", names.len(), addresses.len());
            let problem = Problem::new(message)
                .remedy("one name for each address of bind; sockets from systemd are named in its socket unit (FileDescriptorName=)");
            self.report(Key::Names, problem);
        }
        let mut names = names.into_iter().map(|(name, _)| name);
        let bind = addresses
            .into_iter()
            .map(|(address, _)| Bind { address, name: names.next().unwrap_or_else(|| "listen".to_owned()) })
            .collect();
        Listen {
            bind,
            backlog: self.value(Key::Backlog, 1, |node| value::count_within(node, 1, i32::MAX.unsigned_abs())),
            socket_mode: self.value(Key::SocketMode, 0, value::mode),
            socket_user: self.given(Key::SocketUser, value::account),
            socket_group: self.given(Key::SocketGroup, value::account),
        }
    }

    fn memory(&mut self) -> Memory {
        Memory {
            max: self.given(Key::MemoryMax, limit),
            budget: self.given(Key::MemoryBudget, limit),
            recycle_at: self.value(Key::MemoryRecycleAt, Size::Infinity, not_zero),
            swap_max: self.value(Key::MemorySwapMax, Size::Infinity, |node| match value::size(node)? {
                Size::Percent(_) => {
                    Err(Problem::new("a percentage makes no sense here")
                        .remedy("such as \"0\", \"256M\" or \"infinity\""))
                }
                size => Ok(size),
            }),
        }
    }

    fn recycle(&mut self) -> Recycle {
        Recycle {
            max_requests: self.value(Key::MaxRequests, 0, value::number),
            max_requests_jitter: self.value(Key::MaxRequestsJitter, Share::Absolute(0), value::share),
            spread: self.value(Key::Spread, true, value::boolean),
            max_lifetime: self.value(Key::MaxLifetime, None, value::optional_time),
            surge: self.value(Key::Surge, 0, |node| value::count_within(node, 0, 10_000)),
        }
    }

    /// Whether none of these is wrong, so that what they say about each other means something.
    pub(super) fn sound(&self, keys: &[Key]) -> bool {
        keys.iter().all(|key| !self.bad.contains(key))
    }
}

/// environ(7) allows more, but no shell and no systemd does.
pub(super) fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Variables that paddock tells a worker about itself.
fn is_protocol(name: &str) -> bool {
    name == "NOTIFY_SOCKET"
        || ["LISTEN_", "WATCHDOG_", "MEMORY_PRESSURE_", "PADDOCK_"].iter().any(|prefix| name.starts_with(prefix))
}

/// A size that is not nothing.
fn not_zero(node: &Node) -> Parsed<Size> {
    match value::size(node)? {
        Size::Bytes(0) | Size::Percent(0) => {
            Err(Problem::new("zero makes no sense here").remedy("leave it out for no limit"))
        }
        size => Ok(size),
    }
}

/// Less than any program needs: a bare number was meant as megabytes.
const LEAST_LIMIT: u64 = 1 << 20;

/// A hard limit, in which a program can start at all.
fn limit(node: &Node) -> Parsed<Size> {
    match not_zero(node)? {
        Size::Bytes(bytes) if bytes < LEAST_LIMIT => {
            let problem = Problem::new(format!("{bytes} bytes: no program starts in that"));
            Err(problem.remedy(format!("a bare number is bytes; write a unit, such as \"{bytes}M\"")))
        }
        size => Ok(size),
    }
}
