//! B4, B5, B15, B16: how workers come up, and when the service is ready.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::cgroup;
use crate::support::log::Line;
use crate::support::manager::{App, Manager, SOON};
use crate::support::pace;
use crate::support::suite::{EVERYWHERE, FENCED, Mode, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("b04_each_fence_holds_its_own_tree", FENCED, b04_own_fence);
    suite.add("b05_ready_after_the_slowest_worker", EVERYWHERE, b05_ready);
    suite.add("b05_ready_with_one_slot_in_backoff", &[Mode::None], b05_one_fails);
    suite.add("b05_no_worker_starts", EVERYWHERE, b05_none_starts);
    suite.add("b15_hang_before_ready", EVERYWHERE, b15_start_timeout);
    suite.add("b16_slow_start_lives", EVERYWHERE, b16_slow_start);
    suite.add("b16_extended_start_lives", &[Mode::None], b16_extended);
    suite.add("x_more_workers_than_open_files", &[Mode::None, Mode::Cgroup], x_open_files);
}

/// The manager holds several files for each worker. What it may have open is not what its workers may.
fn x_open_files(mode: Mode) {
    let manager = App::new(mode).set("workers", 24).variable("W_OPEN_FILES", "64").start_ready(24);
    let limits = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit of open files");
        let mut values = line.split_ascii_whitespace().map(str::to_owned);
        (values.next().expect("soft"), values.next().expect("hard"))
    };
    let (soft, hard) = limits(manager.pid());
    assert_eq!(soft, hard, "the manager's own");
    let all_as_before = || {
        for pid in manager.status().ready_pids() {
            assert_eq!(limits(pid), ("64".to_owned(), hard.clone()), "worker {pid}'s");
        }
    };
    all_as_before();
    // The next image of the manager must not take what this one has for what it was given.
    let mark = manager.log.mark();
    manager.signal(Signal::USR2);
    manager.log.wait_after(mark, SOON, "the new image", |line| line.message().starts_with("replaced in place"));
    let before = manager.status().ready_pids();
    assert!(manager.cli("recycle", &["0"]).status.success());
    manager.wait_status(SOON, "a new worker", |status| status.ready_pids().iter().any(|pid| !before.contains(pid)));
    all_as_before();
    manager.stop();
}

fn b04_own_fence(mode: Mode) {
    let manager = App::new(mode).set("workers", 4).worker("direct", 1).start_ready(4);
    let mut groups = BTreeSet::new();
    for pid in manager.status().ready_pids() {
        let daemon = u32::try_from(manager.ask(pid, "/daemon").number("daemon")).expect("a pid");
        let group = cgroup::memory_group_of(pid).expect("a group");
        assert_eq!(cgroup::processes_below(&group), BTreeSet::from([pid, daemon]), "of {}", group.display());
        if mode == Mode::Cgroup {
            assert!(group.starts_with(manager.app.group().memory_dir()), "below the manager's own group");
        }
        assert!(groups.insert(group), "a group of its own");
    }
    assert_eq!(groups.len(), 4);
    manager.stop();
}

fn b05_ready(mode: Mode) {
    let app = App::new(mode).set("workers", 3).worker("ready_delay_ms", 1500);
    let began = Instant::now();
    let mut manager = app.start();
    let told = manager.wait_told_ready(SOON);
    assert!(told - began >= Duration::from_millis(1500), "READY=1 after {:?}", told - began);
    let before = before_service_ready(&manager);
    let readied = before.iter().filter(|line| line.is("worker-ready")).count();
    assert_eq!(readied, 3, "READY=1 before every slot was ready");
    manager.wait_ready(3);
    assert_eq!(manager.notify.count("READY=1"), 1);
    manager.stop();
}

/// What the manager logged before it told systemd. The log and the notify socket are read by different threads here, so
/// only the order within the log is certain.
fn before_service_ready(manager: &Manager) -> Vec<Line> {
    manager.log.wait(SOON, "that the service is ready", |line| line.is("service-ready"));
    manager.log.lines().into_iter().take_while(|line| !line.is("service-ready")).collect()
}

fn b05_one_fails(mode: Mode) {
    let app = App::new(mode).set("workers", 3).set("restart.backoff", "5s").worker("ready_delay_ms", 500);
    let mut manager = app.worker("refuse_slots", "1").start();
    manager.wait_told_ready(SOON);
    let before = before_service_ready(&manager);
    let died = |line: &Line| line.is("worker-died") && line.slot() == Some(1) && line.reason() == "exit";
    assert!(before.iter().any(died), "READY=1 before slot 1 had its outcome");
    let readied = before.iter().filter(|line| line.is("worker-ready")).count();
    assert_eq!(readied, 2, "READY=1 before the other two were ready");
    let status = manager.status();
    assert_eq!(status.ready_pids().len(), 2);
    assert_eq!(status.in_state("backoff").len(), 1);
    manager.stop();
}

fn b05_none_starts(mode: Mode) {
    let mut manager = App::new(mode).set("workers", 2).worker("refuse", 3).start();
    assert_eq!(manager.wait_exit(SOON).code(), Some(1));
    assert_eq!(manager.notify.count("READY=1"), 0);
    manager.log.wait(SOON, "the worker's last words", |line| line.text.contains("the code on disk is broken"));
    manager.assert_nothing_left();
}

fn b15_start_timeout(mode: Mode) {
    // The other two have to be ready by then.
    let start = pace::patient_text(Duration::from_secs(1));
    let app = App::new(mode).set("workers", 3).set("timeouts.start", start.as_str()).set("timeouts.graceful", "1s");
    let mut manager = app.worker("hang_slots", "2").start();
    manager.wait_told_ready(SOON);
    let died = manager.log.wait(SOON, "the death of the worker that hangs", |line| line.is("worker-died"));
    assert_eq!((died.slot(), died.reason()), (Some(2), "start-timeout"), "{died}");
    let started = manager.log.wait(SOON, "its start", |line| line.is("worker-starting") && line.slot() == Some(2));
    assert!(
        died.at - started.at >= pace::patient(Duration::from_millis(950)),
        "killed after {:?}",
        died.at - started.at
    );
    assert_eq!(manager.log.count(|line| line.is("worker-died") && line.slot() != Some(2)), 0);
    assert_eq!(manager.status().ready_pids().len(), 2);
    manager.stop();
}

fn b16_slow_start(mode: Mode) {
    let start = pace::patient_text(Duration::from_secs(10));
    let app = App::new(mode).set("timeouts.start", start).worker("ready_delay_ms", 6000);
    let manager = app.start_ready(1);
    assert_eq!(manager.log.count(|line| line.is("worker-died")), 0, "the slow starter was killed");
    manager.stop();
}

fn b16_extended(mode: Mode) {
    let app = App::new(mode).set("timeouts.start", "1s").worker("ready_delay_ms", 3000).worker("extend_ms", 800);
    let manager = app.start_ready(1);
    assert_eq!(manager.log.count(|line| line.is("worker-died")), 0, "EXTEND_TIMEOUT_USEC did not help");
    manager.stop();
}
