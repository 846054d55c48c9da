//! Celery: an application's settings, a celeryconfig.py and a `celery worker` command line, as Celery itself reads them.

mod table;

use serde::Deserialize;
use serde_json::{Value, json};

pub use table::TABLE;

use super::draft::{Draft, quote};
use super::table::{Fate, find};
use super::{ImportError, Place, memory, python, without_program};
use crate::config::key::Key;
use crate::config::units::render_time;
use crate::observe::escape::single_line;

/// What the script says about a Celery application and its command line.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Facts {
    /// The Python that it ran in.
    python: String,
    /// Celery's version.
    version: String,
    /// Whether paddock_worker is installed there.
    adapter: bool,
    /// What `-A` names.
    target: Option<String>,
    /// Where it ran, `--workdir` considered.
    directory: String,
    /// The broker URL's scheme.
    transport: String,
    /// Whether broker_transport_options has it.
    has_visibility_timeout: bool,
    /// Options before the word `worker`.
    general: Vec<Opt>,
    /// Options behind it.
    worker: Vec<Opt>,
    /// Settings about workers and tasks that are given.
    settings: Vec<Setting>,
    /// Names of other settings that are given.
    others: Vec<String>,
    /// Names that Celery does not know.
    unknown: Vec<String>,
}

/// An option of the command line.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Opt {
    /// In its long form, with dashes.
    flag: String,
    /// None: a flag alone.
    value: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Setting {
    name: String,
    value: Value,
    /// Whether it was given the value that it has anyway.
    is_default: bool,
}

/// The script's answer.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer {
    Missing { missing: String, python: String },
    Wrong { wrong: String },
    Facts(Box<Facts>),
}

const SCRIPT: &str = include_str!("read.py");

/// Read what Celery would read, and make a draft of it.
///
/// # Errors
/// Celery is not there, its configuration fails, or it is not told which application.
pub fn import(app: Option<&str>, config: Option<&str>, words: &[String], place: &Place) -> Result<Draft, ImportError> {
    let words = without_program(words, "celery");
    if app.is_none() && config.is_none() && words.is_empty() {
        let message = "what is to be imported? Name the application (--app shop), a celeryconfig.py, or a command line (-- celery -A shop worker)";
        return Err(ImportError::Text(message.to_owned()));
    }
    let request = json!({ "app": app, "config": config, "arguments": words }).to_string();
    match python::ask(&place.python, SCRIPT, &request)? {
        Answer::Missing { missing, python } => Err(ImportError::Machine(format!(
            "{missing} is not installed in {}: name the Python that runs it with --python",
            single_line(&python, 400)
        ))),
        Answer::Wrong { wrong } => Err(ImportError::Text(single_line(&wrong, 1000))),
        Answer::Facts(facts) => Ok(draft(&facts)),
    }
}

impl Opt {
    fn text(&self) -> Option<String> {
        self.value.as_ref().map(quote)
    }

    fn shown(&self) -> String {
        match self.text() {
            Some(value) => format!("{} {value}", self.flag),
            None => self.flag.clone(),
        }
    }

    fn words(&self) -> Vec<String> {
        match &self.value {
            None => vec![self.flag.clone()],
            Some(value) => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                if text.starts_with('-') {
                    vec![format!("{}={text}", self.flag)]
                } else {
                    vec![self.flag.clone(), text]
                }
            }
        }
    }
}

/// A value, and how to say where it stood.
struct Given {
    value: Value,
    was: String,
}

impl Given {
    /// A whole number, whether it was written as one or as a text.
    fn number(&self) -> Option<u64> {
        match &self.value {
            Value::Number(number) => number.as_u64().or_else(|| {
                // Celery takes 3e2 for a number, too; what is no whole number is not lost, but rounded up.
                number
                    .as_f64()
                    .filter(|number| (0.0..1e15).contains(number))
                    .and_then(|number| format!("{:.0}", number.ceil()).parse().ok())
            }),
            Value::String(text) => text.trim().parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

impl Facts {
    fn option(&self, flag: &str) -> Option<Given> {
        let option = self.worker.iter().chain(&self.general).find(|option| option.flag == flag)?;
        let value = option.value.clone().unwrap_or(Value::Bool(true));
        Some(Given { value, was: format!("was: {} (command line)", option.shown()) })
    }

    fn setting(&self, name: &str) -> Option<Given> {
        let setting = self.settings.iter().find(|setting| setting.name == name && !setting.value.is_null())?;
        Some(Given { value: setting.value.clone(), was: format!("was: {name} = {}", quote(&setting.value)) })
    }

    /// The command line beats the application.
    fn either(&self, flag: &str, name: &str) -> Option<Given> {
        self.option(flag).or_else(|| self.setting(name))
    }
}

/// What the facts become. Pure.
fn draft(facts: &Facts) -> Draft {
    let mut draft = Draft::new("Celery");
    header(&mut draft, facts);
    let pool = pool(&mut draft, facts);
    command(&mut draft, facts, pool);
    draft.set(Key::WorkingDirectory, json!(facts.directory), "where the import found the application");
    processes(&mut draft, facts, pool);
    accounts(&mut draft, facts);
    lives(&mut draft, facts);
    times(&mut draft, facts);
    lists(&mut draft, facts);
    draft
}

fn header(draft: &mut Draft, facts: &Facts) {
    let target = facts.target.as_deref().unwrap_or("its configuration file");
    draft.say(format!("Made by `paddock import celery` from {target}, as Celery {} reads it.", facts.version));
    draft.say(
        "`paddock check --no-start FILE` checks it. Without --no-start a worker would start, and take real tasks. No \
         [listen]: a queue worker has no sockets.",
    );
    if !facts.adapter {
        draft.say(format!("First: {} -m pip install 'paddock-worker[celery]'", facts.python));
    }
    draft.say(
        "Celery goes on reading its own configuration. Settings in it that are paddock's now have no effect; each worker's \
         log names them until you take them out.",
    );
}

/// What runs the tasks of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// As many workers as prefork had children.
    Prefork,
    Solo,
    Threads,
}

fn pool(draft: &mut Draft, facts: &Facts) -> Pool {
    let Some(given) = facts.either("--pool", "worker_pool") else { return Pool::Prefork };
    match given.value.as_str().unwrap_or_default() {
        "prefork" | "processes" => Pool::Prefork,
        "solo" => Pool::Solo,
        "threads" => Pool::Threads,
        other => {
            draft.refuse(
                &format!("the pool {}", single_line(other, 100)),
                "paddock_worker knows solo and threads: threads is written here, see that the tasks can run in it",
            );
            Pool::Threads
        }
    }
}

fn command(draft: &mut Draft, facts: &Facts, pool: Pool) {
    let mut words: Vec<String> = [facts.python.as_str(), "-m", "paddock_worker", "celery"].map(str::to_owned).into();
    let (target, comment) = match &facts.target {
        Some(target) => (target.as_str(), "one Celery worker in one process, where prefork's master had many children"),
        None => ("MODULE:APP", "TO DO: no application was named; put it where MODULE:APP stands"),
    };
    words.extend(["-A".to_owned(), target.to_owned()]);
    let keep = |words: &mut Vec<String>, options: &[Opt]| {
        for option in options.iter().filter(|option| option.flag != "--app" && option.flag != "--pool") {
            if matches!(find(TABLE, &option.flag).map(|row| row.fate), Some(Fate::Kept | Fate::Changed) | None) {
                words.extend(option.words());
            }
        }
    };
    keep(&mut words, &facts.general);
    words.push("worker".to_owned());
    keep(&mut words, &facts.worker);
    match pool {
        Pool::Threads => {
            words.extend(["--pool", "threads"].map(str::to_owned));
            if let Some(threads) = facts.either("--concurrency", "worker_concurrency").and_then(|given| given.number())
            {
                words.extend(["--concurrency".to_owned(), threads.to_string()]);
            }
        }
        // The application may say something else.
        Pool::Solo | Pool::Prefork if facts.setting("worker_pool").is_some() => {
            words.extend(["--pool", "solo"].map(str::to_owned));
        }
        Pool::Solo | Pool::Prefork => {}
    }
    draft.set(Key::Command, json!(words), comment);
}

fn processes(draft: &mut Draft, facts: &Facts, pool: Pool) {
    let concurrency = facts.either("--concurrency", "worker_concurrency");
    let autoscale = facts.option("--autoscale");
    let most = autoscale.as_ref().and_then(|given| given.value.as_str()?.split(',').next()?.trim().parse::<u64>().ok());
    match (pool, most, concurrency) {
        (Pool::Threads, _, given) => {
            draft.set(Key::Workers, json!(1), "one process of many threads, as before; more of them share the queues");
            if let Some(given) = given {
                draft.remark(Key::Workers, format!("{}, the threads of each", given.was));
            }
        }
        (Pool::Solo, ..) => draft.set(Key::Workers, json!(1), "the solo pool was one process"),
        (Pool::Prefork, Some(most), _) => {
            let was = autoscale.map(|given| given.was).unwrap_or_default();
            draft.set(Key::Workers, json!(most.max(1)), format!("{was}, its maximum; `paddock scale` changes it"));
        }
        (Pool::Prefork, None, Some(given)) => match given.number() {
            Some(0) | None => draft.set(Key::Workers, json!("auto"), given.was),
            Some(number) => draft.set(Key::Workers, json!(number), given.was),
        },
        (Pool::Prefork, None, None) => {
            draft.set(Key::Workers, json!("auto"), "was: none, so one for each CPU");
        }
    }
}

fn accounts(draft: &mut Draft, facts: &Facts) {
    for (flag, key) in [("--uid", Key::User), ("--gid", Key::Group)] {
        if let Some(given) = facts.option(flag) {
            draft.set(key, json!(quote(&given.value)), given.was);
        }
    }
    if let Some(given) = facts.option("--umask") {
        let text = quote(&given.value);
        let digits = text.trim_start_matches("0o");
        match u32::from_str_radix(digits, 8) {
            Ok(mask) => draft.set(Key::Umask, json!(format!("{:04o}", mask & 0o777)), given.was),
            Err(_) => draft.refuse(&format!("--umask {text}"), "not an octal number"),
        }
    }
}

fn lives(draft: &mut Draft, facts: &Facts) {
    let quota = facts.either("--max-tasks-per-child", "worker_max_tasks_per_child");
    if let Some((number, given)) = quota.and_then(|given| Some((given.number().filter(|number| *number > 0)?, given))) {
        draft.set(Key::MaxRequests, json!(number), given.was);
        draft.suggest(
            Key::MaxRequestsJitter,
            json!("10%"),
            "Celery has none. First quotas are spread in any case ([recycle] spread), so that workers do not restart together.",
        );
    }
    let limit = facts.either("--max-memory-per-child", "worker_max_memory_per_child");
    match limit.and_then(|given| Some((given.number().filter(|kib| *kib > 0)?, given))) {
        Some((kib, given)) => {
            let was = format!(
                "{} KiB. Celery looked after each task; here a task that outgrows max is ended by the kernel.",
                given.was
            );
            memory::limits(draft, Some(kib.saturating_mul(1024)), None, &was, "");
        }
        None => memory::none(draft, "Celery"),
    }
}

fn times(draft: &mut Draft, facts: &Facts) {
    let limit = facts.setting("task_time_limit").or_else(|| facts.setting("task_soft_time_limit"));
    let seconds = limit.as_ref().and_then(Given::number).filter(|seconds| *seconds > 0);
    if let (Some(seconds), Some(given)) = (seconds, limit) {
        draft.set(
                Key::TimeoutWatchdog,
                json!("30s"),
                format!(
                    "{}: past its limit a task makes its worker ask for a replacement; when every thread of the worker is past \
                     it, this runs out. Tasks within their limits never trip it.",
                    given.was
                ),
            );
        let graceful = std::time::Duration::from_secs(seconds.saturating_add(30).min(u64::from(u32::MAX)));
        let comment = format!("{}, and half a minute: a drain lets the task at hand end", given.was);
        draft.set(Key::TimeoutGraceful, json!(render_time(graceful)), comment);
    } else {
        draft.suggest(
            Key::TimeoutWatchdog,
            json!("30s"),
            "Without task_time_limit it only notices a worker whose loop stands still, never a long task.",
        );
        draft.set(
            Key::TimeoutGraceful,
            json!("10min"),
            "TO DO: make it longer than your longest task: a drain lets the task at hand end, but no longer than this.",
        );
    }
    let acks_late = facts.setting("task_acks_late").is_some_and(|given| given.value == true);
    if acks_late && facts.transport.starts_with("redis") && !facts.has_visibility_timeout {
        draft.say(
            "TO DO: on Redis a killed worker's late-acknowledged tasks come back only after visibility_timeout, an hour unless \
             set. If your tasks are short: app.conf.broker_transport_options = {\"visibility_timeout\": 300, \
             \"unacked_restore_interval\": 5, \"unacked_restore_throttle\": 1}. It must exceed the longest task and the longest eta.",
        );
    }
}

fn lists(draft: &mut Draft, facts: &Facts) {
    for option in facts.general.iter().chain(&facts.worker) {
        match find(TABLE, &option.flag) {
            Some(row) => draft.list(&option.shown(), row),
            None => draft.keep(&option.shown(), "newer than this paddock's table; left to Celery"),
        }
    }
    for setting in &facts.settings {
        let shown = format!("{} = {}", setting.name, quote(&setting.value));
        match find(TABLE, &setting.name) {
            Some(row) => draft.list(&shown, row),
            None => draft.keep(&shown, "newer than this paddock's table; left to Celery"),
        }
    }
    // Values may be secrets (broker_url), and Celery reads them itself.
    for name in &facts.others {
        draft.keep(name, "");
    }
    for name in &facts.unknown {
        draft.unknown(name, "the application's own, or a misspelt setting; Celery keeps it and nobody reads it");
    }
}

#[cfg(test)]
mod tests;
