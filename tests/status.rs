//! `paddock status` as people see it.

use std::collections::BTreeMap;

use paddock::command::status::table;
use paddock::command::terminal::Look;
use paddock::control::status::{DeadlineReport, ListenerReport, MemoryReport, RollReport, StatusReport, WorkerReport};
use snapbox::{assert_data_eq, file};

const M: u64 = 1 << 20;
const PLAIN: Look = Look { colour: false, width: None };

fn narrow(width: usize) -> Look {
    Look { colour: false, width: Some(width) }
}

fn deadline(name: &str, in_seconds: f64) -> DeadlineReport {
    DeadlineReport { name: name.to_owned(), in_seconds }
}

fn counts<const N: usize>(pairs: [(&str, u64); N]) -> BTreeMap<String, u64> {
    pairs.map(|(name, count)| (name.to_owned(), count)).into()
}

fn memory(now: u64, peak: u64) -> MemoryReport {
    MemoryReport {
        current: Some(now + 40 * M),
        unreclaimable: Some(now),
        peak: Some(peak),
        limit: Some(512 * M),
        recycle_at: Some(410 * M),
        headroom: Some(102 * M),
    }
}

fn ready(slot: u32, pid: u32) -> WorkerReport {
    WorkerReport {
        slot,
        pid: Some(pid),
        generation: Some(3),
        state: "ready".to_owned(),
        age: Some(123.4),
        requests: Some(120),
        quota: Some(1003),
        memory: memory(212 * M + 1000, 340 * M),
        next_deadline: Some(deadline("watchdog", 28.4)),
        fence: Some("paddock-shop-0-1.scope".to_owned()),
        ..Default::default()
    }
}

/// An app with everything going on at once.
fn busy() -> StatusReport {
    let mut leaking = ready(1, 4322);
    leaking.cause = Some("memory".to_owned());
    leaking.memory = memory(431 * M, 431 * M);
    leaking.requests = Some(1010);
    leaking.overrun = 7;
    leaking.restarts = counts([("exit", 1), ("oom-kill", 2)]);
    leaking.state = "draining".into();
    leaking.next_deadline = Some(deadline("graceful", 12.0));
    let mut replacement = ready(1, 4400);
    replacement.generation = Some(4);
    replacement.state = "starting".into();
    replacement.age = Some(0.35);
    replacement.requests = None;
    replacement.memory = MemoryReport { current: Some(11 * M), ..Default::default() };
    replacement.status_text = Some("importing \u{1b}[2Jshop.models, 132 of 214 modules so far".to_owned());
    replacement.next_deadline = Some(deadline("start", 59.65));
    let empty = WorkerReport {
        slot: 2,
        state: "backoff".to_owned(),
        last_verdict: Some("exit".to_owned()),
        restarts: counts([("exit", 5)]),
        next_deadline: Some(deadline("backoff", 0.3)),
        ..Default::default()
    };
    StatusReport {
        app: "shop".to_owned(),
        version: "0.1.0".to_owned(),
        pid: 812,
        since: 1_700_000_000,
        uptime: 10_920.0,
        generation: 3,
        isolation: "scope".to_owned(),
        stopping: false,
        mixed: true,
        roll: Some(RollReport { phase: "canary".to_owned(), generation: 4 }),
        workers_wanted: 3,
        ready: 1,
        workers: vec![ready(0, 4321), leaking, replacement, empty],
        listeners: vec![
            ListenerReport { name: "http".to_owned(), address: "127.0.0.1:8000".to_owned() },
            ListenerReport { name: "admin".to_owned(), address: "unix:/run/shop.sock".to_owned() },
        ],
        recycles: counts([("quota", 12), ("memory", 3), ("reload", 0)]),
        restarts: counts([("oom-kill", 2), ("exit", 6)]),
    }
}

#[test]
fn everything_that_goes_on_is_in_the_table() {
    assert_data_eq!(table(&busy(), PLAIN), file!["golden/status.txt"].raw());
}

#[test]
fn a_narrow_terminal_loses_the_least_important_first() {
    for (width, expected) in [
        (140, file!["golden/status-140.txt"]),
        (100, file!["golden/status-100.txt"]),
        (60, file!["golden/status-60.txt"]),
    ] {
        assert_data_eq!(table(&busy(), narrow(width)), expected.raw());
    }
    for width in 45..200 {
        let text = table(&busy(), narrow(width));
        let rows: Vec<&str> = text.lines().skip_while(|line| !line.contains("SLOT")).collect();
        assert_eq!(rows.len(), 5);
        assert!(rows.iter().all(|row| row.chars().count() <= width), "wider than {width}:\n{text}");
    }
}

#[test]
fn an_app_without_limits_or_counts_shows_no_empty_columns() {
    let mut worker = ready(0, 99);
    worker.memory = MemoryReport { current: Some(30 * M), ..Default::default() };
    (worker.requests, worker.quota, worker.next_deadline) = (None, None, None);
    let report = StatusReport {
        app: "queue".to_owned(),
        version: "0.1.0".to_owned(),
        pid: 7,
        uptime: 5.0,
        generation: 1,
        isolation: "none".to_owned(),
        workers_wanted: 1,
        ready: 1,
        workers: vec![worker],
        ..Default::default()
    };
    assert_data_eq!(table(&report, PLAIN), file!["golden/status-bare.txt"].raw());
}

#[test]
fn colours_appear_only_where_they_are_welcome() {
    let plain = table(&busy(), PLAIN);
    assert!(!plain.contains('\u{1b}'), "a worker's own escape sequence got through");
    let coloured = table(&busy(), Look { colour: true, width: None });
    let mut stripped = String::new();
    for (at, part) in coloured.split("\u{1b}[").enumerate() {
        stripped.push_str(if at == 0 { part } else { part.split_once('m').unwrap().1 });
    }
    let trimmed: Vec<&str> = stripped.lines().map(str::trim_end).collect();
    assert_eq!(trimmed, plain.lines().collect::<Vec<_>>());
    assert!(coloured.contains("\u{1b}[32m"), "nothing is green");
}

#[test]
fn every_slot_is_ready_means_every_wanted_one() {
    let mut report = busy();
    assert!(!report.every_slot_is_ready());
    report.workers = vec![ready(0, 1), ready(1, 2), ready(2, 3)];
    assert!(report.every_slot_is_ready());
    // Two workers of one slot are not two slots.
    report.workers = vec![ready(0, 1), ready(0, 4), ready(1, 2)];
    assert!(!report.every_slot_is_ready());
    // One that drains beside its ready replacement, or after scaling down, is no matter.
    let draining = |slot| WorkerReport { state: "draining".to_owned(), ..ready(slot, 9) };
    report.workers = vec![draining(0), ready(0, 1), ready(1, 2), ready(2, 3), draining(3)];
    assert!(report.every_slot_is_ready());
    // A slot in backoff is, even if a hole is filled elsewhere.
    let waiting = WorkerReport { slot: 7, state: "backoff".to_owned(), ..Default::default() };
    report.workers.push(waiting);
    assert!(!report.every_slot_is_ready());
    report.workers.pop();
    report.stopping = true;
    assert!(!report.every_slot_is_ready());
}

#[test]
fn a_report_of_another_version_is_still_read() {
    let text = r#"{"app": "shop", "novelty": [1], "workers": [{"slot": 1, "colour": "blue"}], "roll": null}"#;
    let report: StatusReport = serde_json::from_str(text).unwrap();
    assert_eq!((report.app.as_str(), report.workers.first().unwrap().slot), ("shop", 1));
    let text = serde_json::to_string(&busy()).unwrap();
    assert_eq!(serde_json::from_str::<StatusReport>(&text).unwrap(), busy());
}
