//! uWSGI: a `uwsgi.ini`, `UWSGI_*` variables and a command line. uWSGI stays, without its master, as the worker.

mod ini;
mod options;
mod table;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use nix::unistd::{Group, User, getgid, getuid};
use serde_json::json;

pub use table::TABLE;

use super::draft::Draft;
use super::table::{Fate, find, markdown};
use super::{ImportError, Place, memory, without_program};
use crate::config::key::Key;
use crate::observe::escape::single_line;
use ini::{Opt, Resolved, World};
use options::Takes;

/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// The table, and the options that are passed on, as the guide shows them.
pub fn guide() -> String {
    let all = options::all();
    let passed: Vec<String> =
        all.keys().filter(|name| find(TABLE, name).is_none()).map(|name| format!("`{name}`")).collect();
    let mut text = markdown(TABLE);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\n### Passed on to uWSGI as they are\n\n{}.", passed.join(", "));
    text
}

/// Read what uWSGI would read, and make a draft of it.
///
/// # Errors
/// A file cannot be read, or is wrong.
pub fn import(
    file: Option<&str>,
    words: &[String],
    place: &Place,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Draft, ImportError> {
    let rest = without_program(words, "uwsgi");
    if file.is_none() && rest.is_empty() {
        let message = "what is to be imported? Name an ini file, or a command line (-- uwsgi --ini shop.ini)";
        return Err(ImportError::Text(message.to_owned()));
    }
    let variables = environment.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let (uid, gid) = (getuid(), getgid());
    let name = |name: Option<String>, number: u32| name.unwrap_or_else(|| number.to_string());
    let user = name(User::from_uid(uid).ok().flatten().map(|user| user.name), uid.as_raw());
    let group = name(Group::from_gid(gid).ok().flatten().map(|group| group.name), gid.as_raw());
    let world = World {
        variables: variables.collect(),
        directory: place.directory.clone(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        account: [user, uid.to_string(), group, gid.to_string()],
        read: &read,
    };
    let resolved = ini::resolve(file, rest, &world)?;
    let binary = match words.first() {
        Some(first) if rest.len() < words.len() => first.clone(),
        _ => beside(&place.python),
    };
    Ok(draft(&resolved, &binary, place))
}

/// The uwsgi of the same virtual environment, else the one on PATH.
fn beside(python: &Path) -> String {
    let candidate = python.with_file_name("uwsgi");
    let there = python.is_absolute() && candidate.is_file();
    candidate.to_str().filter(|_| there).unwrap_or("uwsgi").to_owned()
}

fn read(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let facts = file.metadata().map_err(|error| error.to_string())?;
    if !facts.is_file() {
        return Err("not a file".to_owned());
    }
    let mut text = String::new();
    file.take(LARGEST_FILE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > LARGEST_FILE {
        return Err("larger than 1 MiB".to_owned());
    }
    if text.contains('\0') {
        return Err("contains a NUL character".to_owned());
    }
    Ok(text)
}

impl Opt {
    fn shown(&self) -> String {
        let value = match (self.key.as_str(), self.value.split_once('=')) {
            // Variables may be secrets.
            ("env", Some((name, _))) => name,
            _ => &self.value,
        };
        match value {
            "" => format!("{} ({})", self.key, self.origin),
            _ => format!("{} = {} ({})", self.key, single_line(value, 160), self.origin),
        }
    }

    fn was(&self) -> String {
        format!("was: {}", self.shown())
    }

    /// uWSGI's idea of false (`uwsgi_opt_true` in its core).
    fn is_off(&self) -> bool {
        ["false", "off", "no", "0"].iter().any(|word| self.value.eq_ignore_ascii_case(word))
    }

    /// atoi(3): leading digits.
    fn number(&self) -> u64 {
        let digits: String = self.value.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    }
}

/// What is being put together.
struct Work<'a> {
    draft: Draft,
    place: &'a Place,
    resolved: &'a Resolved,
    /// Options that load plugins, which uWSGI must read first.
    plugins: Vec<String>,
    sockets: Vec<String>,
    words: Vec<String>,
    addresses: Vec<String>,
    speaks_http: bool,
}

/// What the options become. Pure.
fn draft(resolved: &Resolved, binary: &str, place: &Place) -> Draft {
    let mut work = Work {
        draft: Draft::new("uWSGI"),
        place,
        resolved,
        plugins: Vec::new(),
        sockets: Vec::new(),
        words: Vec::new(),
        addresses: Vec::new(),
        speaks_http: false,
    };
    work.header();
    work.options();
    work.command(binary);
    work.processes();
    work.accounts();
    work.memory();
    work.times();
    for (what, why) in &resolved.ignored {
        work.draft.refuse(what, why);
    }
    work.draft
}

impl Work<'_> {
    /// The last option of these names, which is the one in force.
    fn last(&self, names: &[&str]) -> Option<&Opt> {
        self.resolved.options.iter().rev().find(|option| names.contains(&option.key.as_str()))
    }

    fn header(&mut self) {
        let mut files: Vec<&str> = Vec::new();
        for file in &self.resolved.files {
            // Each of its sections was read by itself.
            if !files.contains(&file.as_str()) {
                files.push(file);
            }
        }
        let from = if files.is_empty() { "its command line".to_owned() } else { files.join(", ") };
        self.draft.say(format!("Made by `paddock import uwsgi` from {from}."));
        self.draft.say("`paddock check FILE` starts one worker of it on stand-in sockets.");
        self.draft.say(
            "uWSGI without its master is one worker. All of its options that are not about processes are in `command`, with \
             placeholders, variables and conditions as they were here and now; its own files are not read any more.",
        );
        let variables: BTreeSet<&str> = self
            .resolved
            .options
            .iter()
            .map(|option| option.origin.as_str())
            .filter(|origin| origin.starts_with("UWSGI_") && !origin.contains(':'))
            .collect();
        if !variables.is_empty() {
            let names: Vec<&str> = variables.into_iter().collect();
            self.draft.say(format!(
                "TO DO: take {} out of the service's environment: uWSGI would read it again in every worker.",
                names.join(", ")
            ));
        }
    }

    /// Each option into the command, the draft's lists, or left for the keys.
    fn options(&mut self) {
        let known = options::all();
        for (index, option) in self.resolved.options.iter().enumerate() {
            let key = option.key.as_str();
            let Some(facts) = known.get(key) else {
                if self.resolved.used.contains(key) {
                    continue;
                }
                // uWSGI itself takes any name for a placeholder, or for an option of a plugin that is loaded later.
                self.words.push(format!("--set={key}={}", option.value));
                let note = "no option of uWSGI 2.0.31 or its plugins; handed on all the same (--set)";
                self.draft.unknown(&option.shown(), note);
                continue;
            };
            match find(TABLE, key) {
                Some(row) if matches!(row.fate, Fate::Mapped(keys) if keys.contains(&Key::Bind)) => self.socket(option),
                Some(row) => {
                    let mut later = self.resolved.options.iter().skip(index + 1);
                    if matches!(row.fate, Fate::Mapped(_)) && later.any(|later| row.names.contains(&later.key.as_str()))
                    {
                        self.draft.leave_out(&option.shown(), "a later one beats it");
                    }
                    self.draft.list(&option.shown(), row);
                    if matches!(row.fate, Fate::Kept | Fate::Changed) {
                        self.pass(option, facts.takes);
                    }
                }
                None => {
                    self.draft.keep(&option.shown(), "");
                    self.pass(option, facts.takes);
                }
            }
        }
    }

    fn pass(&mut self, option: &Opt, takes: Takes) {
        let word = match takes {
            Takes::Nothing if option.is_off() => return,
            Takes::Nothing => format!("--{}", option.key),
            Takes::Either if option.value.is_empty() => format!("--{}", option.key),
            Takes::Either | Takes::Value => format!("--{}={}", option.key, option.value),
        };
        let list = if option.key.contains("plugin") { &mut self.plugins } else { &mut self.words };
        list.push(word);
    }

    fn socket(&mut self, option: &Opt) {
        let key = match option.key.as_str() {
            "http" | "httprouter" => "http-socket",
            other => other,
        };
        if option.value.starts_with("fd://") {
            self.sockets.push(format!("--{key}={}", option.value));
            self.draft.keep(
                &option.shown(),
                "descriptors from 3 on are what systemd passes in, in the order of its socket unit",
            );
        } else {
            let address = match address(&option.value, self.place) {
                Ok(address) => address,
                Err(reason) => {
                    self.draft.refuse(&option.shown(), reason);
                    return;
                }
            };
            let index = self.addresses.iter().position(|there| *there == address).unwrap_or_else(|| {
                self.addresses.push(address);
                self.addresses.len() - 1
            });
            self.sockets.push(format!("--{key}=fd://{}", 3 + index));
        }
        self.speaks_http |= key == "http-socket";
    }

    fn command(&mut self, binary: &str) {
        let mut words = vec![binary.to_owned()];
        words.append(&mut self.plugins);
        words.append(&mut self.sockets);
        words.append(&mut self.words);
        if self.last(&["need-app"]).is_none() {
            words.push("--need-app".to_owned());
        }
        if self.speaks_http {
            words.push("--add-header=Connection: close".to_owned());
        }
        words.extend(self.resolved.words.iter().cloned());
        let draft = &mut self.draft;
        draft.set(Key::Command, json!(words), "uWSGI without its master.");
        draft.remark(
            Key::Command,
            "--need-app: a release that does not import must fail to start, so that the reload is undone.",
        );
        if self.speaks_http {
            draft.remark(
                Key::Command,
                "Connection: close tells keep-alive clients what --http-socket does anyway after each response.",
            );
        }
        if self.addresses.is_empty() && !words.iter().any(|word| word.contains("=fd://")) {
            draft.remark(
                Key::Command,
                "TO DO: no socket was named: add --http-socket=fd://3, and its address to [listen] bind",
            );
        }
        if let Some(directory) = self.place.directory_text() {
            draft.set(Key::WorkingDirectory, json!(directory), "where the import ran, for relative paths");
        }
        if !self.addresses.is_empty() {
            let was: Vec<String> = self
                .resolved
                .options
                .iter()
                .filter(|option| {
                    find(TABLE, &option.key).is_some_and(|row| matches!(row.fate, Fate::Mapped([Key::Bind])))
                })
                .map(Opt::shown)
                .collect();
            draft.set(Key::Bind, json!(self.addresses), format!("was: {}", was.join("; ")));
            draft.remark(
                Key::Bind,
                "With a socket unit of systemd's, take this out: what it passes in comes first, from fd://3 on.",
            );
        }
        draft.set(Key::DrainSignal, json!("HUP"), "on HUP a uWSGI without master answers what is in flight and ends");
        if let Some((target, threads)) = self.alternative() {
            let other = ["python3", "-m", "paddock_worker", "wsgi", &target, "--threads", &threads].join(" ");
            self.draft.remark(
                Key::Command,
                format!("For a quota of requests and a watchdog, serve the same application with: {other}"),
            );
        }
    }

    /// What `paddock_worker wsgi` would be told.
    fn alternative(&self) -> Option<(String, String)> {
        let module = self.last(&["module", "wsgi"])?;
        let callable = self.last(&["callable"]).map_or("application", |callable| callable.value.as_str());
        let target =
            if module.value.contains(':') { module.value.clone() } else { format!("{}:{callable}", module.value) };
        let threads = self.last(&["threads"]).map_or(1, Opt::number).max(1);
        Some((single_line(&target, 200), threads.to_string()))
    }

    fn processes(&mut self) {
        let option = self.last(&["processes", "workers"]).cloned();
        let (count, was) = match &option {
            Some(option) => (option.number().max(1), option.was()),
            None => (1, "was: none, so one".to_owned()),
        };
        self.draft.set(Key::Workers, json!(count), was);
        let numbers = [("listen", Key::Backlog), ("limit-nproc", Key::TasksMax), ("max-fd", Key::Nofile)];
        for (name, key) in numbers {
            if let Some(option) = self.last(&[name]).cloned() {
                self.draft.set(key, json!(option.number()), option.was());
            }
        }
        if let Some(option) = self.last(&["chmod-socket", "chmod"]).cloned() {
            let mode = if option.value.is_empty() { "666" } else { option.value.trim_start_matches('0') };
            self.draft.set(Key::SocketMode, json!(format!("{mode:0>4}")), option.was());
        }
        if let Some(option) = self.last(&["chown-socket"]).cloned() {
            let (user, group) = option.value.split_once(':').unwrap_or((&option.value, ""));
            for (key, account) in [(Key::SocketUser, user), (Key::SocketGroup, group)] {
                if !account.is_empty() {
                    self.draft.set(key, json!(account), option.was());
                }
            }
        }
    }

    fn accounts(&mut self) {
        for (names, key) in [(["uid", "immediate-uid"], Key::User), (["gid", "immediate-gid"], Key::Group)] {
            if let Some(option) = self.last(&names).cloned() {
                self.draft.set(key, json!(option.value), option.was());
            }
        }
        if let Some(option) = self.last(&["umask"]).cloned() {
            let digits = option.value.trim_start_matches('0');
            self.draft.set(Key::Umask, json!(format!("{digits:0>4}")), option.was());
        }
    }

    fn memory(&mut self) {
        const MEGABYTE: u64 = 1 << 20;
        let limit = |names: &[&str]| {
            let option = self.last(names).filter(|option| option.number() > 0)?;
            let space = if option.key.ends_with("-as") {
                ". Address space is more than memory, so this is too generous: look at the peaks that `paddock status` shows, and take less."
            } else {
                ""
            };
            Some((option.number().saturating_mul(MEGABYTE), format!("{}, in MB{space}", option.was())))
        };
        let soft = limit(&["reload-on-rss"]).or_else(|| limit(&["reload-on-as"]));
        let hard =
            limit(&["evil-reload-on-rss"]).or_else(|| limit(&["limit-as"])).or_else(|| limit(&["evil-reload-on-as"]));
        let given: Vec<String> = self
            .resolved
            .options
            .iter()
            .filter(|option| {
                find(TABLE, &option.key)
                    .is_some_and(|row| matches!(row.fate, Fate::Mapped(keys) if keys.contains(&Key::MemoryMax)))
            })
            .map(Opt::shown)
            .collect();
        if soft.is_none() && hard.is_none() {
            memory::none(&mut self.draft, "uWSGI");
            return;
        }
        let text = |limit: &Option<(u64, String)>| limit.as_ref().map(|(_, was)| was.clone()).unwrap_or_default();
        let bytes = |limit: &Option<(u64, String)>| limit.as_ref().map(|(bytes, _)| *bytes);
        let (soft_was, hard_was) = (text(&soft), text(&hard));
        memory::limits(&mut self.draft, bytes(&soft), bytes(&hard), &soft_was, &hard_was);
        if given.len() > 1 {
            self.draft.remark(Key::MemoryMax, format!("All that was said about memory: {}.", given.join("; ")));
        }
    }

    fn times(&mut self) {
        if let Some(option) = self.last(&["max-worker-lifetime"]).filter(|option| option.number() > 0).cloned() {
            self.draft.set(Key::MaxLifetime, json!(format!("{}s", option.number())), option.was());
        }
        if let Some(option) = self.last(&["max-requests"]).filter(|option| option.number() > 0).cloned() {
            self.draft.suggest(
                Key::MaxRequests,
                json!(option.number()),
                format!(
                    "{}. Nothing counts uWSGI's requests: this is for `python -m paddock_worker wsgi`. For uWSGI itself [memory] \
                     replaces what grows, and max_lifetime what is old.",
                    option.was()
                ),
            );
            self.draft.suggest(Key::MaxLifetime, json!("6h"), "instead of a quota of requests");
        }
        let mercy = self.last(&["worker-reload-mercy"]).or_else(|| self.last(&["reload-mercy"])).cloned();
        let (seconds, was) = match &mercy {
            Some(option) => (option.number().max(1), option.was()),
            None => (60, "uWSGI's default for worker-reload-mercy".to_owned()),
        };
        self.draft.set(Key::TimeoutGraceful, json!(format!("{seconds}s")), was);
        if let Some(harakiri) = self.last(&["harakiri"]).filter(|option| option.number() > seconds).cloned() {
            self.draft.remark(
                Key::TimeoutGraceful,
                format!("TO DO: {} lets a request take longer than a drain may: make this longer.", harakiri.shown()),
            );
        }
    }
}

/// An address of uWSGI's as paddock writes it.
fn address(value: &str, place: &Place) -> Result<String, &'static str> {
    // Options behind a comma belong to other protocols.
    let value = value.trim();
    if value.starts_with('@') || value.starts_with('=') {
        return Err("abstract and shared sockets: name a path or IP:PORT");
    }
    if value.starts_with('/') || !value.contains(':') {
        return match value.parse::<u16>() {
            Ok(port) => Ok(format!("0.0.0.0:{port}")),
            Err(_) if value.is_empty() => Err("no address"),
            Err(_) => Ok(format!("unix:{}", place.directory.join(value).display())),
        };
    }
    let Some((host, port)) = value.rsplit_once(':') else { return Err("no address that paddock knows") };
    let host = match host {
        "" | "*" => "0.0.0.0",
        "localhost" => "127.0.0.1",
        other => other,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match (bare.parse::<std::net::IpAddr>(), port.parse::<u16>()) {
        (Ok(ip), Ok(port)) => Ok(std::net::SocketAddr::new(ip, port).to_string()),
        (_, Err(_)) => Err("no address that paddock knows"),
        (Err(_), _) => Err("paddock does not look names up: write the IP address to [listen] bind"),
    }
}

#[cfg(test)]
mod tests;
