//! `paddock status`: one app or all of them, as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use super::figures::{size, span};
use super::table::{Cell, Column, render};
use super::terminal::{Colour, Look, complain, fail, print};
use crate::control::client::{ClientError, Connection};
use crate::control::directory::Surroundings;
use crate::control::status::{StatusReport, WorkerReport};
use crate::observe::escape::single_line;

/// Show `app`, or every app that has a runtime directory; with `ready`, exit 1 unless every slot is ready.
pub fn run(app: Option<&str>, directory: Option<&Path>, json: bool, ready: bool) -> ExitCode {
    let surroundings = Surroundings::of_process(directory);
    match app {
        Some(app) => match Connection::open(&surroundings, app).and_then(|mut it| it.status()) {
            Ok(report) => {
                if json {
                    print_json(&report);
                } else {
                    print(&table(&report, Look::of_stdout()));
                }
                ExitCode::from(u8::from(ready && !report.every_slot_is_ready()))
            }
            Err(error) => fail(&error),
        },
        None => all(&surroundings, json, ready),
    }
}

fn all(surroundings: &Surroundings, json: bool, ready: bool) -> ExitCode {
    let directories = match surroundings.all() {
        Ok(directories) => directories,
        Err(error) => return fail(&error.into()),
    };
    let mut reports = Vec::new();
    let mut code = 0;
    for directory in &directories {
        match Connection::open_directory(directory).and_then(|mut it| it.status()) {
            Ok(report) => reports.push(report),
            // A clean stop leaves no socket, a manager that died does.
            Err(ClientError::NotRunning { .. }) => {
                if directory.join(crate::control::directory::SOCKET).exists() {
                    complain(&format!(
                        "paddock: the manager that used {} is dead; its workers may be alive",
                        directory.display()
                    ));
                }
            }
            Err(error) => {
                complain(&format!("paddock: {error}"));
                code = error.exit_code();
            }
        }
    }
    if json {
        print_json(&reports);
    } else {
        let look = Look::of_stdout();
        let tables: Vec<String> = reports.iter().map(|report| table(report, look)).collect();
        print(&tables.join("\n"));
    }
    if reports.is_empty() && code == 0 {
        complain("paddock: no app is running");
        return ExitCode::from(3);
    }
    let unready = ready && reports.iter().any(|report| !report.every_slot_is_ready());
    ExitCode::from(if code == 0 { u8::from(unready) } else { code })
}

fn print_json<T: serde::Serialize>(value: &T) {
    // Only maps with keys that are no strings could fail, and there are none.
    if let Ok(text) = serde_json::to_string_pretty(value) {
        print(&(text + "\n"));
    }
}

/// The longest text of a worker's that is shown.
const TEXT: usize = 200;

/// The report for people.
pub fn table(report: &StatusReport, look: Look) -> String {
    let mut text = headline(report, look);
    if report.stopping {
        line(&mut text, &look.paint(Colour::Yellow, "stopping"));
    }
    if let Some(roll) = &report.roll {
        let sentence = format!("rolling to generation {}: {}", roll.generation, harmless(&roll.phase));
        line(&mut text, &look.paint(Colour::Cyan, &sentence));
    }
    if report.mixed {
        let sentence = "mixed: a roll failed halfway and left workers of several generations";
        line(&mut text, &look.paint(Colour::Yellow, sentence));
    }
    if !report.listeners.is_empty() {
        let listeners: Vec<String> = report
            .listeners
            .iter()
            .map(|listener| format!("{} ({})", harmless(&listener.address), harmless(&listener.name)))
            .collect();
        line(&mut text, &format!("listening on {}", listeners.join(", ")));
    }
    let counts: Vec<String> = [("recycles", &report.recycles), ("restarts", &report.restarts)]
        .into_iter()
        .map(|(what, counts)| (what, counted(counts)))
        .filter(|(_, counts)| !counts.is_empty())
        .map(|(what, counts)| format!("{what}: {counts}"))
        .collect();
    if !counts.is_empty() {
        line(&mut text, &counts.join(" · "));
    }
    if !report.workers.is_empty() {
        let rows: Vec<Vec<Cell>> = report.workers.iter().map(row).collect();
        text.push('\n');
        text.push_str(&render(&COLUMNS, &rows, look));
    }
    text
}

fn headline(report: &StatusReport, look: Look) -> String {
    let app = harmless(&report.app);
    let ready = format!("{} of {} ready", report.ready, report.workers_wanted);
    let how = format!("generation {}, isolation {}", report.generation, harmless(&report.isolation));
    let manager = format!("manager {}, up {}, paddock {}", report.pid, span(report.uptime), harmless(&report.version));
    let wide = [&app, &ready, &how, &manager].iter().map(|part| part.chars().count()).sum::<usize>() + 8;
    let colour = if report.every_slot_is_ready() { Colour::Green } else { Colour::Yellow };
    let mut text = format!("{}: {}, {how}", look.paint(Colour::Bold, &app), look.paint(colour, &ready));
    let manager = look.paint(Colour::Dim, &manager);
    // On its own line where there is no room for both.
    if look.width.is_none_or(|width| wide <= width) {
        let _ = writeln!(text, " ({manager})");
    } else {
        text.push('\n');
        line(&mut text, &manager);
    }
    text
}

fn line(text: &mut String, sentence: &str) {
    let _ = writeln!(text, "  {sentence}");
}

const fn column(heading: &'static str, right: bool, expendable: u8) -> Column {
    Column { heading, right, expendable, optional: false, elastic: false }
}

const COLUMNS: [Column; 13] = [
    column("SLOT", true, 0),
    column("PID", true, 0),
    column("GEN", true, 4),
    column("STATE", false, 0),
    column("AGE", true, 3),
    column("REQUESTS", true, 2),
    column("MEMORY", true, 1),
    Column { optional: true, ..column("PEAK", true, 8) },
    Column { optional: true, ..column("LIMIT", true, 5) },
    Column { optional: true, ..column("HEADROOM", true, 9) },
    column("RESTARTS", false, 6),
    column("NEXT", false, 7),
    Column { optional: true, elastic: true, ..column("STATUS", false, 10) },
];

fn row(worker: &WorkerReport) -> Vec<Cell> {
    let number = |value: Option<u64>| Cell::plain(value.map(|it| it.to_string()).unwrap_or_default());
    let bytes = |value: Option<u64>| Cell::plain(value.map(size).unwrap_or_default());
    let memory = &worker.memory;
    vec![
        Cell::plain(worker.slot.to_string()),
        number(worker.pid.map(u64::from)),
        number(worker.generation),
        state(worker),
        Cell::plain(worker.age.map(span).unwrap_or_default()),
        requests(worker),
        used(worker),
        bytes(memory.peak),
        bytes(memory.limit),
        bytes(memory.headroom),
        restarts(worker),
        Cell::plain(next(worker)),
        Cell::plain(worker.status_text.as_deref().map(harmless).unwrap_or_default()),
    ]
}

fn state(worker: &WorkerReport) -> Cell {
    let colour = match worker.state.as_str() {
        "ready" => Colour::Green,
        "starting" => Colour::Cyan,
        "draining" => Colour::Yellow,
        "killing" | "backoff" => Colour::Red,
        _ => Colour::Plain,
    };
    let why = worker.cause.as_ref().or_else(|| worker.last_verdict.as_ref().filter(|_| worker.state == "backoff"));
    let text = match why {
        Some(why) => format!("{} ({})", harmless(&worker.state), harmless(why)),
        None => harmless(&worker.state),
    };
    Cell { text, colour }
}

fn requests(worker: &WorkerReport) -> Cell {
    let served = worker.requests.map_or_else(|| "-".to_owned(), |served| served.to_string());
    let text = match worker.quota {
        Some(quota) => format!("{served}/{quota}"),
        None if worker.requests.is_none() => String::new(),
        None => served,
    };
    let colour = if worker.overrun > 0 { Colour::Yellow } else { Colour::Plain };
    Cell { text, colour }
}

/// What the limits look at, where it is known: what the kernel cannot reclaim; else all that is charged.
fn used(worker: &WorkerReport) -> Cell {
    let memory = &worker.memory;
    let now = memory.unreclaimable.or(memory.current);
    let beyond = |edge: Option<u64>| edge.zip(now).is_some_and(|(edge, now)| now >= edge);
    let colour = if beyond(memory.recycle_at) { Colour::Yellow } else { Colour::Plain };
    Cell { text: now.map(size).unwrap_or_default(), colour }
}

fn restarts(worker: &WorkerReport) -> Cell {
    let text = counted(&worker.restarts);
    let colour = if worker.restarts.contains_key("oom-kill") { Colour::Red } else { Colour::Yellow };
    Cell { text, colour }
}

fn next(worker: &WorkerReport) -> String {
    worker.next_deadline.as_ref().map_or_else(String::new, |deadline| {
        let name = if deadline.name == "backoff" { "start" } else { deadline.name.as_str() };
        format!("{} in {}", harmless(name), span(deadline.in_seconds))
    })
}

/// `2 oom-kill, 1 exit`: the most frequent first.
fn counted(counts: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<(&String, u64)> =
        counts.iter().map(|(name, count)| (name, *count)).filter(|(_, count)| *count > 0).collect();
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let counts: Vec<String> = counts.into_iter().map(|(name, count)| format!("{count} {}", harmless(name))).collect();
    counts.join(", ")
}

/// Text from the other end of the socket, and so perhaps from a worker.
fn harmless(text: &str) -> String {
    single_line(text, TEXT)
}
