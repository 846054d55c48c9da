//! gunicorn: `gunicorn.conf.py`, `GUNICORN_CMD_ARGS` and the command line, as gunicorn itself reads them.

mod table;

use serde::Deserialize;
use serde_json::{Value, json};

pub use table::TABLE;

use super::draft::{Draft, quote};
use super::table::{Fate, find};
use super::{ImportError, Place, app_name, memory, python, without_program};
use crate::config::key::Key;
use crate::observe::escape::single_line;

/// What the script says about a gunicorn.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Facts {
    /// The Python that it ran in.
    python: String,
    /// gunicorn's version.
    version: String,
    /// Whether paddock_worker is installed there.
    adapter: bool,
    /// The configuration file that was read, or `python:MODULE`.
    location: Option<String>,
    /// `MODULE:APP`.
    application: Option<String>,
    /// The command line's words that are no options.
    positional: Vec<String>,
    /// After gunicorn's own rule: sync with threads is gthread.
    worker_class: String,
    /// `[host, port]`, a path, or a descriptor's number.
    addresses: Vec<Value>,
    /// The user's name, or number.
    user: Option<String>,
    /// The group's.
    group: Option<String>,
    settings: Vec<Setting>,
    /// Names that the file defines and gunicorn does not know.
    unknown: Vec<Unknown>,
}

/// One of gunicorn's settings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Setting {
    name: String,
    /// `default`, `file`, `GUNICORN_CMD_ARGS` or `command line`.
    origin: String,
    value: Value,
    /// Whether it is a function; then `value` is its name.
    hook: bool,
    /// How a command line says it.
    words: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Unknown {
    name: String,
}

/// The script's answer.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer {
    Missing { missing: String, python: String },
    Facts(Box<Facts>),
}

const SCRIPT: &str = include_str!("read.py");

/// Read what gunicorn would read, and make a draft of it.
///
/// # Errors
/// gunicorn is not there, or its configuration fails.
pub fn import(config: Option<&str>, words: &[String], place: &Place) -> Result<Draft, ImportError> {
    let mut arguments: Vec<&str> = config.map(|file| vec!["--config", file]).unwrap_or_default();
    arguments.extend(without_program(words, "gunicorn").iter().map(String::as_str));
    let request = json!({ "arguments": arguments }).to_string();
    match python::ask(&place.python, SCRIPT, &request)? {
        Answer::Missing { missing, python } => Err(ImportError::Machine(format!(
            "{missing} is not installed in {}: name the Python that runs it with --python",
            single_line(&python, 400)
        ))),
        Answer::Facts(facts) => Ok(draft(&facts, place)),
    }
}

impl Facts {
    fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    /// A whole number, zero if it is none.
    fn number(&self, name: &str) -> u64 {
        self.setting(name).and_then(|setting| setting.value.as_u64()).unwrap_or(0)
    }

    fn is_given(&self, name: &str) -> bool {
        self.setting(name).is_some_and(Setting::is_given)
    }

    /// `was: NAME = VALUE (where)`.
    fn was(&self, name: &str) -> String {
        match self.setting(name) {
            Some(setting) => format!("was: {} = {} ({})", name, quote(&setting.value), setting.place()),
            None => format!("was: {name}, which this gunicorn does not have"),
        }
    }

    fn is_sync(&self) -> bool {
        self.worker_class == "sync" || self.worker_class.ends_with("SyncWorker")
    }
}

impl Setting {
    fn is_given(&self) -> bool {
        self.origin != "default"
    }

    fn place(&self) -> &str {
        match self.origin.as_str() {
            "default" => "gunicorn's default",
            other => other,
        }
    }

    /// As a list shows it; variables may be secrets, so only their names are told.
    fn shown(&self) -> String {
        let value = match (self.name.as_str(), &self.value) {
            ("raw_env", Value::Array(variables)) => {
                let names = variables.iter().filter_map(|variable| variable.as_str()?.split('=').next());
                names.collect::<Vec<_>>().join(", ")
            }
            (_, value) if self.hook => format!("{}()", quote(value)),
            (_, value) => quote(value),
        };
        format!("{} = {value} ({})", self.name, self.place())
    }
}

/// What the facts become. Pure.
fn draft(facts: &Facts, place: &Place) -> Draft {
    let mut draft = Draft::new("gunicorn");
    header(&mut draft, facts);
    command(&mut draft, facts);
    if let Some(directory) = place.directory_text() {
        let comment = "where the import ran: gunicorn finds the application and relative paths from here";
        draft.set(Key::WorkingDirectory, json!(directory), comment);
    }
    processes(&mut draft, facts);
    listen(&mut draft, facts, place);
    accounts(&mut draft, facts);
    times(&mut draft, facts);
    memory::none(&mut draft, "gunicorn");
    lists(&mut draft, facts);
    draft
}

fn header(draft: &mut Draft, facts: &Facts) {
    let location = facts.location.as_deref().unwrap_or("its command line alone");
    draft.say(format!("Made by `paddock import gunicorn` from {location}, as gunicorn {} reads it.", facts.version));
    draft.say("`paddock check FILE` starts one worker of it on stand-in sockets.");
    if !facts.adapter {
        draft.say(format!("First: {} -m pip install 'paddock-worker[gunicorn]'", facts.python));
    }
    if facts.settings.iter().any(|setting| setting.origin == "file") {
        draft.say(
            "The file stays gunicorn's, unchanged. Settings in it that are paddock's now have no effect; each worker's log \
             names them until you take them out.",
        );
    }
    if facts.settings.iter().any(|setting| setting.origin == "GUNICORN_CMD_ARGS") {
        draft.say("TO DO: take GUNICORN_CMD_ARGS out of the service's environment; what it said is in `command` now.");
    }
}

fn command(draft: &mut Draft, facts: &Facts) {
    let mut words: Vec<String> = [facts.python.as_str(), "-m", "paddock_worker", "gunicorn"].map(str::to_owned).into();
    for setting in &facts.settings {
        let keeps = match find(TABLE, &setting.name).map(|row| row.fate) {
            Some(Fate::Kept | Fate::Changed) | None => true,
            // The process's title stays gunicorn's; a timeout of 0 turns off what sync would do at 30 s.
            Some(Fate::Mapped(_)) => setting.name == "proc_name" || (setting.name == "timeout" && setting.value == 0),
            Some(Fate::NotNeeded | Fate::Unsupported) => false,
        };
        if keeps {
            words.extend(setting.words.iter().cloned());
        }
    }
    let timeout = facts.setting("timeout").filter(|timeout| !timeout.words.is_empty());
    if let Some(seconds) = timeout.and_then(|timeout| timeout.value.as_u64()).filter(|seconds| *seconds > 0)
        && facts.is_sync()
    {
        words.extend(["--request-timeout".to_owned(), seconds.to_string()]);
    }
    words.extend(facts.positional.iter().cloned());
    let mut comment = "gunicorn's worker class and configuration, without its master".to_owned();
    if facts.application.is_none() && !facts.is_given("paste") {
        words.push("MODULE:APP".to_owned());
        "TO DO: no application was named; put it where MODULE:APP stands".clone_into(&mut comment);
    }
    draft.set(Key::Command, json!(words), comment);
    if let Some(name) = facts.setting("proc_name").filter(|name| name.is_given())
        && let Some(app) = name.value.as_str().and_then(app_name)
    {
        draft.set(Key::Name, json!(app), facts.was("proc_name"));
    }
    class(draft, facts);
}

/// Worker classes that paddock_worker does not know, and two that it cannot do well.
fn class(draft: &mut Draft, facts: &Facts) {
    let class = facts.worker_class.as_str();
    let last = class.rsplit('.').next().unwrap_or(class);
    let known = [
        "sync",
        "gthread",
        "gevent",
        "SyncWorker",
        "ThreadWorker",
        "GeventWorker",
        "UvicornWorker",
        "UvicornH11Worker",
    ];
    let asked = facts.setting("worker_class").map(Setting::shown).unwrap_or_default();
    if last == "asgi" || last == "ASGIWorker" {
        draft.refuse(
            &asked,
            "paddock_worker does not know gunicorn's own ASGI worker, so nothing counts its requests: \
             `python -m paddock_worker asgi MODULE:APP`, or the class uvicorn_worker.UvicornWorker, do it well",
        );
    } else if class == "uvicorn.workers.UvicornWorker" {
        draft.keep(
            &asked,
            "uvicorn has given this class up: install uvicorn-worker and name uvicorn_worker.UvicornWorker",
        );
    } else if !known.contains(&last) {
        draft.unknown(
            &asked,
            "a worker class that paddock_worker does not know: see that it counts requests and drains",
        );
    }
}

fn processes(draft: &mut Draft, facts: &Facts) {
    let workers = facts.number("workers").max(1);
    draft.set(Key::Workers, json!(workers), facts.was("workers"));
    if !facts.is_given("workers") && workers > 1 {
        draft.remark(Key::Workers, "gunicorn took it from WEB_CONCURRENCY, which paddock does not read.");
    }
    draft.remark(Key::Workers, "\"auto\" is one for each usable CPU, as far as [memory] budget lets them fit.");
    let quota = facts.number("max_requests");
    if quota > 0 {
        draft.set(Key::MaxRequests, json!(quota), facts.was("max_requests"));
        draft.remark(
            Key::MaxRequests,
            "The first quotas of a generation are spread as well ([recycle] spread), so that workers never fill up together.",
        );
        let jitter = facts.number("max_requests_jitter");
        if jitter > 0 {
            draft.set(Key::MaxRequestsJitter, json!(jitter), facts.was("max_requests_jitter"));
        } else {
            draft.suggest(Key::MaxRequestsJitter, json!("5%"), "was: none. A share of max_requests does as well.");
        }
    } else if facts.is_given("max_requests_jitter") {
        draft.suggest(
            Key::MaxRequestsJitter,
            json!("5%"),
            facts.was("max_requests_jitter") + ", without a max_requests",
        );
    }
}

fn listen(draft: &mut Draft, facts: &Facts, place: &Place) {
    let mut addresses = Vec::new();
    let mut has_path = false;
    for address in &facts.addresses {
        match address {
            Value::Array(pair) => match (pair.first().and_then(Value::as_str), pair.get(1).and_then(Value::as_u64)) {
                (Some(host), Some(port)) => match ip(host) {
                    Some(host) => addresses.push(format!("{host}:{port}")),
                    None => draft.refuse(
                        &format!("bind = {host}:{port}"),
                        "paddock does not look names up: write the IP address to [listen] bind",
                    ),
                },
                _ => draft.refuse(&format!("bind = {}", quote(address)), "no address that paddock knows"),
            },
            Value::String(path) => {
                has_path = true;
                addresses.push(format!("unix:{}", place.directory.join(path).display()));
            }
            Value::Number(fd) => draft.refuse(
                &format!("bind = fd://{fd}"),
                "paddock takes sockets as systemd passes them (LISTEN_FDS), and no other descriptors: use a socket unit",
            ),
            Value::Null | Value::Bool(_) | Value::Object(_) => {
                draft.refuse(&format!("bind = {}", quote(address)), "no address that paddock knows");
            }
        }
    }
    addresses.dedup();
    if !addresses.is_empty() {
        draft.set(Key::Bind, json!(addresses), facts.was("bind"));
        draft.remark(Key::Bind, "With a socket unit of systemd's, take this out: what it passes in comes first.");
    }
    if facts.is_given("backlog") {
        draft.set(Key::Backlog, json!(facts.number("backlog").max(1)), facts.was("backlog"));
    }
    if has_path && facts.is_given("umask") {
        let mode = 0o777 & !facts.number("umask") & 0o666;
        let comment = "from gunicorn's umask, which made the mode of its unix sockets";
        draft.set(Key::SocketMode, json!(format!("{mode:04o}")), comment);
    }
}

/// A host as an address that can be bound.
fn ip(host: &str) -> Option<String> {
    match host {
        "" | "0.0.0.0" => Some("0.0.0.0".to_owned()),
        "localhost" => Some("127.0.0.1".to_owned()),
        _ => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let address: std::net::IpAddr = bare.parse().ok()?;
            Some(if address.is_ipv6() { format!("[{address}]") } else { address.to_string() })
        }
    }
}

fn accounts(draft: &mut Draft, facts: &Facts) {
    if let Some(user) = facts.user.as_ref().filter(|_| facts.is_given("user")) {
        draft.set(Key::User, json!(user), facts.was("user"));
    }
    if let Some(group) = facts.group.as_ref().filter(|_| facts.is_given("group")) {
        draft.set(Key::Group, json!(group), facts.was("group"));
    }
    if facts.is_given("umask") {
        draft.set(Key::Umask, json!(format!("{:04o}", facts.number("umask") & 0o777)), facts.was("umask"));
    } else {
        draft.suggest(
            Key::Umask,
            json!("0000"),
            "gunicorn's default: files that workers make can be written by anyone.",
        );
    }
}

fn times(draft: &mut Draft, facts: &Facts) {
    let timeout = facts.number("timeout");
    if timeout > 0 {
        let watchdog = timeout.saturating_mul(3).div_ceil(2);
        draft.set(Key::TimeoutWatchdog, json!(format!("{watchdog}s")), facts.was("timeout"));
        draft.remark(
            Key::TimeoutWatchdog,
            "One and a half times that: a ping comes every third of it, so no request gets less than gunicorn gave it.",
        );
        let class = if facts.is_sync() {
            format!(
                "With sync, a request that hangs for {timeout} s makes its worker ask for a replacement before that."
            )
        } else {
            "It must exceed the longest request that may be slow: it runs out, too, while every thread or connection of the \
             worker is busy and none comes free. --request-timeout in `command` replaces a worker with a single hung request."
                .to_owned()
        };
        draft.remark(Key::TimeoutWatchdog, class);
    } else {
        draft.suggest(Key::TimeoutWatchdog, json!("45s"), facts.was("timeout") + ": no watchdog");
    }
    let graceful = facts.number("graceful_timeout");
    if facts.is_given("graceful_timeout") || graceful != 30 {
        draft.set(Key::TimeoutGraceful, json!(format!("{}s", graceful.max(1))), facts.was("graceful_timeout"));
    }
}

fn lists(draft: &mut Draft, facts: &Facts) {
    for setting in facts.settings.iter().filter(|setting| setting.is_given()) {
        match find(TABLE, &setting.name) {
            Some(row) => draft.list(&setting.shown(), row),
            None => {
                draft.keep(&setting.shown(), "newer than this paddock's table; paddock_worker leaves it to gunicorn");
            }
        }
    }
    for unknown in &facts.unknown {
        let similar = facts
            .settings
            .iter()
            .map(|setting| (strsim::jaro_winkler(&setting.name, &unknown.name.to_ascii_lowercase()), &setting.name))
            .filter(|(likeness, _)| *likeness > 0.88)
            .max_by(|(one, _), (other, _)| one.total_cmp(other));
        let note = match similar {
            Some((_, name)) => format!("gunicorn ignores this name of the file's; was `{name}` meant?"),
            None => "gunicorn ignores this name of the file's; a variable of its own, most likely".to_owned(),
        };
        draft.unknown(&unknown.name, &note);
    }
}

#[cfg(test)]
mod tests;
